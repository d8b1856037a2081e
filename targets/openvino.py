"""An integer graph as OpenVINO IR: FakeQuantize on activations, weights at the width they were trained at.

A weight of 2 bits is a u2 constant (1 above the integer weights), one of 3 or 4 bits i4, one of 8 bits i8; Convert to
i8, Subtract of the zero point and Multiply by the scales follow. The Convert to i8 is what lets OpenVINO's CPU
plugin run the layer in integers. Activations are computed as real numbers that lie on the graph's steps; the
compiled model turns FakeQuantize into 8-bit storage. It requantizes in floating point (half to even), so that a
stored integer can be one step from the integer graph's.

Source: OpenVINO operation set 13, https://docs.openvino.ai/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.artifact import INPUT_NAME, OUTPUT_NAME, describe, properties_as_text, write_artifact
from kdpipe.targets.dependencies import require
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
    Weight,
)
from kdpipe.targets.operator_support import refuse_unsupported
from kdpipe.targets.packing import pack_lowest_first

STRUCTURE_FILE, CONSTANTS_FILE = "model.xml", "model.bin"
STORED_BITS = {"packed": {2: 2, 3: 4, 4: 4, 8: 8}}
SMALLEST_SCALE = 2e-8
"""Below, with a margin of about 2, OpenVINO 2026.4's CPU plugin takes FakeQuantize's range for empty: wrong values."""
SMALLEST_LIMIT = 2e-6
"""A range that reaches less far below zero the plugin takes, with a margin of about 2, for one that begins at zero."""
COARSE, COARSE_TERM = 16, 2
"""Of how many steps of its reader one step may be, before what float32 loses in a zero is seen there; and a sum's term,
before it is seen that the plugin adds what a convolution gives without rounding it."""


def export(graph: IntegerGraph, directory: Path) -> list[Path]:
    """Write `graph` as model.xml and model.bin, and artifact.json, into `directory`; return the deployable files.

    The input is float32 `input` [N, C, H, W], normalized; the output float32 `logits` [N, ...]; N is free.

    Raises:
        UnsupportedError: an operator can't be expressed, or a scale is too small for OpenVINO.
        MissingDependencyError: openvino is not installed.
    """
    openvino = require("openvino", "openvino")
    writer = _Writer(openvino)
    # The writer owns the memory of the constants: it must live until the model is saved.
    model = _build(writer, graph)
    openvino.save_model(model, directory / STRUCTURE_FILE, compress_to_fp16=False)
    files = [STRUCTURE_FILE, CONSTANTS_FILE]
    write_artifact(
        describe(
            graph,
            target="openvino",
            files=files,
            input_type="float32",
            layout="NCHW",
            stored_bits=STORED_BITS["packed"],
        ),
        directory,
    )
    return [directory / name for name in files]


def _build(writer: _Writer, graph: IntegerGraph) -> Any:
    refuse_unsupported(graph, _WRITERS, "OpenVINO")
    parameter = writer.ops.parameter([-1, *graph.input.shape], np.float32, name=INPUT_NAME)
    parameter.output(0).get_tensor().set_names({INPUT_NAME})
    tensors = {graph.input_name: writer.quantize(parameter, graph.input_name, graph.input.quantization)}
    for node in graph.nodes:
        inputs = [tensors[name] for name in node.inputs]
        tensors[node.name] = _WRITERS[type(node.op)](writer, graph, node, inputs, node.op)
    result = writer.ops.result(tensors[graph.output_name], name=OUTPUT_NAME)
    tensor = result.input(0).get_source_output().get_tensor()
    tensor.set_names({OUTPUT_NAME, *tensor.get_names()})
    model = writer.openvino.Model([result], [parameter], graph.name)
    for index, operation in enumerate(model.get_ordered_ops()):
        # openvino counts the operators of the whole process in the names it gives; files are to be reproducible.
        kind = operation.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", operation.get_friendly_name()):
            operation.set_friendly_name(f"{kind}/{index}")
    tensors_steps = {name: asdict(graph.tensor(name).quantization) for name in _tensor_names(graph)}
    for key, value in {**properties_as_text(graph), "tensors": json.dumps(tensors_steps)}.items():
        model.set_rt_info(value, ["kdpipe", key])
    return model


def _tensor_names(graph: IntegerGraph) -> list[str]:
    return [graph.input_name, *(node.name for node in graph.nodes)]


def _first_level(q: Quantization) -> int:
    """Return the first of FakeQuantize's 256 levels, in steps from zero: zero itself where nothing lies below it."""
    return 0 if q.qmin >= q.zero_point else -128 - q.zero_point


