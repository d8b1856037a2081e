"""From a quantized torch module to the integer graph.

The module is a `torch.fx.GraphModule` in which every tensor that integer hardware stores goes through an activation
quantizer (`kdpipe.stages.quantization.prepare` makes such modules from ordinary ones). What its modules must offer is
declared in `quantized_modules.py`, so that nothing here depends on training code. Batch norm is absorbed into the
scales of the convolution before it; see `absorption.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.absorption import absorb, batch_norm_line, float64
from kdpipe.targets.errors import GraphError, KdpipeError, UnsupportedError
from kdpipe.targets.fixed_point import Rounding
from kdpipe.targets.graph import (
    AveragePool2d,
    Concat,
    Conv2d,
    Flatten,
    IntegerGraph,
    Linear,
    MaxPool2d,
    Node,
    Normalization,
    Operator,
    Padding,
    Pair,
    Quantization,
    Requantize,
    TensorType,
    Weight,
)
from kdpipe.targets.quantized_modules import (
    ActivationQuantizer,
    InactiveInEvaluation,
    QuantizedLayer,
    Rearrangement,
    StoredOperation,
)

if TYPE_CHECKING:
    from torch import fx, nn

PATH = "path"
"""Key of an fx node's `meta` under which the name of its tensor in the integer graph stands."""

SHAPE = "shape"
"""Key of an fx node's `meta`: the shape, with the batch, of the tensor that it produced when the module was traced."""


