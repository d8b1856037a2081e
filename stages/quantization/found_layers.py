"""The layers of a network that can be quantized, found in its graph before anything is changed."""

from __future__ import annotations

from torch import Tensor, fx, nn

from kdpipe.stages.quantization.activations import ActivationQuantizer
from kdpipe.stages.quantization.configuration import Layer
from kdpipe.stages.quantization.normalized import Normalized, Problem, listed
from kdpipe.stages.quantization.operations import DROPOUTS, LAYERS, NORMS, is_flatten, normalize
from kdpipe.stages.quantization.stored_operations import REARRANGEMENTS
from kdpipe.stages.quantization.tracing import trace
from kdpipe.targets.errors import UnsupportedError
from kdpipe.targets.lower import PATH, check_finite


def find_layers(module: nn.Module, example: Tensor) -> dict[str, Layer]:
    """Return the layers whose weights `prepare` would quantize, by path, in order. Arguments and errors are its own."""
    normalized = normalized_network(module, example)
    nodes = layer_nodes(normalized)
    ends = end_nodes(normalized, nodes)
    found = {}
    for node in nodes:
        layer = normalized.module(node)
        assert isinstance(layer, LAYERS)  # noqa: S101  # that is what was looked for
        channels = layer.weight.shape[0]
        found[str(node.target)] = Layer(layer.weight.numel(), channels, isinstance(layer, nn.Linear), node in ends)
    return found


def normalized_network(module: nn.Module, example: Tensor) -> Normalized:
    """Return the normalized graph of a copy of `module`, all of which can be quantized; raises as `prepare` does."""
    if any(isinstance(part, ActivationQuantizer) for part in module.modules()):
        raise UnsupportedError("the network is quantized already", remedy="Give the float network")
    check_finite(module)
    normalized = normalize(trace(module, example))
    _find_misplaced(normalized)
    if normalized.problems:
        lines = "".join(f"\n  - {line}" for line in listed(normalized.problems))
        count = len(normalized.problems)
        raise UnsupportedError(f"{count} operation{'s' * (count > 1)} of the network can't be quantized:{lines}")
    return normalized


def layer_nodes(normalized: Normalized) -> list[fx.Node]:
    """Return the nodes that call convolutions and linear layers, in order."""
    return [node for node in normalized.graph.nodes if isinstance(normalized.module(node), LAYERS)]


def end_nodes(normalized: Normalized, layers: list[fx.Node]) -> set[fx.Node]:
    """Return those of `layers` that read the input, and the last."""
    ends = set(layers[-1:])
    for node in normalized.graph.nodes:
        if node.op == "placeholder":
            ends |= {user for user in readers(normalized, node) if user in layers}
    return ends


def readers(normalized: Normalized, node: fx.Node) -> list[fx.Node]:
    """Return the nodes that read `node`'s integers, through those that keep them."""
    found: list[fx.Node] = []
    for user in node.users:
        keeps = is_flatten(user) or isinstance(normalized.module(user), (nn.MaxPool2d, *DROPOUTS, *REARRANGEMENTS))
        found += readers(normalized, user) if keeps else [user]
    return found


def sole_user(node: fx.Node) -> fx.Node | None:
    """Return the only node that reads `node`, or None."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _find_misplaced(normalized: Normalized) -> None:
    """Add problems that only an operation's neighbours show."""
    if normalized.problems:
        return
    for node in normalized.graph.nodes:
        if node.op == "output" and not isinstance(node.args[0], fx.Node):
            problem = Problem("", "it returns several values", "Return one tensor, the logits")
        elif isinstance(normalized.module(node), NORMS):
            before = node.all_input_nodes[0]
            if isinstance(normalized.module(before), LAYERS) and sole_user(before) is node:
                continue
            problem = Problem(
                node.meta[PATH],
                "batch norm that does not directly follow a convolution or linear layer of its own",
                "Put it behind one; it is absorbed into that layer's scales",
            )
        else:
            continue
        normalized.problems.append(problem)
