"""From a float module to one that is trained as it will be deployed: quantizers inserted by graph.

Integer hardware rounds at these places, so here they are rounded in training too: the input; the output of each
convolution or linear layer, after its batch norm and ReLU; each sum, product, concatenation and function, after its
ReLU; each change of width. Max pooling, flattening and what only moves channels or pixels keep their input's integers,
average pooling rounds to them. Weights are quantized in place:
`layer1.0.conv1.weight` keeps its name, and every path of the module still names what it did, hooks included.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from kdpipe.stages.quantization.accumulators import (
    ConcatenationSource,
    LayerSource,
    OperationSource,
    Source,
    StoredSource,
)
from kdpipe.stages.quantization.activations import ActivationQuantizer, InputQuantizer
from kdpipe.stages.quantization.configuration import AUTO, QuantizationConfig, Widths, choose_widths
from kdpipe.stages.quantization.found_layers import end_nodes, layer_nodes, normalized_network, readers, sole_user
from kdpipe.stages.quantization.layers import AveragePool, ExactBatchNorm, Scope, Sum, exact_batch_norm
from kdpipe.stages.quantization.normalized import Normalized
from kdpipe.stages.quantization.operations import (
    CEILING,
    DROPOUTS,
    LAYERS,
    NORMS,
    is_add,
    is_cat,
    is_mul,
    is_relu,
)
from kdpipe.stages.quantization.pad_shortcuts import RESIDUAL
from kdpipe.stages.quantization.softmax import ProbabilityQuantizer, Softmax
from kdpipe.stages.quantization.stored_operations import (
    NOT_NEGATIVE,
    Concatenation,
    Function,
    Product,
)
from kdpipe.stages.quantization.weights import QuantizedConv2d, QuantizedLinear
from kdpipe.targets.lower import PATH, SHAPE

WIDE_BITS = 8
"""Width of the input, of the output, and of what is added or averaged."""

INPUT_NAME = "input"

Quantizer = ActivationQuantizer | InputQuantizer | ProbabilityQuantizer


def prepare(module: nn.Module, example: Tensor, config: QuantizationConfig) -> fx.GraphModule:
    """Return a quantized copy of `module`, its quantizers not yet calibrated.

    Args:
        module: any traceable module of the operations in `operations.normalize`; left as it is.
        example: an input [B, ...] on the module's device; its values do not matter.
        config: widths and rounding.

    Raises:
        UnsupportedError: lists every operation that can't be quantized, by module, with a remedy.
        NetworkError: the module can't be traced.
        GraphError: a weight is not finite; names the layer.
        UsageError: a pattern of `config.bits` matches no layer.
    """
    normalized = normalized_network(module, example)
    preparation = _Preparation(normalized, config)
    preparation.insert_quantizers()
    preparation.insert_taps()
    normalized.graph.lint()
    prepared = fx.GraphModule(normalized.root, normalized.graph, class_name=type(module).__name__)
    prepared.to(example.device)
    return prepared.train(module.training)


def quantizers(prepared: nn.Module) -> list[ActivationQuantizer]:
    """Return the activation quantizers of a prepared module, the input's left out, in order."""
    return [part for part in prepared.modules() if isinstance(part, ActivationQuantizer)]


def input_quantizer(prepared: nn.Module) -> InputQuantizer:
    """Return the quantizer of a prepared module's input."""
    return next(part for part in prepared.modules() if isinstance(part, InputQuantizer))


def _is_signed(quantizer: Quantizer) -> bool:
    return isinstance(quantizer, InputQuantizer) or quantizer.signed


