"""A TFLite file's tensors by the integer graph's names: activations, their limits, input and output."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kdpipe.targets.artifact import INPUT_NAME, OUTPUT_NAME, properties
from kdpipe.targets.graph import Flatten, IntegerGraph, Linear, Node, Padding, Quantization, TensorType
from kdpipe.targets.tflite_model import ModelBuilder, unpack_model

METADATA = "kdpipe"
"""The name of the metadata entry: JSON, of which `output` is the integer graph's name of the output."""
STORED_SUFFIX = "/stored"
REORDERED_SUFFIX = "/channels_last"
"""Of a flat tensor whose elements are in the order of [H, W, C]."""


def stored_name(tensor: str) -> str:
    """Return the name in the TFLite file of a tensor of the integer graph."""
    return f"{tensor}{STORED_SUFFIX}"


def channels_last(shape: tuple[int, ...]) -> list[int]:
    """Return a graph's shape as TFLite has it, with a batch of one."""
    return [1, *shape[1:], shape[0]] if len(shape) == 3 else [1, *shape]


def stored_tensors(content: bytes) -> dict[str, int]:
    """Return the index in the file of every tensor that is one of the integer graph's, by its name there."""
    model = unpack_model(content)
    (graph,) = model.subgraphs
    (metadata,) = (entry for entry in model.metadata if entry.name == METADATA.encode())
    properties = json.loads(bytes(model.buffers[metadata.buffer].data))
    names = {tensor.name.decode(): index for index, tensor in enumerate(graph.tensors)}
    stored = {name.removesuffix(STORED_SUFFIX): names[name] for name in names if name.endswith(STORED_SUFFIX)}
    # Where the file's own output is int8, it is named as such.
    return {properties["output"]: int(graph.outputs[0])} | stored


