"""Pools and what makes features of images, as a QDQ file has them.

A mean rounds: to the input's own steps it is the integer graph's AveragePool2d, to others a depthwise convolution.
What only chooses or moves elements works on stored integers at once, and on real ones is put off until they are.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kdpipe.targets.errors import UnsupportedError
from kdpipe.targets.graph import AveragePool2d, Flatten, MaxPool2d, Padding, Pair, Weight
from kdpipe.targets.qdq.layers import convolved_shape, positive_pair, window_padding
from kdpipe.targets.qdq.onnx_file import Constant, FileNode
from kdpipe.targets.qdq.values import Accumulation, Exact, Real, Rearrangement, Stored

if TYPE_CHECKING:
    from kdpipe.targets.qdq.reader import Reader


def max_pool(reader: Reader, node: FileNode) -> Real | Stored:
    """Read a MaxPool in two dimensions, on stored integers or real numbers."""
    if len(node.outputs) > 1 and node.outputs[1]:
        raise UnsupportedError("its indices have no integer form", remedy="Use its first output only")
    if positive_pair(node, "dilations") != (1, 1):
        raise UnsupportedError("a dilated pool has no integer form", remedy="Use dilation 1")
    shape = _image_shape(reader, node)
    kernel, stride = positive_pair(node, "kernel_shape", (0, 0)), positive_pair(node, "strides")
    padding = window_padding(node, (shape[1], shape[2]), kernel, stride)
    if node.integer("ceil_mode", 0):
        padding = _whole_windows((shape[1], shape[2]), kernel, stride, padding)
    output = convolved_shape(shape, shape[0], kernel, stride, padding)
    return rearranged(reader, node, MaxPool2d(kernel, stride, padding), output)


def shape_of(reader: Reader, node: FileNode, index: int = 0) -> tuple[int, ...]:
    """Return the shape, without the batch, of an activation that `node` reads, stored or real."""
    value = reader.value(node, index)
    return reader.types[value.tensor].shape if isinstance(value, Stored) else reader.real(node, index).shape


def _image_shape(reader: Reader, node: FileNode) -> tuple[int, ...]:
    shape = shape_of(reader, node)
    if len(shape) != 3:
        raise UnsupportedError(f"pools a tensor of {shape}", remedy="Use images, [N, C, H, W]")
    return shape


def _whole_windows(size: Pair, kernel: Pair, stride: Pair, padding: Padding) -> Padding:
    """Return the padding with which rounding up (`ceil_mode`) and rounding down give the same number of windows."""
    top, left, bottom, right = padding
    ends = []
    for n, k, s, before, after in zip(size, kernel, stride, (top, left), (bottom, right), strict=True):
        windows = -(-(n + before + after - k) // s) + 1
        if (windows - 1) * s >= n + before:
            windows -= 1  # a window must begin within the input
        ends.append(max(after, (windows - 1) * s + k - n - before))
    return (top, left, ends[0], ends[1])


def rearranged(reader: Reader, node: FileNode, op: Rearrangement, output: tuple[int, ...]) -> Real | Stored:
    """Apply an operator that chooses or moves elements."""
    value = reader.value(node, 0)
    if isinstance(value, Stored):
        reader.exact(reader.exactly(value.tensor, node.name))  # not with a scale for each channel
        quantization = reader.types[value.tensor].quantization
        tensor = reader.add(reader.label(node), op, (value.tensor,), output, quantization)
        reader.stored[tensor] = (node.outputs[0], value.kind)
        return Stored(tensor, value.kind)
    real = reader.real(node)
    if isinstance(real.what, Exact) and not real.is_bounded and not real.after:
        tensor = reader.exact(real)
        quantization = reader.types[tensor].quantization
        return reader.exactly(reader.add(node.name, op, (tensor,), output, quantization), node.name)
    return replace(real, after=(*real.after, (node.name, op, real.shape)), shape=output)


def flatten(reader: Reader, node: FileNode) -> Real | Stored:
    """Read a Flatten from the first axis on, or a Squeeze of [C, 1, 1]."""
    shape = shape_of(reader, node)
    if node.op == "Flatten" and node.integer("axis", 1) % (1 + len(shape)) != 1:
        raise UnsupportedError("flattens from another axis than 1", remedy="Keep the batch: axis 1")
    if node.op == "Squeeze":
        axes = _axes(reader, node, 1 + len(shape))
        if len(shape) != 3 or axes != (2, 3) or shape[1:] != (1, 1):
            raise UnsupportedError(f"squeezes axes {axes} of {shape}", remedy="Use Flatten")
    return flattened(reader, node, shape)


def flattened(reader: Reader, node: FileNode, shape: tuple[int, ...]) -> Real | Stored:
    """Return the input of `node`, which has `shape`, as features."""
    if len(shape) == 1:
        value = reader.value(node, 0)
        return value if isinstance(value, Stored) else reader.real(node)
    return rearranged(reader, node, Flatten(), (math.prod(shape),))


def average_pool(reader: Reader, node: FileNode) -> Real:
    """Read an AveragePool in two dimensions."""
    shape = _image_shape(reader, node)
    if positive_pair(node, "dilations") != (1, 1) or node.integer("ceil_mode", 0):
        raise UnsupportedError("an average pool with dilation or ceil_mode has no integer form")
    kernel, stride = positive_pair(node, "kernel_shape", (0, 0)), positive_pair(node, "strides")
    padding = window_padding(node, (shape[1], shape[2]), kernel, stride)
    if any(padding) and not node.integer("count_include_pad", 0):
        raise UnsupportedError(
            "an average pool that does not count its padding has no integer form",
            remedy="Set count_include_pad, or leave the padding out",
        )
    return _mean(reader, node, kernel, stride, padding)


def global_average_pool(reader: Reader, node: FileNode) -> Real:
    """Read a GlobalAveragePool."""
    _, height, width = _image_shape(reader, node)
    return _mean(reader, node, (height, width), (1, 1), (0, 0, 0, 0))


def reduce_mean(reader: Reader, node: FileNode) -> Real | Stored:
    """Read a ReduceMean over the whole map."""
    shape = _image_shape(reader, node)
    axes = _axes(reader, node, 4)
    if axes != (2, 3):
        raise UnsupportedError(f"the mean over the axes {axes}", remedy="Only the mean over the axes 2 and 3 is read")
    mean = _mean(reader, node, (shape[1], shape[2]), (1, 1), (0, 0, 0, 0))
    if node.integer("keepdims", 1):
        return mean
    return replace(mean, after=((f"{node.name}.flatten", Flatten(), mean.shape),), shape=mean.shape[:1])


def _axes(reader: Reader, node: FileNode, rank: int) -> tuple[int, ...]:
    given = reader.value(node, 1)
    if isinstance(given, Constant) and not given.is_real:
        axes = given.values.reshape(-1).tolist()
    else:
        axes = list(node.attributes.get("axes", ()))
    if given is not None and not isinstance(given, Constant):
        raise UnsupportedError("its axes are computed by the network")
    return tuple(sorted(int(axis) % rank for axis in axes))


def _mean(reader: Reader, node: FileNode, kernel: Pair, stride: Pair, padding: Padding) -> Real:
    real = reader.real(node)
    tensor = reader.exact(real)
    channels = real.shape[0]
    output = convolved_shape(real.shape, channels, kernel, stride, padding)  # before the weights are made: it fits
    weight = Weight(
        np.ones((channels, 1, *kernel), np.int8), np.full(channels, 1 / math.prod(kernel), np.float32), bits=2
    )
    layer = Accumulation(
        tensor,
        weight,
        np.ones(channels),
        np.zeros(channels),
        np.zeros(channels, np.int64),
        (stride, padding, (1, 1), channels),
        None if any(padding) else AveragePool2d(kernel, stride),
    )
    return Real(layer, node.name, output)
