"""The integer graph computed in NumPy: the definition of every operator, to the bit.

Written to be read, not to be fast: each function is its operator's equation (see `graph.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from kdpipe.targets.errors import GraphError
from kdpipe.targets.fixed_point import (
    Rounding,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
    quantize_multipliers,
)
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
    Operator,
    Padding,
    Pair,
    Quantization,
    Requantize,
    Slice,
    Softmax,
    TensorType,
    Upsample,
)
from kdpipe.targets.lookup import lookup_table
from kdpipe.targets.softmax import softmax

Integers = NDArray[np.int64]


def run(graph: IntegerGraph, inputs: NDArray[np.int8]) -> NDArray[np.int8]:
    """Compute the graph.

    Args:
        graph: what to compute.
        inputs: stored integers, int8 [N, *graph.input.shape].

    Returns:
        The output's stored integers, int8 [N, *graph.output.shape].

    Raises:
        GraphError: the inputs have another shape or type, or leave the input's range.
    """
    return run_all(graph, inputs)[graph.output_name]


def run_all(graph: IntegerGraph, inputs: NDArray[np.int8]) -> dict[str, NDArray[np.int8]]:
    """Compute the graph and return every tensor by name, the input included, each int8 [N, *shape]."""
    if inputs.shape[1:] != graph.input.shape or inputs.dtype != np.int8:
        raise GraphError(
            f"takes int8 [N, {', '.join(map(str, graph.input.shape))}], got {inputs.dtype} {list(inputs.shape)}",
            where=f"input {graph.input_name}",
        )
    limits = graph.input.quantization
    if inputs.size and (inputs.min() < limits.qmin or inputs.max() > limits.qmax):
        raise GraphError(f"a value lies outside [{limits.qmin}, {limits.qmax}]", where=f"input {graph.input_name}")
    tensors = {graph.input_name: inputs}
    for node in graph.nodes:
        types = [graph.tensor(name) for name in node.inputs]
        values = [tensors[name] for name in node.inputs]
        tensors[node.name] = compute(node.op, values, types, node.output, graph.rounding)
    return tensors


def compute(
    op: Operator,
    inputs: Sequence[NDArray[np.int8]],
    types: list[TensorType],
    output: TensorType,
    rounding: Rounding,
) -> NDArray[np.int8]:
    """Compute one operator on stored integers, each int8 [N, *shape]; `types` and `output` say what they stand for."""
    values = [value.astype(np.int64) for value in inputs]
    stored: NDArray[np.int8] = _OPERATORS[type(op)](op, values, types, output, rounding).astype(np.int8)
    return stored


def _requantize(
    accumulator: Integers, multiplier: Integers | int, shift: Integers | int, output: Quantization, rounding: Rounding
) -> Integers:
    scaled = multiply_by_quantized_multiplier(accumulator, multiplier, shift, rounding)
    clamped: Integers = np.clip(scaled + output.zero_point, output.qmin, output.qmax)
    return clamped


def _channel_factors(op: Conv2d | Linear, source: Quantization, output: Quantization) -> tuple[Integers, Integers]:
    # In double precision and in this order, as TFLite derives it from the scales in the file.
    return quantize_multipliers(source.scale * op.weight.scales.astype(np.float64) / output.scale)


def _pad(values: Integers, padding: Padding, fill: int) -> Integers:
    top, left, bottom, right = padding
    return np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)


def _windows(values: Integers, kernel: Pair, stride: Pair, dilation: Pair = (1, 1)) -> Integers:
    """Return every window of `values [N, C, H, W]` as [N, C, OH, OW, KH, KW]."""
    span = ((kernel[0] - 1) * dilation[0] + 1, (kernel[1] - 1) * dilation[1] + 1)
    views = sliding_window_view(values, span, axis=(2, 3))
    return views[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def convolution_sums(op: Conv2d, values: Integers, source: Quantization) -> Integers:
    """Return the accumulators, bias included, [N, O, OH, OW], of stored integers [N, C, H, W]."""
    centred = _pad(values - source.zero_point, op.padding, 0)
    weights = op.weight.values.astype(np.int64)
    outputs, per_group, *kernel = weights.shape
    windows = _windows(centred, (kernel[0], kernel[1]), op.stride, op.dilation)
    batch, _, height, width, *_ = windows.shape
    columns = windows.reshape(batch, op.groups, per_group, height, width, *kernel)
    rows = weights.reshape(op.groups, outputs // op.groups, per_group, *kernel)
    # float64 holds these sums exactly (the graph bounds them below 2**31) and multiplies far faster than int64.
    accumulator = np.einsum("ngihwuv,goiuv->ngohw", columns.astype(np.float64), rows.astype(np.float64), optimize=True)
    accumulator = accumulator.reshape(batch, outputs, height, width).astype(np.int64)
    sums: Integers = accumulator + op.bias.astype(np.int64)[:, None, None]
    return sums


def _conv2d(
    op: Conv2d, values: list[Integers], types: list[TensorType], output: TensorType, rounding: Rounding
) -> Integers:
    source = types[0].quantization
    accumulator = convolution_sums(op, values[0], source)
    multiplier, shift = _channel_factors(op, source, output.quantization)
    return _requantize(accumulator, multiplier[:, None, None], shift[:, None, None], output.quantization, rounding)


def linear_sums(op: Linear, values: Integers, source: Quantization) -> Integers:
    """Return the accumulators, bias included, [N, O], of stored integers [N, I]."""
    sums: Integers = (values - source.zero_point) @ op.weight.values.astype(np.int64).T + op.bias.astype(np.int64)
    return sums


def _linear(
    op: Linear, values: list[Integers], types: list[TensorType], output: TensorType, rounding: Rounding
) -> Integers:
    source = types[0].quantization
    accumulator = linear_sums(op, values[0], source)
    multiplier, shift = _channel_factors(op, source, output.quantization)
    return _requantize(accumulator, multiplier, shift, output.quantization, rounding)


ADD_LEFT_SHIFT = 20


def add_factors(first: Quantization, second: Quantization, output: Quantization) -> list[tuple[int, int]]:
    """Return (multiplier, shift) of Add's first input, its second input and its output."""
    twice_max = 2.0 * max(first.scale, second.scale)
    return [
        quantize_multiplier(first.scale / twice_max),
        quantize_multiplier(second.scale / twice_max),
        quantize_multiplier(twice_max / (2**ADD_LEFT_SHIFT * output.scale)),
    ]


