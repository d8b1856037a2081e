"""How constants are laid out in the C sources: weights at their width, rows of output channels, channels last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STORED_BITS = {2: 2, 3: 4, 4: 4, 8: 8}
"""Bits that a weight takes in flash, by its width: 3-bit weights are stored in 4."""


@dataclass(frozen=True, eq=False)
class ConstantArray:
    """A constant array of the generated sources.

    Args:
        c_type: its elements' C type.
        values: one dimension.
    """

    c_type: str
    values: NDArray[Any]

    @property
    def nbytes(self) -> int:
        """Bytes in flash."""
        return int(self.values.nbytes)


def pack_rows(rows: NDArray[np.int8], bits: int) -> ConstantArray:
    """Store `rows [O, K]` of `bits`-bit weights: bytes at 8 bits, else 32-bit words with the first weight lowest.

    A row starts on a word of its own; what is left of its last word is zero.
    """
    stored = STORED_BITS[bits]
    if stored == 8:
        return ConstantArray("int8_t", np.ascontiguousarray(rows).reshape(-1))
    per_word = 32 // stored
    outputs, count = rows.shape
    padded = np.zeros((outputs, -(-count // per_word) * per_word), dtype=np.int8)
    padded[:, :count] = rows
    fields = (padded.astype(np.int64) & (2**stored - 1)).reshape(outputs, -1, per_word)
    shifts = np.arange(per_word, dtype=np.int64) * stored
    words = (fields << shifts).sum(axis=2)
    return ConstantArray("uint32_t", words.astype(np.uint32).reshape(-1))


def pack_ternary_rows(rows: NDArray[np.int8]) -> ConstantArray:
    """Store `rows [O, K]` of ternary weights five to a byte: 1.6 bits each, a row on a byte of its own.

    The byte of weights w_0 to w_4 is ceil(256 / 243 * sum of (w_i + 1) * 3**(4 - i)): its product with three carries
    the first digit beyond the byte, the remainder's the next one, and so on. What is left of a row's last byte is -1.
    """
    outputs, count = rows.shape
    digits = np.zeros((outputs, -(-count // 5) * 5), dtype=np.int64)
    digits[:, :count] = rows.astype(np.int64) + 1
    numbers = digits.reshape(outputs, -1, 5) @ (3 ** np.arange(4, -1, -1))
    return ConstantArray("uint8_t", (-(-numbers * 256 // 243)).astype(np.uint8).reshape(-1))


def unpack_ternary_rows(packed: ConstantArray, outputs: int, count: int) -> NDArray[np.int8]:
    """Undo `pack_ternary_rows`: return int8 [outputs, count]."""
    codes = packed.values.astype(np.int64).reshape(outputs, -1)
    digits = []
    for _ in range(5):
        codes = (codes & 255) * 3
        digits.append((codes >> 8) - 1)
    rows: NDArray[np.int8] = np.stack(digits, axis=2).reshape(outputs, -1)[:, :count].astype(np.int8)
    return rows


def unpack_rows(packed: ConstantArray, outputs: int, count: int, bits: int) -> NDArray[np.int8]:
    """Undo `pack_rows`: return int8 [outputs, count]."""
    stored = STORED_BITS[bits]
    if stored == 8:
        return packed.values.reshape(outputs, count).astype(np.int8)
    per_word = 32 // stored
    words = packed.values.astype(np.int64).reshape(outputs, -1, 1)
    fields = (words >> (np.arange(per_word, dtype=np.int64) * stored)) & (2**stored - 1)
    signed = np.where(fields >= 2 ** (stored - 1), fields - 2**stored, fields)
    rows: NDArray[np.int8] = signed.reshape(outputs, -1)[:, :count].astype(np.int8)
    return rows


def fold_zero_point(bias: NDArray[np.int32], rows: NDArray[np.int8], zero_point: int) -> NDArray[np.int32]:
    """Return bias - zero_point * (sum of each row), modulo 2**32, so that kernels multiply stored integers as they are.

    The kernels' sums are modulo 2**32 too; their final values fit int32 (the graph is checked for that), so they are
    exact even where this bias or a partial sum wraps around.
    """
    folded = bias.astype(np.int64) - zero_point * rows.astype(np.int64).sum(axis=1)
    wrapped: NDArray[np.int32] = folded.astype(np.uint32).view(np.int32)
    return wrapped


def convolution_rows(weights: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return [O, I, KH, KW] as rows [O, KH * KW * I], the order in which patches are gathered."""
    return np.ascontiguousarray(weights.transpose(0, 2, 3, 1)).reshape(len(weights), -1)


def linear_rows(weights: NDArray[np.int8], flattened: tuple[int, int, int] | None) -> NDArray[np.int8]:
    """Return [O, I] with its columns in the order in which the input lies in memory.

    Args:
        weights: int8 [O, I].
        flattened: the [C, H, W] shape that the input was flattened from while it stayed channels last, or None.
    """
    if flattened is None:
        return weights
    channels, height, width = flattened
    columns = weights.reshape(len(weights), channels, height, width).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(columns).reshape(len(weights), -1)


def to_channels_last(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return `values [N, *shape]` as [N, size] in memory order: [H, W, C] for images, unchanged for other shapes."""
    if len(shape) == 3:
        values = values.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(values).reshape(len(values), -1)


def to_channels_first(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Undo `to_channels_last`: return [N, *shape]."""
    if len(shape) == 3:
        channels, height, width = shape
        return np.ascontiguousarray(values.reshape(-1, height, width, channels).transpose(0, 3, 1, 2))
    return values.reshape(-1, *shape)
