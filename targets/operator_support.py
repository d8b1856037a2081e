"""The refusal of operators that an exporter does not write, before it writes anything."""

from __future__ import annotations

from collections.abc import Collection

from kdpipe.targets.errors import UnsupportedError
from kdpipe.targets.graph import IntegerGraph


def refuse_unsupported(graph: IntegerGraph, supported: Collection[type], target: str) -> None:
    """Raise unless every operator of `graph` is one of `supported`.

    Raises:
        UnsupportedError: naming the first layer whose operator isn't.
    """
    for node in graph.nodes:
        if type(node.op) not in supported:
            names = ", ".join(sorted(operator.__name__ for operator in supported))
            raise UnsupportedError(
                f"{target} can't express the operator {type(node.op).__name__}",
                where=f"layer {node.name}",
                remedy=f"Choose another target, or build the network from {names}",
            )
