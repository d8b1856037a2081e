"""An integer graph as two files: graph.json (structure) and weights.safetensors (constants)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.errors import ArtifactError, KdpipeError, placed
from kdpipe.targets.graph import (
    Add,
    AveragePool2d,
    ChannelShuffle,
    Concat,
    Conv2d,
    Flatten,
    IntegerGraph,
    Linear,
    Lookup,
    MaxPool2d,
    Mul,
    Node,
    Normalization,
    Operator,
    Quantization,
    Requantize,
    Slice,
    Softmax,
    TensorType,
    Upsample,
    Weight,
)
from kdpipe.targets.json_files import MALFORMED, read_json, read_text

FORMAT = 1
KIND = "integer-graph"
"""What the artifact is called in pipelines."""
STRUCTURE_FILE, CONSTANTS_FILE = "graph.json", "weights.safetensors"
_PLAIN_OPERATORS: dict[str, type] = {
    operator.__name__: operator
    for operator in (
        *(Add, Mul, Lookup, Softmax, Concat, Slice, ChannelShuffle, Upsample),
        *(MaxPool2d, AveragePool2d, Flatten, Requantize),
    )
}


def save_graph(graph: IntegerGraph, directory: Path) -> None:
    """Write `graph` into `directory`, which must exist."""
    from safetensors.numpy import save_file

    constants: dict[str, NDArray[Any]] = {}
    nodes = []
    for node in graph.nodes:
        if isinstance(node.op, Conv2d | Linear):
            constants[f"{node.name}.weight"] = np.ascontiguousarray(node.op.weight.values)
            constants[f"{node.name}.scales"] = np.ascontiguousarray(node.op.weight.scales)
            constants[f"{node.name}.bias"] = np.ascontiguousarray(node.op.bias)
        nodes.append(
            {
                "name": node.name,
                "op": _operator_to_json(node.op),
                "inputs": list(node.inputs),
                "output": asdict(node.output),
            }
        )
    structure = {
        "format": FORMAT,
        "name": graph.name,
        "rounding": graph.rounding,
        "input_name": graph.input_name,
        "input": asdict(graph.input),
        "nodes": nodes,
        "class_names": list(graph.class_names),
        "normalization": asdict(graph.normalization) if graph.normalization else None,
        "metadata": dict(graph.metadata),
    }
    save_file(constants, directory / CONSTANTS_FILE)
    (directory / STRUCTURE_FILE).write_text(json.dumps(structure, indent=1) + "\n", encoding="utf-8")


def graph_key(directory: Path) -> str:
    """Return the SHA-256 of the files that `save_graph` wrote: what report.json calls the graph's `sha256`.

    Raises:
        ArtifactError: one is missing or unreadable.
    """
    try:
        files = [
            [name, hashlib.sha256((directory / name).read_bytes()).hexdigest()]
            for name in sorted((STRUCTURE_FILE, CONSTANTS_FILE))
        ]
    except OSError as error:
        raise ArtifactError(f"can't be read ({error.strerror})", where=str(error.filename or directory)) from None
    return hashlib.sha256(json.dumps([KIND, files], separators=(",", ":")).encode()).hexdigest()


def load_graph(directory: Path) -> IntegerGraph:
    """Read the graph that `save_graph` wrote into `directory`.

    Raises:
        ArtifactError: a file is missing, unreadable or does not describe a graph.
        GraphError: the graph it describes is invalid.
    """
    path = directory / STRUCTURE_FILE
    try:
        structure = read_json(path)
        if structure["format"] != FORMAT:
            raise ArtifactError(
                f"integer graph format {structure['format']}, this kdpipe reads {FORMAT}", where=str(path)
            )
        constants = _load_constants(directory / CONSTANTS_FILE)
        with placed(str(path)):
            return _graph_from_json(structure, constants)
    except KdpipeError:
        raise
    except FileNotFoundError as error:
        raise ArtifactError(
            f"no integer graph here: {Path(error.filename or path).name} is missing",
            where=str(directory),
            remedy="Give the directory of a quantized model, such as runs/NAME/model",
        ) from None
    except MALFORMED as error:
        raise ArtifactError(f"not a readable integer graph ({error})", where=str(path)) from None


def _load_constants(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = path.read_bytes()
    try:
        return load(content)
    except (SafetensorError, *MALFORMED) as error:
        raise ArtifactError(f"not a readable file of constants ({error})", where=str(path)) from None


def _operator_to_json(op: Operator) -> dict[str, Any]:
    if isinstance(op, Conv2d):
        return {
            "type": "Conv2d",
            "bits": op.weight.bits,
            "stride": op.stride,
            "padding": op.padding,
            "dilation": op.dilation,
            "groups": op.groups,
        }
    if isinstance(op, Linear):
        return {"type": "Linear", "bits": op.weight.bits}
    return {"type": type(op).__name__, **asdict(op)}


def _graph_from_json(structure: dict[str, Any], constants: dict[str, NDArray[Any]]) -> IntegerGraph:
    normalization = structure["normalization"]
    return IntegerGraph(
        name=structure["name"],
        input_name=read_text(structure["input_name"]),
        input=_tensor_from_json(structure["input"]),
        nodes=tuple(_node_from_json(node, constants) for node in structure["nodes"]),
        rounding=structure["rounding"],
        class_names=tuple(map(read_text, structure["class_names"])),
        normalization=normalization and Normalization(tuple(normalization["mean"]), tuple(normalization["std"])),
        metadata=structure["metadata"],
    )


def _node_from_json(node: dict[str, Any], constants: dict[str, NDArray[Any]]) -> Node:
    name = read_text(node["name"])
    with placed(f"layer {name}"):
        operator = _operator_from_json(name, node["op"], constants)
        return Node(name, operator, tuple(node["inputs"]), _tensor_from_json(node["output"]))


def _tensor_from_json(tensor: dict[str, Any]) -> TensorType:
    return TensorType(tuple(tensor["shape"]), Quantization(**tensor["quantization"]))


def _operator_from_json(name: str, op: dict[str, Any], constants: dict[str, NDArray[Any]]) -> Operator:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in op.items()}
    kind = fields.pop("type")
    if kind in _PLAIN_OPERATORS:
        operator: Operator = _PLAIN_OPERATORS[kind](**fields)
        return operator
    weight = Weight(constants[f"{name}.weight"], constants[f"{name}.scales"], fields.pop("bits"))
    if kind == "Conv2d":
        return Conv2d(weight, constants[f"{name}.bias"], **fields)
    if kind == "Linear":
        return Linear(weight, constants[f"{name}.bias"], **fields)
    raise ArtifactError(f"unknown operator {kind!r}")
