"""The weights of fully connected layers in half-words, and the bound of the sums that share an accumulator."""

import numpy as np
import pytest

from kdpipe.targets.c.linear_m4 import pack_groups, sums_fit
from kdpipe.targets.graph import Quantization


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_half_words_hold_the_weights_of_their_outputs(bits: int) -> None:
    limit = 2 ** (bits - 1) - 1
    rows = np.random.default_rng(bits).integers(-limit, limit + 1, (24, 12)).astype(np.int8)
    words = pack_groups(rows, bits).reshape(3, 6, bits // 2)
    together = 16 // bits
    for group, pair, word in np.ndindex(words.shape):
        inputs = (pair // 2 * 4 + pair % 2, pair // 2 * 4 + pair % 2 + 2)
        for half, feature in enumerate(inputs):
            value = int(words[group, pair, word]) >> 16 * half & 0xFFFF
            signed = value - 0x10000 if value >= 0x8000 else value
            of = rows[8 * group + together * word :, feature][:together].astype(int)
            for place in range(together):
                offset = 0 if place == together - 1 else 2 ** (bits - 1)
                rest = signed >> bits * place
                assert (rest if place == together - 1 else rest % 2**bits) == of[place] + offset


@pytest.mark.parametrize(("bits", "weight", "place", "most"), [(8, 127, 1, 516), (4, 7, 3, 585), (2, 1, 7, 1023)])
def test_sums_beyond_their_place_are_refused(bits: int, weight: int, place: int, most: int) -> None:
    def fit(count: int, at: int) -> bool:
        rows = np.zeros((8, count), np.int8)
        rows[at] = weight
        return sums_fit(rows, Quantization(1.0, 3), bits)

    assert fit(most, place)
    assert not fit(most + 1, place)
    assert fit(most + 1, place - 1)
