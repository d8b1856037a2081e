"""Fully connected layers for Armv6-M: some outputs at a time, inputs and weights as unsigned integers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.c.layer import Assembly, Layer
from kdpipe.targets.c.packing import STORED_BITS, ConstantArray, fold_zero_point, linear_rows
from kdpipe.targets.c.storage import flattened_shape
from kdpipe.targets.fixed_point import quantize_multipliers
from kdpipe.targets.graph import IntegerGraph, Linear, Node

_VALUE_OFFSET = 128
_GROUP = {8: 4, 4: 8, 2: 8}
"""By stored width, how many outputs are computed at a time."""
_STEP = {8: 8, 4: 16, 2: 32}
"""Likewise, what the number of inputs is padded to a multiple of: that of products that the kernel's sums can hold."""


def linear_blocks(graph: IntegerGraph, node: Node) -> Layer:
    """Return a linear layer; any is taken."""
    op = node.op
    assert isinstance(op, Linear)  # noqa: S101 - narrows the type
    source, output = graph.tensor(node.inputs[0]).quantization, node.output.quantization
    outputs, features = op.weight.values.shape
    stored = STORED_BITS[op.weight.bits]
    rows = linear_rows(op.weight.values, flattened_shape(graph, node.inputs[0]))
    weights = pack_blocks(rows, stored)
    group = _GROUP[stored]
    multipliers, shifts = quantize_multipliers(source.scale * op.weight.scales.astype(np.float64) / output.scale)
    files = ("linear_blocks.c", "linear_blocks.h", "linear_block.inc")
    length = -(-features // _STEP[stored]) * _STEP[stored]
    return Layer(
        node=node,
        kernel="linear_blocks",
        header="linear_blocks.h",
        files=(*(f"armv6m/{name}" for name in files), "fixed_point.h"),
        struct="kdp_linear_blocks",
        fields=[
            *(features, outputs, length, group, weights.size // -(-outputs // group), 2 ** (stored - 1)),
            *("@weights", "@starts"),
            ["@multipliers", "@shifts", output.zero_point, output.qmin, output.qmax],
            "@row",
        ],
        arrays={
            "weights": ConstantArray("uint32_t", weights),
            # The values' offset moves the zero point.
            "starts": ConstantArray("int32_t", fold_zero_point(op.bias, rows, source.zero_point + _VALUE_OFFSET)),
            "multipliers": ConstantArray("int32_t", multipliers.astype(np.int32)),
            "shifts": ConstantArray("int8_t", shifts.astype(np.int8)),
        },
        scratch=length,
        # All inputs are in the scratch before the first output is written.
        in_place=True,
        assembly=Assembly("armv6m/linear_block.inc", "linear_block", "kdp_linear_block", (("BITS", stored),)),
    )


def pack_blocks(rows: NDArray[np.int8], stored_bits: int) -> NDArray[np.uint32]:
    """Lay out weights [O, I] as unsigned integers, w + 2**(bits - 1), for four or eight outputs at a time.

    Outputs and inputs are padded by zeros to whole blocks: [blocks][inputs][4] bytes at 8 bits; [blocks][inputs] words
    of 8 nibbles at 4; [blocks][inputs / 2] words at 2, as linear_block.inc says.
    """
    group, step = _GROUP[stored_bits], _STEP[stored_bits]
    outputs, features = rows.shape
    codes = np.zeros((-(-outputs // group) * group, -(-features // step) * step), dtype=np.int64)
    codes[:outputs, :features] = rows.astype(np.int64) + 2 ** (stored_bits - 1)
    blocks = codes.reshape(len(codes) // group, group, -1).transpose(0, 2, 1)
    if stored_bits == 2:
        # By row, where its two bits lie in the upper or the lower half of a word.
        even = blocks[:, 0::2] << np.array([0, 2, 4, 6, 16, 18, 20, 22])
        odd = blocks[:, 1::2] << np.array([8, 10, 12, 14, 24, 26, 28, 30])
        words = (even + odd).sum(axis=2)
    else:
        words = (blocks << stored_bits * np.arange(group)).sum(axis=2)
    packed: NDArray[np.uint32] = words.astype(np.uint32).reshape(-1)
    return packed
