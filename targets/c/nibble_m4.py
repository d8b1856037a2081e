"""Convolutions of 4-bit weights by long multiplications: which layers `nibble_taps` computes, and with which constants.

One SMLAL is a product of two polynomials in 2**20 whose coefficients are inputs and weights; two of them do six
multiplications of a row of three taps (kernels/cortex_m4/nibble_taps.inc has how). A 64-bit accumulator has three
fields, of 20, 20 and 24 bits: the middle one is a whole sum, the others are parts of two.

Sums and products modulo 2**64 are exact, so neither what the fields hold on the way nor the offset of the weights'
codes matters, only whether the final fields fit. Inputs count less their zero point, so every product can be 0, and
what a part of a sum can reach, the whole sum can reach too. So two bounds prove a layer: with the smallest and the
largest sum of any channel over all inputs (without bias), start + smallest >= 0 and start + largest < 2**20. Weights
of 4 bits are at most 7 in magnitude, so 293 of them always fit, and twice as many where channels have both signs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.c.convolution_m4 import stays_behind
from kdpipe.targets.c.layer import Assembly, Layer
from kdpipe.targets.c.packing import STORED_BITS, ConstantArray
from kdpipe.targets.c.packing_m4 import accumulator_ranges
from kdpipe.targets.c.requantization_m4 import LEFT_SHIFT, requantize_sums, rounding_term, shift_with_bias
from kdpipe.targets.graph import Conv2d, IntegerGraph, Node, Quantization

FIELD_BITS = 20
_OFFSET = 8
_TILE, _TILE_WORDS = 8, 5
_MAX_KERNEL_HEIGHT = 16
_ALIGNMENT_SLACK = 3
# Instructions for eight inputs and one channel: of a tile, what the first one takes beyond, and conv8 for two pixels.
_TILE_COST, _FIRST_COST, _PAIR_COST = 118, 10, 39


def nibble_taps(graph: IntegerGraph, node: Node) -> Layer | None:
    """Plan a convolution of 4-bit weights three taps wide that moves by one column, or return None."""
    op = node.op
    assert isinstance(op, Conv2d)  # noqa: S101 - narrows the type
    source, output = graph.tensor(node.inputs[0]), node.output.quantization
    channels, in_height, in_width = source.shape
    outputs, out_height, out_width = node.output.shape
    _, _, kernel_height, kernel_width = op.weight.values.shape
    tiles = -(-out_width // _TILE)
    if (
        STORED_BITS[op.weight.bits] != 4
        or op.groups != 1
        or channels % 8
        or kernel_width != 3
        or kernel_height > _MAX_KERNEL_HEIGHT
        or (op.stride[1], op.padding[1], op.dilation) != (1, 1, (1, 1))
        or _TILE_COST * tiles + _FIRST_COST >= _PAIR_COST * -(-out_width // 2)
    ):
        return None
    start = field_start(op, source.quantization)
    requantization = requantize_sums(graph, node, LEFT_SHIFT)
    if start is None or requantization is None:
        return None
    bias = shift_with_bias(requantization, op.bias.astype(np.int64) - start)
    if bias is None:
        return None
    unit = 2 if channels % 16 == 0 else 1
    ring = kernel_height * tiles * _TILE_WORDS * (channels + 2)
    tail = _TILE * outputs if out_width % _TILE else 0
    parameters = np.stack([bias, requantization.parameters[:, 0]], axis=1).reshape(-1)
    constants = {
        "UNIT": unit,
        "REQUANT": requantization.form,
        "SHIFT": requantization.shift,
        "LEFT": requantization.left,
        "BITS": output.bits,
    }
    files = ("nibble_taps.c", "nibble_taps.h", "nibble_taps.inc", "nibble_unpack.S", "scale.inc", "dsp.h")
    return Layer(
        node=node,
        kernel="nibble_taps",
        header="nibble_taps.h",
        files=(*(f"cortex_m4/{name}" for name in files), "rows.h"),
        struct="kdp_nibble_taps",
        fields=[
            *(in_height, in_width, channels, out_width, outputs),
            *(kernel_height, op.stride[0], op.padding[0]),
            *(source.quantization.zero_point, tiles, channels // (8 * unit)),
            *(start, rounding_term(requantization, output)),
            *("@weights", "@parameters", "@row"),
        ],
        arrays={
            "weights": ConstantArray("uint32_t", pack_nibbles(op.weight.values)),
            "parameters": ConstantArray("int32_t", (parameters & 0xFFFFFFFF).astype(np.uint32).view(np.int32)),
        },
        scratch=4 * (ring + _TILE * tiles) + channels + tail + _ALIGNMENT_SLACK,
        in_place=stays_behind(graph, node),
        rows=(out_height, in_height),
        keeps_rows=True,
        assembly=Assembly("cortex_m4/nibble_taps.inc", "nibble_taps_row", "void", tuple(sorted(constants.items()))),
    )


def field_start(op: Conv2d, source: Quantization) -> int | None:
    """Return what both lower fields start from so that none of them ends below 0, or None where some would overflow."""
    smallest, largest = (sums - op.bias for sums in accumulator_ranges(op, source))
    start = -int(smallest.min())
    return start if start + int(largest.max()) < 2**FIELD_BITS else None


def pack_nibbles(values: NDArray[np.int8]) -> NDArray[np.uint32]:
    """Lay out weights [O, I, KH, 3], I a multiple of 8, in three words for eight inputs: [O][KH][I / 8][3].

    A weight is the nibble w + 8; where each lies, nibble 0 lowest, is in nibble_taps.inc.
    """
    outputs, inputs, height, _ = values.shape
    codes = values.astype(np.int64).transpose(0, 2, 1, 3).reshape(outputs, height, inputs // 8, 8, 3) + _OFFSET
    first, middle, last = codes[..., 0], codes[..., 1], codes[..., 2]
    words = np.zeros((outputs, height, inputs // 8, 3), dtype=np.int64)
    for word in range(3):
        for n in range(2):
            of = 2 * word + n
            words[..., word] |= last[..., of] << 4 * n | first[..., of] << 4 * n + 8 | middle[..., of] << 4 * n + 20
    for of, word, at in ((6, 0, 16), (7, 2, 28)):
        words[..., word] |= last[..., of] << 28 | middle[..., of] << 16
        words[..., 1] |= first[..., of] << at
    return words.astype(np.uint32).reshape(-1)
