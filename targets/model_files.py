"""A quantized model wherever it comes from: kdpipe's own directory, or a QDQ ONNX file that others made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from kdpipe.targets.graph import IntegerGraph
from kdpipe.targets.graph_files import graph_key, load_graph, save_graph

ONNX_SUFFIX = ".onnx"


def is_onnx_file(path: Path) -> bool:
    """Whether `path` is a file that is to be read as ONNX."""
    return path.is_file() and path.suffix.lower() == ONNX_SUFFIX


def load_model(path: Path) -> IntegerGraph:
    """Return the integer graph at `path`: a directory that `save_graph` wrote, or a QDQ ONNX file.

    Its metadata has as `key` what tells it from every other: `graph_key` of the directory, or the SHA-256 of the file.

    Raises:
        ArtifactError: it is missing, unreadable or damaged.
        UnsupportedError: the ONNX file is not quantized, or has what has no integer form; names the node.
        GraphError: the graph it describes is invalid.
        MissingDependencyError: the file is ONNX, and onnx is not installed.
    """
    if is_onnx_file(path):
        from kdpipe.targets.qdq.reader import read_graph

        return _with_key(read_graph(path), hashlib.sha256(path.read_bytes()).hexdigest())
    return _with_key(load_graph(path), graph_key(path))


def _with_key(graph: IntegerGraph, key: str) -> IntegerGraph:
    return replace(graph, metadata={**graph.metadata, "key": key})


@contextmanager
def as_graph_directory(path: Path) -> Iterator[Path]:
    """Yield `path`, or if it is an ONNX file, a directory for the time being with the integer graph that it holds.

    Raises:
        KdpipeError: as `load_model`.
    """
    if not is_onnx_file(path):
        yield path
        return
    graph = load_model(path)
    with TemporaryDirectory(prefix="kdpipe-") as directory:
        save_graph(graph, Path(directory))
        yield Path(directory)
