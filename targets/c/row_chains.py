"""Which layers of a network are computed by rows, in turns, so that less of their tensors exists at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from kdpipe.targets.c.layer import Layer
from kdpipe.targets.c.memory_plan import Buffer, live_bytes
from kdpipe.targets.c.row_schedule import Reading, RowChain, RowLayer
from kdpipe.targets.c.storage import lay_out
from kdpipe.targets.graph import (
    Add,
    AveragePool2d,
    ChannelShuffle,
    Concat,
    Conv2d,
    IntegerGraph,
    Lookup,
    MaxPool2d,
    Mul,
    Node,
    Requantize,
    Slice,
    Softmax,
    TensorType,
)

Lowering = Callable[[IntegerGraph, Node], Layer]

_LONGEST = 24
"""Layers of a chain, at most."""

_TURN_COST, _WEIGHT_COST, _LINE = 150, 0.5, 16
"""What computing by rows adds, in multiplications: for each turn; and for each weight of a convolution without rows
above or below its position, for each row beyond those that the same positions make at this width."""

MOST_ADDED = 0.02
"""Of a chain's multiplications, what computing them by rows may add."""

_ELEMENTWISE = Add | Lookup | Mul | Requantize
_BY_ROW = _ELEMENTWISE | Softmax | Concat | Slice | ChannelShuffle


def choose_chains(
    graph: IntegerGraph, layers: Mapping[str, Layer], lower: Lowering
) -> tuple[tuple[RowChain, ...], dict[str, Layer]]:
    """Find the chains with which the fullest moment of the program is least full, as few and cheap ones as that takes.

    Whether a layer is computed by rows or as a whole changes what lives while it runs, and nothing at any other time:
    so the steps fall into chains and single layers of which the fullest one is what counts, and the best division comes
    from the best divisions of the steps before.

    Args:
        graph: the network.
        layers: of each node that is computed, its layer as a whole.
        lower: returns the layer of a node in a graph.

    Returns:
        The chains, and the layers that compute one row of tensors that they are given one row of.
    """
    row_layers = [row_layer(graph, node, layers.get(node.name)) for node in graph.nodes]
    costs = [_cost(node, layer, graph) for node, layer in zip(graph.nodes, row_layers, strict=True)]
    scratch = {name: layer.scratch for name, layer in layers.items()}
    in_place = {name for name, layer in layers.items() if layer.in_place}
    whole = lay_out(graph, scratch, in_place, []).buffers
    single = [live_bytes(whole, step) for step in range(len(graph.nodes))]
    of_rows: dict[str, Layer] = {}

    def fullness(chain: RowChain) -> int:
        for layer, node in zip(chain.layers, graph.nodes[chain.first :], strict=False):
            if is_by_row(graph, node) and layer.name not in of_rows:
                of_rows[layer.name] = lower_row(graph, node, lower)
        sizes = {name: layer.scratch for name, layer in of_rows.items() if name in {row.name for row in chain.layers}}
        return live_bytes(lay_out(graph, scratch | sizes, in_place, [chain]).buffers, chain.first)

    pieces = {}
    for first in range(len(graph.nodes)):
        for last in range(first, min(first + _LONGEST, len(graph.nodes))):
            if row_layers[last] is None:
                break
            part = slice(first, last + 1)
            work, added = (sum(values) for values in zip(*costs[part], strict=True))
            if last == first or added > MOST_ADDED * work or _least_fullness(whole, first, last) >= max(single[part]):
                continue
            chain = RowChain(first, tuple(layer for layer in row_layers[part] if layer is not None))
            pieces[first, last] = fullness(chain), added, chain
    chains = _divide(single, pieces)
    names = {layer.name for chain in chains for layer in chain.layers}
    return chains, {name: layer for name, layer in of_rows.items() if name in names}


def is_by_row(graph: IntegerGraph, node: Node) -> bool:
    """Return whether each row of the output is computed from one row of the inputs, and from the same row of one."""
    op = node.op
    shapes = [node.output.shape, *(graph.tensor(name).shape for name in node.inputs)]
    if any(len(shape) != 3 for shape in shapes):
        return False
    return isinstance(op, _BY_ROW) or (
        isinstance(op, Conv2d) and op.weight.values.shape[2] == 1 and op.padding[0] == op.padding[2] == 0
    )


