"""Bit packing, against unpacking by hand."""

import numpy as np
import pytest

from kdpipe.targets.packing import pack_lowest_first, unpack_lowest_first


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 17])
def test_values_are_read_back_from_their_bits(bits: int, count: int) -> None:
    limit = 2 ** (bits - 1)
    values = np.random.default_rng(count).integers(-limit, limit, count)
    number = int.from_bytes(pack_lowest_first(values, bits), "little")
    read = [(number >> (bits * index)) & (2**bits - 1) for index in range(count)]
    assert [value - 2**bits if value >= limit else value for value in read] == values.tolist()
    packed = pack_lowest_first(values, bits)
    assert unpack_lowest_first(packed, count, bits, signed=True).tolist() == values.tolist()
    assert unpack_lowest_first(packed, count, bits, signed=False).tolist() == read


def test_length_and_order() -> None:
    assert pack_lowest_first(np.array([[1, -1], [0, 1], [-1, 0]]), 2) == bytes([0b01_00_11_01, 0b00_11])
    assert pack_lowest_first(np.array([3, 1, 2]), 2) == bytes([0b10_01_11])


@pytest.mark.parametrize(("values", "bits"), [([4], 2), ([-3], 2), ([-1, 2], 2), ([16], 4), ([0], 3)])
def test_what_does_not_fit_is_refused(values: list[int], bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        pack_lowest_first(np.array(values), bits)
