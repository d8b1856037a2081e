"""Convolutions for Armv6-M, whose one multiplication leaves 32 bits: four output positions at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.c.layer import Layer
from kdpipe.targets.c.packing import STORED_BITS, ConstantArray, convolution_rows, fold_zero_point
from kdpipe.targets.c.packing_m4 import accumulator_ranges
from kdpipe.targets.c.requantization_m4 import SHARED_SHIFT, plan_requantization
from kdpipe.targets.fixed_point import quantize_multipliers
from kdpipe.targets.graph import Conv2d, IntegerGraph, Node

_BLOCK_TAPS = {8: 8, 4: 16, 2: 16}
WEIGHT_OFFSETS = {8: 128, 4: 8, 2: 2}
"""By stored width, what makes weights unsigned."""

_VALUE_OFFSET = 128
_MAX_SUM = 2**30


def conv_dot4(graph: IntegerGraph, node: Node) -> Layer | None:
    """Plan a convolution of one group, or return None."""
    op = node.op
    if not isinstance(op, Conv2d) or op.groups != 1:
        return None
    source, output = graph.tensor(node.inputs[0]), node.output.quantization
    channels, in_height, in_width = source.shape
    outputs, out_height, out_width = node.output.shape
    _, _, kernel_height, kernel_width = op.weight.values.shape
    stored = STORED_BITS[op.weight.bits]
    rows = convolution_rows(op.weight.values)
    blocks = -(-rows.shape[1] // _BLOCK_TAPS[stored])
    weights = pack_unsigned(rows, stored)
    # The values' offset moves the zero point.
    starts = fold_zero_point(op.bias, rows, source.quantization.zero_point + _VALUE_OFFSET)
    factors = source.quantization.scale * op.weight.scales.astype(np.float64) / output.scale
    multipliers, shifts = quantize_multipliers(factors)
    bound = int(max(abs(limits).max() for limits in accumulator_ranges(op, source.quantization)))
    shared = plan_requantization(
        *(multipliers.tolist(), shifts.tolist(), output, graph.rounding),
        factors=[1] * outputs,
        bound=bound,
        forms=(SHARED_SHIFT,),
    )
    # With a shift of 0 the form has no half to add.
    wide = shared is None or shared.shift == 0 or bound >= _MAX_SUM
    if shared is None or wide:
        parameters, start, shift = starts[:, None], 0, 0
    else:
        parameters, shift = np.concatenate([starts[:, None], shared.parameters], axis=1), shared.shift
        start = (output.zero_point << shift) + (1 << (shift - 1))
    arrays = {
        "weights": ConstantArray("uint32_t", weights),
        "channels": ConstantArray("int32_t", parameters.astype(np.int32).reshape(-1)),
    }
    if wide:
        arrays["multipliers"] = ConstantArray("int32_t", multipliers.astype(np.int32))
        arrays["shifts"] = ConstantArray("int8_t", shifts.astype(np.int8))
    return Layer(
        node=node,
        kernel=f"conv_dot4_w{stored}",
        header="dot4.h",
        files=(
            *(f"armv6m/conv_dot4_w{stored}.c", "armv6m/conv_dot4_body.h", "armv6m/dot4.h"),
            *(f"armv6m/dot4_w{stored}.S", "armv6m/dot4.inc", "rows.h", "fixed_point.h"),
        ),
        struct="kdp_dot4",
        fields=[
            *(in_height, in_width, channels, out_height, out_width, outputs, kernel_height, kernel_width),
            *(*op.stride, *op.padding[:2], *op.dilation, source.quantization.zero_point),
            *(blocks, 4 * weights.size // outputs, WEIGHT_OFFSETS[stored], "@weights", "@channels"),
            *(start, shift),
            [
                *(("@multipliers", "@shifts") if wide else (0, 0)),
                *(output.zero_point, output.qmin, output.qmax),
            ],
        ],
        arrays=arrays,
        scratch=2 * 4 * blocks * _BLOCK_TAPS[stored] + 3,
        rows=(out_height, in_height),
    )


def pack_unsigned(rows: NDArray[np.int8], stored: int) -> NDArray[np.uint32]:
    """Return rows of weights with their offset added, the first lowest in each word; each row padded by zeros.

    Args:
        rows: int8 [O, K].
        stored: bits of each.
    """
    taps = _BLOCK_TAPS[stored]
    outputs, count = rows.shape
    codes = np.zeros((outputs, -(-count // taps) * taps), dtype=np.int64)
    codes[:, :count] = rows.astype(np.int64) + WEIGHT_OFFSETS[stored]
    per_word = 32 // stored
    words = (codes.reshape(-1, per_word) << (np.arange(per_word, dtype=np.int64) * stored)).sum(axis=1)
    packed: NDArray[np.uint32] = words.astype(np.uint32)
    return packed