class _Writer:
    """Makes openvino nodes, and keeps the memory of their constants."""

    def __init__(self, openvino: Any) -> None:
        self.openvino = openvino
        self.ops = require("openvino.opset13", "openvino")
        self._memory: list[NDArray[Any]] = []

    def constant(self, values: NDArray[Any] | np.floating[Any]) -> Any:
        return self.ops.constant(values)

    def packed_constant(self, values: NDArray[np.int8], kind: Any, bits: int, name: str) -> Any:
        # openvino.Tensor shares this array's memory.
        packed = np.frombuffer(pack_lowest_first(values, bits), np.uint8).copy()
        self._memory.append(packed)
        shape = self.openvino.Shape(list(values.shape))
        return self.ops.constant(self.openvino.Tensor(packed, shape, kind), name=name)

    def quantize(self, real: Any, tensor: str, quantization: Quantization) -> Any:
        """Round `real` to the steps of `tensor`, and limit it to their range."""
        # FakeQuantize of fewer than 256 levels is not run in integers; the limits lie on steps.
        first = _first_level(quantization)
        return self.named(self._round(self._limit(real, quantization), tensor, quantization, first), tensor)

    def limit_rounded(self, real: Any, tensor: str, quantization: Quantization) -> Any:
        """As `quantize`, for what lies on the steps of another tensor."""
        # OpenVINO moves a Clamp to before those steps are scaled, where its limits lie between two of them. So levels
        # that end at the largest, and levels that begin at the smallest, limit instead. What is joined is to have the
        # same levels: the last are those of `quantize`.
        first, last = (limit - quantization.zero_point for limit in (quantization.qmin, quantization.qmax))
        usual = _first_level(quantization)
        for limiting in (last - 255, first):
            if limiting != usual:
                real = self._round(real, tensor, quantization, limiting)
        return self.named(self._round(real, tensor, quantization, usual), tensor)

    def _limit(self, real: Any, q: Quantization) -> Any:
        if (q.qmin, q.qmax) == (-128, 127):
            return real
        scale = np.float32(q.scale)
        return self.ops.clamp(real, float(scale * (q.qmin - q.zero_point)), float(scale * (q.qmax - q.zero_point)))

    def _round(self, real: Any, tensor: str, q: Quantization, first: int) -> Any:
        """Round to the nearest of 256 levels, of which the first is `first` steps from zero.

        Raises:
            UnsupportedError: the steps are too small for OpenVINO.
        """
        smallest = max(SMALLEST_SCALE, -SMALLEST_LIMIT / first if first < 0 else 0.0)
        if q.scale < smallest:
            raise UnsupportedError(
                f"OpenVINO computes wrong values with steps below {smallest:.3g}; this layer's is {q.scale:.3g}",
                where=f"layer {tensor}",
                remedy="Its outputs are practically constant: train longer, or choose another target",
            )
        low, high = (self.constant(np.float32(q.scale) * np.float32(level)) for level in (first, first + 255))
        return self.ops.fake_quantize(real, low, high, low, high, 256)

    def on_steps(self, real: Any, q: Quantization, factor: float, coarse: float = COARSE) -> Any:
        """Return `real`, of the steps `q`, on them exactly where they are coarse for what reads it.

        FakeQuantize that is computed in float32 gives a zero that is off by up to 3e-5 of a step.

        Args:
            real: what is read.
            q: its steps.
            factor: of how many steps of the reader's output one of `real` can be.
            coarse: the largest factor that leaves `real` as it is.
        """
        if factor <= coarse:
            return real
        steps = self.ops.round(self.ops.multiply(real, self.constant(np.float32(1 / q.scale))), "half_to_even")
        return self.ops.multiply(steps, self.constant(np.float32(q.scale)))

    def named(self, node: Any, tensor: str) -> Any:
        node.set_friendly_name(tensor)
        node.output(0).get_tensor().set_names({tensor})
        return node

    def weight(self, node: Node, weight: Weight, shape: tuple[int, ...], scale_shape: tuple[int, ...]) -> Any:
        """Store weights at their width in `shape`, and return them as real numbers."""
        values, kinds, name = weight.values.reshape(shape), self.openvino.Type, f"{node.name}/weight"
        if weight.bits == 2:
            stored = self.packed_constant(values + np.int8(1), kinds.u2, 2, name)
            integers = self.ops.subtract(self.ops.convert(stored, "i8"), self.constant(np.array(1, np.int8)))
        elif weight.bits == 8:
            integers = self.constant(values)
        else:
            integers = self.ops.convert(self.packed_constant(values, kinds.i4, 4, name), "i8")
        scales = self.constant(weight.scales.reshape(scale_shape))
        return self.ops.multiply(self.ops.convert(integers, "f32"), scales)

    def finish(self, accumulated: Any, node: Node, op: Conv2d | Linear, source: Quantization, axes: int) -> Any:
        """Add the bias to [N, O, ...], which has `axes` axes after the channels, and round."""
        bias = _real_bias(op, source, node.output.quantization)
        real = self.ops.add(accumulated, self.constant(bias.reshape(1, -1, *[1] * axes)))
        return self.quantize(real, node.name, node.output.quantization)


