"""A quantized model wherever it comes from: kdpipe's own directory, or a QDQ ONNX file that others made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from kdpipe.targets.graph import IntegerGraph
from kdpipe.targets.graph_files import load_graph, save_graph

ONNX_SUFFIX = ".onnx"


def is_onnx_file(path: Path) -> bool:
    """Whether `path` is a file that is to be read as ONNX."""
    return path.is_file() and path.suffix.lower() == ONNX_SUFFIX


def load_model(path: Path) -> IntegerGraph:
    """Return the integer graph at `path`: a directory that `save_graph` wrote, or a QDQ ONNX file.

    Raises:
        ArtifactError: it is missing, unreadable or damaged.
        UnsupportedError: the ONNX file is not quantized, or has what has no integer form; names the node.
        GraphError: the graph it describes is invalid.
        MissingDependencyError: the file is ONNX, and onnx is not installed.
    """
    if is_onnx_file(path):
        from kdpipe.targets.qdq.reader import read_graph

        return read_graph(path)
    return load_graph(path)


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
