"""What each ONNX operator of a QDQ file does to the values that it reads; see `values.py` for those.

Each function takes the reader and the file's node, and returns the value of the node's first output, or None where
an earlier one has defined it. Source: ONNX operators, https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.errors import GraphError, UnsupportedError
from kdpipe.targets.graph import Quantization
from kdpipe.targets.qdq.elements import channel_slice, concatenation, function, product, reshape, resize, softmax, split
from kdpipe.targets.qdq.layers import channel_line, convolution, linear
from kdpipe.targets.qdq.onnx_file import Constant, FileNode
from kdpipe.targets.qdq.pools import average_pool, flatten, global_average_pool, max_pool, reduce_mean
from kdpipe.targets.qdq.values import (
    RANGES,
    Dequantized,
    Grouped,
    Real,
    Steps,
    Stored,
    Sum,
    Value,
    offset_of,
)

if TYPE_CHECKING:
    from kdpipe.targets.qdq.reader import Reader


def refuse_operator(op: str) -> NoReturn:
    """Refuse an operator that has no integer form.

    Raises:
        UnsupportedError: always.
    """
    raise UnsupportedError(
        f"the operator {op} has no integer form",
        remedy=f"Cut the network before it, or build the network from {', '.join(sorted(OPERATORS))}",
    )


def _quantize_linear(reader: Reader, node: FileNode) -> Value:
    steps = reader.steps(node, None if len(node.inputs) > 2 and node.inputs[2] else _output_kind(node))
    source = None if reader.is_input(node.inputs[0]) else reader.value(node, 0)
    if isinstance(source, Dequantized):
        source = Constant(source.real(), "FLOAT")
    if isinstance(source, Constant):
        return _quantized_constant(source, steps)
    if steps.axis is not None and isinstance(source, Real):
        steps, factors = steps.by_channel()
        source = reader.scaled(source, factors)
    quantization, stored, clip = steps.of_activation(), node.outputs[0], _only_clip(reader, node)
    if clip is not None:
        quantization, stored = _narrowed(reader, clip, quantization, steps.kind), clip.outputs[0]
    if source is None:
        value = Stored(reader.define_input(stored, quantization, steps.kind), steps.kind)
    elif isinstance(source, Real):
        value = reader.round(source, quantization, stored, steps.kind)
    else:
        raise UnsupportedError("quantizes stored integers")
    reader.values[stored] = value
    return value


def _output_kind(node: FileNode) -> str | None:
    number = node.integer("output_dtype", 0)
    return {0: None, 2: "UINT8", 3: "INT8", 21: "UINT4", 22: "INT4", 25: "UINT2", 26: "INT2"}.get(number, str(number))


def _quantized_constant(source: Constant, steps: Steps) -> Constant:
    if steps.kind not in RANGES:
        raise UnsupportedError(f"weights of type {steps.kind} have no integer form", remedy="Quantize them to 8 bits")
    if not np.isfinite(source.values).all():
        raise GraphError("quantizes a constant that is not finite", remedy="Train or export the network again")
    rank = source.values.ndim
    scaled = np.rint(source.values / steps.spread(steps.scales, rank)) + steps.spread(steps.zero_points, rank)
    return Constant(np.clip(scaled, *RANGES[steps.kind]).astype(np.int64), steps.kind)


def _only_clip(reader: Reader, node: FileNode) -> FileNode | None:
    """Return the Clip of stored integers that alone reads a QuantizeLinear's result, if there is one."""
    readers = reader.readers.get(node.outputs[0], [])
    if len(readers) == 1 and readers[0].op == "Clip" and node.outputs[0] != reader.file.output_name:
        return readers[0]
    return None


def _narrowed(reader: Reader, clip: FileNode, quantization: Quantization, kind: str) -> Quantization:
    lowest, highest = (None if bound is None else int(bound) - offset_of(kind) for bound in _bounds(reader, clip))
    qmin = quantization.qmin if lowest is None else max(lowest, quantization.qmin)
    qmax = quantization.qmax if highest is None else min(highest, quantization.qmax)
    return replace(quantization, qmin=qmin, qmax=qmax)


