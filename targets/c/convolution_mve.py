"""Convolutions in MVE: which way a layer is computed, and with which constants. Its code is in kernels/mve.

A row in assembly computes two output channels by four pixels at a time. What it reads are blocks of 16 inputs, which
lie in scratch in one of three ways:

- columns: a ring of padded rows, 16 channels after 16 channels. Neighbouring pixels share the columns they read.
- pointwise: four pixels at a time.
- gather: four windows at a time, collected by gathering loads from padded rows. Any kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.c.convolution_m4 import stays_behind
from kdpipe.targets.c.layer import Assembly, Field, Layer
from kdpipe.targets.c.packing import STORED_BITS, ConstantArray, convolution_rows
from kdpipe.targets.c.requantization_mve import exact_requantization
from kdpipe.targets.graph import Conv2d, IntegerGraph, Node, TensorType

LANES = 16
FACTOR_BITS = {8: (0, 0), 4: (4, 8), 2: (6, 8)}
"""By stored width, how far left the sums of the first and of the second channel of a pair arrive shifted."""

_TILE = 4
_MAX_TAPS, _MAX_HEIGHT = 3, 7
ALIGNMENT_SLACK = 3
# What the instructions' immediate operands can hold.
_MAX_OFFSET, _MAX_STEP = 508, 4095
_MAX_GATHERED = 2**16
"""Bytes that a gathering load can reach."""


@dataclass(frozen=True, eq=False)
class _Way:
    """Where a layer's inputs lie for the rows in assembly.

    Args:
        name: "columns", "pointwise" or "gather".
        steps: its weights, int8 [O, rows, blocks, taps, 16].
        stride: columns from one pixel to the next.
        column_bytes: from one column to the next.
        block_bytes: from one block to the next.
        scratch: bytes.
        in_place: whether the output may begin where the input begins.
        arrays: constants of its own.
    """

    name: str
    steps: NDArray[np.int8]
    stride: int
    column_bytes: int
    block_bytes: int
    scratch: int
    in_place: bool
    arrays: Mapping[str, ConstantArray] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """Files of kernels/mve."""
        tile = () if self.name == "columns" else ("conv_mve_tile.h",)
        return (f"conv_mve_{self.name}.c", *tile, "conv_mve.h", "mve.h", "conv_mve.inc")


def conv_mve(graph: IntegerGraph, node: Node) -> Layer | None:
    """Plan a convolution of one group and an even number of output channels, or return None."""
    op = node.op
    if not isinstance(op, Conv2d) or op.groups != 1 or len(op.weight.values) % 2:
        return None
    source, output, stored = graph.tensor(node.inputs[0]), node.output.quantization, STORED_BITS[op.weight.bits]
    factor_bits = np.array(FACTOR_BITS[stored], dtype=np.int64)
    rows = convolution_rows(op.weight.values)
    exact = exact_requantization(op, rows, source.quantization, output, graph.rounding, factor_bits)
    ways = (plan(graph, node, op) for plan in (_pointwise, _columns, _gather))
    way = next((way for way in ways if way is not None), None)
    if exact is None or way is None:
        return None
    outputs, height, blocks, taps, _ = way.steps.shape
    constants: dict[str, int | str] = {
        "WEIGHT_BITS": stored,
        "ROWS": height,
        "BLOCKS": blocks,
        "TAPS": taps,
        "STRIDE": way.stride,
        "COLUMN_BYTES": way.column_bytes,
        "BLOCK_BYTES": way.block_bytes,
        "COUT": outputs,
        "LEFT": exact.left,
        "TFLITE": int(graph.rounding == "tflite"),
        "LOW": f"({output.qmin})",
        "HIGH": f"({output.qmax})",
        "ZERO_POINT": f"({output.zero_point})",
    }
    return Layer(
        node=node,
        kernel=f"conv_mve_{way.name}",
        header="conv_mve.h",
        files=(*(f"mve/{name}" for name in way.files), "rows.h"),
        struct="kdp_mve_conv",
        fields=[*geometry(source, node, op, blocks), "@offsets" if "offsets" in way.arrays else 0, "@row"],
        arrays={
            "weights": ConstantArray("int8_t", pack_pairs(way.steps, stored)),
            "parameters": ConstantArray("int32_t", pack_parameters(exact.parameters, 2)),
            **way.arrays,
        },
        scratch=way.scratch,
        in_place=way.in_place,
        rows=(node.output.shape[1], source.shape[1]),
        keeps_rows=way.name != "pointwise",
        assembly=Assembly("mve/conv_mve.inc", "conv_mve_row", "kdp_mve_row", tuple(sorted(constants.items()))),
    )


def geometry(source: TensorType, node: Node, op: Conv2d, blocks: int) -> list[Field]:
    """Return the members of kdp_mve_conv up to its constant arrays."""
    channels, in_height, in_width = source.shape
    outputs, out_height, out_width = node.output.shape
    return [
        *(in_height, in_width, channels, out_height, out_width, outputs, *op.weight.values.shape[2:]),
        *(*op.stride, *op.padding[:2], *op.dilation, source.quantization.zero_point),
        *(blocks, padded_columns(node, op), "@weights", "@parameters"),
    ]


def padded_columns(node: Node, op: Conv2d) -> int:
    """Return how many columns of the padded input a row of windows takes."""
    return (node.output.shape[2] - 1) * op.stride[1] + (int(op.weight.values.shape[3]) - 1) * op.dilation[1] + 1


def held_rows(op: Conv2d) -> int:
    """Return how many rows of the padded input a window reaches over."""
    return (int(op.weight.values.shape[2]) - 1) * op.dilation[0] + 1


def _pointwise(graph: IntegerGraph, node: Node, op: Conv2d) -> _Way | None:
    outputs, channels, *kernel = op.weight.values.shape
    if kernel != [1, 1] or op.padding != (0, 0, 0, 0):
        return None
    in_place = op.stride == (1, 1) and outputs <= channels
    steps = _padded(op.weight.values.reshape(outputs, -1))
    return _Way("pointwise", steps, 1, LANES, _TILE * LANES, _tile_bytes(steps), in_place)


def _columns(graph: IntegerGraph, node: Node, op: Conv2d) -> _Way | None:
    outputs, channels, height, width = op.weight.values.shape
    stride, columns = op.stride[1], padded_columns(node, op)
    if (
        channels % LANES != 0
        or node.output.shape[2] < _TILE
        or height > _MAX_HEIGHT
        or width > _MAX_TAPS
        or op.dilation[1] != 1
        or stride > width > 1
        or LANES * (3 * stride + width - 1) > _MAX_OFFSET
        or LANES * columns > _MAX_STEP
    ):
        return None
    steps = op.weight.values.transpose(0, 2, 3, 1).reshape(outputs, height, width, -1, LANES).transpose(0, 1, 3, 2, 4)
    # With one tap, the pixels' own columns are all there are.
    step = stride if width == 1 else 1
    scratch = held_rows(op) * channels * columns + ALIGNMENT_SLACK
    in_place = stays_behind(graph, node)
    return _Way("columns", steps, stride // step, step * LANES, columns * LANES, scratch, in_place)


def _gather(graph: IntegerGraph, node: Node, op: Conv2d) -> _Way | None:
    outputs, channels, height, width = op.weight.values.shape
    columns = padded_columns(node, op)
    scratch = held_rows(op) * channels * columns
    if scratch > _MAX_GATHERED:
        return None
    steps = _padded(op.weight.values.transpose(0, 2, 3, 1).reshape(outputs, -1))
    rows, taps = np.arange(height) * op.dilation[0] * columns, np.arange(width) * op.dilation[1]
    offsets = ((rows[:, None, None] + taps[:, None]) * channels + np.arange(channels)).reshape(-1)
    offsets = np.concatenate([offsets, np.zeros(-len(offsets) % LANES, np.int64)]).astype(np.uint16)
    return _Way(
        "gather",
        steps,
        1,
        LANES,
        _TILE * LANES,
        scratch + _tile_bytes(steps),
        stays_behind(graph, node),
        {"offsets": ConstantArray("uint16_t", offsets)},
    )


def _tile_bytes(steps: NDArray[np.int8]) -> int:
    """Return what four windows and their outputs take."""
    return _TILE * (int(steps.shape[2]) * LANES + len(steps))


def _padded(windows: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return windows, int8 [O, count], as [O, 1, blocks, 1, 16], zeros at the end."""
    outputs, count = windows.shape
    padded = np.zeros((outputs, -(-count // LANES) * LANES), np.int8)
    padded[:, :count] = windows
    return padded.reshape(outputs, 1, -1, 1, LANES)


def pack_pairs(steps: NDArray[np.int8], stored_bits: int) -> NDArray[np.int8]:
    """Lay out weights in the order in which they are read, for two output channels at a time.

    Args:
        steps: int8 [O, rows, blocks, taps, 16], O even.
        stored_bits: 8: a vector for each channel; 4: a byte is 16 * w[1] + w[0]; 2: a byte has 4 * w[1] + w[0] of one
            tap in its high half and of the next one in its low half, where a row's last tap may have none.

    Returns:
        The bytes, int8, one dimension.
    """
    outputs, rows = steps.shape[:2]
    pairs = steps.reshape(outputs // 2, 2, rows, -1, LANES).astype(np.int64)
    if stored_bits == 8:
        packed = pairs.transpose(0, 2, 3, 1, 4)
    elif stored_bits == 4:
        packed = 16 * pairs[:, 1] + pairs[:, 0]
    else:
        halves = 4 * pairs[:, 1] + pairs[:, 0]
        taps = halves.shape[2]
        halves = np.concatenate([halves, np.zeros_like(halves[:, :, : taps % 2])], axis=2)
        packed = 16 * halves[:, :, 0::2] + (halves[:, :, 1::2] & 15)
    ordered: NDArray[np.int8] = np.ascontiguousarray(packed & 255).astype(np.uint8).view(np.int8).reshape(-1)
    return ordered


def pack_parameters(parameters: NDArray[np.int64], group: int) -> NDArray[np.int32]:
    """Return [3, O] as the three of each group of channels: int32 [O / group * 3 * group]."""
    ordered: NDArray[np.int32] = parameters.reshape(3, -1, group).transpose(1, 0, 2).reshape(-1).astype(np.int32)
    return ordered
