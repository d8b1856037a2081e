"""The real numbers that stand for an integer graph's in an OpenVINO IR: ends of levels, limits, biases, windows.

They are the integer graph's own, but where OpenVINO 2026.4's CPU plugin computes something else with them. Imports no
openvino: what an exported file should hold is known without it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.errors import UnsupportedError
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
    Quantization,
    Requantize,
    Slice,
    Softmax,
    Upsample,
)

LEVELS = 256
"""Of every FakeQuantize: fewer are not run in integers."""
SMALLEST_SCALE = 2e-8
"""Below, with a margin of about 2, OpenVINO 2026.4's CPU plugin takes FakeQuantize's range for empty: wrong values."""
SMALLEST_LIMIT = 2e-6
"""A range that reaches less far below zero the plugin takes, with a margin of about 2, for one that begins at zero."""
COARSE, COARSE_TERM = 16, 2
"""Of how many steps of its reader one step may be, before what float32 loses in a zero is seen there; and a sum's term,
before it is seen that the plugin adds what a convolution gives without rounding it."""
ROUNDING = (Conv2d, Linear, Add, Mul, Lookup, Softmax, AveragePool2d, Requantize)
"""The operators whose results are rounded; the others only choose or move what is."""


def first_level(q: Quantization) -> int:
    """Return the first of a tensor's levels, in steps from zero: zero itself where nothing lies below it."""
    return 0 if q.qmin >= q.zero_point else -128 - q.zero_point


def first_levels(q: Quantization, *, from_coarser: bool = False) -> tuple[int, ...]:
    """Return the first level of each FakeQuantize that one behind the other rounds to a tensor's steps.

    OpenVINO moves a Clamp to before the steps that are read, and there its limits lie between two of them where these
    are coarser. So levels that end at the largest, and levels that begin at the smallest, limit instead. What is
    joined is to have the same levels: the last are those that every tensor of this quantization has.
    """
    usual = first_level(q)
    if not from_coarser:
        return (usual,)
    limiting = (q.qmax - q.zero_point - (LEVELS - 1), q.qmin - q.zero_point)
    return (*(first for first in limiting if first != usual), usual)


def level_ends(q: Quantization, first: int) -> tuple[np.float32, np.float32]:
    """Return the smallest and the largest of the levels of which the first is `first` steps from zero."""
    low, high = (np.float32(q.scale) * np.float32(level) for level in (first, first + LEVELS - 1))
    return low, high


def limits(q: Quantization) -> tuple[float, float] | None:
    """Return a tensor's limits as real numbers, None where its levels are all that int8 has."""
    if (q.qmin, q.qmax) == (-128, 127):
        return None
    low, high = (float(np.float32(q.scale) * (limit - q.zero_point)) for limit in (q.qmin, q.qmax))
    return low, high


def is_from_coarser(graph: IntegerGraph, node: Node) -> bool:
    """Whether a node rounds what lies on coarser steps: limits between finer ones are less than one of its own away."""
    if not isinstance(node.op, Requantize):
        return False
    return graph.tensor(node.inputs[0]).quantization.scale > node.output.quantization.scale


def is_too_coarse(graph: IntegerGraph, node: Node) -> tuple[bool, ...]:
    """Return for each input whether its steps are so coarse that it is to be brought onto them before it is read.

    FakeQuantize that is computed in float32 gives a zero that is off by up to 3e-5 of a step.
    """
    output = node.output.quantization.scale
    scales = [graph.tensor(name).quantization.scale for name in node.inputs]
    if isinstance(node.op, Mul):
        return (255 * scales[0] * scales[1] / output > COARSE,) * 2
    if not isinstance(node.op, Add | Lookup | Requantize):
        return (False,) * len(scales)
    return tuple(scale / output > (COARSE_TERM if isinstance(node.op, Add) else COARSE) for scale in scales)


def to_steps_and_back(q: Quantization) -> tuple[np.float32, np.float32]:
    """Return what real numbers are multiplied with before, and after, they are rounded to whole steps."""
    return np.float32(1 / q.scale), np.float32(q.scale)


def real_bias(op: Conv2d | Linear, source: Quantization, output: Quantization) -> NDArray[np.float32]:
    """Return the bias as real numbers, float32 [O].

    One that alone drives the output to an end of its range goes no farther than that takes: OpenVINO shifts the range
    by the bias, and float32 has not all whole numbers beyond 2**24.
    """
    units = source.scale * op.weight.scales.astype(np.float64)
    magnitudes = np.abs(op.weight.values.astype(np.int64)).reshape(len(units), -1).sum(axis=1)
    reach = units * magnitudes * max(source.qmax - source.zero_point, source.zero_point - source.qmin)
    lowest, highest = (output.scale * (limit - output.zero_point) for limit in (output.qmin - 1, output.qmax + 1))
    return np.clip(op.bias * units, lowest - reach, highest + reach).astype(np.float32)


