"""Sums on the DSP extension: two multiplications in place of four, where they give the same for every pair of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdpipe.targets import reference
from kdpipe.targets.c.layer import Layer
from kdpipe.targets.c.storage import size_of
from kdpipe.targets.fixed_point import Rounding
from kdpipe.targets.graph import Add, IntegerGraph, Node, Quantization, TensorType

_TRIES = 400
_OFFSET_STEP = 64


@dataclass(frozen=True)
class AddPlan:
    """output = saturate((first * first_factor + second * second_factor + offset) >> shift)."""

    first_factor: int
    second_factor: int
    offset: int
    shift: int


def add_dsp(graph: IntegerGraph, node: Node) -> Layer | None:
    """Plan a sum, or return None where no factors give the graph's own output for every pair of stored values."""
    first, second = (graph.tensor(name).quantization for name in node.inputs)
    plan = plan_add(first, second, node.output.quantization, graph.rounding)
    if plan is None:
        return None
    return Layer(
        node=node,
        kernel="add_dsp",
        header="add_dsp.h",
        files=("cortex_m4/add_dsp.c", "cortex_m4/add_dsp.h", "cortex_m4/dsp.h"),
        struct="kdp_add_dsp",
        fields=[size_of(node.output.shape), plan.first_factor, plan.second_factor, plan.offset, plan.shift],
    )


def plan_add(first: Quantization, second: Quantization, output: Quantization, rounding: Rounding) -> AddPlan | None:
    """Look for factors, starting from the real ones, and try each on all pairs of values; the search is reproducible.

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
    reach = 128 * float(factors.sum()) + abs(offset) + 1
    # One bit is left for the search.
    shift = 30 - int(np.ceil(np.log2(reach))) - 1
    if not 1 <= shift <= 30:
        return None

    def wrong(candidate: np.ndarray[tuple[int], np.dtype[np.int64]]) -> int:
        sums = a * candidate[0] + b * candidate[1] + candidate[2]
        if np.abs(sums).max() >= 2**31:
            return len(a)
        return int((np.clip(sums >> shift, output.qmin, output.qmax) != wanted).sum())

    best = np.rint(np.array([*factors, offset]) * 2.0**shift).astype(np.int64)
    fewest = wrong(best)
    generator = np.random.default_rng(0)
    for _ in range(_TRIES):
        if fewest == 0:
            return AddPlan(int(best[0]), int(best[1]), int(best[2]), shift)
        candidate = best + generator.integers(-4, 5, 3) * (1, 1, _OFFSET_STEP)
        found = wrong(candidate)
        if found <= fewest:
            best, fewest = candidate, found
    return None