def check_finite(module: nn.Module) -> None:
    """Raise GraphError, naming the layer, if a parameter or buffer holds a value that is not finite."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            layer, _, what = name.rpartition(".")
            raise GraphError(
                f"its {what} holds a value that is not finite",
                where=f"layer {layer}",
                remedy="Training diverged or the checkpoint is damaged: train again with a lower learning rate",
            )


def lower(
    module: fx.GraphModule,
    input_shape: tuple[int, ...],
    *,
    name: str,
    rounding: Rounding = "single",
    class_names: tuple[str, ...] = (),
    normalization: Normalization | None = None,
    metadata: Mapping[str, str] | None = None,
) -> IntegerGraph:
    """Lower a quantized module, as it computes in evaluation mode, to an integer graph.

    Args:
        module: a prepared module; left as it is.
        input_shape: without the batch, [C, H, W] or [features].
        name: of the graph.
        rounding: of every requantization.
        class_names: one for each output, or empty.
        normalization: of the input, where known.
        metadata: strings that travel with every export.

    Raises:
        GraphError: a value is not finite, a quantizer is dead, or the graph would be invalid; names the layer.
        UnsupportedError: an operation has no integer form; names the layer.
    """
    lowering = _Lowering(module)
    lowering.check_values()
    lowering.infer_shapes(input_shape)
    for node in module.graph.nodes:
        lowering.visit(node)
    if lowering.input is None or lowering.output is None:
        raise UnsupportedError("the module's input or output is not quantized", remedy="Prepare the module first")
    if not lowering.nodes or lowering.nodes[-1].name != lowering.output:
        raise UnsupportedError("the module's output is not the last tensor that it computes")
    return IntegerGraph(
        name=name,
        input_name=lowering.input[0],
        input=lowering.input[1],
        nodes=tuple(lowering.nodes),
        rounding=rounding,
        class_names=class_names,
        normalization=normalization,
        metadata=dict(metadata or {}),
    )


@dataclass(frozen=True)
class _Accumulation:
    """A convolution or linear layer, and the batch norm after it, not yet requantized: gain * layer + offset."""

    layer: Any
    path: str
    source: str
    gain: NDArray[np.float64]
    offset: NDArray[np.float64]


@dataclass(frozen=True)
class _Pending:
    """An operator whose output is not yet rounded."""

    op: Operator
    inputs: tuple[str, ...]


@dataclass
class _Lowering:
    """The walk over the module's graph.

    `values` says what each fx node is: a stored tensor, by name, or a part. `brought` has, by tensor and the Concat
    that reads it, the tensor in the quantization of that.
    """

    module: Any
    values: dict[Any, str | _Accumulation | _Pending] = field(default_factory=dict)
    types: dict[str, TensorType] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    shapes: dict[Any, tuple[int, ...]] = field(default_factory=dict)
    brought: dict[tuple[str, str], str] = field(default_factory=dict)
    input: tuple[str, TensorType] | None = None
    output: str | None = None

    def check_values(self) -> None:
        """Refuse values that are not finite and dead quantizers, by name."""
        check_finite(self.module)
        for module in self.module.modules():
            if isinstance(module, ActivationQuantizer):
                module.quantization()

    def infer_shapes(self, input_shape: tuple[int, ...]) -> None:
        """Compute every tensor's shape, without the batch, by running the module once on zeros."""
        import torch

        for node in self.module.graph.nodes:
            made_for = node.meta.get(SHAPE) if node.op == "placeholder" else None
            if made_for is not None and tuple(made_for[1:]) != input_shape:
                # Pooling windows and branches were chosen for that shape.
                raise GraphError(
                    f"the module was prepared for inputs of shape {list(made_for[1:])} and does not take an input of "
                    f"shape {list(input_shape)}",
                    remedy="Prepare the network for this shape: what is deployed has fixed sizes",
                )
        shapes = self.shapes

        class Shapes(torch.fx.Interpreter):  # type: ignore[misc]
            def run_node(self, n: Any) -> Any:
                result = super().run_node(n)
                if isinstance(result, torch.Tensor):
                    shapes[n] = tuple(result.shape[1:])
                return result

        training = {module: module.training for module in self.module.modules()}
        parameter = next(self.module.parameters(), None)
        self.module.eval()
        try:
            with torch.no_grad():
                Shapes(self.module).run(
                    torch.zeros(1, *input_shape, device=parameter.device if parameter is not None else None)
                )
        except KdpipeError:
            raise
        except (RuntimeError, IndexError, ValueError) as error:
            raise GraphError(f"the module does not take an input of shape {list(input_shape)}: {error}") from None
        finally:
            for module, mode in training.items():
                module.training = mode

    def visit(self, node: Any) -> None:
        """Lower one fx node."""
        import torch
        from torch import nn

        if node.op == "placeholder":
            return
        if node.op == "output":
            self.output = self._stored(node.args[0], "the output")
            return
        path = self._path(node)
        if node.op == "call_function" and node.target is torch.flatten:
            self._emit(node, path, Flatten(), (self._stored(node.args[0], path),))
        elif node.op != "call_module":
            raise UnsupportedError(f"{node.target} has no integer form", where=f"layer {path}")
        else:
            layer = self.module.get_submodule(node.target)
            if isinstance(layer, ActivationQuantizer):
                self._quantize(node, path, layer.quantization())
            elif isinstance(layer, StoredOperation):
                inputs = tuple(self._stored(argument, path) for argument in node.args)
                self.values[node] = _Pending(layer.integer_operator(), inputs)
            elif isinstance(layer, Rearrangement):
                self._emit(node, path, layer.rearrangement(), (self._stored(node.args[0], path),))
            elif isinstance(layer, QuantizedLayer):
                self.values[node] = self._accumulate(node, layer)
            elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                self.values[node] = self._normalize(node, path, layer)
            elif isinstance(layer, nn.AvgPool2d):
                op = AveragePool2d(_pair(layer.kernel_size), _pair(layer.stride))
                self._emit(node, path, op, (self._stored(node.args[0], path),))
            elif isinstance(layer, nn.MaxPool2d):
                pool = max_pooling(layer, self.shapes[node.args[0]], self.shapes[node])
                self._emit(node, path, pool, (self._stored(node.args[0], path),))
            elif isinstance(layer, nn.Identity | nn.Dropout | nn.Dropout2d | InactiveInEvaluation):
                if node.args[0] in self.values:
                    self.values[node] = self.values[node.args[0]]
            else:
                raise UnsupportedError(f"{type(layer).__name__} has no integer form", where=f"layer {path}")

    @staticmethod
    def _path(node: Any) -> str:
        return str(node.meta.get(PATH, node.target if node.op == "call_module" else node.name))

    def _stored(self, node: Any, path: str) -> str:
        value = self.values.get(node)
        if not isinstance(value, str):
            raise UnsupportedError(f"{path} reads a tensor that no quantizer rounds", where=f"layer {path}")
        return value

    def _emit(self, node: Any, path: str, op: Operator, inputs: tuple[str, ...]) -> None:
        """Add an operator that keeps its input's quantization."""
        self._add(node, path, op, inputs, self.types[inputs[0]].quantization)

    def _add(self, node: Any, path: str, op: Operator, inputs: tuple[str, ...], quantization: Quantization) -> None:
        lowered = Node(path, op, inputs, TensorType(self.shapes[node], quantization))
        self.nodes.append(lowered)
        self.types[path] = lowered.output
        self.values[node] = path

    def _quantize(self, node: Any, path: str, quantization: Quantization) -> None:
        argument = node.args[0]
        if argument.op == "placeholder":
            self.input = (path, TensorType(self.shapes[node], quantization))
            self.types[path] = self.input[1]
            self.values[node] = path
            return
        value = self.values.get(argument)
        if isinstance(value, _Accumulation):
            op, source = self._requantized(value, quantization), value.source
            self._add(node, path, op, (source,), quantization)
        elif isinstance(value, _Pending):
            inputs = value.inputs
            if isinstance(value.op, Concat):
                inputs = tuple(self._brought_to(name, quantization, path) for name in inputs)
            self._add(node, path, value.op, inputs, quantization)
        elif value is not None:
            self._add(node, path, Requantize(), (value,), quantization)
        else:
            raise UnsupportedError("a quantizer reads a tensor that has no integer form", where=f"layer {path}")

    def _brought_to(self, name: str, quantization: Quantization, path: str) -> str:
        """Return the name of the tensor `name` in another quantization, for the reader `path`."""
        if self.types[name].quantization == quantization:
            return name
        if (name, path) not in self.brought:
            taken = {*self.types, *(self._path(node) for node in self.module.graph.nodes)}
            converted = f"{path}.{name}"
            while converted in taken:
                converted += ".requantize"
            lowered = Node(converted, Requantize(), (name,), TensorType(self.types[name].shape, quantization))
            self.nodes.append(lowered)
            self.types[converted] = lowered.output
            self.brought[name, path] = converted
        return self.brought[name, path]

    def _accumulate(self, node: Any, layer: Any) -> _Accumulation:
        outputs = layer.weight.shape[0]
        bias = np.zeros(outputs) if layer.bias is None else float64(layer.bias)
        return _Accumulation(layer, node.target, self._stored(node.args[0], node.target), np.ones(outputs), bias)

    def _normalize(self, node: Any, path: str, norm: Any) -> _Accumulation:
        value = self.values.get(node.args[0])
        if not isinstance(value, _Accumulation):
            raise UnsupportedError("a batch norm that does not follow a convolution", where=f"layer {path}")
        gain, offset = batch_norm_line(norm)
        return _Accumulation(value.layer, value.path, value.source, value.gain * gain, value.offset * gain + offset)

    def _requantized(self, value: _Accumulation, output: Quantization) -> Conv2d | Linear:
        layer = value.layer
        try:
            weight, scales, bits = layer.integer_weight()
            values = weight.cpu().numpy()
            source = self.types[value.source].quantization
            channels = absorb(values, scales.cpu().numpy(), value.gain, value.offset, source, output)
            signs = channels.signs.reshape(-1, *[1] * (values.ndim - 1))
            deployed = Weight(np.ascontiguousarray(values * signs), channels.scales, bits)
        except GraphError as error:
            raise GraphError(error.message, where=f"layer {value.path}", remedy=error.remedy) from None
        if values.ndim == 2:
            return Linear(deployed, channels.bias)
        stride, dilation = _pair(layer.stride), _pair(layer.dilation)
        return Conv2d(deployed, channels.bias, stride, convolution_padding(layer), dilation, int(layer.groups))


