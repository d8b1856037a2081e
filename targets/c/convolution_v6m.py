"""Convolutions for Armv6-M, whose one multiplication leaves 32 bits: some output positions at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.c.layer import Assembly, Layer
from kdpipe.targets.c.packing import STORED_BITS, ConstantArray, convolution_rows, fold_zero_point, pack_rows
from kdpipe.targets.c.packing_m4 import accumulator_ranges
from kdpipe.targets.c.requantization_v6m import SUMS, SumRequantization, plan_sums
from kdpipe.targets.fixed_point import quantize_multipliers
from kdpipe.targets.graph import Conv2d, IntegerGraph, Node, Quantization

_POSITIONS = {8: 4, 4: 8, 2: 8}
"""By stored width, how many output positions are computed at a time."""
_STEPS = {8: 8, 4: 8, 2: 16}
"""Likewise, of how many taps rows are a multiple: of the kernels' loops, and of words of weights."""
_TABLE_POSITIONS = 4
_LOOK_UPS = 4
"""Groups of three taps of a step of `conv_table`."""
_CHUNK_GROUPS = 12
"""For so many it has tables at a time: 2.6 KB, and the sums of 36 taps fit half-words."""
_ENTRY_BYTES, _TABLE_BYTES = 8, 216
_MIN_OUTPUTS = 12
_VALUE_OFFSET = 128
_WEIGHT_OFFSET = 128
_MAX_HALF_WORD = 2**15 - 1


@dataclass(frozen=True, eq=False)
class _Rows:
    """Weights as a kernel reads them.

    Args:
        weights: of all output channels.
        length: taps of a row, with its padding.
        block_bytes: of the weights whose sums the kernel takes out of half-words at once; in `conv_table` its groups.
        row_bytes: of a row.
    """

    weights: ConstantArray
    length: int
    block_bytes: int
    row_bytes: int


def conv_dot(graph: IntegerGraph, node: Node) -> Layer | None:
    """Plan a convolution of one group, or return None."""
    op = node.op
    if not isinstance(op, Conv2d) or op.groups != 1:
        return None
    plan = _requantization(graph, node, op)
    stored = STORED_BITS[op.weight.bits]
    packed = _packed_rows(convolution_rows(op.weight.values), stored, graph.tensor(node.inputs[0]).quantization)
    form = SUMS if plan is None else plan.form
    layer = _layer(graph, node, op, packed, plan, _POSITIONS[stored])
    return replace(
        layer,
        kernel=f"conv_dot_w{stored}",
        files=(
            *(f"armv6m/conv_dot_w{stored}.c", "armv6m/dot_block.inc"),
            *(f"armv6m/patch_values{_POSITIONS[stored]}.S", *layer.files),
        ),
        assembly=Assembly("armv6m/dot_block.inc", "dot_block", "kdp_dot_block", (("BITS", stored), ("FORM", form))),
    )