def _add(op: Add, values: list[Integers], types: list[TensorType], output: TensorType, rounding: Rounding) -> Integers:
    first, second = types[0].quantization, types[1].quantization
    *inputs, (multiplier, shift) = add_factors(first, second, output.quantization)
    total = np.zeros_like(values[0])
    for value, source, factor in zip(values, (first, second), inputs, strict=True):
        shifted = (value - source.zero_point) << ADD_LEFT_SHIFT
        total += multiply_by_quantized_multiplier(shifted, *factor, rounding)
    return _requantize(total, multiplier, shift, output.quantization, rounding)


def mul_factor(first: Quantization, second: Quantization, output: Quantization) -> tuple[int, int]:
    """Return (multiplier, shift) of Mul's product."""
    return quantize_multiplier(first.scale * second.scale / output.scale)


def _mul(op: Mul, values: list[Integers], types: list[TensorType], output: TensorType, rounding: Rounding) -> Integers:
    first, second = types[0].quantization, types[1].quantization
    product = (values[0] - first.zero_point) * (values[1] - second.zero_point)
    factor = mul_factor(first, second, output.quantization)
    return _requantize(product, *factor, output.quantization, rounding)


def _lookup(
    op: Lookup, values: list[Integers], types: list[TensorType], output: TensorType, rounding: Rounding
) -> Integers:
    table = lookup_table(op, types[0].quantization, output.quantization)
    return table[values[0] + 128].astype(np.int64)


def _softmax(
    op: Softmax, values: list[Integers], types: list[TensorType], output: TensorType, rounding: Rounding
) -> Integers:
    return softmax(values[0], types[0].quantization.scale)


def _concat(
    op: Concat, values: list[Integers], types: list[TensorType], output: TensorType, rounding: Rounding
) -> Integers:
    return np.concatenate(values, axis=1)


def _slice(
    op: Slice, values: list[Integers], types: list[TensorType], output: TensorType, rounding: Rounding
) -> Integers:
    return values[0][:, op.start : op.stop]


def _channel_shuffle(
    op: ChannelShuffle, values: list[Integers], types: list[TensorType], output: TensorType, rounding: Rounding
) -> Integers:
    channels = np.arange(output.shape[0])
    return values[0][:, channels % op.groups * (len(channels) // op.groups) + channels // op.groups]


def _upsample(
    op: Upsample, values: list[Integers], types: list[TensorType], output: TensorType, rounding: Rounding
) -> Integers:
    rows, columns = (np.arange(size) // factor for size, factor in zip(output.shape[1:], op.factor, strict=True))
    return values[0][:, :, rows[:, None], columns]


def _max_pool2d(
    op: MaxPool2d, values: list[Integers], types: list[TensorType], output: TensorType, rounding: Rounding
) -> Integers:
    padded = _pad(values[0], op.padding, types[0].quantization.qmin)
    largest: Integers = _windows(padded, op.kernel, op.stride).max(axis=(4, 5))
    return largest


def window_sums(op: AveragePool2d, values: Integers) -> Integers:
    """Return the sum of each window, [N, C, OH, OW], of stored integers [N, C, H, W]."""
    sums: Integers = _windows(values, op.kernel, op.stride).sum(axis=(4, 5))
    return sums


def _average_pool2d(
    op: AveragePool2d, values: list[Integers], types: list[TensorType], output: TensorType, rounding: Rounding
) -> Integers:
    count = op.kernel[0] * op.kernel[1]
    total = window_sums(op, values[0])
    mean = np.sign(total) * ((np.abs(total) + count // 2) // count)
    clamped: Integers = np.clip(mean, output.quantization.qmin, output.quantization.qmax)
    return clamped


def _flatten(
    op: Flatten, values: list[Integers], types: list[TensorType], output: TensorType, rounding: Rounding
) -> Integers:
    return values[0].reshape(len(values[0]), -1)


def _requantize_op(
    op: Requantize, values: list[Integers], types: list[TensorType], output: TensorType, rounding: Rounding
) -> Integers:
    source = types[0].quantization
    factor = quantize_multiplier(source.scale / output.quantization.scale)
    return _requantize(values[0] - source.zero_point, *factor, output.quantization, rounding)


_OPERATORS: dict[type, Callable[[Any, list[Integers], list[TensorType], TensorType, Rounding], Integers]] = {
    Conv2d: _conv2d,
    Linear: _linear,
    Add: _add,
    Mul: _mul,
    Lookup: _lookup,
    Softmax: _softmax,
    Concat: _concat,
    Slice: _slice,
    ChannelShuffle: _channel_shuffle,
    Upsample: _upsample,
    MaxPool2d: _max_pool2d,
    AveragePool2d: _average_pool2d,
    Flatten: _flatten,
    Requantize: _requantize_op,
}