def _bounds(reader: Reader, node: FileNode) -> tuple[float | None, float | None]:
    """Return the bounds of a Clip, None where there is none."""
    found: list[float | None] = []
    for index, name in ((1, "min"), (2, "max")):
        bound = reader.value(node, index)
        if isinstance(bound, Dequantized):
            bound = Constant(bound.real(), "FLOAT")
        if isinstance(bound, Constant) and bound.values.size == 1:
            found.append(float(bound.values.reshape(())))
        elif bound is None:
            found.append(node.number(name, 0.0) if name in node.attributes else None)
        else:
            raise UnsupportedError("its bounds are computed by the network", remedy="Use constants")
    if any(bound is not None and np.isnan(bound) for bound in found):
        raise GraphError("a bound is not a number")
    return found[0], found[1]


def _dequantize_linear(reader: Reader, node: FileNode) -> Value:
    source = reader.value(node, 0)
    if isinstance(source, Constant):
        if source.is_real:
            raise UnsupportedError(f"dequantizes {source.kind}", remedy="Use 8-bit integers")
        steps = reader.steps(node, source.kind)
        rank = source.values.ndim
        if steps.axis is not None:
            if not -rank <= steps.axis < rank or source.values.shape[steps.axis] != steps.scales.size:
                raise UnsupportedError(f"its {steps.scales.size} scales do not fit a constant of {source.values.shape}")
            steps = replace(steps, axis=steps.axis % rank)
        return Dequantized(source.values, steps)
    if not isinstance(source, Stored):
        raise UnsupportedError("dequantizes what is not quantized")
    steps, factors = reader.steps(node, source.kind).by_channel()
    quantization, known = steps.of_activation(), reader.types[source.tensor].quantization
    same_factors = np.array_equal(reader.factors.get(source.tensor, 1.0), 1.0 if factors is None else factors)
    if (known.scale, known.zero_point) != (quantization.scale, quantization.zero_point) or not same_factors:
        raise UnsupportedError(
            "has another scale or zero point than the QuantizeLinear before it", remedy="Give both the same"
        )
    return reader.exactly(source.tensor, node.name)


def _clip(reader: Reader, node: FileNode) -> Value | None:
    if node.outputs[0] in reader.values:
        return None  # was part of the QuantizeLinear before it
    source = reader.value(node, 0)
    low, high = _bounds(reader, node)
    if isinstance(source, Constant):
        return replace(source, values=np.clip(source.values, low, high).astype(source.values.dtype))
    if isinstance(source, Stored):
        known = reader.types[source.tensor].quantization
        narrow = _narrowed(reader, node, known, source.kind)
        return reader.round(reader.exactly(source.tensor, node.name), narrow, node.outputs[0], source.kind)
    real = reader.real(node)
    return real.clipped(-np.inf if low is None else low, np.inf if high is None else high)


def _relu(reader: Reader, node: FileNode) -> Value:
    return reader.real(node).clipped(0.0, np.inf)


def _identity(reader: Reader, node: FileNode) -> Value:
    if node.op == "Dropout" and len(node.inputs) > 2 and node.inputs[2]:
        raise UnsupportedError("is a Dropout in training mode", remedy="Export the network in evaluation mode")
    value = reader.value(node, 0)
    if value is None:
        raise UnsupportedError("lacks its input")
    return value


def _cast(reader: Reader, node: FileNode) -> Value:
    source, number = reader.value(node, 0), node.integer("to", 0)
    kind = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64"}.get(number)
    if not isinstance(source, Constant) or source.is_real or kind is None:
        raise UnsupportedError("only constants of integers are cast", remedy="Quantize with QuantizeLinear")
    if kind in RANGES and source.values.size:
        lowest, highest = RANGES[kind]
        if source.values.min() < lowest or source.values.max() > highest:
            raise GraphError(f"a value does not fit {kind}")
    return Constant(source.values.astype(np.float64) if kind == "FLOAT" else source.values, kind)


def _constant(reader: Reader, node: FileNode) -> Value:
    if len(node.attributes) == 1:
        ((name, value),) = node.attributes.items()
        if name == "value" and isinstance(value, Constant):
            return value
        if name in ("value_float", "value_floats"):
            return Constant(np.array(value, dtype=np.float64), "FLOAT")
        if name in ("value_int", "value_ints"):
            return Constant(np.array(value, dtype=np.int64), "INT64")
    raise UnsupportedError("is a constant that holds no numbers")


