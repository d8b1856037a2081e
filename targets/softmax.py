"""The integer softmax, as TensorFlow Lite's reference kernel for int8 defines it to the bit.

Everything is in fixed point on 32-bit integers. A number "Qa.b" has a integer bits and b fractional ones; `*` of two
raw numbers is round(x * y / 2**31), which adds their integer bits. With d = max(q) - q the steps below the largest
element, s the input's step, and R(x, n) = round(x / 2**n), halves away from zero:

    t[d]    = -d * s in Q5.26, by the quantized multiplier of s * 2**26; below -31 the exponential is 0
    e[d]    = exp(t[d]) in Q0.31: a polynomial of degree 4 around -1/8, times a constant for each bit above 1/4
    sum     = sum over the elements of R(e[d], 12), in Q12.19; with n its leading zeros, h = sum * 2**n / 2 in Q0.31
    x       = 48/17 - 32/17 * h in Q2.29, then three times x += x * (1 - h * x): 1 / h by Newton and Raphson
    out     = R(min(2 * x, 2**31 - 1) * e[d], 35 - n) - 128, at most 127

Source: TensorFlow Lite, `reference_ops::Softmax`; gemmlowp, `exp_on_negative_values` and
`one_over_one_plus_x_for_x_in_0_1` (fixedpoint.h).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.fixed_point import (
    INT32_MAX,
    quantize_multiplier,
    rounding_divide_by_power_of_two,
    saturating_rounding_doubling_high_mul,
)

Integers = NDArray[np.int64]

STEPS = 256
"""How many differences of two 8-bit integers there are."""
_INTEGER_BITS, _FRACTIONAL_BITS = 5, 26
_SUM_INTEGER_BITS = 12
_EXP_OF_MINUS_AN_EIGHTH, _A_THIRD = 1895147668, 715827883
_EXP_OF_MINUS_POWERS_OF_TWO = (
    *((-2, 1672461947), (-1, 1302514674), (0, 790015084), (1, 290630308)),
    *((2, 39332535), (3, 720401), (4, 242)),
)
"""(k, exp(-2**k) in Q0.31)."""
_48_OVER_17, _MINUS_32_OVER_17 = 1515870810, -1010580540
"""In Q2.29."""


def exponentials(scale: float) -> Integers:
    """Return exp(-d * scale) in Q0.31 for d = 0 to 255: int64 [256].

    Args:
        scale: the input's step, above `graph.SMALLEST_SOFTMAX_STEP`.
    """
    steps = np.arange(STEPS, dtype=np.int64)
    if scale >= 2 ** (30 - _FRACTIONAL_BITS):
        # exp(-16) is 242 in Q0.31, but from here on t does not hold a single step: only the largest element counts.
        return np.where(steps == 0, np.int64(INT32_MAX), np.int64(0))
    multiplier, shift = quantize_multiplier(scale * 2**_FRACTIONAL_BITS)
    reach = ((2**_INTEGER_BITS - 1) << _FRACTIONAL_BITS) >> shift
    held = np.minimum(steps, reach)
    rescaled = saturating_rounding_doubling_high_mul(-held << shift, np.int64(multiplier))
    found: Integers = np.where(steps <= reach, _exp_of_negative(rescaled), 0)
    return found


def softmax(stored: Integers, scale: float) -> Integers:
    """Return the softmax over axis 1 of stored integers, in steps of 1/256 from -128 up.

    Args:
        stored: int64 [N, C, ...], in [-128, 127].
        scale: their step.

    Returns:
        Integers of [-128, 127], shaped as `stored`.
    """
    exponential = exponentials(scale)[stored.max(axis=1, keepdims=True) - stored]
    total = _divide(exponential, _SUM_INTEGER_BITS).sum(axis=1, keepdims=True)
    # total is at least 2**19, the largest element's part, and less than 2**31: frexp gives its bits exactly.
    zeros = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)
    half = (total << zeros) >> 1
    inverse = _48_OVER_17 + saturating_rounding_doubling_high_mul(half, np.int64(_MINUS_32_OVER_17))
    for _ in range(3):
        missing = (1 << 29) - saturating_rounding_doubling_high_mul(half, inverse)
        inverse = inverse + (saturating_rounding_doubling_high_mul(inverse, missing) << 2)
    share = saturating_rounding_doubling_high_mul(np.minimum(inverse << 1, INT32_MAX), exponential)
    steps = rounding_divide_by_power_of_two(share, 31 + _SUM_INTEGER_BITS - 8 - zeros)
    limited: Integers = np.minimum(steps - 128, 127)
    return limited


def _exp_of_negative(x: Integers) -> Integers:
    """Return exp(x) in Q0.31 of x <= 0 in Q5.26."""
    quarter = 1 << (_FRACTIONAL_BITS - 2)
    within = (x & (quarter - 1)) - quarter
    found = _exp_of_up_to_a_quarter(within << _INTEGER_BITS)
    remainder = within - x
    for power, factor in _EXP_OF_MINUS_POWERS_OF_TWO:
        product = saturating_rounding_doubling_high_mul(found, np.int64(factor))
        found = np.where(remainder & (1 << (_FRACTIONAL_BITS + power)), product, found)
    exact: Integers = np.where(x == 0, np.int64(INT32_MAX), found)
    return exact


def _exp_of_up_to_a_quarter(a: Integers) -> Integers:
    """Return exp(a) in Q0.31 of a in [-1/4, 0) in Q0.31."""
    multiply = saturating_rounding_doubling_high_mul
    x = a + (1 << 28)
    x2 = multiply(x, x)
    x3, x4 = multiply(x2, x), multiply(x2, x2)
    higher = _divide(multiply(_divide(x4, 2) + x3, np.int64(_A_THIRD)) + x2, 1)
    return _EXP_OF_MINUS_AN_EIGHTH + multiply(np.asarray(x + higher), np.int64(_EXP_OF_MINUS_AN_EIGHTH))


def _divide(x: Integers, exponent: int) -> Integers:
    return rounding_divide_by_power_of_two(x, np.int64(exponent))
