"""Requantization where a multiplication leaves 32 bits, proved equal to the graph's.

Rounding `single` is a step function of the accumulator: see `requantization_m4.py`. Where sums are small, the product
with a multiplier m = h * 2**k + l is floor(acc * m / 2**k) = acc * h + (acc * l >> k), two multiplications that stay in
32 bits. It is exact where m has the same thresholds as the graph's factor, among those that the sums can reach.
Elsewhere the upper half of a product of 64 bits takes four multiplications of half-words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.c.requantization_m4 import (
    SHARED_SHIFT,
    multiplier_between,
    plan_requantization,
    single_thresholds,
)
from kdpipe.targets.fixed_point import Rounding
from kdpipe.targets.graph import Quantization

SUMS, HIGH, NARROW = 0, 1, 2
"""What the kernels do with sums, as their macro FORM names it: hand them over, or one of the two forms above."""

_MAX_SUM = 2**30
_TRIED_SHIFTS = 4


@dataclass(frozen=True, eq=False)
class SumRequantization:
    """How a layer's sums become its outputs.

    Args:
        form: `HIGH` or `NARROW`.
        start: added to the product, in units of 2**-shift of an output step.
        shift: from there to the output, at least 1.
        low_bits: the k above; 0 for `HIGH`, whose product is divided by 2**32.
        multipliers: int64 [O], below 2**31.
    """

    form: int
    start: int
    shift: int
    low_bits: int
    multipliers: NDArray[np.int64]


def plan_sums(
    multipliers: Sequence[int],
    shifts: Sequence[int],
    output: Quantization,
    rounding: Rounding,
    smallest: NDArray[np.int64],
    largest: NDArray[np.int64],
) -> SumRequantization | None:
    """Find an exact form, the cheapest first, or return None.

    Args:
        multipliers: as `quantize_multiplier` returns them, one for each channel.
        shifts: likewise.
        output: of the layer.
        rounding: of the graph.
        smallest: int64 [O], the smallest accumulator of each channel.
        largest: likewise.
    """
    if rounding != "single" or min(multipliers) == 0:
        return None
    bound = int(max(np.abs(smallest).max(), np.abs(largest).max(), 1))
    narrow = _narrow(multipliers, shifts, output, smallest, largest, bound)
    if narrow is not None:
        return narrow
    factors = [1] * len(multipliers)
    high = plan_requantization(multipliers, shifts, output, rounding, factors, bound, forms=(SHARED_SHIFT,))
    # With a shift of 0 that form has no half to add.
    if high is None or high.shift == 0 or bound >= _MAX_SUM:
        return None
    return SumRequantization(HIGH, _start(output, high.shift), high.shift, 0, high.parameters[:, 0])


def _start(output: Quantization, shift: int) -> int:
    """Return the zero point and the half that rounds."""
    return (output.zero_point << shift) + (1 << (shift - 1))


def _narrow(
    multipliers: Sequence[int],
    shifts: Sequence[int],
    output: Quantization,
    smallest: NDArray[np.int64],
    largest: NDArray[np.int64],
    bound: int,
) -> SumRequantization | None:
    pairs = list(zip(multipliers, shifts, strict=True))
    reals = [multiplier * 2.0 ** (shift - 31) for multiplier, shift in pairs]
    thresholds = [single_thresholds(multiplier, shift, output) for multiplier, shift in pairs]
    # Multipliers stay below 2**31, acc * l, acc * h and the sum of all in 32 bits.
    finest = int(np.floor(30.999 - np.log2(max(reals))))
    low_bits = min(31 - bound.bit_length(), finest - 1)
    reach = max(reals) * bound + abs(output.zero_point) + 2
    widest = min(30, finest - low_bits, int(np.floor(31 - np.log2(reach))))
    if low_bits < 0:
        return None
    for shift in range(widest, max(0, widest - _TRIED_SHIFTS), -1):
        found: list[int] = []
        for real, channel, low, high in zip(reals, thresholds, smallest, largest, strict=True):
            near = real * 2.0 ** (low_bits + shift)
            multiplier = _matching_multiplier(channel, output, low_bits + shift, int(low), int(high), near)
            if multiplier is None:
                break
            found.append(multiplier)
        else:
            start = _start(output, shift)
            if (max(found) + 1) * bound < (2**31 - abs(start) - 1) << low_bits:
                return SumRequantization(NARROW, start, shift, low_bits, np.array(found, dtype=np.int64))
    return None


def _matching_multiplier(
    thresholds: Sequence[int], output: Quantization, scale: int, low: int, high: int, near: float
) -> int | None:
    """Return the multiplier near `near` that gives every accumulator of [low, high] its output, or None.

    floor(acc * m / 2**scale) + z rounded half up reaches v  <=>  acc * m >= (v - z) * 2**scale - 2**(scale - 1).
    """
    reaching, missing = [], []
    for threshold, value in zip(thresholds, range(output.qmin + 1, output.qmax + 1), strict=True):
        need = ((value - output.zero_point) << scale) - (1 << (scale - 1))
        if threshold <= high:
            reaching.append((max(threshold, low), need))
        if threshold > low:
            missing.append((min(threshold - 1, high), need))
    return multiplier_between(reaching, missing, near)