def needs_second_column(node: Node, op: Conv2d) -> bool:
    """Whether the plugin would take the only column for a row, and mistake strides or read beyond the padding."""
    return node.output.shape[2] == 1 < node.output.shape[1] and max(op.stride) > 1


def window(node: Node, op: Conv2d) -> tuple[list[int], ...]:
    """Return a convolution's stride, padding before, padding after and dilation.

    They are the operator's, but where OpenVINO 2026.4's CPU plugin crashes or computes something else.
    """
    # The dilation of a single tap means nothing; the plugin reads beyond the input.
    dilation = [step if taps > 1 else 1 for step, taps in zip(op.dilation, op.weight.values.shape[2:], strict=True)]
    before, after, stride = list(op.padding[:2]), list(op.padding[2:]), list(op.stride)
    if needs_second_column(node, op):
        after[1] += stride[1]
    return stride, before, after, dilation


def check_scale(q: Quantization, first: int, tensor: str) -> None:
    """Raise unless OpenVINO computes rightly with levels of which the first is `first` steps from zero.

    Raises:
        UnsupportedError: the steps are too small; names the layer.
    """
    smallest = max(SMALLEST_SCALE, -SMALLEST_LIMIT / first if first < 0 else 0.0)
    if q.scale < smallest:
        raise UnsupportedError(
            f"OpenVINO computes wrong values with steps below {smallest:.3g}; this layer's is {q.scale:.3g}",
            where=f"layer {tensor}",
            remedy="Its outputs are practically constant: train longer, or choose another target",
        )


def check_window(graph: IntegerGraph, node: Node, op: Conv2d) -> None:
    """Raise unless one of a convolution's windows reaches its input.

    Raises:
        UnsupportedError: none does; names the layer.
    """
    sizes, outputs = graph.tensor(node.inputs[0]).shape[1:], node.output.shape[1:]
    stride, before, _, dilation = window(node, op)
    for axis in (0, 1):
        starts = np.arange(outputs[axis])[:, None] * stride[axis] - before[axis]
        read = starts + np.arange(op.weight.values.shape[2 + axis]) * dilation[axis]
        if not ((read >= 0) & (read < sizes[axis])).any():
            raise UnsupportedError(
                "OpenVINO crashes on a convolution of which no window reaches its input",
                where=f"layer {node.name}",
                remedy="Its outputs are constant: use a smaller padding, or choose another target",
            )


def tensor_constants(q: Quantization, *, from_coarser: bool = False) -> dict[str, NDArray[Any]]:
    """Return what rounds to a tensor's steps: `levels`, for each FakeQuantize the ends of what it takes and gives and
    their number, and `limits`.
    """
    ends = [level_ends(q, first) for first in first_levels(q, from_coarser=from_coarser)]
    clamped = None if from_coarser else limits(q)
    return {
        "levels": np.array([number for low, high in ends for number in (low, high, low, high, LEVELS)], np.float32),
        "limits": np.array(clamped or (), np.float32),
    }


def layer_constants(graph: IntegerGraph, node: Node) -> dict[str, NDArray[Any]]:
    """Return every number that the IR has for a layer, but for its weights and their scales, by what it is."""
    op, output = node.op, node.output.quantization
    found: dict[str, NDArray[Any]] = {"levels": np.zeros(0, np.float32), "limits": np.zeros(0, np.float32)}
    if isinstance(op, ROUNDING):
        found = tensor_constants(output, from_coarser=is_from_coarser(graph, node))
    sources = [graph.tensor(name).quantization for name in node.inputs]
    coarse = zip(sources, is_too_coarse(graph, node), strict=True)
    found["coarse_steps"] = np.array([n for q, is_coarse in coarse if is_coarse for n in to_steps_and_back(q)])
    if isinstance(op, Conv2d | Linear):
        found["real_bias"] = real_bias(op, sources[0], output)
    found["window"], found["arguments"] = _window_numbers(node), np.array(_arguments(node), np.float64)
    return found


def _window_numbers(node: Node) -> NDArray[np.int64]:
    op = node.op
    if isinstance(op, Conv2d):
        return np.array(window(node, op), np.int64).reshape(-1)
    if isinstance(op, MaxPool2d | AveragePool2d):
        padding = op.padding if isinstance(op, MaxPool2d) else (0, 0, 0, 0)
        return np.array([*op.stride, *padding, *op.kernel], np.int64)
    return np.zeros(0, np.int64)


def _arguments(node: Node) -> list[float]:
    """Return what operators that move tensors or mix features are told, in the order of their inputs and attributes."""
    op = node.op
    if isinstance(op, Conv2d) and needs_second_column(node, op):
        return [0, 1, 1, 3]
    if isinstance(op, Slice):
        return [op.start, op.stop, 1, 1]
    if isinstance(op, Upsample):
        return [*op.factor, 2, 3]
    if isinstance(op, Flatten):
        return [0, -1]
    if isinstance(op, ChannelShuffle):
        return [1, op.groups]
    return [1] if isinstance(op, Concat | Softmax) else []