class GraphWriter:
    """Writes one graph; each tensor of the integer graph is known by its name.

    Args:
        graph: what is written.
        stored_bits: the width at which convolutions' weights of each width are stored.
        is_real: whether the file's input and output are float32 rather than int8.
    """

    def __init__(self, graph: IntegerGraph, stored_bits: Mapping[int, int], *, is_real: bool) -> None:
        self.graph = graph
        self.stored_bits = stored_bits
        self._is_real = is_real
        self.builder = ModelBuilder(graph.name)
        self.schema = self.builder.schema
        self._input, stored = self._read_input()
        self.indices = {graph.input_name: stored}
        readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                readers.setdefault(name, []).append(node)
        self._reordered = {
            node.name
            for node in graph.nodes
            if isinstance(node.op, Flatten)
            and len(graph.tensor(node.inputs[0]).shape) == 3
            and node.name in readers
            and all(isinstance(reader.op, Linear) for reader in readers[node.name])
        }

    def activation(self, name: str, tensor: TensorType) -> int:
        """Add a tensor that is computed, and return its index."""
        return self.builder.activation(name, channels_last(tensor.shape), tensor.quantization)

    def source(self, node: Node, index: int = 0) -> int:
        """Return the tensor that a node reads."""
        return self.indices[node.inputs[index]]

    def output(self, node: Node) -> int:
        """Add the tensor that holds the node's output in the end."""
        is_last = node.name == self.graph.output_name and not self._is_real
        name = OUTPUT_NAME if is_last else stored_name(node.name)
        index = self.activation(name, node.output)
        self.indices[node.name] = index
        return index

    def is_reordered(self, name: str) -> bool:
        """Whether the flat tensor `name` has the order of [H, W, C] in the file."""
        return name in self._reordered

    def compute(self, node: Node, operator: str, inputs: list[int], options: str, **fields: Any) -> None:
        """Add an operator with a fused activation, and what else limits its output to its range."""
        quantization = node.output.quantization
        activations = self.schema.ActivationFunctionType
        is_relu = quantization.qmin == quantization.zero_point
        fields["fusedActivationFunction"] = activations.RELU if is_relu else activations.NONE
        limits = _limits(quantization, keeps_lowest=is_relu)
        target = self._unclipped(node.name, node.output) if limits else self.output(node)
        self.builder.operator(operator, inputs, target, options, fields)
        self._clip_output(node, target, limits)

    def convert(self, node: Node, operator: str, inputs: list[int], options: str) -> None:
        """Add an operator without a fused activation, and what limits its output to its range."""
        limits = _limits(node.output.quantization, keeps_lowest=False)
        target = self._unclipped(node.name, node.output) if limits else self.output(node)
        self.builder.operator(operator, inputs, target, options)
        self._clip_output(node, target, limits)

    def pad(self, node: Node, padding: Padding, *, lowest: bool) -> int:
        """Pad the node's input with what stands for 0, or with -128."""
        tensor = self.graph.tensor(node.inputs[0])
        channels, height, width = tensor.shape
        top, left, bottom, right = padding
        padded = TensorType((channels, height + top + bottom, width + left + right), tensor.quantization)
        output = self.activation(f"{node.name}/padded", padded)
        amounts = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
        inputs = [self.source(node), self.builder.constant(f"{node.name}/padding", amounts)]
        if not lowest:
            return self.builder.operator("PAD", inputs, output, "PadOptions")
        quantization = tensor.quantization
        fill = np.array([-128], np.int8)
        inputs.append(self.builder.constant(f"{node.name}/fill", fill, [quantization.scale], quantization.zero_point))
        return self.builder.operator("PADV2", inputs, output, "PadV2Options")

    def finish(self) -> bytes:
        """Return the file's bytes."""
        graph = self.graph
        content = {**properties(graph), "output": graph.output_name}
        self.builder.metadata(METADATA, json.dumps(content, sort_keys=True).encode())
        output = self.indices[graph.output_name]
        if self._is_real:
            real = self.builder.real(OUTPUT_NAME, channels_last(graph.output.shape))
            output = self.builder.operator("DEQUANTIZE", [output], real, "DequantizeOptions")
        return self.builder.finish([self._input], [output])

    def _read_input(self) -> tuple[int, int]:
        """Add the file's input and, where it is real, what stores it; return both."""
        name, tensor = self.graph.input_name, self.graph.input
        if not self._is_real:
            stored = self.activation(INPUT_NAME, tensor)
            return stored, stored
        real = self.builder.real(INPUT_NAME, channels_last(tensor.shape))
        limits = _limits(tensor.quantization, keeps_lowest=False)
        wide = self._unclipped(name, tensor) if limits else self.activation(stored_name(name), tensor)
        self.builder.operator("QUANTIZE", [real], wide, "QuantizeOptions")
        if not limits:
            return real, wide
        return real, self._clip(name, tensor, wide, limits, lambda: self.activation(stored_name(name), tensor))

    def _unclipped(self, name: str, tensor: TensorType) -> int:
        return self.activation(f"{name}/unclipped", tensor)

    def _clip_output(self, node: Node, source: int, limits: list[tuple[str, int]]) -> None:
        self._clip(node.name, node.output, source, limits, lambda: self.output(node))

    def _clip(
        self, name: str, tensor: TensorType, source: int, limits: list[tuple[str, int]], last: Callable[[], int]
    ) -> int:
        """Limit `source` into the tensor that `last` adds, and return that; `source` where there are no limits."""
        quantization = tensor.quantization
        for position, (operator, limit) in enumerate(limits):
            is_last = position == len(limits) - 1
            target = last() if is_last else self.activation(f"{name}/half_clipped", tensor)
            values = np.array([limit], np.int8)
            scales = [quantization.scale]
            bound = self.builder.constant(f"{name}/{operator.lower()}", values, scales, quantization.zero_point)
            source = self.builder.operator(operator, [source, bound], target, "MaximumMinimumOptions")
        return source


def _limits(quantization: Quantization, *, keeps_lowest: bool) -> list[tuple[str, int]]:
    """Return the operators and constants that limit int8 to the quantization's range."""
    limits = []
    if quantization.qmin > -128 and not keeps_lowest:
        limits.append(("MAXIMUM", quantization.qmin))
    if quantization.qmax < 127:
        limits.append(("MINIMUM", quantization.qmax))
    return limits