def _real_bias(op: Conv2d | Linear, source: Quantization, output: Quantization) -> NDArray[np.float32]:
    """Return the bias as real numbers, float32 [O].

    One that alone drives the output to an end of its range goes no farther than that takes: OpenVINO shifts the range
    by the bias, and float32 has not all whole numbers beyond 2**24.
    """
    units = source.scale * op.weight.scales.astype(np.float64)
    magnitudes = np.abs(op.weight.values.astype(np.int64)).reshape(len(units), -1).sum(axis=1)
    reach = units * magnitudes * max(source.qmax - source.zero_point, source.zero_point - source.qmin)
    lowest, highest = (output.scale * (limit - output.zero_point) for limit in (output.qmin - 1, output.qmax + 1))
    return np.clip(op.bias * units, lowest - reach, highest + reach).astype(np.float32)


def _needs_second_column(node: Node, op: Conv2d) -> bool:
    """Whether the plugin would take the only column for a row, and mistake strides or read beyond the padding."""
    return node.output.shape[2] == 1 < node.output.shape[1] and max(op.stride) > 1


def _window(graph: IntegerGraph, node: Node, op: Conv2d) -> tuple[list[int], ...]:
    """Return a convolution's stride, padding before, padding after and dilation.

    They are the operator's, but where OpenVINO 2026.4's CPU plugin crashes or computes something else.

    Raises:
        UnsupportedError: no window reaches the input.
    """
    sizes = graph.tensor(node.inputs[0]).shape[1:]
    kernel, outputs = op.weight.values.shape[2:], node.output.shape[1:]
    before, after, stride = list(op.padding[:2]), list(op.padding[2:]), list(op.stride)
    # The dilation of a single tap means nothing; the plugin reads beyond the input.
    dilation = [step if taps > 1 else 1 for step, taps in zip(op.dilation, kernel, strict=True)]
    for axis in (0, 1):
        starts = np.arange(outputs[axis])[:, None] * stride[axis] - before[axis]
        read = starts + np.arange(kernel[axis]) * dilation[axis]
        if not ((read >= 0) & (read < sizes[axis])).any():
            raise UnsupportedError(
                "OpenVINO crashes on a convolution of which no window reaches its input",
                where=f"layer {node.name}",
                remedy="Its outputs are constant: use a smaller padding, or choose another target",
            )
    if _needs_second_column(node, op):
        after[1] += stride[1]
    return stride, before, after, dilation


