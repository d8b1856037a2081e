"""Requantization for the DSP extension, proved equal to the graph's.

With rounding `single`, out(acc) = clamp(z + ((acc * m + 2**(n - 1)) >> n)), n = 31 - shift, is a step function of acc
that never falls: the smallest acc that reaches each output value says all about it. SMMLA and SSAT with one shift k
for the whole layer, clamp((floor(acc * m' / 2**32) + z * 2**k + 2**(k - 1)) >> k), is one too. So a multiplier m' with
the same 2**bits - 1 thresholds gives the same output for every acc, and the multipliers that have them are an interval.

Where a channel has no such m', a shift for each channel is exact by itself: for n >= 33 the graph's formula is
floor(acc * m / 2**32) with the half and the zero point added, shifted by n - 32.

A kernel may hand over `factor` times the accumulator (a power of two that it could not take out for free).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.c.packing_m4 import accumulator_ranges
from kdpipe.targets.fixed_point import INT32_MAX, Rounding, quantize_multipliers
from kdpipe.targets.graph import Conv2d, IntegerGraph, Linear, Node, Quantization

SHARED_SHIFT, OWN_SHIFT, TFLITE = 0, 1, 2
"""Forms of requantization, as the kernels' macro REQUANT names them."""

MAX_SHARED_SHIFT = 10
_OWN_LEFT_SHIFTS = (4, 2)
"""Tried in this order: layers with equal shifts can share their code, and a smaller one has room for larger sums."""

LEFT_SHIFT = 4
"""Of sums in the kernels over scale.inc, where it costs nothing: finer multipliers fit a shared shift."""

_TRIED_SHIFTS = 4
_COMMON_SHIFT = 1
"""Tried first (0 where a factor makes multipliers finer): layers with equal shifts can share their code."""


@dataclass(frozen=True, eq=False)
class Requantization:
    """How a layer's sums become its outputs.

    Args:
        form: `SHARED_SHIFT`, `OWN_SHIFT` or `TFLITE`.
        shift: with `SHARED_SHIFT`, the layer's.
        left: how far a sum that comes without a factor is first shifted left.
        parameters: int64 [O, 1] multipliers, or [O, 3] multipliers, starts and shifts.
    """

    form: int
    shift: int
    left: int
    parameters: NDArray[np.int64]


def plan_requantization(
    multipliers: Sequence[int],
    shifts: Sequence[int],
    output: Quantization,
    rounding: Rounding,
    factors: Sequence[int],
    bound: int,
    forms: tuple[int, ...] = (SHARED_SHIFT, OWN_SHIFT, TFLITE),
) -> Requantization | None:
    """Find an exact form, the cheapest first.

    Args:
        multipliers: as `quantize_multiplier` returns them, one for each channel.
        shifts: likewise.
        output: of the layer.
        rounding: of the graph.
        factors: by channel, what the kernel's sum is to be divided by: a power of two.
        bound: the largest |accumulator| of any channel, without its factor.
        forms: those that the kernel can compute.

    Returns:
        The form, or None where none is exact; also where the output's range is not the whole of a signed width, which
        is all that SSAT can clamp to.
    """
    bits = output.bits
    if (output.qmin, output.qmax) != (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) or min(multipliers) == 0:
        return None
    if rounding == "tflite":
        return _tflite(multipliers, shifts, output, bound) if TFLITE in forms else None
    planned = _shared_shift(multipliers, shifts, output, factors) if SHARED_SHIFT in forms else None
    if planned is None and OWN_SHIFT in forms:
        tried = (_own_shifts(multipliers, shifts, output, factors, bound, left) for left in _OWN_LEFT_SHIFTS)
        planned = next((plan for plan in tried if plan is not None), None)
    return planned


def requantize_sums(graph: IntegerGraph, node: Node, left: int = 0) -> Requantization | None:
    """Return the cheapest exact form for the sums, as they are, of a convolution or a linear layer, or None.

    Args:
        graph: the network.
        node: of the graph.
        left: how far the kernel shifts sums left where they share a shift.
    """
    op, source, output = node.op, graph.tensor(node.inputs[0]).quantization, node.output.quantization
    assert isinstance(op, Conv2d | Linear)  # noqa: S101 - narrows the type
    multipliers, shifts = quantize_multipliers(source.scale * op.weight.scales.astype(np.float64) / output.scale)
    smallest, largest = accumulator_ranges(op, source)
    bound = int(max(abs(smallest).max(), abs(largest).max()))
    if output.bits != 8 or bound >= 2 ** (31 - left):
        return None
    for forms, factor in (((SHARED_SHIFT, TFLITE), 2**left), ((OWN_SHIFT,), 1)):
        found = plan_requantization(
            multipliers.tolist(), shifts.tolist(), output, graph.rounding, [factor] * len(multipliers), bound, forms
        )
        if found is not None and found.form == SHARED_SHIFT:
            found = replace(found, shift=found.shift + left, left=left)
        # SMMLA and a shift of 0 would not round.
        if found is not None and not (found.form == SHARED_SHIFT and found.shift == 0):
            return found
    return None


def rounding_term(requantization: Requantization, output: Quantization) -> int:
    """Return the zero point and a half, as added before the shift; for a channel's own shift, one bit earlier."""
    if requantization.form == SHARED_SHIFT:
        return (output.zero_point << requantization.shift) + (1 << (requantization.shift - 1))
    return 2 * output.zero_point + 1


