"""Fully connected layers on the DSP extension: which of them `linear_dsp` computes, and with which constants."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.c.layer import Assembly, Layer
from kdpipe.targets.c.packing import STORED_BITS, ConstantArray, linear_rows
from kdpipe.targets.c.packing_m4 import channel_pairs
from kdpipe.targets.c.requantization_m4 import LEFT_SHIFT, requantize_sums, rounding_term, shift_with_bias
from kdpipe.targets.c.storage import flattened_shape
from kdpipe.targets.graph import IntegerGraph, Linear, Node, Quantization

_GROUP = 8
_ALIGNMENT_SLACK = 3


def linear_dsp(graph: IntegerGraph, node: Node) -> Layer | None:
    """Plan a linear layer of a multiple of 8 outputs and of 4 inputs, or return None where it is not proved."""
    op = node.op
    assert isinstance(op, Linear)  # noqa: S101 - narrows the type
    source, output = graph.tensor(node.inputs[0]).quantization, node.output.quantization
    outputs, features = op.weight.values.shape
    stored = STORED_BITS[op.weight.bits]
    rows = linear_rows(op.weight.values, flattened_shape(graph, node.inputs[0]))
    if outputs % _GROUP or features % 4 or not sums_fit(rows, source, stored):
        return None
    requantization = requantize_sums(graph, node, LEFT_SHIFT)
    if requantization is None:
        return None
    folded = op.bias.astype(np.int64) - source.zero_point * rows.astype(np.int64).sum(axis=1)
    bias = shift_with_bias(requantization, folded)
    if bias is None:
        return None
    parameters = np.stack([bias, requantization.parameters[:, 0]], axis=1).reshape(-1)
    constants = {
        "WEIGHT_BITS": stored,
        "STEPS": 2 if features % 8 == 0 else 1,
        "REQUANT": requantization.form,
        "SHIFT": requantization.shift,
        "LEFT": requantization.left,
        "BITS": output.bits,
    }
    own = ("linear_dsp.c", "linear_dsp.h", "linear_dsp.inc", "scale.inc")
    files = (*own, "conv8_unpack_sums.S", "conv8_unpack.inc", "conv8.h", "dsp.h")
    return Layer(
        node=node,
        kernel="linear_dsp",
        header="linear_dsp.h",
        files=(*(f"cortex_m4/{name}" for name in files), "rows.h"),
        struct="kdp_linear_dsp",
        fields=[
            *(features, outputs // _GROUP, 2 ** (stored - 1), rounding_term(requantization, output)),
            *("@weights", "@parameters", "@row"),
        ],
        arrays={
            "weights": ConstantArray("uint32_t", pack_groups(rows, stored)),
            "parameters": ConstantArray("int32_t", (parameters & 0xFFFFFFFF).astype(np.uint32).view(np.int32)),
        },
        scratch=2 * features + _ALIGNMENT_SLACK,
        # All inputs are in the scratch before the first output is written.
        in_place=True,
        assembly=Assembly("cortex_m4/linear_dsp.inc", "linear_dsp_rows", "void", tuple(sorted(constants.items()))),
    )


def sums_fit(rows: NDArray[np.int8], source: Quantization, stored_bits: int) -> bool:
    """Return whether the sum of each row with inputs as stored fits the bits above its place in 32.

    Modulo 2**32, the difference of two accumulators, less the offsets', is a row's sum times the power of two of its
    place: exact where it fits a signed word.
    """
    wide = rows.astype(np.int64)
    smallest = np.minimum(wide * source.qmin, wide * source.qmax).sum(axis=1)
    largest = np.maximum(wide * source.qmin, wide * source.qmax).sum(axis=1)
    bound = np.maximum(-smallest, largest)
    places = stored_bits * (np.arange(len(rows)) % (16 // stored_bits))
    return bool((bound < 2 ** (31 - places)).all())


def pack_groups(rows: NDArray[np.int8], stored_bits: int) -> NDArray[np.uint32]:
    """Lay out weights [O, I] for eight outputs at a time: [O / 8][I / 2][stored_bits / 2] words.

    A word belongs to two inputs, (0, 2), (1, 3), (4, 6), ..., the first in its lower half; a half-word to
    16 / stored_bits outputs, the first lowest: all but the last with 2**(stored_bits - 1) added.
    """
    outputs, features = rows.shape
    together = 16 // stored_bits
    pairs = np.array(channel_pairs(features))
    codes = rows.astype(np.int64).reshape(outputs // together, together, features)
    codes[:, :-1] += 2 ** (stored_bits - 1)
    factors = 2 ** (stored_bits * np.arange(together, dtype=np.int64))
    halves = (codes * factors[:, None]).sum(axis=1) & 0xFFFF
    words = halves[:, pairs[:, 0]] | halves[:, pairs[:, 1]] << 16
    grouped = words.reshape(outputs // _GROUP, _GROUP // together, features // 2).transpose(0, 2, 1)
    return np.ascontiguousarray(grouped).astype(np.uint32).reshape(-1)
