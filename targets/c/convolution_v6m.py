"""Convolutions for Armv6-M, whose one multiplication leaves 32 bits: some output positions at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.c.layer import Assembly, Layer
from kdpipe.targets.c.packing import STORED_BITS, ConstantArray, convolution_rows, fold_zero_point, pack_rows
from kdpipe.targets.c.packing_m4 import accumulator_ranges
from kdpipe.targets.c.requantization_v6m import SUMS, plan_sums
from kdpipe.targets.fixed_point import quantize_multipliers
from kdpipe.targets.graph import Conv2d, IntegerGraph, Node

_POSITIONS = {8: 4, 4: 8, 2: 8}
"""By stored width, how many output positions are computed at a time."""
_STEPS = {8: 8, 4: 8, 2: 16}
"""Likewise, of how many taps rows are a multiple: of the kernels' loops, and of words of weights."""
_VALUE_OFFSET = 128
_WEIGHT_OFFSET = 128
_MAX_HALF_WORD = 2**15 - 1


def conv_dot(graph: IntegerGraph, node: Node) -> Layer | None:
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
    step = _STEPS[stored]
    taps = step if stored == 8 else block_taps(rows, source.quantization.qmax + _VALUE_OFFSET, step)
    length = -(-rows.shape[1] // taps) * taps
    if stored == 8:
        weights = ConstantArray("uint32_t", unsigned_bytes(rows, length))
    else:
        weights = pack_rows(np.pad(rows, ((0, 0), (0, length - rows.shape[1]))), stored)
    # The values' offset moves the zero point.
    starts = fold_zero_point(op.bias, rows, source.quantization.zero_point + _VALUE_OFFSET)
    factors = source.quantization.scale * op.weight.scales.astype(np.float64) / output.scale
    multipliers, shifts = quantize_multipliers(factors)
    smallest, largest = accumulator_ranges(op, source.quantization)
    plan = plan_sums(multipliers.tolist(), shifts.tolist(), output, graph.rounding, smallest, largest)
    parameters = starts[:, None] if plan is None else np.stack([starts, plan.multipliers], axis=1)
    arrays = {
        "weights": weights,
        "channels": ConstantArray("int32_t", parameters.astype(np.int32).reshape(-1)),
    }
    if plan is None:
        arrays["multipliers"] = ConstantArray("int32_t", multipliers.astype(np.int32))
        arrays["shifts"] = ConstantArray("int8_t", shifts.astype(np.int8))
    form = SUMS if plan is None else plan.form
    return Layer(
        node=node,
        kernel=f"conv_dot_w{stored}",
        header="dot.h",
        files=(
            *(f"armv6m/conv_dot_w{stored}.c", "armv6m/conv_dot_body.h", "armv6m/dot.h", "armv6m/dot_block.inc"),
            *(f"armv6m/patch_values{_POSITIONS[stored]}.S", "armv6m/patch_values.inc"),
            *("armv6m/requantize.inc", "rows.h", "fixed_point.h"),
        ),
        struct="kdp_dot",
        fields=[
            *(in_height, in_width, channels, out_height, out_width, outputs, kernel_height, kernel_width),
            *(*op.stride, *op.padding[:2], *op.dilation, source.quantization.zero_point),
            *(taps * stored // 8, length * stored // 8, "@weights", "@channels"),
            *((0, 0, 0) if plan is None else (plan.start, plan.shift, plan.low_bits)),
            [
                *(("@multipliers", "@shifts") if plan is None else (0, 0)),
                *(output.zero_point, output.qmin, output.qmax),
            ],
            "@row",
        ],
        arrays=arrays,
        scratch=2 * _POSITIONS[stored] * length + 3,
        assembly=Assembly("armv6m/dot_block.inc", "dot_block", "kdp_dot_block", (("BITS", stored), ("FORM", form))),
        # Positions have been gathered before they are written.
        in_place=op.weight.values.shape[2:] == (1, 1) == op.stride
        and op.padding == (0, 0, 0, 0)
        and outputs <= channels,
        rows=(out_height, in_height),
    )


def block_taps(rows: NDArray[np.int8], largest: int, step: int) -> int:
    """Return how many taps' sums of products fit signed half-words, a multiple of `step`.

    Args:
        rows: int8 [O, K], weights of at most 4 bits, so that 16 always fit.
        largest: of the values that they are multiplied by, the smallest being 0 or more; at most 255.
        step: 8 or 16.

    Returns:
        The largest number that cuts rows, after padding, into blocks of equal size with no more padding than that of
        one step a block.
    """
    count: int = rows.shape[1]
    positive, negative = np.maximum(rows, 0).astype(np.int64), np.maximum(-rows.astype(np.int64), 0)
    for blocks in range(1, count + 1):
        taps = -(-count // (blocks * step)) * step
        starts = np.arange(0, count, taps)
        sums = [int(np.add.reduceat(side, starts, axis=1).max()) for side in (positive, negative)]
        if max(sums) * largest <= _MAX_HALF_WORD:
            return taps
    return step


def unsigned_bytes(rows: NDArray[np.int8], length: int) -> NDArray[np.uint32]:
    """Return rows of 8-bit weights with 128 added, the first lowest in each word; each row padded by zeros.

    Args:
        rows: int8 [O, K].
        length: bytes of a padded row, a multiple of 4.
    """
    codes = np.zeros((len(rows), length), dtype=np.uint8)
    codes[:, : rows.shape[1]] = (rows.astype(np.int16) + _WEIGHT_OFFSET).astype(np.uint8)
    words: NDArray[np.uint32] = codes.reshape(-1).view("<u4").astype(np.uint32)
    return words
