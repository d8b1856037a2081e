"""Each node of an integer graph as one call of a portable kernel, with its constants."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from kdpipe.targets.c.layer import Field, Layer
from kdpipe.targets.c.packing import (
    ConstantArray,
    convolution_rows,
    fold_zero_point,
    linear_rows,
    pack_rows,
    pack_ternary_rows,
    unpack_rows,
)
from kdpipe.targets.c.storage import flattened_shape, size_of
from kdpipe.targets.fixed_point import quantize_multiplier, quantize_multipliers
from kdpipe.targets.graph import (
    AveragePool2d,
    ChannelShuffle,
    Conv2d,
    IntegerGraph,
    Linear,
    Lookup,
    MaxPool2d,
    Node,
    Quantization,
    Slice,
    TensorType,
    Upsample,
)
from kdpipe.targets.lookup import lookup_table
from kdpipe.targets.reference import add_factors, mul_factor
from kdpipe.targets.softmax import exponentials

_KERNEL_BITS = {2: "w2", 3: "w4", 4: "w4", 8: "w8"}


def _quantized(node: Node, multipliers: str, shifts: str) -> list[Field]:
    output = node.output.quantization
    return [multipliers, shifts, output.zero_point, output.qmin, output.qmax]


def _accumulating(
    node: Node, op: Conv2d | Linear, source: Quantization, rows: np.ndarray[Any, Any]
) -> dict[str, ConstantArray]:
    """Return the constants that convolutions and linear layers share."""
    factors = source.scale * op.weight.scales.astype(np.float64) / node.output.quantization.scale
    multipliers, shifts = quantize_multipliers(factors)
    return {
        "weights": pack_rows(rows, op.weight.bits),
        "bias": ConstantArray("int32_t", fold_zero_point(op.bias, rows, source.zero_point)),
        "multipliers": ConstantArray("int32_t", multipliers.astype(np.int32)),
        "shifts": ConstantArray("int8_t", shifts.astype(np.int8)),
    }


def convolution(graph: IntegerGraph, node: Node) -> Layer:
    """Return the layer of a convolution, of any shape and width."""
    op = node.op
    assert isinstance(op, Conv2d)  # noqa: S101 - narrows the type; kernel_choice guarantees it
    source = graph.tensor(node.inputs[0])
    channels, height, width = source.shape
    outputs, out_height, out_width = node.output.shape
    _, per_group, kernel_height, kernel_width = op.weight.values.shape
    suffix = _KERNEL_BITS[op.weight.bits]
    family = _convolution_family(op, channels)
    patch = kernel_height * kernel_width * per_group
    files = [f"{family}_{suffix}.c", f"{family}_body.h", f"dot_{suffix}.h", "conv2d.h", "rows.h", "fixed_point.h"]
    return Layer(
        node=node,
        kernel=f"{family}_{suffix}",
        header="conv2d.h",
        files=tuple(files if family == "pointwise" else [*files, "patch.h"]),
        struct="kdp_conv2d",
        fields=[
            *(height, width, channels),
            *(out_height, out_width, outputs),
            *(kernel_height, kernel_width),
            *op.stride,
            *op.padding[:2],
            *op.dilation,
            op.groups,
            source.quantization.zero_point,
            "@weights",
            "@bias",
            _quantized(node, "@multipliers", "@shifts"),
        ],
        arrays=_accumulating(node, op, source.quantization, convolution_rows(op.weight.values)),
        scratch={"conv2d": 2 * patch, "depthwise": patch * channels, "pointwise": 0}[family],
        rows=None if family == "pointwise" else (out_height, height),
    )


def _convolution_family(op: Conv2d, channels: int) -> str:
    if op.groups == channels > 1:
        return "depthwise"
    if op.groups == 1 and op.weight.values.shape[2:] == (1, 1) and op.padding == (0, 0, 0, 0):
        return "pointwise"
    return "conv2d"


def linear(graph: IntegerGraph, node: Node) -> Layer:
    """Return the layer of a linear layer."""
    op = node.op
    assert isinstance(op, Linear)  # noqa: S101
    outputs, features = op.weight.values.shape
    suffix = _KERNEL_BITS[op.weight.bits]
    rows = linear_rows(op.weight.values, flattened_shape(graph, node.inputs[0]))
    return Layer(
        node=node,
        kernel=f"linear_{suffix}",
        header="linear.h",
        files=(f"linear_{suffix}.c", "linear_body.h", f"dot_{suffix}.h", "linear.h", "fixed_point.h"),
        struct="kdp_linear",
        fields=[features, outputs, "@weights", "@bias", _quantized(node, "@multipliers", "@shifts")],
        arrays=_accumulating(node, op, graph.tensor(node.inputs[0]).quantization, rows),
    )


def add(graph: IntegerGraph, node: Node) -> Layer:
    """Return the layer of a sum of two tensors."""
    sources = [graph.tensor(name).quantization for name in node.inputs]
    output = node.output.quantization
    factors = add_factors(sources[0], sources[1], output)
    zero_points = (sources[0].zero_point, sources[1].zero_point, output.zero_point)
    inputs_and_output: list[Field] = [
        [*factor, zero_point] for factor, zero_point in zip(factors, zero_points, strict=True)
    ]
    return Layer(
        node=node,
        kernel="add",
        header="elementwise.h",
        files=("add.c", "elementwise.h", "fixed_point.h"),
        struct="kdp_add",
        fields=[
            size_of(node.output.shape),
            *inputs_and_output,
            output.qmin,
            output.qmax,
        ],
    )


def requantize(graph: IntegerGraph, node: Node) -> Layer:
    """Return the layer of a tensor at other steps."""
    source, output = graph.tensor(node.inputs[0]).quantization, node.output.quantization
    return Layer(
        node=node,
        kernel="rescale",
        header="elementwise.h",
        files=("rescale.c", "elementwise.h", "fixed_point.h"),
        struct="kdp_rescale",
        fields=[
            size_of(node.output.shape),
            source.zero_point,
            [*quantize_multiplier(source.scale / output.scale), output.zero_point],
            output.qmin,
            output.qmax,
        ],
    )


def mul(graph: IntegerGraph, node: Node) -> Layer:
    """Return the layer of a product."""
    first, second = (graph.tensor(name) for name in node.inputs)
    output = node.output.quantization
    size, factors = size_of(first.shape), size_of(second.shape)
    return Layer(
        node=node,
        kernel="mul",
        header="mul.h",
        files=("mul.c", "mul.h", "fixed_point.h"),
        struct="kdp_mul",
        fields=[
            size,
            factors,
            first.quantization.zero_point,
            second.quantization.zero_point,
            *mul_factor(first.quantization, second.quantization, output),
            output.zero_point,
            output.qmin,
            output.qmax,
        ],
    )


def lookup(graph: IntegerGraph, node: Node) -> Layer:
    """Return the layer of a function of each element, by a table."""
    op = node.op
    assert isinstance(op, Lookup)  # noqa: S101
    table = lookup_table(op, graph.tensor(node.inputs[0]).quantization, node.output.quantization)
    return Layer(
        node=node,
        kernel="lookup",
        header="lookup.h",
        files=("lookup.c", "lookup.h"),
        struct="kdp_lookup",
        fields=[size_of(node.output.shape), "@table"],
        arrays={"table": ConstantArray("int8_t", table)},
    )


def softmax(graph: IntegerGraph, node: Node) -> Layer:
    """Return the layer of a softmax over channels."""
    source = graph.tensor(node.inputs[0])
    reach = source.quantization.qmax - source.quantization.qmin
    return Layer(
        node=node,
        kernel="softmax",
        header="softmax.h",
        files=("softmax.c", "softmax.h"),
        struct="kdp_softmax",
        fields=[_pixels(source), source.shape[0], "@exponentials"],
        arrays={
            "exponentials": ConstantArray(
                "int32_t", exponentials(source.quantization.scale)[: reach + 1].astype(np.int32)
            )
        },
    )


def concat(graph: IntegerGraph, node: Node) -> Layer:
    """Return the layer of a concatenation of channels."""
    channels = np.array([graph.tensor(name).shape[0] for name in node.inputs], dtype=np.int32)
    return Layer(
        node=node,
        kernel="concat",
        header="concat.h",
        files=("concat.c", "concat.h"),
        struct="kdp_concat",
        fields=[_pixels(node.output), len(channels), "@channels"],
        arrays={"channels": ConstantArray("int32_t", channels)},
        inputs_as_array=True,
    )


def channels_slice(graph: IntegerGraph, node: Node) -> Layer:
    """Return the layer of a range of channels."""
    op = node.op
    assert isinstance(op, Slice)  # noqa: S101
    return Layer(
        node=node,
        kernel="slice",
        header="channels.h",
        files=("slice.c", "channels.h"),
        struct="kdp_slice",
        fields=[_pixels(node.output), graph.tensor(node.inputs[0]).shape[0], op.start, op.stop],
    )


def channel_shuffle(graph: IntegerGraph, node: Node) -> Layer:
    """Return the layer of a shuffle of channels."""
    op = node.op
    assert isinstance(op, ChannelShuffle)  # noqa: S101
    return Layer(
        node=node,
        kernel="channel_shuffle",
        header="channels.h",
        files=("channel_shuffle.c", "channels.h"),
        struct="kdp_channel_shuffle",
        fields=[_pixels(node.output), op.groups, node.output.shape[0] // op.groups],
    )


def upsample(graph: IntegerGraph, node: Node) -> Layer:
    """Return the layer of an enlargement by nearest neighbours."""
    op = node.op
    assert isinstance(op, Upsample)  # noqa: S101
    return Layer(
        node=node,
        kernel="upsample",
        header="upsample.h",
        files=("upsample.c", "upsample.h"),
        struct="kdp_upsample",
        fields=[*_height_width_channels(graph.tensor(node.inputs[0])), *op.factor],
    )


def _pixels(tensor: TensorType) -> int:
    return size_of(tensor.shape) // tensor.shape[0]


def pool(graph: IntegerGraph, node: Node) -> Layer:
    """Return the layer of a largest value or a mean of windows."""
    op, source = node.op, graph.tensor(node.inputs[0])
    assert isinstance(op, MaxPool2d | AveragePool2d)  # noqa: S101
    kernel = "max_pool" if isinstance(op, MaxPool2d) else "average_pool"
    return Layer(
        node=node,
        kernel=kernel,
        header="pool.h",
        files=(f"{kernel}.c", "pool.h", "rows.h"),
        struct="kdp_pool",
        fields=[
            *_height_width_channels(source),
            *node.output.shape[1:],
            *op.kernel,
            *op.stride,
            *(op.padding[:2] if isinstance(op, MaxPool2d) else (0, 0)),
            node.output.quantization.qmin,
            node.output.quantization.qmax,
        ],
        rows=(node.output.shape[1], source.shape[1]),
    )


def flatten(graph: IntegerGraph, node: Node) -> Layer:
    """Return the layer of a map as a vector, channels first."""
    shape = graph.tensor(node.inputs[0]).shape
    channels = shape[0] if len(shape) == 3 else 1
    return Layer(
        node=node,
        kernel="flatten",
        header="flatten.h",
        files=("flatten.c", "flatten.h"),
        struct="kdp_flatten",
        fields=[size_of(shape) // channels, channels],
    )


def _height_width_channels(tensor: TensorType) -> tuple[int, int, int]:
    channels, height, width = tensor.shape
    return height, width, channels


def five_to_a_byte(layer: Layer, op: Conv2d | Linear) -> Layer:
    """Return the layer of a portable kernel with its ternary weights stored in 1.6 bits."""
    weights = op.weight.values
    rows = unpack_rows(layer.arrays["weights"], len(weights), weights.size // len(weights), bits=2)
    return replace(
        layer,
        kernel=layer.kernel.replace("_w2", "_t5"),
        files=tuple(name.replace("_w2", "_t5") for name in layer.files),
        arrays={**layer.arrays, "weights": pack_ternary_rows(rows)},
    )