def shift_with_bias(requantization: Requantization, bias: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return each channel's bias with its shift less one in the lowest byte, or None where they don't fit a word.

    Where channels share a shift, it is the bias alone, shifted left. Elsewhere kernels get at that by
    shifting the word to the right.
    """
    if requantization.form == SHARED_SHIFT:
        return bias << requantization.left
    shifts = requantization.parameters[:, 2] - 1
    # The bias comes back shifted to the right by 8 - left, which is to be at least 1.
    places = 8 - requantization.left
    fit = places >= 1 and np.abs(bias).max() < 2**23 and shifts.max() < 2**places
    return bias << 8 | shifts if fit else None


def single_thresholds(multiplier: int, shift: int, output: Quantization) -> list[int]:
    """Return the smallest accumulator that rounding `single` brings to each of qmin + 1 .. qmax."""
    right = 31 - shift
    half = 1 << (right - 1)
    values = range(output.qmin + 1, output.qmax + 1)
    return [-((half - ((value - output.zero_point) << right)) // multiplier) for value in values]


def shared_shift_thresholds(multiplier: int, shift: int, output: Quantization, factor: int) -> list[int]:
    """Return the same of SMMLA and SSAT with `shift`, for an accumulator that arrives times `factor`."""
    return [-(-need // (factor * multiplier)) for need in _needs(shift, output)]


def _needs(shift: int, output: Quantization) -> list[int]:
    """Return what factor * acc * multiplier must reach for each output value.

    (floor(p / 2**32) + z * 2**k + 2**(k - 1)) >> k >= v  <=>  p >= (v - z) * 2**(32 + k) - 2**(31 + k); with k = 0
    SMMLAR adds the half by itself, and the same holds.
    """
    values = range(output.qmin + 1, output.qmax + 1)
    return [((value - output.zero_point) << (32 + shift)) - (1 << (31 + shift)) for value in values]


def multiplier_between(
    reaching: Iterable[tuple[int, int]], missing: Iterable[tuple[int, int]], near: float
) -> int | None:
    """Return the multiplier closest to `near` whose products are as asked for, or None.

    Args:
        reaching: (sum, need): sum * multiplier >= need.
        missing: (sum, need): sum * multiplier < need.
        near: the multiplier without rounding.
    """
    low, high = 1, INT32_MAX
    for value, need in reaching:
        if value > 0:
            low = max(low, -(-need // value))
        elif value < 0:
            high = min(high, -need // -value)
        elif need > 0:
            return None
    for value, need in missing:
        if value > 0:
            high = min(high, (need - 1) // value)
        elif value < 0:
            low = max(low, -((need - 1) // -value))
        elif need <= 0:
            return None
    return min(max(low, round(near)), high) if low <= high else None


def _multiplier(thresholds: Sequence[int], shift: int, output: Quantization, factor: int, near: float) -> int | None:
    """Return the multiplier closest to `near` that has these thresholds, or None."""
    needs = _needs(shift, output)
    reaching = ((threshold * factor, need) for threshold, need in zip(thresholds, needs, strict=True))
    missing = (((threshold - 1) * factor, need) for threshold, need in zip(thresholds, needs, strict=True))
    return multiplier_between(reaching, missing, near)


def _shared_shift(
    multipliers: Sequence[int], shifts: Sequence[int], output: Quantization, factors: Sequence[int]
) -> Requantization | None:
    reals = [multiplier * 2.0 ** (shift - 31) for multiplier, shift in zip(multipliers, shifts, strict=True)]
    fitting = [shift for shift in range(MAX_SHARED_SHIFT + 1) if max(reals) * 2.0 ** (32 + shift) < INT32_MAX]
    wanted = [
        single_thresholds(multiplier, shift, output) for multiplier, shift in zip(multipliers, shifts, strict=True)
    ]
    # A larger shift has finer multipliers.
    tried = sorted(fitting, reverse=True)[:_TRIED_SHIFTS]
    common = 0 if min(factors) > 1 else _COMMON_SHIFT
    for shift in [common, *tried] if common in fitting else tried:
        found: list[int] = []
        for thresholds, real, factor in zip(wanted, reals, factors, strict=True):
            near = real * 2.0 ** (32 + shift)
            multiplier = _multiplier(thresholds, shift + factor.bit_length() - 1, output, factor, near)
            if multiplier is None:
                break
            found.append(multiplier)
        else:
            return Requantization(SHARED_SHIFT, shift, 0, np.array(found, dtype=np.int64)[:, None])
    return None


def _own_shifts(
    multipliers: Sequence[int],
    shifts: Sequence[int],
    output: Quantization,
    factors: Sequence[int],
    bound: int,
    left: int,
) -> Requantization | None:
    rows = []
    left = max(left, 2 + max(shifts))
    for multiplier, shift, factor in zip(multipliers, shifts, factors, strict=True):
        right = 31 - shift + (factor.bit_length() - 1 if factor > 1 else left) - 32
        start = (output.zero_point << right) + (1 << (right - 1)) if right > 0 else 0
        if not 1 <= right <= 22 or bound >= 1 << (31 - left):
            return None
        rows.append((multiplier, start, right))
    return Requantization(OWN_SHIFT, 0, left, np.array(rows, dtype=np.int64))


def _tflite(
    multipliers: Sequence[int], shifts: Sequence[int], output: Quantization, bound: int
) -> Requantization | None:
    """SMMULR of twice the sum rounds as SaturatingRoundingDoublingHighMul, and the division's half is added."""
    rows = []
    for multiplier, shift in zip(multipliers, shifts, strict=True):
        right = -shift
        if not 1 <= right <= 22 or bound >= 2**30:
            return None
        rows.append((multiplier, (output.zero_point << right) + (1 << (right - 1)), right))
    return Requantization(TFLITE, 0, 1, np.array(rows, dtype=np.int64))
