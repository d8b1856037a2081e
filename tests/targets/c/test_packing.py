"""Constants as they lie in flash."""

import numpy as np
import pytest

from kdpipe.targets.c.packing import (
    convolution_rows,
    fold_zero_point,
    linear_rows,
    pack_rows,
    pack_ternary_rows,
    to_channels_first,
    to_channels_last,
    unpack_rows,
    unpack_ternary_rows,
)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 15, 16, 17, 33])
def test_packing_is_undone(bits: int, count: int) -> None:
    limit = 2 ** (bits - 1) - 1
    rows = np.random.default_rng(count).integers(-limit, limit + 1, (5, count)).astype(np.int8)
    packed = pack_rows(rows, bits)
    np.testing.assert_array_equal(unpack_rows(packed, 5, count, bits), rows)
    words = -(-count // (32 // {2: 2, 3: 4, 4: 4, 8: 8}[bits]))
    assert packed.nbytes == (5 * count if bits == 8 else 5 * words * 4)


def test_first_weight_is_lowest() -> None:
    packed = pack_rows(np.array([[1, -1, 0]], dtype=np.int8), 2)
    assert packed.values.tolist() == [0b00_11_01]
    assert pack_rows(np.array([[1, -7]], dtype=np.int8), 4).values.tolist() == [0x91]


@pytest.mark.parametrize("count", [1, 4, 5, 6, 9, 144])
def test_five_ternary_weights_are_a_byte(count: int) -> None:
    rows = np.random.default_rng(count).integers(-1, 2, (7, count)).astype(np.int8)
    packed = pack_ternary_rows(rows)
    assert packed.nbytes == 7 * -(-count // 5)
    np.testing.assert_array_equal(unpack_ternary_rows(packed, 7, count), rows)


def test_every_byte_of_five_ternary_weights() -> None:
    rows = np.stack(np.meshgrid(*[[-1, 0, 1]] * 5, indexing="ij"), axis=-1).reshape(-1, 5).astype(np.int8)
    packed = pack_ternary_rows(rows)
    assert sorted(set(packed.values.tolist())) == packed.values.tolist()
    assert packed.values[[0, 1, 121, 242]].tolist() == [0, 2, 128, 255]
    np.testing.assert_array_equal(unpack_ternary_rows(packed, 243, 5), rows)


def test_zero_point_folds_into_the_bias_modulo_two_to_the_32() -> None:
    rows = np.array([[3, -1], [127, 127]], dtype=np.int8)
    bias = np.array([10, 2**31 - 1], dtype=np.int32)
    folded = fold_zero_point(bias, rows, -128)
    assert folded.tolist() == [10 + 2 * 128, 2**31 - 1 + 254 * 128 - 2**32]


def test_rows_follow_the_memory_order() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(-5, 5, (1, 3, 2, 4)).astype(np.int8)
    in_memory = to_channels_last(image, (3, 2, 4))[0].astype(int)
    filters = rng.integers(-5, 5, (6, 3, 2, 4)).astype(np.int8)
    expected = np.einsum("oihw,ihw->o", filters.astype(int), image[0].astype(int))
    np.testing.assert_array_equal(convolution_rows(filters).astype(int) @ in_memory, expected)
    np.testing.assert_array_equal(linear_rows(filters.reshape(6, -1), (3, 2, 4)).astype(int) @ in_memory, expected)


@pytest.mark.parametrize("shape", [(3, 2, 4), (7,), (2, 3)])
def test_channels_last_is_undone(shape: tuple[int, ...]) -> None:
    values = np.arange(2 * np.prod(shape)).reshape(2, *shape)
    np.testing.assert_array_equal(to_channels_first(to_channels_last(values, shape), shape), values)
