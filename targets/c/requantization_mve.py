"""Requantization in MVE: the graph's own formula in other instructions.

With rounding `single`, (acc * m + 2**(30 - shift)) >> (31 - shift) is VQDMULH, floor(acc * m / 2**31), and VRSHL, which
rounds half up, by -shift: a floor of a floor loses nothing. A sum that arrives times 2**f is shifted by f more. With
rounding `tflite`, VQRDMULH is SaturatingRoundingDoublingHighMul, and the sign taken off before VRSHL rounds halves away
from zero; a factor is shifted out first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.c.packing import fold_zero_point
from kdpipe.targets.c.packing_m4 import accumulator_ranges
from kdpipe.targets.fixed_point import Rounding, quantize_multipliers
from kdpipe.targets.graph import Conv2d, Linear, Quantization

_MAX_SHIFT = 31


@dataclass(frozen=True, eq=False)
class ExactRequantization:
    """How sums become outputs.

    Args:
        left: how far all sums are first shifted left.
        parameters: int64 [3, O]: biases, shifted like the sums, multipliers, and shifts to the left (so below 0).
    """

    left: int
    parameters: NDArray[np.int64]


def exact_requantization(
    op: Conv2d | Linear,
    rows: NDArray[np.int8],
    source: Quantization,
    output: Quantization,
    rounding: Rounding,
    factor_bits: NDArray[np.int64],
) -> ExactRequantization | None:
    """Return the graph's own formula in MVE's instructions, or None where they can't be exact.

    Something must be left to shift after the multiplication; with rounding `single`, where a channel is multiplied with
    a half or more, all sums are shifted left first. And no sum, times its factor, may leave 32 bits.

    Args:
        op: the operator.
        rows: its weights, int8 [O, K].
        source: of its input.
        output: of its output.
        rounding: of the graph.
        factor_bits: int64, repeated for all channels: how far left each one's sum arrives shifted.
    """
    factor_bits = np.resize(factor_bits, len(op.bias))
    multipliers, shifts = quantize_multipliers(source.scale * op.weight.scales.astype(np.float64) / output.scale)
    # 0 stays 0, however it is shifted.
    shifts = np.where(multipliers == 0, -1, shifts)
    left = 0
    if rounding == "single":
        left = max(0, 1 + int((shifts - factor_bits).max()))
        shifts = shifts - factor_bits - left
    smallest, largest = accumulator_ranges(op, source)
    bound = np.maximum(np.abs(smallest), np.abs(largest)).astype(np.float64)
    if shifts.max() > -1 or shifts.min() < -_MAX_SHIFT or (bound * 2.0 ** (factor_bits + left) >= 2.0**31).any():
        return None
    bias = fold_zero_point(op.bias, rows, source.zero_point).astype(np.int64) << (factor_bits + left)
    wrapped = (bias & 0xFFFFFFFF).astype(np.uint32).view(np.int32).astype(np.int64)
    return ExactRequantization(left, np.stack([wrapped, multipliers, shifts]))