def convolution_padding(layer: Any) -> Padding:
    """Return (top, left, bottom, right) of a convolution module, also where it says "same" or "valid"."""
    if layer.padding == "valid":
        return (0, 0, 0, 0)
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        # torch puts the odd one after.
        before = [total // 2 for total in totals]
        return (before[0], before[1], totals[0] - before[0], totals[1] - before[1])
    vertical, horizontal = _pair(layer.padding)
    return (vertical, horizontal, vertical, horizontal)


def max_pooling(layer: Any, source: tuple[int, ...], output: tuple[int, ...]) -> MaxPool2d:
    """Return the operator of an nn.MaxPool2d, also where ceil_mode lets its windows reach beyond the padding.

    Args:
        layer: without dilation.
        source: the input's [C, H, W].
        output: the output's [C, H, W].
    """
    kernel, stride, before = _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding)
    after = before
    if layer.ceil_mode:
        reach = [(output[1 + axis] - 1) * stride[axis] + kernel[axis] for axis in (0, 1)]
        after = (max(0, reach[0] - source[1] - before[0]), max(0, reach[1] - source[2] - before[1]))
    return MaxPool2d(kernel, stride, (*before, *after))


def _pair(value: Any) -> Pair:
    first, second = value if isinstance(value, tuple | list) else (value, value)
    return (int(first), int(second))
