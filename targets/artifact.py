"""artifact.json: what an exported directory says about itself, so that it can be run without the run it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from kdpipe.targets.errors import ArtifactError, GraphError, KdpipeError
from kdpipe.targets.fixed_point import Rounding
from kdpipe.targets.graph import Conv2d, IntegerGraph, Linear, Normalization, Quantization, TensorType
from kdpipe.targets.json_files import MALFORMED, read_json

FORMAT = 1
FILE = "artifact.json"
INPUT_NAME, OUTPUT_NAME = "input", "logits"
"""What every exported file calls its one input and its one output."""
LAYOUTS = ("NCHW", "NHWC")
TYPES = ("float32", "int8")


@dataclass(frozen=True)
class ArtifactTensor:
    """An input or output as the exported file has it.

    Args:
        name: as the file's format names it.
        shape: without the batch and channels first, as in the integer graph.
        quantization: what stored integers stand for; also of a float32 tensor, whose values lie on these steps.
        type: of the elements in the file, float32 or int8.
        layout: how the file orders an image's axes, NCHW or NHWC; None for an output.
    """

    name: str
    shape: tuple[int, ...]
    quantization: Quantization
    type: str
    layout: str | None = None


@dataclass(frozen=True)
class ExportedArtifact:
    """The contents of artifact.json.

    Args:
        target: the exporter's name: onnx, openvino, tflite or c.
        name: the graph's.
        files: what is to be deployed, relative to the directory, with / between folders.
        input: the one input.
        output: the one output.
        classes: a name for each output, or empty.
        normalization: of the input, where known.
        rounding: of the integer graph.
        weight_bits: by layer, the width at which it was trained.
        stored_bits: by layer, the width at which this file stores it.
        weight_bytes: {"values": packed at `stored_bits`, "scales_and_biases": 4 bytes for each of both}.
        kdpipe_version: that wrote it.
        key: of the integer graph (see `model_files.load_model`), or "" where it was never stored.
        core: of C sources, the core that they were written for; "" for other targets, and for earlier exports.
        tensors: by layer of the integer graph, its input first, what the stored integers stand for; empty for earlier
            exports.
    """

    target: str
    name: str
    files: tuple[str, ...]
    input: ArtifactTensor
    output: ArtifactTensor
    classes: tuple[str, ...]
    normalization: Normalization | None
    rounding: Rounding
    weight_bits: Mapping[str, int]
    stored_bits: Mapping[str, int]
    weight_bytes: Mapping[str, int]
    kdpipe_version: str
    key: str
    core: str = ""
    tensors: Mapping[str, Quantization] = field(default_factory=dict)

    def sizes(self, directory: Path) -> tuple[tuple[str, int], ...]:
        """Return each deployable file with its bytes.

        Raises:
            ArtifactError: one is missing.
        """
        sizes = []
        for name in self.files:
            path = directory / name
            if not path.is_file():
                raise ArtifactError(f"{name} is missing", where=str(directory), remedy="Export it again")
            sizes.append((name, path.stat().st_size))
        return tuple(sizes)


def kdpipe_version() -> str:
    """Return the installed version, or "unknown" where kdpipe is imported without being installed."""
    try:
        return version("kdpipe")
    except PackageNotFoundError:
        return "unknown"


def describe(
    graph: IntegerGraph,
    *,
    target: str,
    files: Sequence[str],
    input_type: str,
    layout: str,
    stored_bits: Mapping[int, int],
    linear_stored_bits: Mapping[int, int] | None = None,
) -> ExportedArtifact:
    """Describe an export of `graph`.

    Args:
        graph: what was exported.
        target: the exporter's name.
        files: deployable files relative to the directory.
        input_type: of the input and the output in the file, float32 or int8.
        layout: of the input in the file.
        stored_bits: the width at which the target stores convolutions' weights, by the width they have.
        linear_stored_bits: likewise for linear layers; as convolutions' if None.
    """
    bits = {node.name: weight.bits for node, weight in graph.weights()}
    stored = {}
    for node, weight in graph.weights():
        widths = stored_bits if isinstance(node.op, Conv2d) else (linear_stored_bits or stored_bits)
        stored[node.name] = widths[weight.bits]
    return ExportedArtifact(
        target=target,
        name=graph.name,
        files=tuple(files),
        input=_tensor(INPUT_NAME, graph.input, input_type, layout),
        output=_tensor(OUTPUT_NAME, graph.output, input_type, None),
        classes=graph.class_names,
        normalization=graph.normalization,
        rounding=graph.rounding,
        weight_bits=bits,
        stored_bits=stored,
        weight_bytes=weight_bytes(graph, stored),
        kdpipe_version=kdpipe_version(),
        key=graph.metadata.get("key", ""),
        tensors=graph.quantizations(),
    )


def weight_bytes(graph: IntegerGraph, stored_bits: Mapping[str, int]) -> dict[str, int]:
    """Return the bytes that the weights alone need, and apart from them their scales and biases at 4 bytes each.

    Args:
        graph: whose weights.
        stored_bits: by layer, the width of its weights.
    """
    values = sum((weight.values.size * stored_bits[node.name] + 7) // 8 for node, weight in graph.weights())
    layers = [node.op for node in graph.nodes if isinstance(node.op, Conv2d | Linear)]
    constants = sum(4 * (layer.weight.scales.size + layer.bias.size) for layer in layers)
    return {"values": values, "scales_and_biases": constants}


def properties(graph: IntegerGraph) -> dict[str, Any]:
    """Return what every exported file says about itself, as JSON values by name.

    They are `classes`, `weight_bits` by layer, `rounding`, `kdpipe_version`, the graph's own `metadata` (its `key`),
    and where the normalization is known `mean` and `std`.
    """
    found: dict[str, Any] = {
        **graph.metadata,
        "classes": list(graph.class_names),
        "weight_bits": {node.name: weight.bits for node, weight in graph.weights()},
        "rounding": graph.rounding,
        "kdpipe_version": kdpipe_version(),
    }
    if graph.normalization:
        found.update(mean=list(graph.normalization.mean), std=list(graph.normalization.std))
    return found


def properties_as_text(graph: IntegerGraph) -> dict[str, str]:
    """Return `properties` for formats that know only text: what is no text already as JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        for name, value in properties(graph).items()
    }