def _conv2d(writer: _Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Conv2d) -> Any:
    outputs, *rest = op.weight.values.shape
    options = _window(graph, node, op)
    if op.groups == 1:
        weight = writer.weight(node, op.weight, (outputs, *rest), (outputs, 1, 1, 1))
        accumulated = writer.ops.convolution(inputs[0], weight, *options)
    else:
        grouped = (op.groups, outputs // op.groups)
        weight = writer.weight(node, op.weight, (*grouped, *rest), (*grouped, 1, 1, 1))
        accumulated = writer.ops.group_convolution(inputs[0], weight, *options)
    columns = writer.finish(accumulated, node, op, graph.tensor(node.inputs[0]).quantization, 2)
    if not _needs_second_column(node, op):
        return columns
    columns.output(0).get_tensor().set_names(set())
    columns.set_friendly_name(f"{node.name}/columns")
    first = (writer.constant(np.array([limit], np.int64)) for limit in (0, 1, 1, 3))
    return writer.named(writer.ops.slice(columns, *first), node.name)


def _linear(writer: _Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Linear) -> Any:
    weight = writer.weight(node, op.weight, op.weight.values.shape, (-1, 1))
    accumulated = writer.ops.matmul(inputs[0], weight, False, True)
    return writer.finish(accumulated, node, op, graph.tensor(node.inputs[0]).quantization, 0)


def _add(writer: _Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Add) -> Any:
    output = node.output.quantization
    sources = [graph.tensor(name).quantization for name in node.inputs]
    terms = [
        writer.on_steps(real, source, source.scale / output.scale, COARSE_TERM)
        for real, source in zip(inputs, sources, strict=True)
    ]
    return writer.quantize(writer.ops.add(*terms), node.name, output)


def _mul(writer: _Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Mul) -> Any:
    output = node.output.quantization
    sources = [graph.tensor(name).quantization for name in node.inputs]
    largest = 255 * sources[0].scale * sources[1].scale / output.scale
    factors = [writer.on_steps(real, source, largest) for real, source in zip(inputs, sources, strict=True)]
    return writer.quantize(writer.ops.multiply(*factors), node.name, output)


def _lookup(writer: _Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Lookup) -> Any:
    ops = writer.ops
    functions = {"hard_sigmoid": ops.hsigmoid, "hard_swish": ops.hswish, "sigmoid": ops.sigmoid, "silu": ops.swish}
    source, output = graph.tensor(node.inputs[0]).quantization, node.output.quantization
    real = writer.on_steps(inputs[0], source, source.scale / output.scale)
    return writer.quantize(functions[op.function](real), node.name, output)


def _softmax(writer: _Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Softmax) -> Any:
    return writer.quantize(writer.ops.softmax(inputs[0], 1), node.name, node.output.quantization)


def _concat(writer: _Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Concat) -> Any:
    return writer.named(writer.ops.concat(inputs, 1), node.name)


def _slice(writer: _Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Slice) -> Any:
    start, stop, step, axis = (writer.constant(np.array([value], np.int64)) for value in (op.start, op.stop, 1, 1))
    return writer.named(writer.ops.slice(inputs[0], start, stop, step, axis), node.name)


def _channel_shuffle(writer: _Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: ChannelShuffle) -> Any:
    return writer.named(writer.ops.shuffle_channels(inputs[0], 1, op.groups), node.name)


def _upsample(writer: _Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Upsample) -> Any:
    factors = writer.constant(np.array(op.factor, np.float32))
    resized = writer.ops.interpolate(
        inputs[0],
        factors,
        "nearest",
        "scales",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
        axes=writer.constant(np.array([2, 3], np.int64)),
    )
    return writer.named(resized, node.name)


def _average_pool2d(writer: _Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: AveragePool2d) -> Any:
    real = writer.ops.avg_pool(inputs[0], list(op.stride), [0, 0], [0, 0], list(op.kernel), True)
    return writer.quantize(real, node.name, node.output.quantization)


def _max_pool2d(writer: _Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: MaxPool2d) -> Any:
    first_operators = require("openvino.opset1", "openvino")
    pooled = first_operators.max_pool(
        inputs[0], list(op.stride), list(op.padding[:2]), list(op.padding[2:]), list(op.kernel)
    )
    return writer.named(pooled, node.name)


def _flatten(writer: _Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Flatten) -> Any:
    return writer.named(writer.ops.reshape(inputs[0], writer.constant(np.array([0, -1])), True), node.name)


def _requantize(writer: _Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Requantize) -> Any:
    source, output = graph.tensor(node.inputs[0]).quantization, node.output.quantization
    # Of steps that are coarser than the output's; limits between finer ones are less than one of the output's away.
    quantize = writer.limit_rounded if source.scale > output.scale else writer.quantize
    real = writer.on_steps(inputs[0], source, source.scale / output.scale)
    return quantize(real, node.name, output)


_WRITERS: dict[type, Callable[[_Writer, IntegerGraph, Node, list[Any], Any], Any]] = {
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