def _transpose(reader: Reader, node: FileNode) -> Value:
    source = reader.value(node, 0)
    if isinstance(source, Grouped) and node.integers("perm", (0,) * 5) == (0, 2, 1, 3, 4):
        return replace(source, is_swapped=not source.is_swapped)
    if not isinstance(source, Constant | Dequantized):
        raise UnsupportedError(
            "transposes an activation", remedy="Export the network channels first: inputs [N, C, H, W]"
        )
    order = tuple(reversed(range(source.values.ndim)))
    order = node.integers("perm", order) if "perm" in node.attributes else order
    if sorted(order) != list(range(source.values.ndim)):
        raise UnsupportedError(f"its perm {list(order)} is no order of the axes")
    if isinstance(source, Dequantized):
        return source.transposed(order)
    return replace(source, values=source.values.transpose(order))


def _constant_numbers(value: Value | None) -> NDArray[np.float64] | None:
    """Return a constant as real numbers, or None if the value is none."""
    if isinstance(value, Dequantized):
        return value.real()
    return value.values.astype(np.float64) if isinstance(value, Constant) else None


def _add(reader: Reader, node: FileNode) -> Value:
    if len(node.inputs) != 2:
        raise UnsupportedError(f"adds {len(node.inputs)} tensors", remedy="Add two at a time")
    for index in (0, 1):
        constant = _constant_numbers(reader.value(node, 1 - index))
        if constant is not None:
            return channel_line(reader, node, reader.real(node, index), offset=constant)
    first, second = reader.real(node, 0), reader.real(node, 1)
    if first.shape != second.shape:
        raise UnsupportedError(f"adds tensors of shapes {first.shape} and {second.shape}", remedy="Make them alike")
    return Real(Sum(reader.exact(first), reader.exact(second)), node.name, first.shape)


def _subtract(reader: Reader, node: FileNode) -> Value:
    constant = _constant_numbers(reader.value(node, 1))
    if constant is None:
        refuse_operator("Sub of two activations")
    return channel_line(reader, node, reader.real(node), offset=-constant)


def _multiply(reader: Reader, node: FileNode) -> Value:
    for index in (0, 1):
        constant = _constant_numbers(reader.value(node, 1 - index))
        if constant is not None:
            return channel_line(reader, node, reader.real(node, index), gain=constant)
    return product(reader, node)


def _divide(reader: Reader, node: FileNode) -> Value:
    constant = _constant_numbers(reader.value(node, 1))
    if constant is None or not constant.all():
        refuse_operator("Div by an activation or by 0")
    return channel_line(reader, node, reader.real(node), gain=1 / constant)


def _batch_normalization(reader: Reader, node: FileNode) -> Value:
    numbers = [_constant_numbers(reader.value(node, index)) for index in range(1, 5)]
    if any(values is None or values.ndim != 1 for values in numbers) or node.integer("training_mode", 0):
        raise UnsupportedError("its parameters are not constants", remedy="Export the network in evaluation mode")
    gamma, beta, mean, variance = (values for values in numbers if values is not None)
    gain = gamma / np.sqrt(variance + node.number("epsilon", 1e-5))
    real = reader.real(node)
    shape = (-1, *[1] * (len(real.shape) - 1))
    return channel_line(reader, node, real, gain=gain.reshape(shape), offset=(beta - gain * mean).reshape(shape))


OPERATORS: dict[str, Callable[[Reader, FileNode], Value | None]] = {
    "Add": _add,
    "AveragePool": average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": concatenation,
    "Constant": _constant,
    "Conv": convolution,
    "DequantizeLinear": _dequantize_linear,
    "Div": _divide,
    "Dropout": _identity,
    "Flatten": flatten,
    "Gemm": linear,
    "GlobalAveragePool": global_average_pool,
    "HardSigmoid": function,
    "HardSwish": function,
    "Identity": _identity,
    "MatMul": linear,
    "MaxPool": max_pool,
    "Mul": _multiply,
    "QuantizeLinear": _quantize_linear,
    "ReduceMean": reduce_mean,
    "Relu": _relu,
    "Reshape": reshape,
    "Resize": resize,
    "Sigmoid": function,
    "Slice": channel_slice,
    "Softmax": softmax,
    "Split": split,
    "Squeeze": flatten,
    "Sub": _subtract,
    "Sum": _add,
    "Transpose": _transpose,
}
"""The ONNX operators that are read, by name."""
