"""Absorbing batch norm into a layer's scales."""

import numpy as np
import pytest

from kdpipe.targets.absorption import HIDDEN_STEPS, absorb
from kdpipe.targets.errors import GraphError
from kdpipe.targets.fixed_point import INT32_MAX
from kdpipe.targets.graph import Quantization

SOURCE = Quantization(0.5, -128)
OUTPUT = Quantization(0.25, 0)


def ones(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def absorbed(gain: float, offset: float, weight: int = 1, scale: float = 0.125):
    values = np.full((1, 4), weight, dtype=np.int8)
    return absorb(values, np.array([scale], dtype=np.float32), ones(gain), ones(offset), SOURCE, OUTPUT)


@pytest.mark.parametrize("gain", [1.0, -2.5, 0.3])
def test_absorbed_channel_computes_the_line(gain: float) -> None:
    channel = absorbed(gain, 0.7)
    accumulators = np.arange(-500, 500)
    real = gain * (SOURCE.scale * 0.125 * accumulators) + 0.7
    unit = SOURCE.scale * float(channel.scales[0])
    deployed = unit * (int(channel.signs[0]) * accumulators + int(channel.bias[0]))
    assert np.abs(deployed - real).max() <= unit / 2 + 1e-6
    assert channel.signs[0] == np.sign(gain)


@pytest.mark.parametrize(("gain", "weight"), [(0.0, 1), (1e-30, 1), (1.0, 0)])
def test_a_channel_that_cannot_move_its_output_is_a_constant(gain: float, weight: int) -> None:
    channel = absorbed(gain, -3.1, weight)
    assert channel.signs[0] == 0
    assert float(channel.scales[0]) * SOURCE.scale == OUTPUT.scale
    assert channel.bias[0] == round(-3.1 / OUTPUT.scale)


def test_a_bias_beyond_int32_is_refused() -> None:
    with pytest.raises(GraphError, match="the bias of channel 0 needs"):
        absorbed(1e-2, 1e9)


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_dead_weight_quantizer_is_refused(scale: float) -> None:
    with pytest.raises(GraphError, match="dead"):
        absorbed(1.0, 0.0, scale=scale)


@pytest.mark.parametrize(("gain", "offset", "scale"), [(np.nan, 0.0, 1.0), (1.0, np.inf, 1.0), (1.0, 0.0, np.nan)])
def test_values_that_are_not_finite_are_refused(gain: float, offset: float, scale: float) -> None:
    with pytest.raises(GraphError, match="not finite"):
        absorbed(gain, offset, scale=scale)


@pytest.mark.parametrize("steps", [0.9, -0.9, 1.1])
def test_a_bias_beyond_int32_is_that_of_a_constant_where_nobody_can_tell(steps: float) -> None:
    """The weights of a channel of 2,304 ones move the output by a part of HIDDEN_STEPS."""
    values = np.ones((1, 2304), dtype=np.int8)
    sums = 255 * 2304
    gain = steps * HIDDEN_STEPS * OUTPUT.scale / (SOURCE.scale * 0.125 * sums)
    offset = 127 * OUTPUT.scale
    assert offset / (SOURCE.scale * 0.125 * abs(gain)) > INT32_MAX / 8

    def channel(offset: float):
        return absorb(values, np.array([0.125], dtype=np.float32), ones(gain), ones(offset), SOURCE, OUTPUT)

    assert channel(offset).signs[0] == np.sign(steps), "the bias fits"
    if abs(steps) > 1:
        with pytest.raises(GraphError, match="the bias of channel 0 needs"):
            channel(100 * offset)
        return
    constant = channel(100 * offset)
    assert constant.signs[0] == 0
    assert constant.bias[0] == 12700
