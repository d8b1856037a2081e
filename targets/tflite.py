"""An integer graph as TensorFlow Lite, int8 from its first layer to its last, for LiteRT and TFLite Micro.

TFLite Micro computes what this file says exactly as the integer graph does where its rounding is `tflite`, and so do
LiteRT's reference kernels, but for FULLY_CONNECTED, which they round once (as `single` does), and MUL, which they
multiply with a float32. Elsewhere a stored integer may be one step away: XNNPACK, which LiteRT uses by default,
requantizes in floating point.

Weights of 2 to 4 bits of convolutions are stored as INT4, the narrowest that CONV_2D and DEPTHWISE_CONV_2D take; those
of linear layers as int8, because TFLite Micro's FULLY_CONNECTED takes nothing narrower. Input and output are int8, or
float32 with a QUANTIZE before the first layer and a DEQUANTIZE after the last.

Axes are [N, H, W, C]. A Flatten whose only readers are linear layers becomes a plain RESHAPE, and their columns are
reordered; any other Flatten is preceded by a TRANSPOSE. A padding that is neither TFLite's SAME nor VALID becomes a
PAD, or for a maximum a PADV2 with -128. An activation's range that is not a RELU's is limited by MAXIMUM and MINIMUM.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.artifact import describe, write_artifact
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
    Pair,
    Requantize,
    Slice,
    Softmax,
    Upsample,
)
from kdpipe.targets.lookup import lookup_table
from kdpipe.targets.operator_support import refuse_unsupported
from kdpipe.targets.tflite_padding import tflite_padding
from kdpipe.targets.tflite_writer import REORDERED_SUFFIX, GraphWriter, channels_last

FILE = "model.tflite"
LARGEST_SOFTMAX = 511
"""Channels of a SOFTMAX: where the sum of exponentials, in units of the largest, is 512 or more, the reference kernel
and TFLite Micro's divide by 2**32 with a 32-bit mask, and abort."""
LARGEST_PRODUCT = 2**15 - 2**8
"""Steps of a MUL's output: LiteRT's optimized kernel, which XNNPACK leaves large products to, adds the zero point in 16
bits. It saturates before, but not after."""
LINEAR_STORED_BITS = {2: 8, 3: 8, 4: 8, 8: 8}
STORED_BITS = {"packed": {2: 4, 3: 4, 4: 4, 8: 8}, "int8": LINEAR_STORED_BITS}
"""By the choice of `weights`, the width at which convolutions' weights of each width are stored."""


def export(graph: IntegerGraph, directory: Path, weights: str = "packed", io: str = "int8") -> list[Path]:
    """Write `graph` as model.tflite, and artifact.json, into `directory`; return the deployable files.

    The input is `input` [1, H, W, C], the output `logits` [1, ...]; the batch can be resized.

    Args:
        graph: what to write.
        directory: where to.
        weights: `packed`, those of convolutions at 4 or 8 bits, or all as `int8`.
        io: the elements of input and output: `int8`, the graph's stored integers, or `float32`, real numbers.

    Raises:
        UnsupportedError: an operator can't be expressed.
        MissingDependencyError: ai-edge-litert is not installed.
    """
    path = directory / FILE
    path.write_bytes(build_model(graph, weights, io))
    write_artifact(
        describe(
            graph,
            target="tflite",
            files=[FILE],
            input_type=io,
            layout="NHWC",
            stored_bits=STORED_BITS[weights],
            linear_stored_bits=LINEAR_STORED_BITS,
        ),
        directory,
    )
    return [path]


def build_model(graph: IntegerGraph, weights: str = "packed", io: str = "int8") -> bytes:
    """Return `graph` as the bytes of a .tflite file; `weights` and `io` as in `export`."""
    refuse_unsupported(graph, _WRITERS, "TFLite")
    writer = GraphWriter(graph, STORED_BITS[weights], is_real=io == "float32")
    for node in graph.nodes:
        _WRITERS[type(node.op)](writer, node, node.op)
    return writer.finish()


def _weights_and_bias(
    writer: GraphWriter, node: Node, op: Conv2d | Linear, values: NDArray[np.int8], axis: int, bits: int
) -> list[int]:
    scales = op.weight.scales
    bias_scales = np.float32(writer.graph.tensor(node.inputs[0]).quantization.scale) * scales
    return [
        writer.builder.constant(f"{node.name}/weight", values, list(scales), axis=axis, bits=bits),
        writer.builder.constant(f"{node.name}/bias", op.bias, list(bias_scales)),
    ]


