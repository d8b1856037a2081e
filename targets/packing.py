"""Sub-byte integers packed into bytes, as ONNX, OpenVINO and TFLite store them: lowest bits first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pack_lowest_first(values: NDArray[np.integer], bits: int) -> bytes:
    """Pack integers, in C order, into bytes whose lowest bits hold the first value.

    Args:
        values: any shape; each fits in `bits`, as two's complement or unsigned. The last byte is filled with zeros.
        bits: 2, 4 or 8.

    Raises:
        ValueError: `bits` is another number, or a value does not fit.
    """
    if bits not in (2, 4, 8):
        raise ValueError(f"can't pack {bits} bits")
    flat = values.reshape(-1).astype(np.int16)
    if flat.size and (int(flat.min()) < -(1 << (bits - 1)) or int(flat.max()) >= 1 << bits):
        raise ValueError(f"a value does not fit in {bits} bits")
    per_byte = 8 // bits
    padded = np.zeros(-(-flat.size // per_byte) * per_byte, np.uint8)
    padded[: flat.size] = (flat & ((1 << bits) - 1)).astype(np.uint8)
    packed = np.zeros(padded.size // per_byte, np.uint8)
    for position in range(per_byte):
        packed |= padded[position::per_byte] << np.uint8(position * bits)
    return packed.tobytes()
