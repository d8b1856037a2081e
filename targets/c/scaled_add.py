"""Sums of tensors by two multiplications an element, where they are right for every pair of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdpipe.targets import reference
from kdpipe.targets.c.layer import Layer
from kdpipe.targets.c.storage import size_of
from kdpipe.targets.fixed_point import Rounding
from kdpipe.targets.graph import Add, IntegerGraph, Node, Quantization, TensorType

SHIFT = 21
"""As the kernel has it; with fewer bits fewer sums have factors that are right, with more fewer fit 32 bits."""

_STEPS = 50


@dataclass(frozen=True)
class AddPlan:
    """output = saturate((first * first_factor + second * second_factor + offset) >> SHIFT)."""

    first_factor: int
    second_factor: int
    offset: int


def scaled_add_mve(graph: IntegerGraph, node: Node) -> Layer | None:
    """Plan a sum in MVE, or return None: see `_scaled_add`."""
    return _scaled_add(graph, node, "scaled_add_mve", ("mve/scaled_add_mve.c", "mve/mve.h"))


def scaled_add_v7m(graph: IntegerGraph, node: Node) -> Layer | None:
    """Plan a sum in Armv7-M's instructions, or return None: see `_scaled_add`."""
    return _scaled_add(graph, node, "scaled_add_v7m", ("armv7m/scaled_add_v7m.S",))


def scaled_add_v6m(graph: IntegerGraph, node: Node) -> Layer | None:
    """Plan a sum in Armv6-M's instructions, or return None: see `_scaled_add`."""
    return _scaled_add(graph, node, "scaled_add_v6m", ("armv6m/scaled_add_v6m.S",))


def _scaled_add(graph: IntegerGraph, node: Node, kernel: str, files: tuple[str, ...]) -> Layer | None:
    """Plan a sum, or return None where no factors give the graph's own output for every pair of stored values."""
    first, second = (graph.tensor(name).quantization for name in node.inputs)
    plan = plan_add(first, second, node.output.quantization, graph.rounding)
    if plan is None:
        return None
    return Layer(
        node=node,
        kernel=kernel,
        header="scaled_add.h",
        files=(*files, "scaled_add.h"),
        struct="kdp_scaled_add",
        fields=[size_of(node.output.shape), plan.first_factor, plan.second_factor, plan.offset],
    )


def plan_add(first: Quantization, second: Quantization, output: Quantization, rounding: Rounding) -> AddPlan | None:
    """Look for factors near the real ones that are right on all pairs of values.

    Args:
        first: of the first input.
        second: of the second input.
        output: of the sum.
        rounding: of the graph.
    """
    if (output.qmin, output.qmax) != (-128, 127):
        return None
    a, b = (
        values.reshape(-1)
        for values in np.meshgrid(
            np.arange(first.qmin, first.qmax + 1), np.arange(second.qmin, second.qmax + 1), indexing="ij"
        )
    )
    types = [TensorType(a.shape, first), TensorType(b.shape, second)]
    stored = [a.astype(np.int8)[None], b.astype(np.int8)[None]]
    wanted = reference.compute(Add(), stored, types, TensorType(a.shape, output), rounding)[0]
    factors = np.array([first.scale, second.scale]) / output.scale
    offset = output.zero_point + 0.5 - factors[0] * first.zero_point - factors[1] * second.zero_point
    if 128 * float(factors.sum()) + abs(offset) + 1 > 2.0 ** (31 - SHIFT):
        return None
    # Inputs that saturate bound the offset on one side only.
    above, below = wanted > output.qmin, wanted < output.qmax
    wanted = wanted.astype(np.int64) << SHIFT

    def offsets(one: int, other: int) -> tuple[int, int]:
        """Return the smallest and the largest offset with which these factors are right, crossed where none is."""
        room = wanted - a * one - b * other
        low = room[above].max(initial=-(2**31))
        high = room[below].min(initial=2**31) + (1 << SHIFT) - 1
        return int(low), int(high)

    def shortage(pair: tuple[int, int]) -> int:
        low, high = offsets(*pair)
        return low - high

    # The shortage is a maximum of linear functions, so going downhill leads to its minimum.
    best = round(factors[0] * 2.0**SHIFT), round(factors[1] * 2.0**SHIFT)
    for _ in range(_STEPS):
        if shortage(best) <= 0:
            break
        found = min(((best[0] + i, best[1] + j) for i in (-1, 0, 1) for j in (-1, 0, 1)), key=shortage)
        if found == best:
            return None
        best = found
    low, high = offsets(*best)
    offset = min(max(round(offset * 2.0**SHIFT), low), high)
    largest = int(np.abs(a * best[0] + b * best[1] + offset).max())
    return AddPlan(*best, offset) if low <= high and largest < 2**31 else None
