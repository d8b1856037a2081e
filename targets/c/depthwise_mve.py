"""Depthwise convolutions in MVE: which layers kernels/mve computes, and with which constants."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.c.convolution_m4 import stays_behind
from kdpipe.targets.c.convolution_mve import ALIGNMENT_SLACK, LANES, geometry, held_rows, padded_columns
from kdpipe.targets.c.layer import Assembly, Layer
from kdpipe.targets.c.packing import STORED_BITS, ConstantArray, convolution_rows
from kdpipe.targets.c.requantization_mve import exact_requantization
from kdpipe.targets.graph import Conv2d, IntegerGraph, Node

_MAX_KERNEL = 5
_LARGEST_SUM = 2**15 - 1
_LARGEST_INPUT = 128
# What the instructions' immediate operands can hold.
_MAX_OFFSET, _MAX_STEP = 508, 4095

_ORDER = np.arange(LANES).reshape(4, 4).T[[0, 2, 1, 3]].reshape(-1)
"""In which order the channels of a block are requantized: each fourth one, as the widening leaves them."""


def depthwise_mve(graph: IntegerGraph, node: Node) -> Layer | None:
    """Plan a depthwise convolution with as many outputs as inputs, or return None."""
    op, source = node.op, graph.tensor(node.inputs[0])
    assert isinstance(op, Conv2d)  # noqa: S101 - narrows the type
    channels, columns = source.shape[0], padded_columns(node, op)
    _, _, kernel_height, kernel_width = op.weight.values.shape
    if (
        not op.groups == channels == node.output.shape[0]
        or max(kernel_height, kernel_width) > _MAX_KERNEL
        or LANES * kernel_width * op.dilation[1] > _MAX_OFFSET
        or LANES * op.stride[1] > _MAX_OFFSET
        or max(LANES * columns, channels) > _MAX_STEP
    ):
        return None
    output, rows, no_factor = node.output.quantization, convolution_rows(op.weight.values), np.zeros(1, np.int64)
    exact = exact_requantization(op, rows, source.quantization, output, graph.rounding, no_factor)
    if exact is None:
        return None
    taps = op.weight.values.reshape(channels, -1).T
    stored = STORED_BITS[op.weight.bits]
    constants: dict[str, int | str] = {
        "WEIGHT_BITS": stored,
        "ROWS": kernel_height,
        "TAPS": kernel_width,
        "TAP_BYTES": LANES * op.dilation[1],
        "PIXEL_BYTES": LANES * op.stride[1],
        "BLOCK_BYTES": LANES * columns,
        "COUT": channels,
        "LAST": last_taps(taps[reading_order(kernel_height, kernel_width)]),
        "LEFT": exact.left,
        "TFLITE": int(graph.rounding == "tflite"),
        "LOW": f"({output.qmin})",
        "HIGH": f"({output.qmax})",
        "ZERO_POINT": f"({output.zero_point})",
    }
    blocks = -(-channels // LANES)
    parameters = _blocks(exact.parameters)[:, :, _ORDER].reshape(-1).astype(np.int32)
    return Layer(
        node=node,
        kernel="conv_mve_columns",
        header="conv_mve.h",
        files=(
            *(f"mve/{name}" for name in ("conv_mve_columns.c", "conv_mve.h", "mve.h")),
            *("mve/depthwise_mve.inc", "rows.h"),
        ),
        struct="kdp_mve_conv",
        fields=[*geometry(source, node, op, blocks), 0, "@row"],
        arrays={
            "weights": ConstantArray("uint32_t", pack_taps(taps, stored)),
            "parameters": ConstantArray("int32_t", parameters),
        },
        scratch=held_rows(op) * blocks * columns * LANES + ALIGNMENT_SLACK,
        in_place=stays_behind(graph, node),
        rows=(node.output.shape[1], source.shape[1]),
        keeps_rows=True,
        assembly=Assembly(
            "mve/depthwise_mve.inc", "depthwise_mve_row", "kdp_mve_row", tuple(sorted(constants.items()))
        ),
    )


def reading_order(height: int, width: int) -> list[int]:
    """Return the taps in the order in which the kernel adds them up: of each row, the first one last."""
    return [row * width + (column + 1) % width for row in range(height) for column in range(width)]


def last_taps(taps: NDArray[np.int8]) -> int:
    """Return a bit for each tap after which the sums of 16 bits must be emptied, so that no channel's can overflow.

    Args:
        taps: int8 [taps, C], in the order in which they are added up.
    """
    magnitudes = np.abs(taps.astype(np.int64)) * _LARGEST_INPUT
    found, total = 0, np.zeros(taps.shape[1], np.int64)
    for tap, magnitude in enumerate(magnitudes):
        if (total + magnitude > _LARGEST_SUM).any():
            found |= 1 << (tap - 1)
            total = np.zeros_like(total)
        total = total + magnitude
    return found


def _blocks(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return [N, C] as [blocks, N, 16], zeros at the end."""
    blocks = -(-rows.shape[1] // LANES)
    padded = np.zeros((len(rows), blocks * LANES), rows.dtype)
    padded[:, : rows.shape[1]] = rows
    return padded.reshape(len(rows), blocks, LANES).transpose(1, 0, 2)


def pack_taps(taps: NDArray[np.int8], stored_bits: int) -> NDArray[np.uint32]:
    """Return weights [taps, C] as words: of sixteen channels after sixteen, a vector of bytes for each tap or, of fewer
    bits, for as many taps as a byte holds, the first one highest.
    """
    per_byte = 8 // stored_bits
    blocks = _blocks(taps.astype(np.int64))
    missing = np.zeros((len(blocks), -blocks.shape[1] % per_byte, LANES), np.int64)
    blocks = np.concatenate([blocks, missing], axis=1)
    fields = (blocks & (2**stored_bits - 1)).reshape(len(blocks), -1, per_byte, LANES)
    shifts = stored_bits * np.arange(per_byte - 1, -1, -1, dtype=np.int64)
    packed: NDArray[np.uint32] = (fields << shifts[:, None]).sum(axis=2).astype(np.uint8).reshape(-1).view("<u4")
    return packed
