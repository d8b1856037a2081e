"""An integer graph as ONNX: quantize and dequantize (QDQ) form, weights at the width they were trained at.

Each tensor of the integer graph is stored under "NAME/q" as uint8, 128 above the graph's own integers: on x86,
onnxruntime has integer kernels for unsigned activations only. A weight of 2 bits is an INT2 initializer, one
of 3 or 4 bits INT4; a Cast to INT8 and a DequantizeLinear follow. onnxruntime folds the Cast when it loads the model
and fuses DequantizeLinear - operator - QuantizeLinear into one integer kernel. Maximum pooling, Flatten, what
only moves channels or pixels, and the Clip of activations of fewer than 8 bits work on the stored integers directly. A
Lookup, and a Softmax, is its function in float32 between the two.

Runtimes requantize in floating point (ONNX's QuantizeLinear: round half to even), so that a stored integer can be
one step from the integer graph's, whose fixed point rounds halves away or up.

Source: ONNX operators 25, https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.artifact import (
    INPUT_NAME,
    OUTPUT_NAME,
    describe,
    kdpipe_version,
    properties_as_text,
    write_artifact,
)
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
    Quantization,
    Requantize,
    Slice,
    Softmax,
    Upsample,
    Weight,
)
from kdpipe.targets.operator_support import refuse_unsupported
from kdpipe.targets.packing import pack_lowest_first

OPSET = 25
"""The first with INT2."""
INT8_OPSET = 14
"""The first with all that is written where every weight is int8: HardSwish is its latest."""
FILE = "model.onnx"
OFFSET = 128
"""What is added to the graph's integers, in [-128, 127], to store them as uint8."""
STORED_BITS = {"packed": {2: 2, 3: 4, 4: 4, 8: 8}, "int8": {2: 8, 3: 8, 4: 8, 8: 8}}
"""By the choice of `weights`, the width at which weights of each width are stored."""
STORED_SUFFIX = "/q"


def stored_name(tensor: str) -> str:
    """Return the name in the ONNX file of a tensor's stored integers."""
    return f"{tensor}{STORED_SUFFIX}"


def export(graph: IntegerGraph, directory: Path, weights: str = "packed") -> list[Path]:
    """Write `graph` as model.onnx, and artifact.json, into `directory`; return the deployable files.

    The input is float32 `input` [N, C, H, W], normalized; the output float32 `logits` [N, ...]; N is free.

    Args:
        graph: what to write.
        directory: where to.
        weights: `packed` at 2, 4 or 8 bits, or all as `int8`, in an older opset, for readers that know nothing newer.

    Raises:
        UnsupportedError: an operator can't be expressed.
        MissingDependencyError: onnx is not installed.
    """
    onnx = require("onnx", "onnx")
    model = build_model(graph, weights)
    onnx.checker.check_model(model, full_check=True)
    path = directory / FILE
    path.write_bytes(model.SerializeToString(deterministic=True))
    write_artifact(
        describe(
            graph,
            target="onnx",
            files=[FILE],
            input_type="float32",
            layout="NCHW",
            stored_bits=STORED_BITS[weights],
        ),
        directory,
    )
    return [path]


def build_model(graph: IntegerGraph, weights: str = "packed") -> Any:
    """Return `graph` as an onnx.ModelProto; `weights` as in `export`."""
    refuse_unsupported(graph, _WRITERS, "ONNX")
    onnx = require("onnx", "onnx")
    writer = _Writer(onnx, STORED_BITS[weights])
    writer.quantize(INPUT_NAME, graph.input_name, graph.input.quantization)
    for node in graph.nodes:
        _WRITERS[type(node.op)](writer, graph, node, node.op)
    output = graph.output
    writer.dequantize(graph.output_name, output.quantization, to=OUTPUT_NAME)
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    model = helper.make_model(
        helper.make_graph(
            writer.nodes,
            graph.name,
            [helper.make_tensor_value_info(INPUT_NAME, float32, ["N", *graph.input.shape])],
            [helper.make_tensor_value_info(OUTPUT_NAME, float32, ["N", *output.shape])],
            writer.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET if weights == "packed" else INT8_OPSET)],
        producer_name="kdpipe",
        producer_version=kdpipe_version(),
    )
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)
    helper.set_model_props(model, properties_as_text(graph))
    return model


