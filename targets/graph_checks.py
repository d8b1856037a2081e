"""What makes an integer graph invalid: checked once, when the graph is built."""

from __future__ import annotations

import re

import numpy as np

from kdpipe.targets.errors import GraphError
from kdpipe.targets.fixed_point import quantize_multiplier
from kdpipe.targets.graph import (
    LARGEST_SOFTMAX,
    PROBABILITIES,
    SMALLEST_NORMAL,
    SMALLEST_SOFTMAX_STEP,
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
    Operator,
    Requantize,
    Slice,
    Softmax,
    TensorType,
    Upsample,
    accumulator_bound,
    convolution_output_size,
    is_integer,
    overflows_int32,
)
from kdpipe.targets.lookup import FUNCTIONS

LARGEST_FLOAT = float(np.finfo(np.float32).max)
LARGEST_ZERO_POINT = 128
_KEEPS_QUANTIZATION = (MaxPool2d, AveragePool2d, Flatten, Concat, Slice, ChannelShuffle, Upsample)


def check_graph(graph: IntegerGraph) -> None:
    """Raise GraphError, naming the layer, unless `graph` can be computed exactly as its operators say."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", graph.name):
        raise GraphError(f"the graph's name {graph.name!r} is not an identifier")
    if not graph.nodes:
        raise GraphError("the graph has no nodes")
    if graph.rounding not in ("tflite", "single"):
        raise GraphError(f"unknown rounding {graph.rounding!r}", remedy="Use tflite or single")
    _check_shape(graph.input.shape, f"input {graph.input_name}")
    _check_normalization(graph)
    known = {graph.input_name: graph.input}
    for node in graph.nodes:
        if not node.name:
            raise GraphError("a layer has no name", where=f"after {[*known][-1]}")
        if node.name in known:
            raise GraphError("two tensors have this name", where=f"layer {node.name}")
        for name in node.inputs:
            if name not in known:
                raise GraphError(f"reads {name!r}, which nothing before it produces", where=f"layer {node.name}")
        try:
            _check_node(node, [known[name] for name in node.inputs])
        except GraphError as error:
            raise GraphError(error.message, where=f"layer {node.name}", remedy=error.remedy) from None
        known[node.name] = node.output
    if graph.class_names and (len(graph.class_names),) != graph.output.shape:
        raise GraphError(f"{len(graph.class_names)} class names for an output of shape {graph.output.shape}")


def _check_shape(shape: tuple[int, ...], where: str) -> None:
    if len(shape) not in (1, 3) or not all(is_integer(size) and size >= 1 for size in shape):
        raise GraphError(f"a tensor has the shape [C, H, W] or [features], not {list(shape)}", where=where)


def _check_normalization(graph: IntegerGraph) -> None:
    known = graph.normalization
    if known is None:
        return
    if not len(known.mean) == len(known.std) == graph.input.shape[0]:
        raise GraphError(f"{len(known.mean)} means and {len(known.std)} deviations for {graph.input.shape[0]} channels")
    if not np.isfinite([*known.mean, *known.std]).all() or min(known.std) <= 0:
        raise GraphError("a mean or deviation of the normalization is not finite, or a deviation not positive")


def _check_integers(node: Node) -> None:
    """Refuse strides, windows and the like that are no integers or too small."""
    for names, least in (
        (("stride", "dilation", "kernel", "factor", "groups"), 1),
        (("padding",), 0),
        (("start", "stop"), None),
    ):
        for name in names:
            value = getattr(node.op, name, None)
            numbers = () if value is None else value if isinstance(value, tuple) else (value,)
            if not all(is_integer(number) and (least is None or number >= least) for number in numbers):
                raise GraphError(f"its {name} {value} is out of range")
            if isinstance(value, tuple) and len(value) != (expected := 4 if name == "padding" else 2):
                raise GraphError(f"its {name} {value} has {len(value)} numbers instead of {expected}")


def _check_node(node: Node, inputs: list[TensorType]) -> None:
    if not isinstance(node.op, Operator):
        raise GraphError(f"unknown operator {node.op!r}")
    _check_integers(node)
    if isinstance(node.op, Concat):
        if len(inputs) < 2:
            raise GraphError(f"Concat takes at least 2 inputs, not {len(inputs)}")
    else:
        arity = 2 if isinstance(node.op, Add | Mul) else 1
        if len(inputs) != arity:
            raise GraphError(f"{type(node.op).__name__} takes {arity} inputs, not {len(inputs)}")
    expected = _output_shape(node, inputs)
    if node.output.shape != expected:
        raise GraphError(f"its output has shape {node.output.shape}, but its operator gives {expected}")
    if any(size < 1 for size in expected):
        raise GraphError(f"its window does not fit the input of shape {inputs[0].shape}")
    if isinstance(node.op, AveragePool2d):
        count = node.op.kernel[0] * node.op.kernel[1]
        if overflows_int32(128 * count + count // 2):
            raise GraphError(f"its sum of {count} elements can leave int32", remedy="Pool in two steps")
    if isinstance(node.op, _KEEPS_QUANTIZATION):
        if any(tensor.quantization != node.output.quantization for tensor in inputs):
            raise GraphError(f"{type(node.op).__name__} must keep its input's quantization")
    elif isinstance(node.op, Conv2d | Linear):
        _check_accumulation(node.op, inputs[0], node.output)
    elif isinstance(node.op, Add):
        twice_max = 2 * max(tensor.quantization.scale for tensor in inputs)
        # Each input is at most 255 steps, shifted by 20 and scaled by at most a half.
        _check_factor(twice_max / (2**20 * node.output.quantization.scale), 255 << 20)
    elif isinstance(node.op, Mul):
        product = inputs[0].quantization.scale * inputs[1].quantization.scale
        _check_factor(product / node.output.quantization.scale, 255 * 255)
    elif isinstance(node.op, Requantize):
        _check_factor(inputs[0].quantization.scale / node.output.quantization.scale, 255)
    elif isinstance(node.op, Softmax):
        _check_softmax(inputs[0], node.output)


def _check_softmax(source: TensorType, output: TensorType) -> None:
    if output.quantization != PROBABILITIES:
        raise GraphError(
            f"a Softmax returns steps of 1/256 from -128 up, not {output.quantization}",
            remedy="Requantize what it returns",
        )
    if not 2 <= source.shape[0] <= LARGEST_SOFTMAX:
        raise GraphError(f"a Softmax takes 2 to {LARGEST_SOFTMAX} channels, not {source.shape[0]}")
    if source.quantization.scale <= SMALLEST_SOFTMAX_STEP:
        raise GraphError(
            f"a Softmax takes steps above {SMALLEST_SOFTMAX_STEP:.3g}, not {source.quantization.scale:.3g}"
        )


def _check_accumulation(op: Conv2d | Linear, source: TensorType, output: TensorType) -> None:
    if op.bias.dtype != np.int32 or op.bias.shape != op.weight.scales.shape:
        raise GraphError(f"the bias must be int32 [{op.weight.scales.size}], got {op.bias.dtype} {op.bias.shape}")
    bound = accumulator_bound(op, source.quantization)
    if overflows_int32(bound):
        raise GraphError(
            f"its accumulator can reach {bound}, beyond int32",
            remedy="Use fewer input channels, narrower weights or a smaller bias",
        )
    for scale in op.weight.scales:
        unit = source.quantization.scale * float(scale)
        if not SMALLEST_NORMAL <= unit <= LARGEST_FLOAT:
            raise GraphError(f"one unit of its bias is {unit:.3g}, which float32 does not hold")
        _check_factor(source.quantization.scale * float(scale) / output.quantization.scale, bound)


def _check_factor(factor: float, bound: int) -> None:
    """Refuse a factor that can't be applied, in int32 arithmetic, to integers of magnitude up to `bound`."""
    remedy = "Check the scales on both sides of this layer"
    try:
        multiplier, shift = quantize_multiplier(factor)
    except ValueError as error:
        raise GraphError(str(error), remedy=remedy) from None
    shifted = bound << max(shift, 0)
    # Kernels add the zero point before they limit what they have scaled, which rounding may have made one larger.
    scaled = (shifted * multiplier >> 31 + max(-shift, 0)) + 1
    if overflows_int32(shifted) or overflows_int32(scaled + LARGEST_ZERO_POINT):
        raise GraphError(f"requantizing {bound} by {factor:.6g} leaves int32", remedy=remedy)


