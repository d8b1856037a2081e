"""Convolutions, linear layers and what is done to channels after them, as a QDQ file has them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.errors import UnsupportedError
from kdpipe.targets.graph import Padding, Pair, Weight, convolution_output_size
from kdpipe.targets.qdq.onnx_file import Constant, FileNode
from kdpipe.targets.qdq.values import Accumulation, Dequantized, Exact, Real, integer_bias

if TYPE_CHECKING:
    from kdpipe.targets.qdq.reader import Reader

LARGEST_DIAGONAL = 1024
"""Features up to which a line by feature, y = gain * x + offset, becomes a linear layer."""


def window_padding(node: FileNode, size: Pair, span: Pair, stride: Pair) -> Padding:
    """Return (top, left, bottom, right) of a convolution's or pool's window.

    Args:
        node: has the attributes pads and auto_pad.
        size: of the input, vertical and horizontal.
        span: of the window, dilation included.
        stride: of the window.
    """
    mode = node.text("auto_pad", "NOTSET")
    if mode == "NOTSET":
        top, left, bottom, right = node.integers("pads", (0, 0, 0, 0))
        if min(top, left, bottom, right) < 0:
            raise UnsupportedError(f"negative padding {(top, left, bottom, right)}")
        return (top, left, bottom, right)
    if mode == "VALID":
        return (0, 0, 0, 0)
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedError(f"unknown auto_pad {mode!r}")
    totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(size, span, stride, strict=True)]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    before, after = (small, large) if mode == "SAME_UPPER" else (large, small)
    return (before[0], before[1], after[0], after[1])


def positive_pair(node: FileNode, name: str, default: Pair = (1, 1)) -> Pair:
    """Return an attribute of two positive integers."""
    vertical, horizontal = node.integers(name, default)
    if min(vertical, horizontal) < 1:
        raise UnsupportedError(f"its {name} {(vertical, horizontal)} is not positive")
    return (vertical, horizontal)


def convolution(reader: Reader, node: FileNode) -> Real:
    """Read a Conv in two dimensions."""
    real, weights = reader.real(node), _weights(reader, node)
    if len(real.shape) != 3 or weights.values.ndim != 4:
        raise UnsupportedError(f"convolves {real.shape} with {weights.values.shape}", remedy="Use images, [N, C, H, W]")
    weight, groups = weights.weight(0), node.integer("group", 1)
    outputs, per_group, *kernel = weight.values.shape
    if groups < 1 or outputs % groups or per_group * groups != real.shape[0]:
        raise UnsupportedError(f"weights of {weight.values.shape} in {groups} groups do not fit {real.shape}")
    tensor, weight = _depthwise_source(reader, real, weight, groups)
    if node.attributes.get("kernel_shape", tuple(kernel)) != tuple(kernel):
        raise UnsupportedError(f"its kernel_shape is not that of its weights, {kernel}")
    stride, dilation = positive_pair(node, "strides"), positive_pair(node, "dilations")
    span = ((kernel[0] - 1) * dilation[0] + 1, (kernel[1] - 1) * dilation[1] + 1)
    padding = window_padding(node, real.shape[1:], span, stride)  # type: ignore[arg-type]
    layer = _layer(reader, node, tensor, weight, (stride, padding, dilation, groups))
    return Real(layer, node.name, convolved_shape(real.shape, outputs, span, stride, padding))


def _depthwise_source(reader: Reader, real: Real, weight: Weight, groups: int) -> tuple[str, Weight]:
    """Return what a convolution reads and its weights, into which the scales of its input's channels have gone."""
    source = real.what
    if isinstance(source, Exact) and source.factors is not None and groups == len(source.factors):
        scales = weight.scales * np.repeat(source.factors, len(weight.scales) // groups)
        return reader.exact(replace(real, what=Exact(source.tensor))), replace(weight, scales=scales.astype(np.float32))
    return reader.exact(real), weight


def convolved_shape(
    shape: tuple[int, ...], outputs: int, span: Pair, stride: Pair, padding: Padding
) -> tuple[int, ...]:
    """Return [outputs, H, W] after a window that spans `span` has moved over `shape`."""
    top, left, bottom, right = padding
    height = convolution_output_size(shape[1], span[0], stride[0], top, bottom)
    width = convolution_output_size(shape[2], span[1], stride[1], left, right)
    if min(height, width) < 1:
        raise UnsupportedError(f"its window of {span} does not fit an input of {shape}")
    return (outputs, height, width)


def linear(reader: Reader, node: FileNode) -> Real:
    """Read a Gemm, or a MatMul with a constant."""
    real = reader.real(node)
    tensor, weights = reader.exact(real), _weights(reader, node)
    if node.integer("transA", 0) or len(real.shape) != 1 or weights.values.ndim != 2:
        raise UnsupportedError(
            f"multiplies {real.shape} by {weights.values.shape}", remedy="Flatten the features before a linear layer"
        )
    weight = weights.weight(0 if node.integer("transB", 0) else 1)
    outputs, features = weight.values.shape
    if real.shape != (features,):
        raise UnsupportedError(f"its weights take {features} features, its input has {real.shape[0]}")
    layer = _layer(reader, node, tensor, weight, None)
    return Real(layer, node.name, (outputs,))


def _weights(reader: Reader, node: FileNode) -> Dequantized:
    value = reader.value(node, 1)
    if isinstance(value, Dequantized):
        return value
    raise UnsupportedError(
        "its weights are not quantized" if isinstance(value, Constant) else "its weights are computed by the network",
        remedy="Quantize them: as integers before a DequantizeLinear, or as floats before a QuantizeLinear",
    )


def _layer(
    reader: Reader,
    node: FileNode,
    tensor: str,
    weight: Weight,
    geometry: tuple[Pair, Padding, Pair, int] | None,
) -> Accumulation:
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    outputs = len(weight.scales)
    value = reader.value(node, 2) if node.op != "MatMul" else None
    integers: NDArray[np.int64] | None = np.zeros(outputs, np.int64)
    offset = np.zeros(outputs)
    if isinstance(value, Dequantized):
        offset = by_channel(value.real(), (outputs,))
        integers = integer_bias(value, reader.types[tensor].quantization, weight)
    elif isinstance(value, Constant) and value.is_real:
        offset, integers = by_channel(value.values, (outputs,)), None
    elif value is not None:
        raise UnsupportedError("its bias is not a constant", remedy="Use a constant bias")
    if (alpha, beta) != (1.0, 1.0):
        integers = None
    return Accumulation(tensor, weight, np.full(outputs, alpha), offset * beta, integers, geometry)


def by_channel(values: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return a constant that broadcasts against a tensor of `shape` (without the batch) as one number a channel.

    Raises:
        UnsupportedError: it differs within a channel.
    """
    sizes = (1,) * (1 + len(shape) - values.ndim) + values.shape
    if len(sizes) != 1 + len(shape) or sizes[1] not in (1, shape[0]) or any(s != 1 for s in (sizes[0], *sizes[2:])):
        raise UnsupportedError(
            f"a constant of {values.shape} against {shape}: not one number a channel", remedy="Use one number a channel"
        )
    return np.broadcast_to(values.reshape(-1), shape[:1]).astype(np.float64)


def channel_line(
    reader: Reader,
    node: FileNode,
    real: Real,
    *,
    gain: NDArray[np.float64] | float = 1.0,
    offset: NDArray[np.float64] | float = 0.0,
) -> Real:
    """Return gain * real + offset, each one number or one a channel."""
    gains, offsets = (by_channel(np.asarray(values), real.shape) for values in (gain, offset))
    if isinstance(real.what, Exact):
        reader.exact(real)
        real = Real(unit_layer(real.what.tensor, real.shape), node.name, real.shape)
    if not isinstance(real.what, Accumulation) or real.is_bounded or real.after:
        raise UnsupportedError(
            f"reads the result of {real.name} in floating point",
            remedy="Put QuantizeLinear and DequantizeLinear between the two",
        )
    return replace(real, what=real.what.line(gains, offsets))


def unit_layer(tensor: str, shape: tuple[int, ...]) -> Accumulation:
    """Return the layer that leaves a tensor of `shape` as it is, for a line to be put on it."""
    channels = shape[0]
    scales, ones, zeros = np.ones(channels, np.float32), np.ones(channels), np.zeros(channels)
    if len(shape) == 1:
        if channels > LARGEST_DIAGONAL:
            raise UnsupportedError(
                f"a line by feature over {channels} features", remedy="Fuse it with the layer before it"
            )
        return Accumulation(tensor, Weight(np.eye(channels, dtype=np.int8), scales, 8), ones, zeros, is_line=True)
    weight = Weight(np.ones((channels, 1, 1, 1), np.int8), scales, 8)
    geometry = ((1, 1), (0, 0, 0, 0), (1, 1), channels)
    return Accumulation(tensor, weight, ones, zeros, geometry=geometry, is_line=True)
