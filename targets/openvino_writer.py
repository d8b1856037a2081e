"""OpenVINO's nodes by the integer graph's terms: constants at their width, weights, rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.dependencies import require
from kdpipe.targets.graph import Conv2d, IntegerGraph, Linear, Node, Quantization, Weight
from kdpipe.targets.openvino_numbers import (
    LEVELS,
    check_scale,
    first_levels,
    is_from_coarser,
    is_too_coarse,
    level_ends,
    limits,
    real_bias,
    to_steps_and_back,
)
from kdpipe.targets.packing import pack_lowest_first

OUTPUT_SUFFIX = "/output"


def tensor_name(layer: str) -> str:
    """Return the name in the IR of a layer's output; the layer itself has its own name there."""
    return f"{layer}{OUTPUT_SUFFIX}"


class Writer:
    """Makes openvino nodes, and keeps the memory of their constants, which must live until the model is saved."""

    def __init__(self, openvino: Any) -> None:
        self.openvino = openvino
        self.ops = require("openvino.opset13", "openvino")
        self._memory: list[NDArray[Any]] = []

    def constant(self, values: NDArray[Any] | np.floating[Any]) -> Any:
        """Return a constant."""
        return self.ops.constant(values)

    def named(self, node: Any, layer: str) -> Any:
        """Let `node` be known as what gives the output of `layer`, and return it."""
        node.set_friendly_name(layer)
        node.output(0).get_tensor().set_names({tensor_name(layer)})
        return node

    def weight(self, node: Node, weight: Weight, shape: tuple[int, ...], scale_shape: tuple[int, ...]) -> Any:
        """Store weights at their width in `shape`, and return them as real numbers."""
        values, kinds, name = weight.values.reshape(shape), self.openvino.Type, f"{node.name}/weight"
        if weight.bits == 2:
            stored = self._packed_constant(values + np.int8(1), kinds.u2, 2, name)
            integers = self.ops.subtract(self.ops.convert(stored, "i8"), self.constant(np.array(1, np.int8)))
        elif weight.bits == 8:
            integers = self.ops.constant(values, name=name)
        else:
            integers = self.ops.convert(self._packed_constant(values, kinds.i4, 4, name), "i8")
        scales = self.constant(weight.scales.reshape(scale_shape))
        return self.ops.multiply(self.ops.convert(integers, "f32"), scales)

    def round_tensor(self, real: Any, tensor: str, q: Quantization, *, from_coarser: bool = False) -> Any:
        """Round `real` to the steps of `tensor`, and limit it to their range.

        Args:
            real: what is rounded.
            tensor: name of the layer whose output it becomes.
            q: its steps.
            from_coarser: whether `real` lies on coarser steps.

        Raises:
            UnsupportedError: the steps are too small for OpenVINO.
        """
        if not from_coarser and (clamped := limits(q)) is not None:
            real = self.ops.clamp(real, *clamped)
        for first in first_levels(q, from_coarser=from_coarser):
            check_scale(q, first, tensor)
            low, high = (self.constant(end) for end in level_ends(q, first))
            real = self.ops.fake_quantize(real, low, high, low, high, LEVELS)
        return self.named(real, tensor)

    def round(self, real: Any, graph: IntegerGraph, node: Node) -> Any:
        """Round what a node has computed."""
        coarser = is_from_coarser(graph, node)
        return self.round_tensor(real, node.name, node.output.quantization, from_coarser=coarser)

    def round_sums(self, sums: Any, graph: IntegerGraph, node: Node, op: Conv2d | Linear) -> Any:
        """Add the bias to [N, O, ...], and round."""
        bias = real_bias(op, graph.tensor(node.inputs[0]).quantization, node.output.quantization)
        axes_behind = len(node.output.shape) - 1
        return self.round(self.ops.add(sums, self.constant(bias.reshape(1, -1, *[1] * axes_behind))), graph, node)

    def on_steps(self, inputs: list[Any], graph: IntegerGraph, node: Node) -> list[Any]:
        """Return what a node reads, exactly on its steps where these are too coarse for it otherwise."""
        found = []
        for real, name, is_coarse in zip(inputs, node.inputs, is_too_coarse(graph, node), strict=True):
            if is_coarse:
                before, after = (self.constant(f) for f in to_steps_and_back(graph.tensor(name).quantization))
                steps = self.ops.round(self.ops.multiply(real, before), "half_to_even")
                found.append(self.ops.multiply(steps, after))
            else:
                found.append(real)
        return found

    def _packed_constant(self, values: NDArray[np.int8], kind: Any, bits: int, name: str) -> Any:
        # openvino.Tensor shares this array's memory.
        packed = np.frombuffer(pack_lowest_first(values, bits), np.uint8).copy()
        self._memory.append(packed)
        shape = self.openvino.Shape(list(values.shape))
        return self.ops.constant(self.openvino.Tensor(packed, shape, kind), name=name)