class _Writer:
    """Collects nodes and initializers; each method adds one idea and returns the name of its result.

    Stored tensors, weights and operators are called by the integer graph's names. All else has a number:
    with weights of 2 bits, names in words would be a sixth of the file.
    """

    def __init__(self, onnx: Any, stored_bits: Mapping[int, int]) -> None:
        self.onnx = onnx
        self._stored_bits = stored_bits
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._numbers = count()
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._reals: dict[str, str] = {}

    def node(self, operator: str, inputs: list[str], output: str = "", name: str = "", **attributes: Any) -> str:
        output = output or self._number()
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [output], name=name or None, **attributes))
        return output

    def constant(self, values: NDArray[Any], name: str = "") -> str:
        """Add a constant; of those without a name, equal ones are one."""
        values = np.array(values, order="C")
        key = (values.dtype.str, values.shape, values.tobytes())
        if not name and key in self._constants:
            return self._constants[key]
        name = name or self._constants.setdefault(key, self._number())
        self.initializers.append(self.onnx.numpy_helper.from_array(values, name))
        return name

    def integers(self, *values: int) -> str:
        """Return the name of the int64 constant [values...]."""
        return self.constant(np.array(values, np.int64))

    def packed_constant(self, name: str, values: NDArray[np.int8], bits: int) -> str:
        tensor = self.onnx.TensorProto(name=name, dims=values.shape, raw_data=pack_lowest_first(values, bits))
        tensor.data_type = {2: self.onnx.TensorProto.INT2, 4: self.onnx.TensorProto.INT4}[bits]
        self.initializers.append(tensor)
        return name

    def _number(self) -> str:
        return f"{next(self._numbers):x}"

    def _steps(self, quantization: Quantization) -> list[str]:
        zero_point = np.uint8(quantization.zero_point + OFFSET)
        return [self.constant(np.array(value)) for value in (np.float32(quantization.scale), zero_point)]

    def quantize(self, real: str, tensor: str, quantization: Quantization, *, always_clip: bool = False) -> None:
        """Store `real` as the integers of `tensor`, limited to their range."""
        stored = stored_name(tensor)
        lowest, highest = quantization.qmin, quantization.qmax
        if (lowest, highest) == (-128, 127) and not always_clip:
            self.node("QuantizeLinear", [real, *self._steps(quantization)], stored)
            return
        wide = self.node("QuantizeLinear", [real, *self._steps(quantization)])
        limits = [self.constant(np.array(limit + OFFSET, np.uint8)) for limit in (lowest, highest)]
        self.node("Clip", [wide, *limits], stored)

    def real(self, tensor: str, quantization: Quantization) -> str:
        """Return what the integers of `tensor` stand for."""
        if tensor not in self._reals:
            self._reals[tensor] = self.dequantize(tensor, quantization)
        return self._reals[tensor]

    def dequantize(self, tensor: str, quantization: Quantization, to: str = "") -> str:
        return self.node("DequantizeLinear", [stored_name(tensor), *self._steps(quantization)], to)

    def weight(self, node: Node, weight: Weight) -> str:
        """Store weights at their width and return them as real numbers."""
        name = f"{node.name}/weight"
        bits = self._stored_bits[weight.bits]
        if bits == 8:
            integers = self.constant(weight.values, name)
        else:
            packed = self.packed_constant(name, weight.values, bits)
            integers = self.node("Cast", [packed], to=self.onnx.TensorProto.INT8)
        # Where onnxruntime turns weights beyond [-64, 63] to uint8, it turns each layer's zero points too, and fails at
        # the second layer that has the same.
        zeros = self.constant(np.zeros(len(weight.scales), np.int8), self._number() if weight.bits == 8 else "")
        scales = self.constant(weight.scales)
        return self.node("DequantizeLinear", [integers, scales, zeros], axis=0)

    def bias(self, node: Node, op: Conv2d | Linear, source: Quantization) -> str:
        integers = self.constant(op.bias)
        scales = self.constant(np.float32(source.scale) * op.weight.scales)
        return self.node("DequantizeLinear", [integers, scales], axis=0)


def _reals(writer: _Writer, graph: IntegerGraph, node: Node) -> list[str]:
    return [writer.real(name, graph.tensor(name).quantization) for name in node.inputs]


def _finish(writer: _Writer, node: Node, operator: str, inputs: list[str], **attributes: Any) -> None:
    real = writer.node(operator, inputs, name=node.name, **attributes)
    writer.quantize(real, node.name, node.output.quantization)


