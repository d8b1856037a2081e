"""Requantization by one multiplication equals the graph's, where it says so."""

import numpy as np
import pytest

from kdpipe.targets.c.requantization_m4 import (
    OWN_SHIFT,
    SHARED_SHIFT,
    TFLITE,
    Requantization,
    plan_requantization,
    shared_shift_thresholds,
    shift_with_bias,
    single_thresholds,
)
from kdpipe.targets.fixed_point import multiply_by_quantized_multiplier, quantize_multipliers
from kdpipe.targets.graph import Quantization

BOUND = 2**22


def as_kernels_compute(plan: Requantization, sums: np.ndarray, factors: np.ndarray, output: Quantization) -> np.ndarray:
    """What SMMLA (or SMMULR), ASR and SSAT make of `sums [O, N]` that arrive times `factors [O]`."""
    scaled = sums * factors[:, None]
    if plan.form == SHARED_SHIFT:
        shifts = plan.shift + np.log2(factors).astype(np.int64)
        starts = (output.zero_point << shifts) + np.where(shifts > 0, 1 << np.maximum(shifts - 1, 0), 0)
        # SMMLAR adds the half where there is no shift.
        half = np.where(shifts > 0, 0, 2**31)[:, None]
        high = ((scaled * plan.parameters + half) >> 32) + starts[:, None]
        return np.clip(high >> shifts[:, None], output.qmin, output.qmax)
    multipliers, starts, shifts = (plan.parameters[:, [column]] for column in range(3))
    if plan.form == OWN_SHIFT:
        scaled = np.where(factors[:, None] == 1, scaled << plan.left, scaled)
        assert np.abs(scaled).max() < 2**31
        high = (scaled * multipliers >> 32) + starts
    else:
        doubled = sums * 2
        high = (doubled * multipliers + 2**31) >> 32
        high = high + (high >> 31) + starts
    return np.clip(high >> shifts, output.qmin, output.qmax)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("forms", [(SHARED_SHIFT,), (OWN_SHIFT,), (TFLITE,)])
def test_plans_equal_the_fixed_point(forms: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    factors = np.array([1, 256] * 4) if forms != (TFLITE,) else np.ones(8, dtype=np.int64)
    bits = int(rng.choice([4, 8, 8]))
    output = Quantization(
        1.0, int(rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1))), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    )
    multipliers, shifts = quantize_multipliers(np.exp(rng.normal(-5, 0.3, 8)))
    rounding = "tflite" if forms == (TFLITE,) else "single"
    plan = plan_requantization(multipliers.tolist(), shifts.tolist(), output, rounding, factors.tolist(), BOUND, forms)
    assert plan is not None
    assert plan.form == forms[0]
    sums = rng.integers(-BOUND, BOUND + 1, (8, 4000))
    # Half of them near where the output changes.
    steps = (rng.integers(-300, 300, (8, 2000)) + 0.5) / (multipliers * 2.0 ** (shifts - 31))[:, None]
    sums[:, ::2] = np.clip(np.rint(steps) + rng.integers(-1, 2, steps.shape), -BOUND, BOUND)
    wanted = multiply_by_quantized_multiplier(sums, multipliers[:, None], shifts[:, None], rounding)
    wanted = np.clip(wanted + output.zero_point, output.qmin, output.qmax)
    np.testing.assert_array_equal(as_kernels_compute(plan, sums, factors, output), wanted)


def test_thresholds_are_where_the_output_changes() -> None:
    output = Quantization(1.0, -3, -8, 7)
    for multiplier, shift in [(2**30, -4), (1_500_000_001, 0), (2**31 - 1, 3), (2**30 + 1, -20)]:
        thresholds = np.array(single_thresholds(multiplier, shift, output))
        for sums, expected in ((thresholds, np.arange(-7, 8)), (thresholds - 1, np.arange(-8, 7))):
            got = multiply_by_quantized_multiplier(sums, multiplier, shift, "single") - 3
            # Large factors step over values, but never come out on the other side of a threshold.
            assert ((got >= np.arange(-7, 8)) == (expected >= np.arange(-7, 8))).all()


def test_a_shared_shift_is_only_taken_with_the_same_thresholds() -> None:
    output = Quantization(1.0, 11)
    multipliers, shifts = quantize_multipliers(np.array([0.003, 0.004, 0.0051, 0.0039]))
    plan = plan_requantization(multipliers.tolist(), shifts.tolist(), output, "single", [1, 256, 1, 256], 10**6)
    assert plan is not None
    assert plan.form == SHARED_SHIFT
    for index, factor in enumerate((1, 256, 1, 256)):
        shift = plan.shift + factor.bit_length() - 1
        got = shared_shift_thresholds(int(plan.parameters[index, 0]), shift, output, factor)
        assert got == single_thresholds(int(multipliers[index]), int(shifts[index]), output)


def test_channels_of_very_different_scale_get_shifts_of_their_own() -> None:
    multipliers, shifts = quantize_multipliers(np.array([0.4, 1e-4, 0.02, 2e-4]))
    arguments = (multipliers.tolist(), shifts.tolist(), Quantization(1.0, 0), "single", [1, 256, 1, 256])
    plan = plan_requantization(*arguments, 2**20)
    assert plan is not None
    assert plan.form == OWN_SHIFT
    assert plan_requantization(*arguments, 2**29) is None


@pytest.mark.parametrize(
    ("factor", "output", "rounding", "bound"),
    [
        (0.01, Quantization(1.0, 0, -100, 127), "single", 1000),
        (2.0**-40, Quantization(1.0, 0), "single", 1000),
        (1.5, Quantization(1.0, 0), "tflite", 1000),
        (0.01, Quantization(1.0, 0), "tflite", 2**30),
    ],
)
def test_what_no_form_can_express_is_refused(factor: float, output: Quantization, rounding: str, bound: int) -> None:
    multipliers, shifts = quantize_multipliers(np.full(4, factor))
    assert plan_requantization(multipliers.tolist(), shifts.tolist(), output, rounding, [1] * 4, bound) is None


def test_bias_and_shift_share_a_word_only_where_both_fit() -> None:
    bias = np.array([-(2**23) + 1, 2**23 - 1, 0])
    own = Requantization(OWN_SHIFT, 0, 4, np.array([[2**30, 1, 1], [2**30, 1, 16], [2**30, 1, 7]]))
    words = shift_with_bias(own, bias)
    assert words is not None
    np.testing.assert_array_equal(words & 255, [0, 15, 6])
    # One shift to the right gives the bias, shifted left, without a trace of the byte.
    np.testing.assert_array_equal(words >> (8 - own.left), bias << own.left)
    assert shift_with_bias(own, bias + 1) is None
    assert shift_with_bias(own, bias - 1) is None
    own.parameters[1, 2] = 17
    assert shift_with_bias(own, bias) is None
    # Of factors beyond 2**6, sums are shifted left so far that no shift to the right would be left.
    for left, fits in ((7, True), (8, False), (15, False)):
        far = Requantization(OWN_SHIFT, 0, left, np.array([[2**30, 1, 1]] * 3))
        assert (shift_with_bias(far, bias) is not None) == fits
    shared = Requantization(SHARED_SHIFT, 5, 4, np.array([[2**30]] * 3))
    np.testing.assert_array_equal(shift_with_bias(shared, bias), bias << 4)