def _conv2d(writer: GraphWriter, node: Node, op: Conv2d) -> None:
    tensor = writer.graph.tensor(node.inputs[0])
    outputs, _, height, width = op.weight.values.shape
    padding = tflite_padding(
        tensor.shape[1:],  # type: ignore[arg-type]
        (height, width),
        op.stride,
        op.padding,
        node.output.shape[1:],  # type: ignore[arg-type]
        op.dilation,
    )
    source = writer.source(node) if isinstance(padding, str) else writer.pad(node, padding, lowest=False)
    fields = {
        "padding": getattr(writer.schema.Padding, padding if isinstance(padding, str) else "VALID"),
        "strideH": op.stride[0],
        "strideW": op.stride[1],
        "dilationHFactor": op.dilation[0],
        "dilationWFactor": op.dilation[1],
    }
    bits = writer.stored_bits[op.weight.bits]
    if op.groups == tensor.shape[0] and op.groups > 1:
        # [O, 1, KH, KW] to [1, KH, KW, O]
        values = op.weight.values.transpose(1, 2, 3, 0)
        inputs = [source, *_weights_and_bias(writer, node, op, values, 3, bits)]
        fields["depthMultiplier"] = outputs // op.groups
        writer.compute(node, "DEPTHWISE_CONV_2D", inputs, "DepthwiseConv2DOptions", **fields)
    else:
        values = op.weight.values.transpose(0, 2, 3, 1)
        inputs = [source, *_weights_and_bias(writer, node, op, values, 0, bits)]
        writer.compute(node, "CONV_2D", inputs, "Conv2DOptions", **fields)


def _linear(writer: GraphWriter, node: Node, op: Linear) -> None:
    values = op.weight.values
    if writer.is_reordered(node.inputs[0]):
        flatten = next(other for other in writer.graph.nodes if other.name == node.inputs[0])
        shape = writer.graph.tensor(flatten.inputs[0]).shape
        values = values.reshape(-1, *shape).transpose(0, 2, 3, 1).reshape(values.shape)
    inputs = [writer.source(node), *_weights_and_bias(writer, node, op, values, 0, LINEAR_STORED_BITS[op.weight.bits])]
    writer.compute(node, "FULLY_CONNECTED", inputs, "FullyConnectedOptions")


def _add(writer: GraphWriter, node: Node, op: Add) -> None:
    inputs = [writer.source(node, 0), writer.source(node, 1)]
    writer.compute(node, "ADD", inputs, "AddOptions")


def _mul(writer: GraphWriter, node: Node, op: Mul) -> None:
    first, second = (writer.graph.tensor(name).quantization for name in node.inputs)
    steps = [max(q.zero_point - q.qmin, q.qmax - q.zero_point) for q in (first, second)]
    largest = steps[0] * steps[1] * first.scale * second.scale / node.output.quantization.scale
    if largest > LARGEST_PRODUCT:
        raise UnsupportedError(
            f"TFLite's kernels overflow at products of {largest:.0f} steps of their output",
            where=f"layer {node.name}",
            remedy=f"Give it a range of which they are at most {LARGEST_PRODUCT} steps, or choose another target",
        )
    writer.compute(node, "MUL", [writer.source(node, 0), writer.source(node, 1)], "MulOptions")


def _lookup(writer: GraphWriter, node: Node, op: Lookup) -> None:
    """Gather from the table: exact in every interpreter, unlike LOGISTIC and HARD_SWISH, which differ among them."""
    builder, int32 = writer.builder, writer.schema.TensorType.INT32
    shape = channels_last(node.output.shape)
    source = writer.graph.tensor(node.inputs[0]).quantization
    table = lookup_table(op, source, node.output.quantization)
    wide, indices = (builder.index(f"{node.name}/{name}", shape) for name in ("integers", "indices"))
    casts = {"inDataType": writer.schema.TensorType.INT8, "outDataType": int32}
    builder.operator("CAST", [writer.source(node)], wide, "CastOptions", casts)
    offset = builder.constant(f"{node.name}/offset", np.array([128], np.int32))
    builder.operator("ADD", [wide, offset], indices, "AddOptions")
    quantization = node.output.quantization
    entries = builder.constant(f"{node.name}/table", table, [quantization.scale], quantization.zero_point)
    builder.operator("GATHER", [entries, indices], writer.output(node), "GatherOptions", {"axis": 0})


def _softmax(writer: GraphWriter, node: Node, op: Softmax) -> None:
    """Write a SOFTMAX, which is over the last axis: the channels."""
    channels = node.output.shape[0]
    if channels > LARGEST_SOFTMAX:
        raise UnsupportedError(
            f"TFLite's kernels stop at a softmax of {channels} channels where most of them are alike",
            where=f"layer {node.name}",
            remedy=f"Leave it out, the largest logit being the largest probability, or use {LARGEST_SOFTMAX} channels",
        )
    writer.builder.operator("SOFTMAX", [writer.source(node)], writer.output(node), "SoftmaxOptions", {"beta": 1.0})


def _concat(writer: GraphWriter, node: Node, op: Concat) -> None:
    inputs = [writer.source(node, index) for index in range(len(node.inputs))]
    fields = {"axis": len(node.output.shape), "fusedActivationFunction": writer.schema.ActivationFunctionType.NONE}
    writer.builder.operator("CONCATENATION", inputs, writer.output(node), "ConcatenationOptions", fields)


