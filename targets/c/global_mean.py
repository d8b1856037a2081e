"""Average pooling whose window is the whole input, by kernels of some cores."""

from __future__ import annotations

from dataclasses import replace

from kdpipe.targets.c.layer import Layer
from kdpipe.targets.c.portable_layers import pool
from kdpipe.targets.graph import (
    AveragePool2d,
    IntegerGraph,
    Node,
)


def mean_mve(graph: IntegerGraph, node: Node) -> Layer | None:
    """Return the layer of a global mean in MVE, or None for another pooling."""
    op = node.op
    assert isinstance(op, AveragePool2d)  # noqa: S101
    if op.kernel != graph.tensor(node.inputs[0]).shape[1:]:
        return None
    files = ("mve/mean_mve.c", "mve/mve.h", "pool.h", "rows.h")
    return replace(pool(graph, node), kernel="mean_mve", files=files, rows=None)


def mean_dsp(graph: IntegerGraph, node: Node) -> Layer | None:
    """Return the layer of a global mean by the DSP extension, four channels at a time, or None for another pooling."""
    op, (channels, *size) = node.op, graph.tensor(node.inputs[0]).shape
    assert isinstance(op, AveragePool2d)  # noqa: S101
    if op.kernel != tuple(size) or channels % 4:
        return None
    files = ("cortex_m4/mean_dsp.c", "cortex_m4/dsp.h", "pool.h", "rows.h")
    return replace(pool(graph, node), kernel="mean_dsp", files=files, rows=None)