class _Preparation:
    """One preparation's state.

    `stored` has, for each node whose value integer hardware stores, the quantizer of its integers. `final` has, for
    a node whose value is only stored after rounding, the node of the rounded value.
    """

    def __init__(self, normalized: Normalized, config: QuantizationConfig) -> None:
        self.normalized = normalized
        self.graph = normalized.graph
        self.config = config
        self.stored: dict[fx.Node, Quantizer] = {}
        self.final: dict[fx.Node, fx.Node] = {}
        self.narrowed: dict[tuple[fx.Node, int], fx.Node] = {}
        self.names = {INPUT_NAME}
        self.widths = self._choose_widths()

    def insert_quantizers(self) -> None:
        """Visit every operation in order: quantize layers' weights and whatever is to be stored."""
        for node in list(self.graph.nodes):
            module = self.normalized.module(node)
            if node.op == "placeholder":
                self._quantize_input(node)
            elif isinstance(module, LAYERS):
                self._quantize_layer(node)
            elif is_add(node) or is_mul(node):
                self._quantize_sum_or_product(node)
            elif is_cat(node):
                self._quantize_concatenation(node)
            elif isinstance(module, Function):
                self._quantize_function(node, module)
            elif isinstance(module, Softmax):
                self._quantize_softmax(node, module)
            elif is_relu(node) and node not in self.final:
                self._quantize_stored(node)
            elif node.op != "output" and not isinstance(module, NORMS) and not is_relu(node):
                self._keep(node)

    def insert_taps(self) -> None:
        """Call a `Scope` at the path of each container and fused ReLU, with what that returned."""
        for path, node in self.normalized.taps.items():
            if not path:
                continue
            value = self.final.get(node, node)
            original = self.normalized.root.get_submodule(path)
            scope = Scope(original._modules)
            parent, _, name = path.rpartition(".")
            setattr(self.normalized.root.get_submodule(parent), name, scope)
            with self.graph.inserting_after(value):
                self.graph.call_module(path, (value,))
            for user in value.users:
                quantizer = self.normalized.module(user)
                if isinstance(quantizer, ActivationQuantizer):
                    quantizer.add_producer(scope)

    def _choose_widths(self) -> dict[fx.Node, Widths]:
        layers = layer_nodes(self.normalized)
        ends = end_nodes(self.normalized, layers)
        paths = {node: str(node.target) for node in layers}
        chosen = choose_widths(list(paths.values()), {paths[node] for node in ends}, self.config)
        return {node: chosen[path] for node, path in paths.items()}

    def _wanted_bits(self, reader: fx.Node) -> int:
        if reader not in self.widths or reader.meta.get(RESIDUAL, False):
            return WIDE_BITS
        return self.widths[reader].activations

    def _name(self, wanted: str) -> str:
        name, number = wanted, 0
        while name in self.names:
            number += 1
            name = f"{wanted}_{number}"
        self.names.add(name)
        return name

    def _quantize_input(self, node: fx.Node) -> None:
        quantizer = InputQuantizer(INPUT_NAME)
        path = self.normalized.insert(INPUT_NAME, quantizer)
        with self.graph.inserting_after(node):
            rounded = self.graph.call_module(path, (node,))
        node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)
        rounded.meta.update(node.meta | {PATH: INPUT_NAME})
        self.stored[rounded] = quantizer
        self.final[node] = rounded

    def _quantize_layer(self, node: fx.Node) -> None:
        layer = self.normalized.module(node)
        source = self._narrow(node)
        bits = self.widths[node].weights
        assert bits != AUTO  # noqa: S101  # assigned before any training
        training = self.config.weight_training()
        quantized: QuantizedConv2d | QuantizedLinear
        if isinstance(layer, nn.Conv2d):
            quantized = QuantizedConv2d.of(layer, bits, training)
        else:
            assert isinstance(layer, nn.Linear)  # noqa: S101  # one of LAYERS
            quantized = QuantizedLinear.of(layer, bits, training)
        quantized.read_from(source)
        self._replace_module(node, quantized)
        producers: list[nn.Module] = [quantized]
        end, norm = node, None
        user = sole_user(node)
        if user is not None and isinstance(module := self.normalized.module(user), NORMS):
            end, norm = user, exact_batch_norm(module)
            self._replace_module(user, norm)
            producers.append(norm)
        self._quantize_value(node, end, LayerSource(quantized, norm, source), producers)

    def _replace_module(self, node: fx.Node, module: nn.Module) -> None:
        parent, _, name = str(node.target).rpartition(".")
        setattr(self.normalized.root.get_submodule(parent), name, module)

    def _quantize_sum_or_product(self, node: fx.Node) -> None:
        first, second = (self.stored[value] for value in node.args if isinstance(value, fx.Node))
        module = Product(first, second) if is_mul(node) else Sum(first, second, self.config.rounding)
        name = "product" if is_mul(node) else "sum"
        computed = self._call(node, name, module, node.args)
        unsigned = is_mul(node) and not (_is_signed(first) or _is_signed(second))
        self._quantize_value(computed, computed, OperationSource(module), [module], signed=not unsigned)

    def _quantize_concatenation(self, node: fx.Node) -> None:
        values = [value for value in node.args[0] if isinstance(value, fx.Node)]  # type: ignore[union-attr]
        parts = tuple((self.stored[value], int(value.meta[SHAPE][1])) for value in values)
        module = Concatenation()
        joined = self._call(node, "parts", module, tuple(values))
        signed = any(_is_signed(part) for part, _ in parts)
        self._quantize_value(joined, joined, ConcatenationSource(parts), [module], signed=signed)

    def _quantize_function(self, node: fx.Node, module: Function) -> None:
        module.read_from(self.stored[node.all_input_nodes[0]])
        # Not in place: some functions keep their output for the gradient.
        self._quantize_value(node, node, None, [module], signed=module.name not in NOT_NEGATIVE, in_place=False)

    def _quantize_softmax(self, node: fx.Node, module: Softmax) -> None:
        module.read_from(self.stored[node.all_input_nodes[0]])
        rounded = self._insert(node, ProbabilityQuantizer(self._name(node.meta[PATH])))
        node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)
        self.final[node] = rounded

    def _call(self, node: fx.Node, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> fx.Node:
        """Replace a function's node by a call of `module` and return it."""
        path = self.normalized.insert(f"{node.meta[PATH]}.{name}", module)
        with self.graph.inserting_before(node):
            called = self.graph.call_module(path, inputs)
        called.meta.update(node.meta)
        self.normalized.replace(node, called)
        return called

    def _narrow(self, layer: fx.Node) -> Quantizer:
        """Return the quantizer of what `layer` reads, requantized first where it is wider than the layer takes."""
        value = layer.all_input_nodes[0]
        quantizer, bits = self.stored[value], self._wanted_bits(layer)
        if isinstance(quantizer, InputQuantizer) or quantizer.bits <= bits:
            return quantizer
        if (value, bits) not in self.narrowed:
            narrow = self._make(
                f"{value.meta.get(PATH, value.name)}.requantize", bits, quantizer.signed, StoredSource(quantizer)
            )
            self.narrowed[value, bits] = self._insert(value, narrow)
        rounded = self.narrowed[value, bits]
        layer.replace_input_with(value, rounded)
        return self.stored[rounded]

    def _quantize_value(
        self,
        start: fx.Node,
        end: fx.Node,
        source: Source | None,
        producers: list[nn.Module],
        *,
        signed: bool = True,
        in_place: bool = True,
    ) -> None:
        """Round what `end` computes, together with the ReLU that alone reads it."""
        relu = sole_user(end)
        fused = relu is not None and is_relu(relu)
        value = relu if fused and relu is not None else end
        bits = max((self._wanted_bits(reader) for reader in readers(self.normalized, value)), default=WIDE_BITS)
        ceiling = relu.meta.get(CEILING) if fused and relu is not None else None
        quantizer = self._make(
            *(start.meta[PATH], bits, signed and not fused, source),
            in_place=in_place,
            producers=producers,
            ceiling=ceiling,
        )
        norm = self.normalized.module(end)
        if isinstance(norm, ExactBatchNorm):
            quantizer.follow(norm)
        rounded = self._insert(end, quantizer)
        if fused and relu is not None:
            # everybody, taps too, reads the rounded value; the ReLU is part of it
            relu.replace_all_uses_with(rounded)
            self.graph.erase_node(relu)
            self.final[relu] = rounded
        else:
            end.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)
            self.final[end] = rounded

    def _quantize_stored(self, relu: fx.Node) -> None:
        """Round a ReLU of what is stored already: integers are requantized."""
        value = relu.all_input_nodes[0]
        bits = max((self._wanted_bits(reader) for reader in readers(self.normalized, relu)), default=WIDE_BITS)
        source = StoredSource(self.stored[value])
        quantizer = self._make(relu.meta[PATH], bits, False, source, ceiling=relu.meta.get(CEILING))
        rounded = self._insert(value, quantizer)
        relu.replace_all_uses_with(rounded)
        self.graph.erase_node(relu)
        self.final[relu] = rounded

    def _keep(self, node: fx.Node) -> None:
        """Let a pooling, flattening, rearrangement or dropout have its input's integers."""
        source = self.stored[node.all_input_nodes[0]]
        self.stored[node] = source
        module = self.normalized.module(node)
        if isinstance(module, AveragePool):
            module.read_from(source)
        if not isinstance(module, DROPOUTS):
            node.meta[PATH] = self._name(node.meta[PATH])

    def _make(
        self,
        name: str,
        bits: int,
        signed: bool,
        source: Source | None,
        *,
        in_place: bool = False,
        producers: list[nn.Module] | None = None,
        ceiling: float | None = None,
    ) -> ActivationQuantizer:
        return ActivationQuantizer(
            self._name(name),
            bits,
            signed=signed,
            rounding=self.config.rounding,
            source=source,
            in_place=in_place,
            producers=producers or (),
            ceiling=ceiling,
            gradient=self.config.activation_gradient,
            ewgs_delta=self.config.ewgs_delta,
        )

    def _insert(self, value: fx.Node, quantizer: ActivationQuantizer | ProbabilityQuantizer) -> fx.Node:
        path = self.normalized.insert(quantizer.name, quantizer)
        with self.graph.inserting_after(value):
            rounded = self.graph.call_module(path, (value,))
        rounded.meta.update({PATH: quantizer.name, SHAPE: value.meta.get(SHAPE)})
        self.stored[rounded] = quantizer
        return rounded
