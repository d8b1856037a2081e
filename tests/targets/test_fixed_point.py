import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.targets.fixed_point import multiply_by_quantized_multiplier, quantize_multiplier

ACCUMULATORS = st.integers(-(2**31) + 1, 2**31 - 1)
FACTORS = st.floats(1e-9, 0.999)


def c_style(accumulator: int, multiplier: int, shift: int) -> int:
    """TFLite's double rounding with Python's unbounded integers, following the two gemmlowp functions' text."""
    left, right = max(shift, 0), max(-shift, 0)
    product = (accumulator << left) * multiplier
    nudged = product + (1 << 30 if product >= 0 else 1 - (1 << 30))
    high = int(Fraction(nudged, 2**31))  # int() truncates towards zero, as C does
    mask = (1 << right) - 1
    return (high >> right) + (1 if (high & mask) > (mask >> 1) + (1 if high < 0 else 0) else 0)


@given(ACCUMULATORS, FACTORS)
def test_double_rounding_follows_gemmlowp(accumulator: int, factor: float) -> None:
    multiplier, shift = quantize_multiplier(factor)
    ours = multiply_by_quantized_multiplier(np.array([accumulator]), multiplier, shift, "tflite")
    assert ours[0] == c_style(accumulator, multiplier, shift)


@given(ACCUMULATORS, FACTORS)
def test_single_rounding_is_exact_half_up(accumulator: int, factor: float) -> None:
    multiplier, shift = quantize_multiplier(factor)
    exact = Fraction(accumulator * multiplier) * Fraction(2) ** (shift - 31)
    ours = multiply_by_quantized_multiplier(np.array([accumulator]), multiplier, shift, "single")
    assert ours[0] == math.floor(exact + Fraction(1, 2))


@given(st.floats(1e-9, 2.0**29))
def test_multiplier_approximates_the_factor_to_31_bits(factor: float) -> None:
    multiplier, shift = quantize_multiplier(factor)
    assert 2**30 <= multiplier < 2**31
    assert abs(Fraction(multiplier) * Fraction(2) ** (shift - 31) / Fraction(factor) - 1) <= Fraction(1, 2**31)


def test_published_multiplier_cases() -> None:
    """Values from TensorFlow Lite's own quantization_util_test.cc."""
    assert quantize_multiplier(0.25) == (1 << 30, -1)
    assert quantize_multiplier(0.5) == (1 << 30, 0)
    assert quantize_multiplier(1.0) == (1 << 30, 1)
    assert quantize_multiplier(0.0) == (0, 0)
    assert quantize_multiplier(2.0**-40) == (0, 0)


@pytest.mark.parametrize("factor", [-0.5, math.nan, math.inf, 2.0**31])
def test_impossible_factors_are_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="requantization factor"):
        quantize_multiplier(factor)
