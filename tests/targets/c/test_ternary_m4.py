"""Ternary weights as codes in words, and the schedule that keeps fields from overflowing."""

import numpy as np
import pytest

from kdpipe.targets.c.ternary_m4 import FIELD_MAX, make_schedule, pack_outer, pack_taps


def rotated(word: int, right: int) -> int:
    return (word >> right | word << (32 - right)) & 0xFFFFFFFF


def test_one_and_gives_a_polynomial_of_three_taps() -> None:
    codes = np.random.default_rng(0).integers(0, 3, (4, 2, 3, 8))
    words = pack_taps(codes).reshape(2, 2, 4)
    for pair, v, i in np.ndindex(words.shape):
        for o in range(2):
            for k in range(2):
                w0, w1, w2 = (int(code) for code in codes[2 * pair + o, v, :, 2 * i + k])
                product = rotated(int(words[pair, v, i]), 8 * k + 4 * o) & 0xC0018003
                assert product == w2 | w1 << 15 | w0 << 30


def test_one_and_gives_two_channels() -> None:
    codes = np.random.default_rng(0).integers(0, 3, (8, 3, 12))
    words = pack_outer(codes).reshape(2, 3, 3)
    for quad, v, i in np.ndindex(words.shape):
        for k in range(4):
            for pair in range(2):
                first, second = (int(codes[4 * quad + 2 * pair + o, v, 4 * i + k]) for o in range(2))
                assert rotated(int(words[quad, v, i]), 8 * k + 4 * pair) & 0xC0000003 == first | second << 30


@pytest.mark.parametrize("seed", range(5))
def test_no_field_overflows_between_flushes_and_none_is_early(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fields = rng.integers(0, 12000, (6, 40, 4))
    limits = np.array([FIELD_MAX, FIELD_MAX, FIELD_MAX, 2**19 - 1])
    schedule = make_schedule(fields, limits, 8)
    assert schedule.table[-1] == 0
    done, since, flushes = 0, 0, 0
    for units, flags in schedule.table[:-1].reshape(-1, 2).tolist():
        done += units
        assert (flags & 4 != 0) == (done % 8 == 0 and done < 40)
        assert (flags & 2 != 0) == (done == 40)
        if flags & 1:
            assert (fields[:, since:done].sum(axis=1) <= limits).all()
            assert done == 40 or (fields[:, since : done + 1].sum(axis=1) > limits).any()
            since, flushes = done, flushes + 1
    assert since == done == 40
    assert flushes == schedule.flushes > 1
