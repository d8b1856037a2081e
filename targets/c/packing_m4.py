"""How the kernels for the DSP extension have their weights, and the bounds without which they would be wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.graph import Conv2d, Linear, Quantization

Pairs = Sequence[tuple[int, int]]
NO_CHANNEL = -1
CHANNEL_FACTORS = {8: (1, 256, 1, 256), 4: (1, 16, 256, 4096)}
"""By stored width, what each of four neighbouring output channels' weights are multiplied by in a half-word."""

REQUANTIZED_ORDER = {8: [0, 2, 1, 3], 4: [0, 1, 2, 3]}
"""Likewise, in which order the four channels' sums are requantized: those with equal factors share their constant."""

_CHANNEL_BITS = {8: (31, 23, 31, 23), 4: (31, 27, 23, 19)}


def channel_pairs(channels: int) -> list[tuple[int, int]]:
    """Return input channels in twos, as SXTB16 leaves them: (0, 2), (1, 3), (4, 6), ...; `NO_CHANNEL` fills up."""
    pairs = []
    for first in range(0, channels, 4):
        known = [channel if channel < channels else NO_CHANNEL for channel in range(first, first + 4)]
        pairs.append((known[0], known[2]))
        if channels - first > 1:
            pairs.append((known[1], known[3]))
    return pairs


def neighbour_pairs(count: int) -> list[tuple[int, int]]:
    """Return (0, 1), (2, 3), ...; `NO_CHANNEL` fills up."""
    return [(first, first + 1 if first + 1 < count else NO_CHANNEL) for first in range(0, count, 2)]


def pack_quads(values: NDArray[np.int8], pairs: Pairs, stored_bits: int) -> NDArray[np.uint32]:
    """Lay out convolution weights for four output channels at a time.

    Args:
        values: int8 [O, I, KH, KW], O a multiple of 4.
        pairs: which input channels share a word, in the order of the activations.
        stored_bits: 8: a half-word is 256 * w[1] + w[0], two words for the four channels; 4: a half-word is
            (w[0] + 8) + 16 * w[1] + 256 * (w[2] + 8) + 4096 * w[3].

    Returns:
        Words in the order in which they are read: [O / 4][KH][pairs][KW][1 or 2], the pair's first channel lowest.
    """
    outputs, _, height, width = values.shape
    padded = np.concatenate([values.astype(np.int64), np.zeros((outputs, 1, height, width), np.int64)], axis=1)
    quads = padded[:, np.array(pairs)].reshape(outputs // 4, 4, len(pairs), 2, height, width)
    if stored_bits == 4:
        codes = (quads[:, 0] + 8) + 16 * quads[:, 1] + 256 * (quads[:, 2] + 8) + 4096 * quads[:, 3]
        halves = codes[:, None]
    else:
        halves = quads[:, 0::2] + 256 * quads[:, 1::2]
    halves = halves & 0xFFFF
    words = halves[:, :, :, 0] | halves[:, :, :, 1] << 16
    ordered: NDArray[np.uint32] = np.ascontiguousarray(words.transpose(0, 3, 2, 4, 1)).astype(np.uint32).reshape(-1)
    return ordered


def accumulator_ranges(op: Conv2d | Linear, source: Quantization) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the smallest and the largest accumulator of each channel over all inputs, bias included, int64 [O]."""
    rows = op.weight.values.astype(np.int64).reshape(len(op.weight.values), -1)
    low, high = source.qmin - source.zero_point, source.qmax - source.zero_point
    smallest = np.minimum(rows * low, rows * high).sum(axis=1) + op.bias
    largest = np.maximum(rows * low, rows * high).sum(axis=1) + op.bias
    return smallest, largest


def quads_fit(op: Conv2d | Linear, source: Quantization, stored_bits: int) -> bool:
    """Return whether each channel's sum keeps to its place above the lower channels' in one 32-bit accumulator."""
    smallest, largest = accumulator_ranges(op, source)
    bound = np.maximum(np.abs(smallest), np.abs(largest)).reshape(-1, 4)
    return bool((bound < 2 ** np.array(_CHANNEL_BITS[stored_bits], dtype=np.int64)).all())


def quad_starts(bias: NDArray[np.int64], stored_bits: int) -> NDArray[np.int64]:
    """Return what four channels' accumulators start from, modulo 2**32, int64 [O]; `bias` has the zero point folded in.

    At 8 bits the odd channel's accumulator holds the even one's sum below its own; at 4 bits each holds all lower ones.
    """
    scaled = bias.reshape(-1, 4) * np.array(CHANNEL_FACTORS[stored_bits], dtype=np.int64)
    starts = scaled.cumsum(axis=1) if stored_bits == 4 else scaled.reshape(-1, 2).cumsum(axis=1)
    return starts.reshape(-1)