def _slice(writer: GraphWriter, node: Node, op: Slice) -> None:
    # Of the other axes, the batch among them, all is kept: that is what the masks say.
    others = len(node.output.shape)
    limits = [
        writer.builder.constant(f"{node.name}/{name}", np.array([*[fill] * others, last], np.int32))
        for name, fill, last in (("begin", 0, op.start), ("end", 0, op.stop), ("strides", 1, 1))
    ]
    mask = 2**others - 1
    fields = {"beginMask": mask, "endMask": mask}
    inputs = [writer.source(node), *limits]
    writer.builder.operator("STRIDED_SLICE", inputs, writer.output(node), "StridedSliceOptions", fields)


def _channel_shuffle(writer: GraphWriter, node: Node, op: ChannelShuffle) -> None:
    builder, quantization = writer.builder, node.output.quantization
    channels, height, width = node.output.shape
    rows, size = height * width, channels // op.groups

    def reshape(source: int, output: int, name: str, shape: list[int]) -> int:
        wanted = builder.constant(f"{node.name}/{name}", np.array(shape, np.int32))
        return builder.operator("RESHAPE", [source, wanted], output, "ReshapeOptions", {"newShape": shape})

    # Batch, rows and columns in one axis, so that the batch stays free and three axes suffice.
    split = builder.activation(f"{node.name}/groups", [rows, op.groups, size], quantization)
    reshape(writer.source(node), split, "groups_shape", [-1, op.groups, size])
    swapped = builder.activation(f"{node.name}/swapped", [rows, size, op.groups], quantization)
    order = builder.constant(f"{node.name}/order", np.array([0, 2, 1], np.int32))
    builder.operator("TRANSPOSE", [split, order], swapped, "TransposeOptions")
    reshape(swapped, writer.output(node), "shape", [-1, height, width, channels])


def _upsample(writer: GraphWriter, node: Node, op: Upsample) -> None:
    size = writer.builder.constant(f"{node.name}/size", np.array(node.output.shape[1:], np.int32))
    # Half-pixel centres: floor((y + 0.5) / factor) is the right row whatever the factor's rounding in float32.
    fields = {"halfPixelCenters": True}
    inputs = [writer.source(node), size]
    output = writer.output(node)
    writer.builder.operator("RESIZE_NEAREST_NEIGHBOR", inputs, output, "ResizeNearestNeighborOptions", fields)


def _max_pool2d(writer: GraphWriter, node: Node, op: MaxPool2d) -> None:
    tensor = writer.graph.tensor(node.inputs[0])
    padding = tflite_padding(
        tensor.shape[1:],  # type: ignore[arg-type]
        op.kernel,
        op.stride,
        op.padding,
        node.output.shape[1:],  # type: ignore[arg-type]
    )
    source = writer.source(node) if isinstance(padding, str) else writer.pad(node, padding, lowest=True)
    _pool(writer, node, "MAX_POOL_2D", source, op.kernel, op.stride, padding if isinstance(padding, str) else "VALID")


def _average_pool2d(writer: GraphWriter, node: Node, op: AveragePool2d) -> None:
    _pool(writer, node, "AVERAGE_POOL_2D", writer.source(node), op.kernel, op.stride, "VALID")


def _pool(
    writer: GraphWriter, node: Node, operator: str, source: int, kernel: Pair, stride: Pair, padding: str
) -> None:
    fields = {
        "padding": getattr(writer.schema.Padding, padding),
        "filterHeight": kernel[0],
        "filterWidth": kernel[1],
        "strideH": stride[0],
        "strideW": stride[1],
        "fusedActivationFunction": writer.schema.ActivationFunctionType.NONE,
    }
    # Its input keeps the range already, and so does a maximum or a mean of it.
    writer.builder.operator(operator, [source], writer.output(node), "Pool2DOptions", fields)


def _flatten(writer: GraphWriter, node: Node, op: Flatten) -> None:
    tensor = writer.graph.tensor(node.inputs[0])
    source = writer.source(node)
    needs_transpose = len(tensor.shape) == 3 and not writer.is_reordered(node.name)
    if needs_transpose and tensor.shape[0] > 1 and tensor.shape[1] * tensor.shape[2] > 1:
        order = writer.builder.constant(f"{node.name}/order", np.array([0, 3, 1, 2], np.int32))
        transposed = writer.builder.activation(f"{node.name}/transposed", [1, *tensor.shape], tensor.quantization)
        source = writer.builder.operator("TRANSPOSE", [source, order], transposed, "TransposeOptions")
    features = node.output.shape[0]
    if writer.is_reordered(node.name):
        output = writer.activation(f"{node.name}{REORDERED_SUFFIX}", node.output)
        writer.indices[node.name] = output
    else:
        output = writer.output(node)
    # -1 keeps the batch free.
    shape = np.array([-1, features], np.int32)
    inputs = [source, writer.builder.constant(f"{node.name}/shape", shape)]
    writer.builder.operator("RESHAPE", inputs, output, "ReshapeOptions", {"newShape": [-1, features]})


def _requantize(writer: GraphWriter, node: Node, op: Requantize) -> None:
    writer.convert(node, "QUANTIZE", [writer.source(node)], "QuantizeOptions")


_WRITERS: dict[type, Callable[[GraphWriter, Node, Any], None]] = {
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
    Requantize: _requantize,
}
OPERATORS = frozenset(_WRITERS)
"""The operators of the integer graph that can be written."""
