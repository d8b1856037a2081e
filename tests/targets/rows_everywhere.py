"""Programs that compute every layer by rows that can be, whether it takes less memory or not."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from kdpipe.targets.c import program
from kdpipe.targets.c.layer import Layer
from kdpipe.targets.c.row_chains import is_by_row, lower_row, row_layer
from kdpipe.targets.c.row_schedule import RowChain, RowLayer
from kdpipe.targets.graph import IntegerGraph, Node

MOST_TURNS = 200
"""Layers that a chain's turns, which are bytes, can tell apart, with room."""


def longest_chains(
    graph: IntegerGraph, layers: Mapping[str, Layer], lower: Callable[[IntegerGraph, Node], Layer]
) -> tuple[tuple[RowChain, ...], dict[str, Layer]]:
    """Do what `choose_chains` does, without choosing."""
    chains: list[RowChain] = []
    run: list[RowLayer] = []
    for step, node in enumerate([*graph.nodes, None]):
        layer = node and row_layer(graph, node, layers.get(node.name))
        if layer is not None:
            run.append(layer)
        if run and (layer is None or len(run) == MOST_TURNS):
            last = step if layer is not None else step - 1
            chains.append(RowChain(last - len(run) + 1, tuple(run)))
            run = []
    nodes = [node for chain in chains for node in graph.nodes[chain.first : chain.last + 1]]
    return tuple(chains), {node.name: lower_row(graph, node, lower) for node in nodes if is_by_row(graph, node)}


@contextmanager
def rows_everywhere(wanted: bool = True) -> Iterator[None]:
    """Write such programs meanwhile, if they are wanted."""
    with pytest.MonkeyPatch.context() as patch:
        if wanted:
            patch.setattr(program, "choose_chains", longest_chains)
        yield
