"""Depthwise 3x3 convolutions on the DSP extension: which layers `depthwise3` computes, and with which constants."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.c.layer import Assembly, Layer
from kdpipe.targets.c.packing import STORED_BITS, ConstantArray
from kdpipe.targets.c.packing_m4 import accumulator_ranges
from kdpipe.targets.c.requantization_m4 import plan_requantization, shift_with_bias
from kdpipe.targets.fixed_point import quantize_multipliers
from kdpipe.targets.graph import Conv2d, IntegerGraph, Node

_STRIP_BYTES = 2048
"""How much scratch a strip may take, where it has more than two rows."""

_UNROLLED_WIDTH = 8
_FILES = ("depthwise3.c", "depthwise3_unpack.S", "depthwise3.h", "dsp.h", "depthwise3.inc")
# What the instructions' immediate operands can hold.
_MAX_STEP, _MAX_OFFSET = 255, 4095


def depthwise3(graph: IntegerGraph, node: Node) -> Layer | None:
    """Plan a 3x3 depthwise convolution, or return None."""
    op, source = node.op, graph.tensor(node.inputs[0])
    assert isinstance(op, Conv2d)  # noqa: S101 - narrows the type
    channels, in_height, in_width = source.shape
    outputs, out_height, out_width = node.output.shape
    stride, output = op.stride[0], node.output.quantization
    columns = (out_width - 1) * stride + 3
    if (
        op.weight.values.shape[1:] != (1, 3, 3)
        or not op.groups == channels == outputs
        or op.stride not in ((1, 1), (2, 2))
        or op.dilation != (1, 1)
        or channels % 4
        or channels > _MAX_STEP
        or 2 * out_width * channels > _MAX_OFFSET
        or 4 * (2 * columns + 2) > _MAX_OFFSET
    ):
        return None
    multipliers, shifts = quantize_multipliers(
        source.quantization.scale * op.weight.scales.astype(np.float64) / output.scale
    )
    smallest, largest = accumulator_ranges(op, source.quantization)
    requantization = plan_requantization(
        multipliers.tolist(),
        shifts.tolist(),
        output,
        graph.rounding,
        [1] * channels,
        int(max(abs(smallest).max(), abs(largest).max())),
    )
    if requantization is None:
        return None
    weights = op.weight.values.astype(np.int64)[:, 0]
    sums = op.bias.astype(np.int64) - source.quantization.zero_point * weights.reshape(channels, -1).sum(axis=1)
    bias = shift_with_bias(requantization, sums)
    if bias is None:
        return None
    stored = STORED_BITS[op.weight.bits]
    packed = np.concatenate([_pack_taps(weights, stored), bias[:, None], requantization.parameters[:, :1]], axis=1)
    strip = _strip(out_height, stride, columns)
    pair_rows = (strip * stride + 3) // 2
    constants: dict[str, int | str] = {
        "STRIDE": stride,
        "PITCH": 4 * columns,
        "OW": out_width,
        "C": channels,
        "UNROLLED": int(out_width <= _UNROLLED_WIDTH),
        "REQUANT": requantization.form,
        "LEFT": requantization.left,
        "SHIFT": requantization.shift,
        "BITS": output.bits,
        "ZERO_POINT": f"({output.zero_point})",
        "WEIGHT_BITS": stored,
    }
    return Layer(
        node=node,
        kernel="depthwise3",
        header="depthwise3.h",
        files=(*(f"cortex_m4/{name}" for name in _FILES), "rows.h"),
        struct="kdp_depthwise3",
        fields=[
            *(in_height, in_width, out_height, out_width, channels, stride, *op.padding[:2]),
            source.quantization.zero_point,
            *(strip, pair_rows, columns, packed.shape[1]),
            "@weights",
            "@row",
        ],
        arrays={"weights": ConstantArray("uint32_t", (packed.reshape(-1) & 0xFFFFFFFF).astype(np.uint32))},
        scratch=16 * pair_rows * columns + 3,
        assembly=Assembly(
            "cortex_m4/depthwise3.inc", "depthwise3_row", "kdp_depthwise3_row", tuple(sorted(constants.items()))
        ),
        rows=(out_height, in_height),
        row_step=strip,
        # Each channel has been read before it is written, if all of its rows are.
        in_place=strip >= out_height and node.output.shape == source.shape,
    )


def _pack_taps(weights: NDArray[np.int64], stored_bits: int) -> NDArray[np.int64]:
    """Lay out int64 [C, 3, 3] for the row kernel: words [C, 3] at 8 bits, [C, 2] at 4 bits, [C, 1] at 2 bits."""
    columns = weights.transpose(0, 2, 1)
    if stored_bits == 8:
        return _fields(columns[:, :, [0, 1, 1, 2]], 8)
    columns = columns.reshape(len(weights), 9)
    if stored_bits == 4:
        return np.stack([_fields(columns[:, :6], 4), _fields(columns[:, 6:], 4)], axis=1)
    return _fields(columns, 2)[:, None]


def _fields(values: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Join signed values of the last axis in words, the first one lowest."""
    fields = (values & (2**bits - 1)) << (bits * np.arange(values.shape[-1]))
    words: NDArray[np.int64] = fields.sum(axis=-1)
    return words


def _strip(out_height: int, stride: int, columns: int) -> int:
    """Return how many output rows are computed at a time: an even number, all of them if their planes are small."""
    strip = out_height + out_height % 2
    while strip > 2 and 16 * ((strip * stride + 3) // 2) * columns > _STRIP_BYTES:
        strip -= 2
    return strip