def row_layer(graph: IntegerGraph, node: Node, layer: Layer | None) -> RowLayer | None:
    """Return how the rows of a node's output come from those of its inputs, or None where its kernel can't be told."""
    op, shape = node.op, node.output.shape
    if layer is None or len(shape) != 3:
        return None
    if is_by_row(graph, node):
        heights = [graph.tensor(name).shape[1] for name in node.inputs]
        step = op.stride[0] if isinstance(op, Conv2d) else 1
        # A factor of a product may be one number a channel.
        strides = [step if shape[1] == 1 or height > 1 else 0 for height in heights]
        readings = map(Reading, node.inputs, heights, strides)
        return RowLayer(node.name, shape[1], 1, tuple(readings), elementwise=isinstance(op, _ELEMENTWISE))
    if not isinstance(op, Conv2d | MaxPool2d | AveragePool2d):
        return None
    height = graph.tensor(node.inputs[0]).shape[1]
    if layer.rows != (shape[1], height):
        return None
    kernel, dilation = (op.weight.values.shape[2], op.dilation[0]) if isinstance(op, Conv2d) else (op.kernel[0], 1)
    above = 0 if isinstance(op, AveragePool2d) else op.padding[0]
    reading = Reading(node.inputs[0], height, op.stride[0], above, (kernel - 1) * dilation + 1)
    return RowLayer(node.name, shape[1], layer.row_step, (reading,), keeps=layer.keeps_rows)


def lower_row(graph: IntegerGraph, node: Node, lower: Lowering) -> Layer:
    """Return the layer that computes one row of a node's output from one row of its inputs."""
    inputs = tuple(Node(name, Requantize(), (), _one_row(graph.tensor(name))) for name in dict.fromkeys(node.inputs))
    row = replace(node, output=_one_row(node.output))
    return lower(_Rows(graph.name, "", inputs[0].output, (*inputs, row), graph.rounding), row)


class _Rows(IntegerGraph):
    """The types of a node's tensors, one row high. Not a network: nothing in it makes the inputs."""

    def __post_init__(self) -> None:
        """Check nothing."""


def _one_row(tensor: TensorType) -> TensorType:
    channels, _, width = tensor.shape
    return TensorType((channels, 1, width), tensor.quantization)


def _cost(node: Node, layer: RowLayer | None, graph: IntegerGraph) -> tuple[int, float]:
    """Return the multiplications of a node, and how many more its rows are worth."""
    if layer is None:
        return 0, 0.0
    added: float = _TURN_COST * -(-layer.height // layer.step)
    if not isinstance(node.op, Conv2d):
        return 0, added
    weights = node.op.weight.values
    positions = layer.height * node.output.shape[2]
    if is_by_row(graph, node):
        added += _WEIGHT_COST * weights.size * max(0, layer.height - -(-positions // _LINE))
    return positions * weights.size, added


def _least_fullness(buffers: Sequence[Buffer], first: int, last: int) -> int:
    """Return what a chain of these steps can't be emptier than, which is told without its turns."""
    there = [buffer for buffer in buffers if buffer.first <= last and first <= buffer.last]
    through = sum(buffer.aligned_size for buffer in there if buffer.first < first and buffer.last > last)
    read = sum(buffer.aligned_size for buffer in there if buffer.first < first and buffer.last <= last)
    made = sum(buffer.aligned_size for buffer in there if buffer.first >= first and buffer.last > last)
    return through + max(read, made)


def _divide(
    single: Sequence[int], pieces: Mapping[tuple[int, int], tuple[int, float, RowChain]]
) -> tuple[RowChain, ...]:
    """Divide the steps so that the fullest part is least full, with the chains that add least.

    Args:
        single: bytes by step, where it is computed as a whole.
        pieces: by first and last step of a chain: bytes, what it adds, and the chain.
    """
    by_end: dict[int, list[tuple[int, float, RowChain]]] = {}
    for (_, last), piece in pieces.items():
        by_end.setdefault(last, []).append(piece)
    least = [0]
    for step, size in enumerate(single):
        ways = [max(least[step], size)]
        ways += [max(least[chain.first], bytes_) for bytes_, _, chain in by_end.get(step, ())]
        least.append(min(ways))
    best: list[tuple[float, tuple[RowChain, ...]]] = [(0.0, ())]
    for step, size in enumerate(single):
        divisions = [best[step]] if size <= least[-1] else []
        for bytes_, added, chain in by_end.get(step, ()):
            if bytes_ <= least[-1]:
                before, chains = best[chain.first]
                divisions.append((before + added, (*chains, chain)))
        best.append(min(divisions, key=lambda division: division[0], default=(math.inf, ())))
    return best[-1][1]
