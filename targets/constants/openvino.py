"""The constants in an OpenVINO IR: every number of its .bin, and those of its .xml that a layer computes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.artifact import read_artifact
from kdpipe.targets.dependencies import require
from kdpipe.targets.errors import DeviceError
from kdpipe.targets.openvino import STRUCTURE_FILE
from kdpipe.targets.openvino_writer import tensor_name
from kdpipe.targets.packing import unpack_lowest_first

_WEIGHTY = ("Convolution", "GroupConvolution", "MatMul")
_POOLS = ("AvgPool", "MaxPool")
_BITS = {"u2": 2, "i4": 4}
_WINDOW = ("strides", "pads_begin", "pads_end")
_ARGUMENTS = {"ShuffleChannels": ("axis", "group"), "Concat": ("axis",), "Softmax": ("axis",)}


def read(artifact: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """Return, by layer, what `openvino_numbers.layer_constants` says it should have, its weights and their scales.

    Of layers that round also the step and, where the levels tell it, the zero point.
    """
    described = read_artifact(artifact)
    openvino = require("openvino", "openvino")
    try:
        model = openvino.Core().read_model(artifact / STRUCTURE_FILE)
    except RuntimeError as error:
        raise DeviceError(f"the model can't be read ({error})", where=str(artifact / STRUCTURE_FILE)) from None
    layers = {tensor_name(name): name for name in described.tensors}
    ends = {}
    for node in model.get_ops():
        names = node.output(0).get_tensor().get_names() if node.get_output_size() else ()
        ends.update({layers[name]: node for name in names if name in layers})
    others = {node.get_name() for node in ends.values()}
    return {
        name: _constants(_operations(node, others), np.float32(described.tensors[name].scale))
        for name, node in ends.items()
    }


def _operations(end: Any, others: set[str]) -> list[Any]:
    """Return the operations that compute a layer, in an order in which they can be, from the layers before it on."""
    found: dict[str, Any] = {}

    def visit(node: Any) -> None:
        if node.get_name() in found or node.get_type_name() == "Parameter":
            return
        for index in range(node.get_input_size()):
            source = _input(node, index)
            if source.get_name() not in others:
                visit(source)
        found[node.get_name()] = node

    visit(end)
    return list(found.values())


def _constants(operations: list[Any], declared: np.float32) -> dict[str, NDArray[Any]]:
    """Return a layer's constants by what they are; `declared` is the step that artifact.json says it has."""
    levels, limits, coarse, arguments, window = [], [], [], [], []
    found: dict[str, NDArray[Any]] = {}
    for node in operations:
        kind, constants, attributes = node.get_type_name(), _input_constants(node), node.get_attributes()
        if kind == "FakeQuantize":
            levels += [*(float(constant.reshape(-1)[0]) for constant in constants), attributes["levels"]]
        elif kind == "Clamp":
            limits += [attributes["min"], attributes["max"]]
        elif kind in _WEIGHTY:
            found |= _weights(node)
            if kind != "MatMul":
                window += [number for name in (*_WINDOW, "dilations") for number in attributes[name]]
        elif kind in _POOLS:
            window += [number for name in (*_WINDOW, "kernel") for number in attributes[name]]
        elif kind == "Add" and constants:
            found["real_bias"] = constants[0].reshape(-1)
        elif kind == "Multiply" and constants and _input(node, 0).get_type_name() != "Convert":
            coarse.append(float(constants[0]))
        elif kind in ("Slice", "Reshape", "Interpolate"):
            arguments += [number for constant in constants for number in constant.reshape(-1).tolist()]
        arguments += [attributes[name] for name in _ARGUMENTS.get(kind, ())]
    if levels:
        found |= _steps(levels[-5:], declared)
    return found | {
        "levels": np.array(levels, np.float32),
        "limits": np.array(limits, np.float32),
        "coarse_steps": np.array(coarse, np.float32),
        "window": np.array(window, np.int64),
        "arguments": np.array(arguments, np.float64),
    }


def _steps(levels: list[float], declared: np.float32) -> dict[str, NDArray[Any]]:
    """Return the step of the levels that are given; the declared one, if their ends are its own.

    The zero point is absent where the levels begin at zero: then they don't tell it.
    """
    *_, low, high, count = levels
    first = np.rint(np.float64(low) / np.float64(declared))
    own = [float(declared * np.float32(level)) for level in (first, first + count - 1)]
    scale = declared if own == [low, high] else (np.float64(high) - low) / (count - 1)
    found = {"scale": np.array(scale, np.float32)}
    return found if low == 0 else {**found, "zero_point": np.array(-128 - first, np.int64)}


def _weights(node: Any) -> dict[str, NDArray[Any]]:
    """Return a convolution's or linear layer's integer weights, flat, and the scales that they are multiplied with."""
    real = _input(node, 1)
    stored, zero_point = _input(_input(real, 0), 0), np.int64(0)
    if stored.get_type_name() == "Subtract":
        stored, zero_point = _input(stored, 0), _data(_input(stored, 1)).astype(np.int64).reshape(-1)[0]
    if stored.get_type_name() == "Convert":
        stored = _input(stored, 0)
    kind = stored.get_output_element_type(0).get_type_name()
    values = _data(stored).reshape(-1)
    if kind in _BITS:
        count = int(np.prod(list(stored.get_output_shape(0))))
        values = unpack_lowest_first(values.tobytes(), count, _BITS[kind], signed=kind.startswith("i"))
    return {"weights": values.astype(np.int64) - zero_point, "weight_scales": _data(_input(real, 1)).reshape(-1)}


def _input_constants(node: Any) -> list[NDArray[Any]]:
    sources = [_input(node, index) for index in range(node.get_input_size())]
    return [_data(source) for source in sources if source.get_type_name() == "Constant"]


def _input(node: Any, index: int) -> Any:
    return node.input_value(index).get_node()


def _data(constant: Any) -> NDArray[Any]:
    return np.array(constant.get_data())
