"""The weights of fully connected layers for Armv6-M as unsigned fields of words."""

import numpy as np
import pytest

from kdpipe.targets.c.linear_v6m import pack_blocks


@pytest.mark.parametrize(("bits", "group", "step"), [(8, 4, 8), (4, 8, 16), (2, 8, 32)])
def test_fields_hold_the_weights_of_their_rows(bits: int, group: int, step: int) -> None:
    limit = 2 ** (bits - 1) - 1
    rows = np.random.default_rng(bits).integers(-limit, limit + 1, (group + 3, step + 5)).astype(np.int8)
    padded = np.full((2 * group, 2 * step), -(2 ** (bits - 1)))
    padded[: len(rows), : rows.shape[1]] = rows
    words = pack_blocks(rows, bits).reshape(2, -1)
    assert words.size == padded.size * bits // 32
    for block, feature, row in np.ndindex(2, 2 * step, group):
        if bits == 2:
            word, at = feature // 2, 16 * (row // 4) + 8 * (feature % 2) + 2 * (row % 4)
        else:
            word, at = feature, bits * row
        field = int(words[block, word]) >> at & (2**bits - 1)
        assert field - 2 ** (bits - 1) == padded[group * block + row, feature]
