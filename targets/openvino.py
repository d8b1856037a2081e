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

from kdpipe.targets.artifact import INPUT_NAME, OUTPUT_NAME, describe, properties_as_text, write_artifact
from kdpipe.targets.dependencies import require
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
    Requantize,
    Slice,
    Softmax,
    Upsample,
)
from kdpipe.targets.openvino_numbers import check_window, needs_second_column, window
from kdpipe.targets.openvino_writer import Writer
from kdpipe.targets.operator_support import refuse_unsupported

STRUCTURE_FILE, CONSTANTS_FILE = "model.xml", "model.bin"
STORED_BITS = {"packed": {2: 2, 3: 4, 4: 4, 8: 8}}


def export(graph: IntegerGraph, directory: Path) -> list[Path]:
    """Write `graph` as model.xml and model.bin, and artifact.json, into `directory`; return the deployable files.

    The input is float32 `input` [N, C, H, W], normalized; the output float32 `logits` [N, ...]; N is free.

    Raises:
        UnsupportedError: an operator can't be expressed, or a scale is too small for OpenVINO.
        MissingDependencyError: openvino is not installed.
    """
    openvino = require("openvino", "openvino")
    writer = Writer(openvino)
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


def _build(writer: Writer, graph: IntegerGraph) -> Any:
    refuse_unsupported(graph, _WRITERS, "OpenVINO")
    parameter = writer.ops.parameter([-1, *graph.input.shape], np.float32, name=INPUT_NAME)
    parameter.output(0).get_tensor().set_names({INPUT_NAME})
    tensors = {graph.input_name: writer.round_tensor(parameter, graph.input_name, graph.input.quantization)}
    for node in graph.nodes:
        inputs = [tensors[name] for name in node.inputs]
        tensors[node.name] = _WRITERS[type(node.op)](writer, graph, node, inputs, node.op)
    result = writer.ops.result(tensors[graph.output_name], name=OUTPUT_NAME)
    tensor = result.input(0).get_source_output().get_tensor()
    tensor.set_names({OUTPUT_NAME, *tensor.get_names()})
    model = writer.openvino.Model([result], [parameter], graph.name)
    steps = {name: asdict(quantization) for name, quantization in graph.quantizations().items()}
    for index, operation in enumerate(model.get_ordered_ops()):
        # openvino counts the operators of the whole process in the names it gives; files are to be reproducible.
        kind, name = operation.get_type_name(), operation.get_friendly_name()
        if name not in steps and re.fullmatch(rf"{kind}_\d+", name):
            operation.set_friendly_name(f"{kind}/{index}")
    for key, value in {**properties_as_text(graph), "tensors": json.dumps(steps)}.items():
        model.set_rt_info(value, ["kdpipe", key])
    return model


def _conv2d(writer: Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Conv2d) -> Any:
    outputs, *rest = op.weight.values.shape
    check_window(graph, node, op)
    options = window(node, op)
    if op.groups == 1:
        weight = writer.weight(node, op.weight, (outputs, *rest), (outputs, 1, 1, 1))
        accumulated = writer.ops.convolution(inputs[0], weight, *options)
    else:
        grouped = (op.groups, outputs // op.groups)
        weight = writer.weight(node, op.weight, (*grouped, *rest), (*grouped, 1, 1, 1))
        accumulated = writer.ops.group_convolution(inputs[0], weight, *options)
    columns = writer.round_sums(accumulated, graph, node, op)
    if not needs_second_column(node, op):
        return columns
    columns.output(0).get_tensor().set_names(set())
    columns.set_friendly_name(f"{node.name}/columns")
    first = (writer.constant(np.array([limit], np.int64)) for limit in (0, 1, 1, 3))
    return writer.named(writer.ops.slice(columns, *first), node.name)


def _linear(writer: Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Linear) -> Any:
    weight = writer.weight(node, op.weight, op.weight.values.shape, (-1, 1))
    accumulated = writer.ops.matmul(inputs[0], weight, False, True)
    return writer.round_sums(accumulated, graph, node, op)


def _add(writer: Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Add) -> Any:
    return writer.round(writer.ops.add(*writer.on_steps(inputs, graph, node)), graph, node)


def _mul(writer: Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Mul) -> Any:
    return writer.round(writer.ops.multiply(*writer.on_steps(inputs, graph, node)), graph, node)


def _lookup(writer: Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Lookup) -> Any:
    ops = writer.ops
    functions = {"hard_sigmoid": ops.hsigmoid, "hard_swish": ops.hswish, "sigmoid": ops.sigmoid, "silu": ops.swish}
    return writer.round(functions[op.function](*writer.on_steps(inputs, graph, node)), graph, node)


def _softmax(writer: Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Softmax) -> Any:
    return writer.round(writer.ops.softmax(inputs[0], 1), graph, node)


def _concat(writer: Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Concat) -> Any:
    return writer.named(writer.ops.concat(inputs, 1), node.name)


def _slice(writer: Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Slice) -> Any:
    start, stop, step, axis = (writer.constant(np.array([value], np.int64)) for value in (op.start, op.stop, 1, 1))
    return writer.named(writer.ops.slice(inputs[0], start, stop, step, axis), node.name)


def _channel_shuffle(writer: Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: ChannelShuffle) -> Any:
    return writer.named(writer.ops.shuffle_channels(inputs[0], 1, op.groups), node.name)


def _upsample(writer: Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Upsample) -> Any:
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


def _average_pool2d(writer: Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: AveragePool2d) -> Any:
    real = writer.ops.avg_pool(inputs[0], list(op.stride), [0, 0], [0, 0], list(op.kernel), True)
    return writer.round(real, graph, node)


def _max_pool2d(writer: Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: MaxPool2d) -> Any:
    first_operators = require("openvino.opset1", "openvino")
    pooled = first_operators.max_pool(
        inputs[0], list(op.stride), list(op.padding[:2]), list(op.padding[2:]), list(op.kernel)
    )
    return writer.named(pooled, node.name)


def _flatten(writer: Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Flatten) -> Any:
    return writer.named(writer.ops.reshape(inputs[0], writer.constant(np.array([0, -1])), True), node.name)


def _requantize(writer: Writer, graph: IntegerGraph, node: Node, inputs: list[Any], op: Requantize) -> Any:
    (real,) = writer.on_steps(inputs, graph, node)
    return writer.round(real, graph, node)


_WRITERS: dict[type, Callable[[Writer, IntegerGraph, Node, list[Any], Any], Any]] = {
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
