"""Sums by two multiplications, against the graph's own on every pair of inputs."""

import numpy as np
import pytest

from kdpipe.targets import reference
from kdpipe.targets.c.scaled_add import SHIFT, plan_add
from kdpipe.targets.graph import Add, Quantization, TensorType


@pytest.mark.parametrize("rounding", ["single", "tflite"])
def test_plans_are_right_on_every_pair(rounding: str) -> None:
    rng = np.random.default_rng(3)
    values = np.stack(np.meshgrid(np.arange(-128, 128), np.arange(-128, 128))).reshape(2, -1)
    found = 0
    for _ in range(8):
        scales = np.exp(rng.normal([-3, -3, -2.7], 0.4)).astype(np.float32)
        points = rng.integers(-128, 128, 3)
        first, second, output = (Quantization(float(s), int(z)) for s, z in zip(scales, points, strict=True))
        plan = plan_add(first, second, output, rounding)
        if plan is None:
            continue
        found += 1
        sums = values[0] * plan.first_factor + values[1] * plan.second_factor + plan.offset
        assert np.abs(sums).max() < 2**31
        types = [TensorType(values[0].shape, kind) for kind in (first, second)]
        stored = [value.astype(np.int8)[None] for value in values]
        wanted = reference.compute(Add(), stored, types, TensorType(values[0].shape, output), rounding)[0]
        np.testing.assert_array_equal(np.clip(sums >> SHIFT, -128, 127), wanted)
    assert found >= 6


def test_what_it_cannot_saturate_is_refused() -> None:
    q = Quantization(0.5, 0)
    assert plan_add(q, q, Quantization(0.5, 0, 0, 127), "single") is None
