"""4-bit weights as nibbles of words, and the bound of the fields that their sums share."""

import numpy as np
import pytest

from kdpipe.targets.c.nibble_m4 import field_start, pack_nibbles
from kdpipe.targets.graph import Conv2d, Quantization, Weight

MASK = 0x00F0000F


def rotated(word: int, right: int) -> int:
    return (word >> right | word << (32 - right)) & 0xFFFFFFFF


def test_one_and_gives_two_taps() -> None:
    values = np.random.default_rng(0).integers(-7, 8, (2, 16, 2, 3)).astype(np.int8)
    words = pack_nibbles(values).reshape(2, 2, 2, 3)
    for output, v, eight in np.ndindex(2, 2, 2):
        first, second, third = (int(word) for word in words[output, v, eight])
        for of, (word, n, other, at) in enumerate(
            [
                *[(word, n, word, 4 * n + 8) for word in (first, second, third) for n in (0, 1)],
                *[(first, 7, second, 16), (third, 7, second, 28)],
            ]
        ):
            w0, w1, w2 = (int(value) + 8 for value in values[output, 8 * eight + of, v])
            assert rotated(word, 4 * n) & MASK == w2 | w1 << 20
            assert other >> at & 15 == w0
            if of < 6:
                assert rotated(word, 4 * n + 20) & MASK == w1 | w0 << 20


@pytest.mark.parametrize("zero_point", [-128, 0, 127])
def test_fields_hold_what_the_inputs_can_reach(zero_point: int) -> None:
    source = Quantization(1.0, zero_point)
    values = np.random.default_rng(zero_point + 200).integers(-7, 8, (4, 8, 1, 3)).astype(np.int8)
    op = Conv2d(Weight(values, np.ones(4, np.float32), 4), np.full(4, 10**6, np.int32))
    start = field_start(op, source)
    assert start is not None
    rows = values.reshape(4, -1).astype(int)
    # Each weight with whichever end of the inputs' range serves it.
    smallest = min(int(np.where(row > 0, row * (-128 - zero_point), row * (127 - zero_point)).sum()) for row in rows)
    assert start == -smallest


def test_weights_that_could_overflow_a_field_are_refused() -> None:
    def start(count: int, signs: tuple[int, ...]) -> int | None:
        values = (
            np.ones((len(signs), count, 1, 1), np.int8) * np.array(signs, np.int8)[:, None, None, None] * np.int8(7)
        )
        op = Conv2d(Weight(values, np.ones(len(signs), np.float32), 4), np.zeros(len(signs), np.int32))
        return field_start(op, Quantization(1.0, -128))

    assert start(293, (1, -1)) == 293 * 7 * 255
    assert start(294, (1, -1)) is None
    assert start(587, (1, 1)) == 0
    assert start(588, (1, 1)) is None