def write_artifact(artifact: ExportedArtifact, directory: Path) -> None:
    """Write artifact.json into `directory`."""
    document = {
        "format": FORMAT,
        "target": artifact.target,
        "name": artifact.name,
        "files": list(artifact.files),
        "input": _tensor_to_json(artifact.input),
        "output": _tensor_to_json(artifact.output),
        "classes": list(artifact.classes),
        "mean": list(artifact.normalization.mean) if artifact.normalization else None,
        "std": list(artifact.normalization.std) if artifact.normalization else None,
        "rounding": artifact.rounding,
        "weight_bits": dict(artifact.weight_bits),
        "stored_bits": dict(artifact.stored_bits),
        "weight_bytes": dict(artifact.weight_bytes),
        "kdpipe_version": artifact.kdpipe_version,
        "key": artifact.key,
        "core": artifact.core,
        "tensors": {name: asdict(quantization) for name, quantization in artifact.tensors.items()},
    }
    (directory / FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_artifact(directory: Path) -> ExportedArtifact:
    """Read and check artifact.json.

    Raises:
        ArtifactError: the file is missing or unreadable, lacks something, or names a file outside `directory`.
    """
    path = directory / FILE
    try:
        document = read_json(path)
        if document["format"] != FORMAT:
            raise ArtifactError(f"format {document['format']}, this kdpipe reads {FORMAT}", where=str(path))
        return _from_json(document)
    except FileNotFoundError:
        raise ArtifactError(
            f"no exported artifact here: {FILE} is missing",
            where=str(directory),
            remedy="Give a directory that kdpipe export wrote, such as runs/NAME/export/onnx",
        ) from None
    except KdpipeError as error:
        raise ArtifactError(error.message, where=str(path), remedy=error.remedy) from None
    except MALFORMED as error:
        raise ArtifactError(f"not a readable artifact.json ({error})", where=str(path)) from None


def _tensor(name: str, tensor: TensorType, element_type: str, layout: str | None) -> ArtifactTensor:
    return ArtifactTensor(name, tensor.shape, tensor.quantization, element_type, layout)


def _tensor_to_json(tensor: ArtifactTensor) -> dict[str, Any]:
    document = {
        "name": tensor.name,
        "shape": list(tensor.shape),
        **asdict(tensor.quantization),
        "type": tensor.type,
    }
    return document if tensor.layout is None else {**document, "layout": tensor.layout}


def _tensor_from_json(document: Mapping[str, Any], *, has_layout: bool) -> ArtifactTensor:
    tensor = ArtifactTensor(
        str(document["name"]),
        tuple(int(size) for size in document["shape"]),
        _quantization(document),
        document["type"],
        document["layout"] if has_layout else None,
    )
    if tensor.type not in TYPES:
        raise GraphError(f"tensor {tensor.name} has type {tensor.type!r}, expected one of {TYPES}")
    if has_layout and tensor.layout not in LAYOUTS:
        raise GraphError(f"tensor {tensor.name} has layout {tensor.layout!r}, expected one of {LAYOUTS}")
    return tensor


def _quantization(document: Mapping[str, Any]) -> Quantization:
    return Quantization(
        float(document["scale"]), int(document["zero_point"]), int(document["qmin"]), int(document["qmax"])
    )


def _relative(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or ":" in name or "\\" in name:
        raise ArtifactError(f"the file {name!r} lies outside the directory")
    return name


def _from_json(document: Mapping[str, Any]) -> ExportedArtifact:
    if (document["mean"] is None) != (document["std"] is None):
        raise ArtifactError("mean and std must both be there, or neither")
    normalization = (
        None
        if document["mean"] is None
        else Normalization(tuple(map(float, document["mean"])), tuple(map(float, document["std"])))
    )
    if document["rounding"] not in ("tflite", "single"):
        raise ArtifactError(f"unknown rounding {document['rounding']!r}")
    return ExportedArtifact(
        target=str(document["target"]),
        name=str(document["name"]),
        files=tuple(_relative(str(name)) for name in document["files"]),
        input=_tensor_from_json(document["input"], has_layout=True),
        output=_tensor_from_json(document["output"], has_layout=False),
        classes=tuple(map(str, document["classes"])),
        normalization=normalization,
        rounding=document["rounding"],
        weight_bits={str(name): int(bits) for name, bits in document["weight_bits"].items()},
        stored_bits={str(name): int(bits) for name, bits in document["stored_bits"].items()},
        weight_bytes={str(name): int(count) for name, count in document["weight_bytes"].items()},
        kdpipe_version=str(document["kdpipe_version"]),
        key=str(document["key"]),
        core=str(document.get("core", "")),
        tensors={str(name): _quantization(tensor) for name, tensor in document.get("tensors", {}).items()},
    )
