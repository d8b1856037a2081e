"""Weights and requantization as the kernels for MVE read them, against what their instructions make of them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from kdpipe.targets.c.convolution_mve import FACTOR_BITS, pack_pairs
from kdpipe.targets.c.depthwise_mve import last_taps, pack_taps, reading_order
from kdpipe.targets.c.linear_mve import pack_groups
from kdpipe.targets.c.packing import convolution_rows
from kdpipe.targets.c.requantization_mve import exact_requantization
from kdpipe.targets.fixed_point import Rounding, multiply_by_quantized_multiplier, quantize_multipliers
from kdpipe.targets.graph import Conv2d, Quantization, Weight


def weights(shape: tuple[int, ...], bits: int, seed: int = 0) -> NDArray[np.int8]:
    limit = 2 ** (bits - 1) - 1
    return np.random.default_rng(seed).integers(-limit, limit + 1, shape).astype(np.int8)


def shifted(vectors: NDArray[np.int8], left: int) -> NDArray[np.int64]:
    """What VSHL leaves of bytes."""
    return (vectors.astype(np.int64) << left).astype(np.uint8).view(np.int8).astype(np.int64)


@pytest.mark.parametrize("taps", [1, 2, 3])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_pairs_of_channels(bits: int, taps: int) -> None:
    steps = weights((6, 2, 3, taps, 16), bits)
    pairs = steps.reshape(3, 2, 2, 3 * taps, 16).transpose(0, 2, 3, 1, 4).astype(np.int64)
    packed = pack_pairs(steps, bits).reshape(3, 2, -1, 16)
    if bits == 8:
        np.testing.assert_array_equal(packed.reshape(pairs.shape), pairs)
        return
    if bits == 4:
        second, first = packed.astype(np.int64), shifted(packed, 4)
    else:
        high = packed.astype(np.int64) & 0xF0
        high = np.where(high > 127, high - 256, high)
        second = np.stack([high, shifted(packed, 4)], axis=3).reshape(3, 2, -1, 16)[:, :, : 3 * taps]
        first = np.stack([shifted(high.astype(np.int8), 2), shifted(packed, 6)], axis=3).reshape(3, 2, -1, 16)
        first = first[:, :, : 3 * taps]
        assert packed.shape[2] == -(-3 * taps // 2)
    low, whole = FACTOR_BITS[bits]
    np.testing.assert_array_equal(first, pairs[:, :, :, 0] << low)
    np.testing.assert_array_equal((second << {4: 4, 2: 2}[bits]) - first, pairs[:, :, :, 1] << whole)


@pytest.mark.parametrize("features", [16, 5, 37])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_groups_of_outputs(bits: int, features: int) -> None:
    rows = weights((7, features), bits)
    packed = pack_groups(rows, bits)
    vectors = 4 * bits // 8
    assert packed.size == 2 * vectors * features + 16
    assert not packed[-16:].any()
    for group in range(2):
        for start in range(0, features, 16):
            count = min(16, features - start)
            place = vectors * (group * features + start)
            block = packed[place : place + vectors * count].reshape(vectors, count)
            for index in range(4):
                output = 4 * group + index
                wanted = rows[output, start : start + count] if output < 7 else np.zeros(count, np.int8)
                left = {8: 0, 4: 4 * (1 - index % 2), 2: 6 - 2 * index}[bits]
                below = shifted(block[index * vectors // 4], left)
                # what remains of a byte is its weight, and less than half of one from the weights below
                np.testing.assert_array_equal(np.round(below / 2 ** (8 - bits)), wanted)


@pytest.mark.parametrize("count", [9, 1])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_taps_of_depthwise_channels(bits: int, count: int) -> None:
    taps = weights((count, 21), bits)
    per_byte = 8 // bits
    packed = pack_taps(taps, bits).view(np.int8).reshape(2, -1, 16)
    assert packed.shape[1] == -(-count // per_byte)
    for block in range(2):
        for tap in range(count):
            # VSHL and VSHR, as the kernel unpacks them
            found = shifted(packed[block, tap // per_byte], bits * (tap % per_byte)) >> (8 - bits)
            wanted = np.zeros(16, np.int8)
            wanted[: 21 - 16 * block if block else 16] = taps[tap, 16 * block : 16 * block + 16]
            np.testing.assert_array_equal(found, wanted)


def test_sums_of_half_words_are_emptied_in_time() -> None:
    assert reading_order(2, 3) == [1, 2, 0, 4, 5, 3]
    taps = weights((9, 40), 8, seed=3)
    # the largest weights: two of them just fit
    taps[:, 7] = 127
    last = last_taps(taps)
    assert last == 0b10101010
    for seed in range(20):
        taps = (weights((9, 16), 8, seed) * np.random.default_rng(seed).uniform(0.05, 1)).astype(np.int8)
        last, total = last_taps(taps), np.zeros(16, np.int64)
        for tap, magnitude in enumerate(np.abs(taps.astype(np.int64))):
            total = total + magnitude * 128
            assert total.max() < 2**15
            if last >> tap & 1:
                total[:] = 0
    assert last_taps(weights((25, 16), 4)) == 0


@pytest.mark.parametrize("rounding", ["single", "tflite"])
@pytest.mark.parametrize("scale", [0.4, 1e-3, 1e-6])
@pytest.mark.parametrize("bits", [8, 4])
def test_requantization_is_the_graphs(bits: int, scale: float, rounding: Rounding) -> None:
    rng = np.random.default_rng(1)
    scales = (scale * rng.uniform(0.2, 1, 6)).astype(np.float32)
    op = Conv2d(Weight(weights((6, 5, 3, 3), bits), scales, bits), rng.integers(-9999, 9999, 6).astype(np.int32))
    rows, source, output = convolution_rows(op.weight.values), Quantization(1.0, 3), Quantization(1.0, -7)
    factor_bits = np.array(FACTOR_BITS[bits])
    exact = exact_requantization(op, rows, source, output, rounding, factor_bits)
    assert exact is not None
    multipliers, shifts = quantize_multipliers(source.scale * scales.astype(np.float64) / output.scale)
    for sums in rng.integers(-(2**16), 2**16, (200, 6)):
        wanted = multiply_by_quantized_multiplier(sums, multipliers, shifts, rounding)
        factors = np.resize(factor_bits, 6)
        if rounding == "single":
            high = ((sums << (factors + exact.left)) * exact.parameters[1]) >> 31
        else:
            high = (sums * exact.parameters[1] + 2**30) >> 31
            high += high >> 31
        right = -exact.parameters[2]
        np.testing.assert_array_equal((high + (1 << (right - 1))) >> right, wanted)


def test_what_is_not_exact_is_left_to_others() -> None:
    def plan(scale: float, rounding: Rounding, bias: int = 0) -> object:
        op = Conv2d(Weight(weights((2, 4, 1, 1), 4), np.full(2, scale, np.float32), 4), np.full(2, bias, np.int32))
        rows, quantization = convolution_rows(op.weight.values), Quantization(1.0, 0)
        return exact_requantization(op, rows, quantization, quantization, rounding, np.array([4, 8]))

    # a multiplication with a half or more leaves nothing to shift: the sums are shifted left first, where they may
    assert plan(0.6, "single") is not None
    assert plan(0.6, "tflite") is None
    assert plan(0.49, "tflite") is not None
    # 256 times the sum must fit 32 bits
    assert plan(0.01, "single", 2**23) is None
    assert plan(0.01, "single", -(2**22)) is not None
