"""From a QDQ ONNX file that others made to the integer graph.

Read are the files of onnxruntime's `quantize_static` (QDQ format), of Brevitas (QCDQ), of NNCF and of kdpipe itself:
activations in the form DequantizeLinear - operator - QuantizeLinear, weights as stored integers before a
DequantizeLinear, or as floats before a QuantizeLinear. Each DequantizeLinear - ... - QuantizeLinear becomes a node of
the integer graph. Unsigned activations are stored 128 lower; an unfused batch norm is absorbed as `absorption.py` says;
Relu becomes the range of its layer's output. An average pool whose output has steps of its own is a depthwise
convolution with ones as its weights, which rounds once, as the file does.

The file's runtimes requantize in floating point, the integer graph in fixed point: an output can be one step away.
What has no integer form is refused with the node's name before anything is written.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.errors import ArtifactError, GraphError, KdpipeError, UnsupportedError
from kdpipe.targets.fixed_point import Rounding
from kdpipe.targets.graph import (
    PROBABILITIES,
    Add,
    Concat,
    IntegerGraph,
    Lookup,
    Mul,
    Node,
    Operator,
    Quantization,
    Requantize,
    Softmax,
    TensorType,
)
from kdpipe.targets.onnx import STORED_SUFFIX
from kdpipe.targets.qdq.onnx_file import MAX_ELEMENTS, Constant, FileNode, OnnxFile, read_onnx
from kdpipe.targets.qdq.operators import OPERATORS, refuse_operator
from kdpipe.targets.qdq.properties import class_names, identifier, normalization, stated_rounding
from kdpipe.targets.qdq.values import (
    RANGES,
    Accumulation,
    Exact,
    Function,
    Joined,
    Probabilities,
    Product,
    Real,
    Steps,
    Stored,
    Sum,
    Value,
)

_QUANTIZE = (
    "Quantize it first, for instance with onnxruntime.quantization.quantize_static(quant_format=QuantFormat.QDQ)"
)


@dataclass(frozen=True, eq=False)
class Reading:
    """What was read.

    Args:
        graph: the integer graph.
        stored: by name of a tensor of the graph, the name of its integers in the file and their element type's name;
            tensors that the file does not have are absent.
    """

    graph: IntegerGraph
    stored: Mapping[str, tuple[str, str]]


def read_graph(path: Path, *, rounding: Rounding | None = None) -> IntegerGraph:
    """Return the integer graph of the QDQ ONNX file at `path`; see `read`."""
    return read(path, rounding=rounding).graph


def read(path: Path, *, rounding: Rounding | None = None) -> Reading:
    """Read the QDQ ONNX file at `path`.

    Args:
        path: of the file.
        rounding: of the graph; by default what the file says (kdpipe's own do), or else `single`.

    Raises:
        ArtifactError: the file can't be read, is truncated or damaged, or refers to data outside its folder.
        UnsupportedError: it is not quantized, in part or at all, or has an operator without an integer form; names
            the node.
        GraphError: a scale is not positive and finite, or the graph would be invalid; names the layer.
        MissingDependencyError: onnx is not installed.
    """
    file = read_onnx(path)
    _check_quantized(file)
    try:
        with np.errstate(all="ignore"):  # what is not finite is found where it matters, and named
            return Reader(file).read(rounding)
    except KdpipeError as error:
        where = f"{path}: {error.where}" if error.where else str(path)
        where = error.where if error.where and error.where.startswith(str(path)) else where
        raise type(error)(error.message, where=where, remedy=error.remedy) from None
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        # Only a file whose tensors do not fit its operators comes here.
        raise ArtifactError(f"not a valid ONNX network ({error})", where=str(path), remedy="Write it again") from None


def _check_quantized(file: OnnxFile) -> None:
    operators = Counter(node.op for node in file.nodes)
    if "QuantizeLinear" in operators or "DequantizeLinear" in operators:
        return
    where = str(file.path)
    if operators.keys() & {"QLinearConv", "QLinearMatMul"}:
        raise UnsupportedError("the network is in QOperator form", where=where, remedy=_QUANTIZE)
    if operators.keys() & {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}:
        raise UnsupportedError("the network is quantized dynamically", where=where, remedy=_QUANTIZE)
    raise UnsupportedError("the network is not quantized", where=where, remedy=_QUANTIZE)


@dataclass
class Reader:
    """The walk over the file's nodes; also what `operators.py` needs of it."""

    file: OnnxFile
    values: dict[str, Value] = field(default_factory=dict)
    types: dict[str, TensorType] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    stored: dict[str, tuple[str, str]] = field(default_factory=dict)
    factors: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    input: str | None = None

    def __post_init__(self) -> None:
        self.readers: dict[str, list[FileNode]] = {}
        for node in self.file.nodes:
            for name in node.inputs:
                self.readers.setdefault(name, []).append(node)

    def read(self, rounding: Rounding | None) -> Reading:
        """Visit every node and return the graph."""
        for node in self.file.nodes:
            try:
                visit = OPERATORS.get(node.op)
                value = refuse_operator(node.op) if visit is None else visit(self, node)
            except KdpipeError as error:
                raise type(error)(error.message, where=error.where or node.where, remedy=error.remedy) from None
            if value is not None:
                self.values[node.outputs[0]] = value
        return self._finish(rounding)

    def _finish(self, rounding: Rounding | None) -> Reading:
        output = self._output()
        if self.input is None:
            raise UnsupportedError("the network's input is not quantized", remedy=_QUANTIZE)
        nodes = self._needed(output)
        properties = self.file.properties
        graph = IntegerGraph(
            name=identifier(self.file.name),
            input_name=self.input,
            input=self.types[self.input],
            nodes=nodes,
            rounding=rounding or stated_rounding(properties.get("rounding")),
            class_names=class_names(properties.get("classes"), self.types[output].shape),
            normalization=normalization(properties, self.file.input_shape[0]),
            metadata={"source": self.file.path.name, "producer": self.file.producer},
        )
        kept = {self.input, *(node.name for node in nodes)}
        return Reading(graph, {name: entry for name, entry in self.stored.items() if name in kept})

    def _output(self) -> str:
        name = self.file.output_name
        value = self.values.get(name)
        if isinstance(value, Stored) and value.tensor not in self.factors:
            return value.tensor
        if isinstance(value, Real) and isinstance(value.what, Exact):
            return self.exact(value)
        if isinstance(value, Real) and isinstance(value.what, Accumulation):
            # As NNCF and often Brevitas leave it: the last layer's sums, not rounded.
            low, high = value.what.estimated_range(self.types[value.what.tensor].quantization)
            low, high = min(low, 0.0), max(high, 0.0)
            scale = float(np.float32((high - low) / 255)) or 1.0
            quantization = Quantization(scale, int(np.clip(np.rint(-128 - low / scale), -128, 127)))
            tensor = self.round(value, quantization, name, "INT8").tensor
            self.stored.pop(tensor, None)  # the file has it in floating point only
            return tensor
        if isinstance(value, Real) and isinstance(value.what, Probabilities) and not (value.is_bounded or value.after):
            tensor = self.round(value, PROBABILITIES, name, "INT8").tensor
            self.stored.pop(tensor, None)
            return tensor
        raise UnsupportedError(
            f"the network's output {name} is not quantized",
            remedy="End the network with a quantized tensor or with a convolution or linear layer",
        )

    def _needed(self, output: str) -> tuple[Node, ...]:
        needed, kept = {output}, []
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
                kept.append(node)
        return tuple(reversed(kept))

    def value(self, node: FileNode, index: int) -> Value | None:
        """Return an input of `node`, or None where it is optional and not given."""
        name = node.inputs[index] if index < len(node.inputs) else ""
        if not name:
            return None
        if name not in self.values:
            if name == self.file.input_name:
                return self._input_value(node)
            constant = self.file.constant(name)
            if constant is None:
                raise UnsupportedError(f"reads {name}, a further result of a node")
            self.values[name] = constant
        return self.values[name]

    def real(self, node: FileNode, index: int = 0) -> Real:
        """Return an input of `node` that must be a dequantized activation.

        Raises:
            UnsupportedError: it is something else.
        """
        value = self.value(node, index)
        if isinstance(value, Real):
            return value
        raise UnsupportedError(
            f"lacks its input {index}" if value is None else f"its input {index} is not a dequantized activation",
            remedy="Put QuantizeLinear and DequantizeLinear before it",
        )

    def label(self, node: FileNode) -> str:
        """Return what a node that works on stored integers is called in the graph."""
        return node.name.removesuffix(STORED_SUFFIX)

    def is_input(self, name: str) -> bool:
        """Whether `name` is the network's input and holds real numbers."""
        return name == self.file.input_name and self.file.input_kind not in RANGES

    def _input_value(self, node: FileNode) -> Value:
        name = self.file.input_name
        if node.op != "DequantizeLinear" or self.file.input_kind not in RANGES:
            raise UnsupportedError(f"reads the input {name} before it is quantized", remedy=_QUANTIZE)
        steps = self.steps(node, self.file.input_kind)
        self.define_input(name, steps.of_activation(), self.file.input_kind)
        self.values[name] = Stored(str(self.input), self.file.input_kind)
        return self.values[name]

    def define_input(self, stored: str, quantization: Quantization, kind: str) -> str:
        """Say how the input is quantized, by the first that quantizes it, and return its name in the graph."""
        if self.input is not None:
            if self.types[self.input].quantization != quantization:
                raise UnsupportedError("the input is quantized in two ways", remedy="Quantize it once")
            return self.input
        self.input = stored.removesuffix(STORED_SUFFIX) if stored.endswith(STORED_SUFFIX) else self.file.input_name
        self.types[self.input] = TensorType(self.file.input_shape, quantization)
        self.stored[self.input] = (stored, kind)
        return self.input

    def steps(self, node: FileNode, kind: str | None) -> Steps:
        """Return scale and zero point of a QuantizeLinear or DequantizeLinear; `kind` is of the stored integers."""
        if node.integer("block_size", 0):
            raise UnsupportedError("scales by block have no integer form", remedy="Use a scale for each channel")
        scale, zero_point = self.value(node, 1), self.value(node, 2)
        if not isinstance(scale, Constant) or not isinstance(zero_point, Constant | None) or not scale.is_real:
            raise UnsupportedError("its scale or zero point is computed by the network", remedy=_QUANTIZE)
        if not (np.isfinite(scale.values).all() and (scale.values > 0).all()):
            raise GraphError("its scale is not positive and finite", remedy="Calibrate and quantize the network again")
        kind = kind or (zero_point.kind if zero_point is not None else "UINT8")
        scales = scale.values.reshape(()) if scale.values.size == 1 else scale.values
        zeros = np.zeros_like(scales, dtype=np.int64) if zero_point is None else zero_point.values.reshape(scales.shape)
        if zero_point is not None and zero_point.is_real:
            raise UnsupportedError(f"a zero point of type {zero_point.kind} has no integer form")
        return Steps(scales, zeros, kind, node.integer("axis", 1) if scales.ndim else None)

    def exact(self, real: Real) -> str:
        """Return the tensor whose integers stand for exactly these numbers.

        Raises:
            UnsupportedError: they were never rounded, or a Relu or Clip came after.
        """
        if isinstance(real.what, Exact) and real.what.factors is not None:
            raise UnsupportedError(
                "reads an activation with a scale for each channel, which only depthwise convolutions can",
                remedy="Quantize activations per tensor",
            )
        if not isinstance(real.what, Exact) or real.is_bounded or real.after:
            raise UnsupportedError(
                f"reads the result of {real.name} in floating point",
                remedy="Put QuantizeLinear and DequantizeLinear between the two",
            )
        return real.what.tensor

    def exactly(self, tensor: str, name: str) -> Real:
        """Return the real numbers that the integers of `tensor` stand for."""
        return Real(Exact(tensor, self.factors.get(tensor)), name, self.types[tensor].shape)

    def scaled(self, real: Real, factors: NDArray[np.float64] | None) -> Real:
        """Return `real` with each channel divided by its factor.

        Raises:
            UnsupportedError: that can't be done by the scales of a layer.
        """
        layer = real.what
        bounds = {real.low, real.high} <= {-math.inf, 0.0, math.inf}
        fits = factors is not None and isinstance(layer, Accumulation) and factors.shape == layer.gain.shape
        if not isinstance(layer, Accumulation) or factors is None or not fits or not bounds or real.after:
            raise UnsupportedError(
                "an activation has a scale for each channel that no convolution before it can take",
                remedy="Quantize activations per tensor",
            )
        return replace(real, what=layer.line(1 / factors, np.zeros_like(factors)), factors=factors)

    def round(self, real: Real, quantization: Quantization, stored: str, kind: str) -> Stored:
        """Add the nodes that round `real`, and return their result, called `stored` in the file."""
        quantization = real.limits(quantization)
        # kdpipe's files say what the tensor was called.
        label = stored.removesuffix(STORED_SUFFIX) if stored.endswith(STORED_SUFFIX) else real.name
        # Of all the nodes that are added here, the last one bears the label.
        first_name = real.name if real.after else label
        shape = real.after[0][2] if real.after else real.shape
        if isinstance(real.what, Accumulation):
            op: Operator = real.what.operator(self.types[real.what.tensor].quantization, quantization)
            tensor = self.add(first_name, op, (real.what.tensor,), shape, quantization)
        elif isinstance(real.what, Sum):
            inputs = (real.what.first, real.what.second)
            tensor = self.add(first_name, Add(), inputs, shape, quantization)
        elif isinstance(real.what, Product):
            inputs = (real.what.first, real.what.second)
            tensor = self.add(first_name, Mul(), inputs, shape, quantization)
        elif isinstance(real.what, Function):
            tensor = self.add(first_name, Lookup(real.what.name), (real.what.tensor,), shape, quantization)
        elif isinstance(real.what, Probabilities):
            tensor = self._softmax(real.what.tensor, first_name, shape, quantization)
        elif isinstance(real.what, Joined):
            aligned = self.aligned(real.what.tensors, first_name, quantization)
            tensor = self.add(first_name, Concat(), aligned, shape, quantization)
        else:
            tensor = real.what.tensor
            if not self._is_within(self.types[tensor].quantization, quantization):
                tensor = self.add(first_name, Requantize(), (tensor,), shape, quantization)
        shapes = [*(before for _, _, before in real.after[1:]), real.shape]
        for index, ((name, op, _), following) in enumerate(zip(real.after, shapes, strict=False)):
            name = label if index == len(real.after) - 1 else name
            tensor = self.add(name, op, (tensor,), following, quantization)
        self.stored.setdefault(tensor, (stored, kind))
        if real.factors is not None:
            self.factors[tensor] = real.factors
        return Stored(tensor, kind)

    def _softmax(self, tensor: str, name: str, shape: tuple[int, ...], quantization: Quantization) -> str:
        """Add a Softmax, and what brings its fixed steps to others; the last node is called `name`."""
        if quantization == PROBABILITIES:
            return self.add(name, Softmax(), (tensor,), shape, PROBABILITIES)
        tensor = self.add(f"{name}.softmax", Softmax(), (tensor,), shape, PROBABILITIES)
        return self.add(name, Requantize(), (tensor,), shape, quantization)

    def aligned(self, tensors: tuple[str, ...], name: str, quantization: Quantization) -> tuple[str, ...]:
        """Return `tensors` with one quantization, which is what a Concat called `name` takes."""
        found: dict[str, str] = {}
        for index, tensor in enumerate(tensors):
            known = self.types[tensor]
            if known.quantization == quantization:
                found[tensor] = tensor
            elif tensor not in found:
                found[tensor] = self.add(f"{name}.input{index}", Requantize(), (tensor,), known.shape, quantization)
        return tuple(found[tensor] for tensor in tensors)

    @staticmethod
    def _is_within(inner: Quantization, outer: Quantization) -> bool:
        return (
            (inner.scale, inner.zero_point) == (outer.scale, outer.zero_point)
            and outer.qmin <= inner.qmin
            and inner.qmax <= outer.qmax
        )

    def add(
        self, name: str, op: Operator, inputs: tuple[str, ...], shape: tuple[int, ...], quantization: Quantization
    ) -> str:
        """Add a node and return its name: `name`, with a number where that is taken."""
        if min(shape) < 1 or int(np.prod(np.array(shape, dtype=object))) > MAX_ELEMENTS:
            raise UnsupportedError(
                f"its output would have the shape {list(shape)}", remedy="Export the network for images of another size"
            )
        unique, number = name, 2
        while unique in self.types or not unique:
            unique, number = f"{name}.{number}", number + 1
        self.types[unique] = TensorType(shape, quantization)
        self.nodes.append(Node(unique, op, inputs, self.types[unique]))
        return unique