def _output_shape(node: Node, inputs: list[TensorType]) -> tuple[int, ...]:
    op, shape = node.op, inputs[0].shape
    if isinstance(op, Linear | Conv2d) and op.weight.values.ndim != (2 if isinstance(op, Linear) else 4):
        raise GraphError(f"its weights have the shape {list(op.weight.values.shape)}")
    if isinstance(op, Linear):
        outputs, features = op.weight.values.shape
        if shape != (features,):
            raise GraphError(f"its weights take {features} features, its input has shape {shape}")
        return (outputs,)
    if isinstance(op, Add):
        if inputs[1].shape != shape:
            raise GraphError(f"adds tensors of shapes {shape} and {inputs[1].shape}")
        return shape
    if isinstance(op, Mul):
        if inputs[1].shape not in (shape, (shape[0], *[1] * len(shape[1:]))):
            raise GraphError(f"multiplies tensors of shapes {shape} and {inputs[1].shape}")
        return shape
    if isinstance(op, Lookup):
        if op.function not in FUNCTIONS:
            raise GraphError(f"unknown function {op.function!r}", remedy="Known: " + ", ".join(FUNCTIONS))
        return shape
    if isinstance(op, Requantize | Softmax):
        return shape
    if isinstance(op, Flatten):
        return (int(np.prod(shape)),)
    if isinstance(op, Concat):
        if any(tensor.shape[1:] != shape[1:] or not tensor.shape for tensor in inputs):
            raise GraphError(f"joins the channels of tensors of shapes {', '.join(str(t.shape) for t in inputs)}")
        return (sum(tensor.shape[0] for tensor in inputs), *shape[1:])
    if isinstance(op, Slice):
        if not 0 <= op.start < op.stop <= shape[0]:
            raise GraphError(f"takes channels {op.start} to {op.stop} of {shape[0]}")
        return (op.stop - op.start, *shape[1:])
    if len(shape) != 3:
        raise GraphError(f"{type(op).__name__} takes [C, H, W], its input has shape {shape}")
    channels, height, width = shape
    if isinstance(op, ChannelShuffle):
        if channels % op.groups:
            raise GraphError(f"{op.groups} groups do not divide {channels} channels")
        return shape
    if isinstance(op, Upsample):
        return (channels, height * op.factor[0], width * op.factor[1])
    if isinstance(op, Conv2d):
        return _convolution_shape(op, channels, height, width)
    top, left, bottom, right = op.padding if isinstance(op, MaxPool2d) else (0, 0, 0, 0)
    if max(top, bottom) >= op.kernel[0] or max(left, right) >= op.kernel[1]:
        raise GraphError(f"its padding {(top, left, bottom, right)} is not smaller than its window {op.kernel}")
    return (
        channels,
        convolution_output_size(height, op.kernel[0], op.stride[0], top, bottom),
        convolution_output_size(width, op.kernel[1], op.stride[1], left, right),
    )


def _convolution_shape(op: Conv2d, channels: int, height: int, width: int) -> tuple[int, ...]:
    outputs, per_group, kernel_height, kernel_width = op.weight.values.shape
    if per_group * op.groups != channels or outputs % op.groups:
        raise GraphError(
            f"weights of shape {op.weight.values.shape} in {op.groups} groups do not fit {channels} input channels"
        )
    top, left, bottom, right = op.padding
    return (
        outputs,
        convolution_output_size(height, kernel_height, op.stride[0], top, bottom, op.dilation[0]),
        convolution_output_size(width, kernel_width, op.stride[1], left, right, op.dilation[1]),
    )
