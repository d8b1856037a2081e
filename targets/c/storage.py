"""Which memory each tensor of a graph uses: the caller's input, the caller's output, or a buffer of the arena."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from kdpipe.targets.c.memory_plan import Buffer, MemoryPlan, plan_memory
from kdpipe.targets.c.row_schedule import RowChain
from kdpipe.targets.graph import Add, Flatten, IntegerGraph, Linear, Lookup, Mul, Node, Requantize, Softmax

INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class Layout:
    """What every tensor and every layer's scratch lie in, wherever that may be in the arena.

    Args:
        place: by tensor, `INPUT`, `OUTPUT` or the name of an arena buffer. A view shares that of its input.
        scratch: by node, the name of its scratch buffer, for those that have one.
        views: nodes that only give their input's memory another name.
        rings: tensors of which only some rows are kept, and how many.
        buffers: what the arena must hold.
    """

    place: Mapping[str, str]
    scratch: Mapping[str, str]
    views: frozenset[str]
    rings: Mapping[str, int]
    buffers: tuple[Buffer, ...]


@dataclass(frozen=True)
class Storage(Layout):
    """Memory of every tensor and of every layer's scratch.

    Args:
        plan: the arena.
    """

    plan: MemoryPlan


def size_of(shape: tuple[int, ...]) -> int:
    """Return the bytes of an int8 tensor."""
    return math.prod(shape)


def flattened_shape(graph: IntegerGraph, name: str) -> tuple[int, int, int] | None:
    """Return the [C, H, W] of the tensor that `name` is a channels-last view of, or None where the order is its own."""
    node = next((node for node in graph.nodes if node.name == name), None)
    if node is None or not isinstance(node.op, Flatten) or not is_view(graph, node):
        return None
    shape = graph.tensor(node.inputs[0]).shape
    return shape if len(shape) == 3 else None


def is_view(graph: IntegerGraph, node: Node) -> bool:
    """Return whether `node` needs no work: a Flatten that keeps the order, or that only linear layers read.

    Activations lie channels last, a Flatten means channels first; linear layers get their columns permuted instead.
    """
    if not isinstance(node.op, Flatten):
        return False
    shape = graph.tensor(node.inputs[0]).shape
    if node.name == graph.output_name and (node.inputs[0] == graph.input_name or len(shape) == 1):
        # Nothing else would move the graph's input, or a view of it, to the caller's output.
        return False
    if len(shape) != 3 or shape[0] == 1 or shape[1] * shape[2] == 1:
        return True
    readers = [reader for reader in graph.nodes if node.name in reader.inputs]
    return bool(readers) and all(isinstance(reader.op, Linear) for reader in readers)


def assign_storage(
    graph: IntegerGraph,
    scratch_sizes: Mapping[str, int],
    in_place: Collection[str] = frozenset(),
    chains: Sequence[RowChain] = (),
) -> Storage:
    """Place every tensor of `graph`.

    Args:
        graph: the network.
        scratch_sizes: bytes of scratch by node name; nodes without scratch may be absent.
        in_place: names of further nodes whose kernel may write over its input.
        chains: layers that are computed by rows.

    Returns:
        Where everything lies. Elementwise operations and those in `in_place` may write where an input begins that
        nothing reads later, and so may a chain's layers where their rows stay behind those that are still read.
    """
    layout = lay_out(graph, scratch_sizes, in_place, chains)
    return Storage(**vars(layout), plan=plan_memory(layout.buffers))


def lay_out(
    graph: IntegerGraph, scratch_sizes: Mapping[str, int], in_place: Collection[str], chains: Sequence[RowChain]
) -> Layout:
    """Say what the arena must hold and when; the arguments are those of `assign_storage`.

    A chain's layers live at the same time: all its buffers are there from its first step to its last.
    """
    views = frozenset(node.name for node in graph.nodes if is_view(graph, node))
    root = {graph.input_name: graph.input_name}
    for node in graph.nodes:
        root[node.name] = root[node.inputs[0]] if node.name in views else node.name
    last_read = _last_reads(graph, root)
    chain_of = {step: chain for chain in chains for step in range(chain.first, chain.last + 1)}
    place = {graph.input_name: INPUT}
    buffers: list[Buffer] = []
    rings: dict[str, int] = {}
    covered: set[str] = set()
    for step, node in enumerate(graph.nodes):
        name = node.name
        if root[name] != name:
            continue
        if name == root[graph.output_name]:
            place[name] = OUTPUT
            continue
        place[name] = f"tensor {name}"
        size, chain = size_of(node.output.shape), chain_of.get(step)
        last = max(step, last_read.get(name, step))
        first, end = _lifetime(step, last, chain_of)
        over: tuple[str, ...] = ()
        if chain is None:
            if isinstance(node.op, Add | Lookup | Mul | Requantize | Softmax) or name in in_place:
                over = _dying_inputs(node, step, root, last_read, place)
        elif last <= chain.last:
            place[name] = f"rows {name}"
            rings[name] = chain.schedule.rings[name]
            size = size // node.output.shape[1] * rings[name]
        else:
            over = tuple(
                place[source]
                for source in _dying_sources(chain, last_read, place)
                if place[source] not in covered and _may_cover(graph, chain, source, name)
            )[:1]
            covered.update(over)
        buffers.append(Buffer(place[name], size, first, end, over))
    scratch = {}
    for step, node in enumerate(graph.nodes):
        if scratch_sizes.get(node.name, 0) > 0:
            scratch[node.name] = f"scratch {node.name}"
            buffers.append(Buffer(scratch[node.name], scratch_sizes[node.name], *_lifetime(step, step, chain_of)))
    place.update({name: place[root[name]] for name in views})
    return Layout(place, scratch, views, rings, tuple(buffers))


def _lifetime(first: int, last: int, chain_of: Mapping[int, RowChain]) -> tuple[int, int]:
    return (
        chain_of[first].first if first in chain_of else first,
        chain_of[last].last if last in chain_of else last,
    )


def _dying_sources(chain: RowChain, last_read: Mapping[str, int], place: Mapping[str, str]) -> list[str]:
    """Return the tensors that the chain reads, did not make, and nothing reads after it."""
    own = {layer.name for layer in chain.layers}
    names = dict.fromkeys(reading.tensor for layer in chain.layers for reading in layer.readings)
    return [name for name in names if name not in own and place[name] != INPUT and last_read[name] <= chain.last]


def _may_cover(graph: IntegerGraph, chain: RowChain, source: str, target: str) -> bool:
    shapes = [graph.tensor(name).shape for name in (source, target)]
    row_bytes = [size_of(shape) // shape[1] for shape in shapes]
    return chain.stays_behind(source, target, (row_bytes[0], row_bytes[1]))


def _last_reads(graph: IntegerGraph, root: Mapping[str, str]) -> dict[str, int]:
    last: dict[str, int] = {}
    for step, node in enumerate(graph.nodes):
        for name in node.inputs:
            last[root[name]] = step
    return last


def _dying_inputs(
    node: Node, step: int, root: Mapping[str, str], last_read: Mapping[str, int], place: Mapping[str, str]
) -> tuple[str, ...]:
    """Return the arena buffers of inputs that nothing reads after `node`."""
    # The second factor of a Mul is read again for every position where it has one number a channel.
    names = node.inputs[:1] if isinstance(node.op, Mul) else node.inputs
    dying = (place[root[name]] for name in names if last_read[root[name]] == step)
    return tuple(dict.fromkeys(buffer for buffer in dying if buffer not in (INPUT, OUTPUT)))
