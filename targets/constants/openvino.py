"""The constants in an OpenVINO IR: scales. Zero points and biases are within ranges and real numbers there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.artifact import read_artifact
from kdpipe.targets.dependencies import require
from kdpipe.targets.errors import DeviceError
from kdpipe.targets.openvino import STRUCTURE_FILE


def read(artifact: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """Return, by layer that rounds, the step of its output and, where it has weights, their scales."""
    described = read_artifact(artifact)
    openvino = require("openvino", "openvino")
    try:
        model = openvino.Core().read_model(artifact / STRUCTURE_FILE)
    except RuntimeError as error:
        raise DeviceError(f"the model can't be read ({error})", where=str(artifact / STRUCTURE_FILE)) from None
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for node in model.get_ops():
        name = node.get_friendly_name().removesuffix("/columns")
        if node.get_type_name() != "FakeQuantize" or name not in described.tensors:
            continue
        ends = [_constant(_input(node, index)) for index in (3, 4)]
        found[name] = {"scale": _step(ends, np.float32(described.tensors[name].scale))}
        scales = _weight_scales(node)
        if scales is not None:
            found[name]["weight_scales"] = scales
    return found


def _step(ends: list[NDArray[np.float32]], declared: np.float32) -> NDArray[np.float32]:
    """Return the step of 256 levels between two ends; the declared one, if these are its own ends."""
    low, high = (np.float32(end.reshape(-1)[0]) for end in ends)
    first = np.rint(np.float64(low) / np.float64(declared))
    own = [declared * np.float32(level) for level in (first, first + 255)]
    return np.array(declared if own == [low, high] else (np.float64(high) - low) / 255, np.float32)


def _weight_scales(rounding: Any) -> NDArray[np.float32] | None:
    """Return the scales that a convolution's or linear layer's weights are multiplied with, float32 [O]."""
    node = _input(rounding, 0)
    for expected in ("Clamp", "Add"):
        if node.get_type_name() == expected:
            node = _input(node, 0)
    if node.get_type_name() not in ("Convolution", "GroupConvolution", "MatMul"):
        return None
    scales: NDArray[np.float32] = _constant(_input(_input(node, 1), 1)).reshape(-1)
    return scales


def _input(node: Any, index: int) -> Any:
    return node.input_value(index).get_node()


def _constant(node: Any) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.array(node.get_data(), np.float32)
    return values
