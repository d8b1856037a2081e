"""Packed weights: what the words hold, and the bounds that let sums share an accumulator."""

from dataclasses import replace

import numpy as np
import pytest

from kdpipe.targets.c.packing_m4 import (
    NO_CHANNEL,
    channel_pairs,
    neighbour_pairs,
    pack_quads,
    quad_starts,
    quads_fit,
)
from kdpipe.targets.graph import Conv2d, Quantization, Weight


def halves(words: np.ndarray) -> np.ndarray:
    """The signed half-words of each word, the lower one first."""
    return words.astype(np.uint32).view(np.int16).reshape(*words.shape, 2).astype(np.int64)


def test_pairs() -> None:
    assert channel_pairs(4) == [(0, 2), (1, 3)]
    assert channel_pairs(5) == [(0, 2), (1, 3), (4, NO_CHANNEL)]
    assert channel_pairs(7)[2:] == [(4, 6), (5, NO_CHANNEL)]
    assert neighbour_pairs(3) == [(0, 1), (2, NO_CHANNEL)]


@pytest.mark.parametrize("channels", [4, 5, 7])
def test_eight_bits(channels: int) -> None:
    values = np.random.default_rng(0).integers(-127, 128, (8, channels, 3, 2)).astype(np.int8)
    pairs = channel_pairs(channels)
    words = pack_quads(values, pairs, 8).reshape(2, 3, len(pairs), 2, 2)
    for quad, v, p, u, couple in np.ndindex(words.shape):
        for half, channel in zip(halves(words[quad, v, p, u, couple][None])[0], pairs[p], strict=True):
            even, odd = 4 * quad + 2 * couple, 4 * quad + 2 * couple + 1
            wanted = (
                (0, 0) if channel == NO_CHANNEL else (int(values[even, channel, v, u]), int(values[odd, channel, v, u]))
            )
            assert half == wanted[0] + 256 * wanted[1]


def test_four_bits() -> None:
    values = np.random.default_rng(0).integers(-7, 8, (4, 4, 1, 1)).astype(np.int8)
    words = pack_quads(values, channel_pairs(4), 4)
    assert words.shape == (2,)
    w = values[:, :, 0, 0].astype(int)
    for p, pair in enumerate(channel_pairs(4)):
        for half, channel in zip(halves(words[[p]])[0], pair, strict=True):
            a, b, c, d = w[:, channel]
            assert half == (a + 8) + 16 * b + 256 * (c + 8) + 4096 * d


def test_starts_hold_the_lower_channels() -> None:
    bias = np.array([5, -7, 100, 3])
    assert quad_starts(bias, 8).tolist() == [5, 5 - 7 * 256, 100, 100 + 3 * 256]
    assert quad_starts(bias, 4).tolist() == [5, 5 - 112, 5 - 112 + 25600, 5 - 112 + 25600 + 12288]


@pytest.mark.parametrize(
    ("stored", "channel", "limit"), [(8, 1, 2**23), (8, 3, 2**23), (4, 1, 2**27), (4, 2, 2**23), (4, 3, 2**19)]
)
def test_bounds_are_those_of_the_actual_weights(stored: int, channel: int, limit: int) -> None:
    """The largest sum that fits is taken, one more is not."""
    values = np.zeros((4, 2, 1, 1), dtype=np.int8)
    values[channel, :, 0, 0] = [7, -3]
    source = Quantization(1.0, -28)
    # 7 * 155 where the first input is largest, -3 * -100 where the second is smallest.
    reach = 7 * 155 + 3 * 100
    op = Conv2d(Weight(values, np.ones(4, dtype=np.float32), stored), np.zeros(4, dtype=np.int32))
    bias = np.zeros(4, dtype=np.int32)
    bias[channel] = limit - 1 - reach
    assert quads_fit(replace(op, bias=bias), source, stored)
    bias[channel] += 1
    assert not quads_fit(replace(op, bias=bias), source, stored)
    bias[channel] = 0
    bias[0] = 2**30
    assert quads_fit(replace(op, bias=bias), source, stored)
