"""What an operator's output is before it is rounded, as real numbers: what any correct rounding is a rounding of.

Runtimes that requantize in floating point (ONNX, OpenVINO, TFLite's optimized kernels) need not give the integer
graph's integers, but they must give a rounding of these numbers. That is what tells a rounding from a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.graph import (
    Add,
    AveragePool2d,
    Conv2d,
    Linear,
    Lookup,
    Mul,
    Operator,
    Requantize,
    Softmax,
    TensorType,
)
from kdpipe.targets.lookup import FUNCTIONS
from kdpipe.targets.reference import convolution_sums, linear_sums, window_sums

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]


def unrounded(
    op: Operator, inputs: Sequence[NDArray[Any]], types: Sequence[TensorType], output: TensorType
) -> Reals | None:
    """Return an operator's output in steps, zero point included, limited to its range: float64 [N, *output.shape].

    Args:
        op: the operator.
        inputs: stored integers, each int8 [N, *shape]; of an Add, float64 where a number was never rounded.
        types: what they stand for.
        output: what the output's integers stand for.

    Returns:
        None for operators that only move integers or choose among them, and round nothing.
    """
    compute = _OPERATORS.get(type(op))
    if compute is None:
        return None
    q = output.quantization
    values = [value if value.dtype == np.float64 else value.astype(np.int64) for value in inputs]
    limited: Reals = np.clip(compute(op, values, types, output), q.qmin, q.qmax)
    return limited


def _real(values: Integers | Reals, tensor: TensorType) -> Reals:
    q = tensor.quantization
    real: Reals = q.scale * (values - q.zero_point).astype(np.float64)
    return real


def _stored(real: Reals, output: TensorType) -> Reals:
    return real / output.quantization.scale + output.quantization.zero_point


def _conv2d(op: Conv2d, values: list[Integers], types: Sequence[TensorType], output: TensorType) -> Reals:
    source = types[0].quantization
    units = source.scale * op.weight.scales.astype(np.float64)
    return _stored(convolution_sums(op, values[0], source) * units[:, None, None], output)


def _linear(op: Linear, values: list[Integers], types: Sequence[TensorType], output: TensorType) -> Reals:
    source = types[0].quantization
    return _stored(linear_sums(op, values[0], source) * (source.scale * op.weight.scales.astype(np.float64)), output)


def _add(op: Add, values: Sequence[Integers | Reals], types: Sequence[TensorType], output: TensorType) -> Reals:
    return _stored(_real(values[0], types[0]) + _real(values[1], types[1]), output)


def _mul(op: Mul, values: list[Integers], types: Sequence[TensorType], output: TensorType) -> Reals:
    return _stored(_real(values[0], types[0]) * _real(values[1], types[1]), output)


def _lookup(op: Lookup, values: list[Integers], types: Sequence[TensorType], output: TensorType) -> Reals:
    return _stored(FUNCTIONS[op.function](_real(values[0], types[0])), output)


def _softmax(op: Softmax, values: list[Integers], types: Sequence[TensorType], output: TensorType) -> Reals:
    real = _real(values[0], types[0])
    powers = np.exp(real - real.max(axis=1, keepdims=True))
    return _stored(powers / powers.sum(axis=1, keepdims=True), output)


def _average_pool2d(
    op: AveragePool2d, values: list[Integers], types: Sequence[TensorType], output: TensorType
) -> Reals:
    return window_sums(op, values[0]) / (op.kernel[0] * op.kernel[1])


def _requantize(op: Requantize, values: list[Integers], types: Sequence[TensorType], output: TensorType) -> Reals:
    return _stored(_real(values[0], types[0]), output)


_OPERATORS: dict[type, Callable[[Any, list[Any], Sequence[TensorType], TensorType], Reals]] = {
    Conv2d: _conv2d,
    Linear: _linear,
    Add: _add,
    Mul: _mul,
    Lookup: _lookup,
    Softmax: _softmax,
    AveragePool2d: _average_pool2d,
    Requantize: _requantize,
}
