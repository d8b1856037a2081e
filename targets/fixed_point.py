"""Requantization in fixed point: what integer hardware does instead of multiplying by a real scale.

Two roundings are defined, to the bit. `tflite` is the double rounding of TensorFlow Lite's reference kernels and
of TFLite Micro (gemmlowp's SaturatingRoundingDoublingHighMul, then RoundingDivideByPOT). `single` rounds once,
half up, and is cheaper on a microcontroller.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Rounding = Literal["tflite", "single"]
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Write a real factor as `multiplier * 2**(shift - 31)`.

    Args:
        real: the factor, at least 0 and finite.

    Returns:
        The multiplier, 0 or in [2**30, 2**31), and the shift, in [-31, 30]; a factor below 2**-32 becomes (0, 0).

    Raises:
        ValueError: the factor is negative, not finite, or at least 2**30.

    Source: TensorFlow Lite, `QuantizeMultiplier` (lite/kernels/internal/quantization_util.cc).
    """
    if not math.isfinite(real) or real < 0:
        raise ValueError(f"a requantization factor must be finite and not negative, got {real}")
    if real == 0:
        return 0, 0
    fraction, shift = math.frexp(real)
    # math.floor(x + 0.5) is C's round() for positive x; Python's round() goes to even.
    multiplier = math.floor(fraction * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier //= 2
        shift += 1
    if shift < -31:
        return 0, 0
    if shift > 30:
        raise ValueError(f"a requantization factor must be below 2**30, got {real}")
    return multiplier, shift


def quantize_multipliers(reals: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Apply `quantize_multiplier` to each of `reals [O]`; return multipliers and shifts, both int64 [O]."""
    pairs = [quantize_multiplier(float(real)) for real in reals]
    return (
        np.array([multiplier for multiplier, _ in pairs], dtype=np.int64),
        np.array([shift for _, shift in pairs], dtype=np.int64),
    )


def multiply_by_quantized_multiplier(
    accumulator: NDArray[np.int64],
    multiplier: NDArray[np.int64] | int,
    shift: NDArray[np.int64] | int,
    rounding: Rounding,
) -> NDArray[np.int64]:
    """Scale integer accumulators by `multiplier * 2**(shift - 31)` and round to integers.

    Args:
        accumulator: any shape, values in the int32 range, held as int64.
        multiplier: as `quantize_multiplier` returns it; broadcast against the accumulator.
        shift: as `quantize_multiplier` returns it; broadcast against the accumulator.
        rounding: `tflite` or `single`.

    Returns:
        The scaled values, int64, shaped as the accumulator.
    """
    accumulator = np.asarray(accumulator, dtype=np.int64)
    multiplier = np.asarray(multiplier, dtype=np.int64)
    shift = np.asarray(shift, dtype=np.int64)
    if rounding == "single":
        right = 31 - shift
        return (accumulator * multiplier + (np.int64(1) << (right - 1))) >> right
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    return rounding_divide_by_power_of_two(
        saturating_rounding_doubling_high_mul(accumulator << left, multiplier), right
    )


def saturating_rounding_doubling_high_mul(
    a: NDArray[np.int64] | np.int64, b: NDArray[np.int64] | np.int64
) -> NDArray[np.int64]:
    """Return round(a * b / 2**31), halves away from zero for a positive product and towards zero for a negative one.

    Args:
        a: values in the int32 range, held as int64.
        b: the same, broadcast against `a`; not both are INT32_MIN, the one case that would saturate.

    Source: gemmlowp, `SaturatingRoundingDoublingHighMul` (fixedpoint.h).
    """
    product = np.asarray(a, dtype=np.int64) * b
    nudge = np.where(product >= 0, np.int64(1 << 30), np.int64(1 - (1 << 30)))
    total = product + nudge
    # C's division truncates towards zero.
    truncated: NDArray[np.int64] = np.sign(total) * (np.abs(total) >> 31)
    return truncated


def rounding_divide_by_power_of_two(x: NDArray[np.int64], exponent: NDArray[np.int64] | np.int64) -> NDArray[np.int64]:
    """Return round(x / 2**exponent), halves away from zero.

    Source: gemmlowp, `RoundingDivideByPOT` (fixedpoint.h).
    """
    mask = (np.int64(1) << exponent) - 1
    remainder = x & mask
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + (remainder > threshold)