def conv_table(graph: IntegerGraph, node: Node) -> Layer | None:
    """Plan a convolution of one group with ternary weights and enough output channels, or return None.

    A table costs some 100 instructions for twelve products of every channel, which then take 6; `conv_dot` takes 17.
    """
    op = node.op
    if not isinstance(op, Conv2d) or op.groups != 1 or op.weight.bits != 2 or len(op.weight.values) < _MIN_OUTPUTS:
        return None
    plan = _requantization(graph, node, op)
    if plan is None:
        return None
    rows = convolution_rows(op.weight.values)
    groups = -(-rows.shape[1] // (3 * _LOOK_UPS)) * _LOOK_UPS
    packed = _Rows(ConstantArray("uint8_t", table_offsets(rows, groups)), 3 * groups, _CHUNK_GROUPS, groups)
    layer = _layer(graph, node, op, packed, plan, _TABLE_POSITIONS)
    return replace(
        layer,
        kernel="conv_table",
        files=(
            *("armv6m/conv_table.c", "armv6m/table_block.inc"),
            *(f"armv6m/patch_values{_TABLE_POSITIONS}.S", *layer.files),
        ),
        assembly=Assembly("armv6m/table_block.inc", "table_block", "kdp_dot_block", (("FORM", plan.form),)),
        scratch=layer.scratch + 4 * _TABLE_POSITIONS * len(rows) + _TABLE_BYTES * min(groups, _CHUNK_GROUPS),
    )


def _requantization(graph: IntegerGraph, node: Node, op: Conv2d) -> SumRequantization | None:
    source = graph.tensor(node.inputs[0]).quantization
    multipliers, shifts = _factors(op, source, node.output.quantization)
    smallest, largest = accumulator_ranges(op, source)
    return plan_sums(multipliers.tolist(), shifts.tolist(), node.output.quantization, graph.rounding, smallest, largest)


def _factors(op: Conv2d, source: Quantization, output: Quantization) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return quantize_multipliers(source.scale * op.weight.scales.astype(np.float64) / output.scale)


def _packed_rows(rows: NDArray[np.int8], stored: int, source: Quantization) -> _Rows:
    step = _STEPS[stored]
    taps = step if stored == 8 else block_taps(rows, source.qmax + _VALUE_OFFSET, step)
    length = -(-rows.shape[1] // taps) * taps
    if stored == 8:
        weights = ConstantArray("uint32_t", unsigned_bytes(rows, length))
    else:
        weights = pack_rows(np.pad(rows, ((0, 0), (0, length - rows.shape[1]))), stored)
    return _Rows(weights, length, taps * stored // 8, length * stored // 8)


def _layer(
    graph: IntegerGraph, node: Node, op: Conv2d, packed: _Rows, plan: SumRequantization | None, positions: int
) -> Layer:
    """Return what the kernels have in common, without their names and files."""
    source, output = graph.tensor(node.inputs[0]), node.output.quantization
    channels, in_height, in_width = source.shape
    outputs, out_height, out_width = node.output.shape
    _, _, kernel_height, kernel_width = op.weight.values.shape
    # The values' offset moves the zero point.
    offset = source.quantization.zero_point + _VALUE_OFFSET
    starts = fold_zero_point(op.bias, convolution_rows(op.weight.values), offset)
    parameters = starts[:, None] if plan is None else np.stack([starts, plan.multipliers], axis=1)
    arrays = {
        "weights": packed.weights,
        "channels": ConstantArray("int32_t", parameters.astype(np.int32).reshape(-1)),
    }
    if plan is None:
        multipliers, shifts = _factors(op, source.quantization, output)
        arrays["multipliers"] = ConstantArray("int32_t", multipliers.astype(np.int32))
        arrays["shifts"] = ConstantArray("int8_t", shifts.astype(np.int8))
    is_pointwise = (kernel_height, kernel_width) == op.stride == (1, 1) and op.padding == (0, 0, 0, 0)
    patch_bytes = 2 * positions * packed.length
    return Layer(
        node=node,
        kernel="",
        header="dot.h",
        files=(
            *("armv6m/conv_dot_body.h", "armv6m/dot.h", "armv6m/patch_values.inc", "armv6m/requantize.inc"),
            *("rows.h", "fixed_point.h"),
        ),
        struct="kdp_dot",
        fields=[
            *(in_height, in_width, channels, out_height, out_width, outputs, kernel_height, kernel_width),
            *(*op.stride, *op.padding[:2], *op.dilation, source.quantization.zero_point),
            *(packed.block_bytes, packed.row_bytes, patch_bytes, "@weights", "@channels"),
            *((0, 0, 0) if plan is None else (plan.start, plan.shift, plan.low_bits)),
            [
                *(("@multipliers", "@shifts") if plan is None else (0, 0)),
                *(output.zero_point, output.qmin, output.qmax),
            ],
            "@row",
        ],
        arrays=arrays,
        scratch=patch_bytes + 3,
        # Positions have been gathered before they are written.
        in_place=is_pointwise and outputs <= channels,
        rows=(out_height, in_height),
    )


def table_offsets(rows: NDArray[np.int8], groups: int) -> NDArray[np.uint8]:
    """Return ternary weights as offsets of table entries, [chunks][O][groups of a chunk], flat.

    Args:
        rows: int8 [O, K], of -1, 0 and 1.
        groups: of three taps, at least K / 3; what is missing is 0.
    """
    digits = np.pad(rows, ((0, 0), (0, 3 * groups - rows.shape[1]))).astype(np.int64) + 1
    offsets = digits.reshape(len(rows), groups, 3) @ (_ENTRY_BYTES * np.array([9, 3, 1]))
    chunks = [offsets[:, first : first + _CHUNK_GROUPS].reshape(-1) for first in range(0, groups, _CHUNK_GROUPS)]
    return np.concatenate(chunks).astype(np.uint8)


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
