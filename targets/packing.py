"""Sub-byte integers packed into bytes, as ONNX, OpenVINO and TFLite store them: lowest bits first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pack_lowest_first(values: NDArray[np.integer], bits: int) -> bytes:
    """Pack integers, in C order, into bytes whose lowest bits hold the first value.

    Args:
        values: any shape; all fit in `bits`, as two's complement or unsigned. The last byte is filled with zeros.
        bits: 2, 4 or 8.

    Raises:
        ValueError: `bits` is another number, or a value does not fit.
    """
    if bits not in (2, 4, 8):
        raise ValueError(f"can't pack {bits} bits")
    flat = values.reshape(-1).astype(np.int16)
    if flat.size:
        lowest, highest = int(flat.min()), int(flat.max())
        if lowest < -(1 << (bits - 1)) or highest >= 1 << (bits - 1 if lowest < 0 else bits):
            raise ValueError(f"a value does not fit in {bits} bits")
    per_byte = 8 // bits
    padded = np.zeros(-(-flat.size // per_byte) * per_byte, np.uint8)
    padded[: flat.size] = (flat & ((1 << bits) - 1)).astype(np.uint8)
    packed = np.zeros(padded.size // per_byte, np.uint8)
    for position in range(per_byte):
        packed |= padded[position::per_byte] << np.uint8(position * bits)
    return packed.tobytes()


def unpack_lowest_first(packed: bytes, count: int, bits: int, *, signed: bool) -> NDArray[np.int16]:
    """Return the integers that `pack_lowest_first` packed, flat.

    Args:
        packed: the bytes.
        count: how many integers.
        bits: 2, 4 or 8.
        signed: whether they are in two's complement.
    """
    stored = np.frombuffer(packed, np.uint8)
    mask = (1 << bits) - 1
    parts = [(stored >> np.uint8(position)) & np.uint8(mask) for position in range(0, 8, bits)]
    values = np.stack(parts, axis=1).reshape(-1)[:count].astype(np.int16)
    return np.where(values >> (bits - 1), values - (1 << bits), values).astype(np.int16) if signed else values
