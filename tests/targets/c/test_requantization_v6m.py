"""Requantization in 32-bit multiplications equals the graph's, for every sum that it is planned for."""

import numpy as np
import pytest

from kdpipe.targets.c.requantization_v6m import HIGH, NARROW, SumRequantization, plan_sums
from kdpipe.targets.fixed_point import multiply_by_quantized_multiplier, quantize_multipliers
from kdpipe.targets.graph import Quantization


def as_the_kernel_computes(plan: SumRequantization, channel: int, sums: np.ndarray, output: Quantization) -> np.ndarray:
    multiplier = int(plan.multipliers[channel])
    if plan.form == NARROW:
        high, low = multiplier >> plan.low_bits, multiplier & ((1 << plan.low_bits) - 1)
        parts = [sums * high, sums * low, sums * high + (sums * low >> plan.low_bits) + plan.start]
        assert max(np.abs(part).max() for part in parts) < 2**31
        value = parts[2]
    else:
        value = (sums * multiplier >> 32) + plan.start
    return np.clip(value >> plan.shift, output.qmin, output.qmax)


@pytest.mark.parametrize(("bound", "spread"), [(40, 0.1), (3000, 1.0), (40_000, 1.0), (150_000, 0.3), (400_000, 0.3)])
@pytest.mark.parametrize("zero_point", [-128, 0, 127])
def test_every_sum_has_the_graph_s_output(bound: int, spread: float, zero_point: int) -> None:
    rng = np.random.default_rng(bound + zero_point + 128)
    output = Quantization(1.0, zero_point)
    # Some channels saturate early, some never leave the middle; each has its own range of sums.
    reals = 200 / bound * np.exp(rng.normal(0, spread, 6))
    multipliers, shifts = quantize_multipliers(reals)
    smallest = -rng.integers(0, bound, 6)
    largest = rng.integers(0, bound, 6)
    plan = plan_sums(multipliers.tolist(), shifts.tolist(), output, "single", smallest, largest)
    assert plan is not None
    for channel, (multiplier, shift) in enumerate(zip(multipliers, shifts, strict=True)):
        sums = np.arange(smallest[channel], largest[channel] + 1)
        wanted = multiply_by_quantized_multiplier(sums, int(multiplier), int(shift), "single")
        wanted = np.clip(wanted + zero_point, output.qmin, output.qmax)
        np.testing.assert_array_equal(as_the_kernel_computes(plan, channel, sums, output), wanted)


def test_narrow_sums_take_two_multiplications_and_large_ones_four() -> None:
    multipliers, shifts = quantize_multipliers(np.array([0.001, 0.0017]))
    arguments = (multipliers.tolist(), shifts.tolist(), Quantization(1.0, -128), "single")
    forms = []
    for bound in (50_000, 2**27):
        plan = plan_sums(*arguments, np.full(2, -bound), np.full(2, bound))
        assert plan is not None
        forms.append(plan.form)
    assert forms == [NARROW, HIGH]
    assert plan_sums(*arguments, np.full(2, -(2**30)), np.full(2, 2**30)) is None


@pytest.mark.parametrize("real", [0.4, 3.0])
def test_large_factors_are_narrow(real: float) -> None:
    multipliers, shifts = quantize_multipliers(np.array([real]))
    output = Quantization(1.0, 3)
    plan = plan_sums(multipliers.tolist(), shifts.tolist(), output, "single", np.array([-900]), np.array([700]))
    assert plan is not None
    assert plan.form == NARROW
    sums = np.arange(-900, 701)
    wanted = multiply_by_quantized_multiplier(sums, int(multipliers[0]), int(shifts[0]), "single")
    expected = np.clip(wanted + 3, output.qmin, output.qmax)
    np.testing.assert_array_equal(as_the_kernel_computes(plan, 0, sums, output), expected)


def test_double_rounding_and_no_factor_are_refused() -> None:
    bounds = np.array([-5]), np.array([5])
    assert plan_sums([2**30], [0], Quantization(1.0, 0), "tflite", *bounds) is None
    assert plan_sums([0], [0], Quantization(1.0, 0), "single", *bounds) is None