def _conv2d(writer: _Writer, graph: IntegerGraph, node: Node, op: Conv2d) -> None:
    source = graph.tensor(node.inputs[0]).quantization
    inputs = [*_reals(writer, graph, node), writer.weight(node, op.weight), writer.bias(node, op, source)]
    attributes = {
        "kernel_shape": list(op.weight.values.shape[2:]),
        "strides": list(op.stride),
        "pads": list(op.padding),
        "dilations": list(op.dilation),
        "group": op.groups,
    }
    defaults = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "group": 1}
    _finish(
        writer,
        node,
        "Conv",
        inputs,
        **{name: value for name, value in attributes.items() if defaults.get(name) != value},
    )


def _linear(writer: _Writer, graph: IntegerGraph, node: Node, op: Linear) -> None:
    source = graph.tensor(node.inputs[0]).quantization
    inputs = [*_reals(writer, graph, node), writer.weight(node, op.weight), writer.bias(node, op, source)]
    _finish(writer, node, "Gemm", inputs, transB=1)


def _add(writer: _Writer, graph: IntegerGraph, node: Node, op: Add) -> None:
    _finish(writer, node, "Add", _reals(writer, graph, node))


def _mul(writer: _Writer, graph: IntegerGraph, node: Node, op: Mul) -> None:
    _finish(writer, node, "Mul", _reals(writer, graph, node))


def _lookup(writer: _Writer, graph: IntegerGraph, node: Node, op: Lookup) -> None:
    (real,) = _reals(writer, graph, node)
    if op.function == "hard_sigmoid":
        _finish(writer, node, "HardSigmoid", [real], alpha=1 / 6, beta=0.5)
    elif op.function == "silu":
        gate = writer.node("Sigmoid", [real])
        _finish(writer, node, "Mul", [real, gate])
    else:
        _finish(writer, node, {"hard_swish": "HardSwish", "sigmoid": "Sigmoid"}[op.function], [real])


def _softmax(writer: _Writer, graph: IntegerGraph, node: Node, op: Softmax) -> None:
    _finish(writer, node, "Softmax", _reals(writer, graph, node), axis=1)


def _concat(writer: _Writer, graph: IntegerGraph, node: Node, op: Concat) -> None:
    writer.node("Concat", [stored_name(name) for name in node.inputs], stored_name(node.name), axis=1)


def _slice(writer: _Writer, graph: IntegerGraph, node: Node, op: Slice) -> None:
    limits = [writer.integers(op.start), writer.integers(op.stop), writer.integers(1)]
    writer.node("Slice", [stored_name(node.inputs[0]), *limits], stored_name(node.name))


def _channel_shuffle(writer: _Writer, graph: IntegerGraph, node: Node, op: ChannelShuffle) -> None:
    channels, height, width = node.output.shape
    # In Reshape, 0 keeps the batch.
    groups = writer.integers(0, op.groups, channels // op.groups, height, width)
    split = writer.node("Reshape", [stored_name(node.inputs[0]), groups])
    swapped = writer.node("Transpose", [split], perm=[0, 2, 1, 3, 4])
    writer.node("Reshape", [swapped, writer.integers(0, channels, height, width)], stored_name(node.name))


def _upsample(writer: _Writer, graph: IntegerGraph, node: Node, op: Upsample) -> None:
    scales = writer.constant(np.array([1, 1, *op.factor], np.float32))
    writer.node(
        "Resize",
        [stored_name(node.inputs[0]), "", scales],
        stored_name(node.name),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _average_pool2d(writer: _Writer, graph: IntegerGraph, node: Node, op: AveragePool2d) -> None:
    _finish(
        writer,
        node,
        "AveragePool",
        _reals(writer, graph, node),
        kernel_shape=list(op.kernel),
        strides=list(op.stride),
    )


def _max_pool2d(writer: _Writer, graph: IntegerGraph, node: Node, op: MaxPool2d) -> None:
    writer.node(
        "MaxPool",
        [stored_name(node.inputs[0])],
        stored_name(node.name),
        kernel_shape=list(op.kernel),
        strides=list(op.stride),
        pads=list(op.padding),
    )


def _flatten(writer: _Writer, graph: IntegerGraph, node: Node, op: Flatten) -> None:
    writer.node("Flatten", [stored_name(node.inputs[0])], stored_name(node.name), axis=1)


def _requantize(writer: _Writer, graph: IntegerGraph, node: Node, op: Requantize) -> None:
    # Of two pairs of QuantizeLinear and DequantizeLinear in a row, onnxruntime makes one in a way that leaves the next
    # operator in float; the Clip, which changes nothing, keeps them apart.
    (real,) = _reals(writer, graph, node)
    writer.quantize(real, node.name, node.output.quantization, always_clip=True)


_WRITERS: dict[type, Callable[[_Writer, IntegerGraph, Node, Any], None]] = {
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
