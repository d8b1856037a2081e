"""A quantized artifact as it is run: what has to be known of it, and a split's images as its stored integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages.artifacts import ImageSpace, Split, normalize
from kdpipe.targets.artifact import read_artifact, weight_bytes
from kdpipe.targets.devices.formats import format_of
from kdpipe.targets.errors import DataError
from kdpipe.targets.graph import Normalization, Quantization
from kdpipe.targets.graph_files import load_graph


@dataclass(frozen=True)
class Quantized:
    """What has to be known of a quantized artifact to run it on images.

    Args:
        path: its directory.
        format: onnx, openvino, tflite, c or integer-graph.
        input_shape: [C, H, W].
        input: quantization of the input.
        output_shape: without the batch.
        classes: names of the outputs, or empty.
        normalization: of the input, where known.
        files: deployable files with their bytes.
        weight_bytes: what its weights alone need, and their scales and biases.
        tensors: by layer, its input first, what stored integers stand for; empty for earlier exports.
    """

    path: Path
    format: str
    input_shape: tuple[int, ...]
    input: Quantization
    output_shape: tuple[int, ...]
    classes: tuple[str, ...]
    normalization: Normalization | None
    files: tuple[tuple[str, int], ...]
    weight_bytes: Mapping[str, int]
    tensors: Mapping[str, Quantization]


def first_images(split: Split, samples: int | None) -> Split:
    """Return the first `samples` images of a split, or all if None.

    Raises:
        DataError: it has fewer.
    """
    if samples is None:
        return split
    if samples > len(split):
        raise DataError(f"the split {split.name!r} has {len(split)} images, fewer than the {samples} asked for")
    return Split(split.name, split.images[:samples], split.labels[:samples], split.space)


def describe_artifact(artifact: Path) -> Quantized:
    """Read what has to be known of an export or an integer graph.

    Raises:
        ArtifactError: the directory does not hold what it must.
    """
    artifact_format = format_of(artifact)
    if artifact_format == "integer-graph":
        graph = load_graph(artifact)
        return Quantized(
            artifact,
            artifact_format,
            graph.input.shape,
            graph.input.quantization,
            graph.output.shape,
            graph.class_names,
            graph.normalization,
            files_of(artifact),
            weight_bytes(graph, {node.name: weight.bits for node, weight in graph.weights()}),
            graph.quantizations(),
        )
    described = read_artifact(artifact)
    return Quantized(
        artifact,
        artifact_format,
        described.input.shape,
        described.input.quantization,
        described.output.shape,
        described.classes,
        described.normalization,
        described.sizes(artifact),
        described.weight_bytes,
        described.tensors,
    )


def files_of(directory: Path) -> tuple[tuple[str, int], ...]:
    """Return every file below a directory, with its bytes."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return tuple((path.relative_to(directory).as_posix(), path.stat().st_size) for path in paths)


def check_fit(where: Path, shape: Sequence[int], outputs: int, classes: Sequence[str], data: Split) -> None:
    """Check a network against a split.

    Args:
        where: the network.
        shape: that it takes, [C, H, W].
        outputs: how many numbers it returns.
        classes: names of its outputs, or empty.
        data: the split.

    Raises:
        DataError: the images or the classes don't fit.
    """
    if tuple(shape) != data.space.shape:
        raise DataError(
            f"takes images of shape {list(shape)}, but the split {data.name!r} has {list(data.space.shape)}",
            where=str(where),
        )
    if outputs != len(data.space.classes):
        raise DataError(
            f"tells {outputs} classes apart, but the split {data.name!r} has {len(data.space.classes)}",
            where=str(where),
        )
    if classes and tuple(classes) != data.space.classes:
        raise DataError(
            f"its classes are {_few(classes)}, but the split {data.name!r} has {_few(data.space.classes)}",
            where=str(where),
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def stored_inputs(quantized: Quantized, data: Split) -> NDArray[np.int8]:
    """Return the images as the network's stored integers, normalized as it was trained (or as the split says)."""
    space = data.space
    if quantized.normalization is not None:
        space = ImageSpace(space.shape, space.classes, quantized.normalization.mean, quantized.normalization.std)
    return quantized.input.quantize(normalize(data.images, space).numpy())
