"""How far a run is from the integer reference, layer by layer."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets import reference
from kdpipe.targets.graph import IntegerGraph


def layer_differences(
    graph: IntegerGraph, trace: Mapping[str, NDArray[np.int8]], rounding: str | None = None
) -> dict[str, int]:
    """Return, by traced layer, the largest difference from the reference in steps.

    Each layer is computed from what the traced run itself gave it, so that differences don't add up.

    Args:
        graph: the reference.
        trace: int8 [N, *shape] by tensor, the input's among them.
        rounding: of the reference; the graph's own if None.
    """
    known, found = dict(trace), {}
    for node in graph.nodes:
        types = [graph.tensor(name) for name in node.inputs]
        inputs = [known[name] for name in node.inputs]
        expected = reference.compute(node.op, inputs, types, node.output, rounding or graph.rounding)
        if node.name in trace:
            found[node.name] = int(np.abs(expected.astype(int) - trace[node.name]).max())
        known.setdefault(node.name, expected)
    return found
