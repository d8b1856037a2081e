"""A network as what its C program consists of: kernel calls, in which order, and where they keep their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kdpipe.targets.c.cores import FEATURES, NAMES
from kdpipe.targets.c.kernel_choice import lower_node
from kdpipe.targets.c.layer import Assembly, Layer
from kdpipe.targets.c.optimization import NAMES as OPTIMIZATIONS
from kdpipe.targets.c.optimization import SPEED
from kdpipe.targets.c.row_chains import choose_chains
from kdpipe.targets.c.row_schedule import RowChain
from kdpipe.targets.c.storage import Storage, assign_storage, is_view
from kdpipe.targets.errors import UnsupportedError, UsageError, did_you_mean
from kdpipe.targets.graph import IntegerGraph, Node

_MAX_ARENA = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Program:
    """A network for a core.

    Args:
        graph: the network.
        layers: by node, of those that are computed.
        chains: layers that are computed by rows; the layer of a node without a window computes one row.
        storage: where their tensors are.
    """

    graph: IntegerGraph
    layers: Mapping[str, Layer]
    chains: tuple[RowChain, ...]
    storage: Storage

    @property
    def assemblies(self) -> dict[Assembly, str]:
        """The distinct functions in assembly and their names without the model's prefix."""
        names: dict[Assembly, str] = {}
        for layer in self.layers.values():
            if layer.assembly is not None and layer.assembly not in names:
                names[layer.assembly] = f"{layer.assembly.name}{len(names)}"
        return names

    @property
    def turns(self) -> tuple[int, ...]:
        """The numbers of the nodes in the order in which they are computed, those of chains once for each turn."""
        chains = {chain.first: chain for chain in self.chains}
        turns: list[int] = []
        step = 0
        while step < len(self.graph.nodes):
            chain = chains.get(step)
            turns += [step] if chain is None else [step + number for number in chain.schedule.turns]
            step = step + 1 if chain is None else chain.last + 1
        return tuple(turns)


def plan_program(graph: IntegerGraph, core: str, optimize: str = SPEED) -> Program:
    """Choose kernels, order and places.

    Args:
        graph: the network.
        core: what it is for, a name of `cores.py`.
        optimize: a name of `optimization.py`.

    Raises:
        UsageError: there is no such core or optimization.
        UnsupportedError: a layer has no kernel, or the network takes too much memory.
    """
    if core not in FEATURES:
        raise UsageError(f"unknown core {core!r}", remedy=did_you_mean(core, NAMES))
    if optimize not in OPTIMIZATIONS:
        raise UsageError(f"unknown optimization {optimize!r}", remedy=did_you_mean(optimize, OPTIMIZATIONS))

    def lower(part: IntegerGraph, node: Node) -> Layer:
        return lower_node(part, node, core, optimize)

    layers = {node.name: lower(graph, node) for node in graph.nodes if not is_view(graph, node)}
    in_place = {name for name, layer in layers.items() if layer.in_place}
    chains, of_rows = choose_chains(graph, layers, lower)
    layers |= of_rows
    storage = assign_storage(graph, {name: layer.scratch for name, layer in layers.items()}, in_place, chains)
    if storage.plan.size > _MAX_ARENA:
        raise UnsupportedError(
            f"its tensors need {storage.plan.size} bytes at once, beyond a 32-bit address space",
            where=f"network {graph.name}",
            remedy="Make the input or the network smaller",
        )
    return Program(graph, layers, chains, storage)
