"""Fully connected layers in MVE: which ones kernels/mve computes, and with which constants."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.c.convolution_mve import LANES, pack_parameters
from kdpipe.targets.c.layer import Layer
from kdpipe.targets.c.packing import STORED_BITS, ConstantArray, linear_rows
from kdpipe.targets.c.requantization_mve import exact_requantization
from kdpipe.targets.c.storage import flattened_shape
from kdpipe.targets.graph import IntegerGraph, Linear, Node

_GROUP = 4
_FACTOR_BITS = {8: (0, 0, 0, 0), 4: (4, 8, 4, 8), 2: (6, 8, 8, 8)}
"""By stored width, how far left the sums of the four outputs of a group arrive shifted."""


def linear_mve(graph: IntegerGraph, node: Node) -> Layer | None:
    """Plan a fully connected layer, or return None where its requantization isn't exact."""
    op, source, output = node.op, graph.tensor(node.inputs[0]).quantization, node.output.quantization
    assert isinstance(op, Linear)  # noqa: S101 - narrows the type
    outputs, features = op.weight.values.shape
    stored = STORED_BITS[op.weight.bits]
    rows = linear_rows(op.weight.values, flattened_shape(graph, node.inputs[0]))
    factor_bits = np.array(_FACTOR_BITS[stored], dtype=np.int64)
    exact = exact_requantization(op, rows, source, output, graph.rounding, factor_bits)
    if exact is None:
        return None
    parameters = np.zeros((3, -(-outputs // _GROUP) * _GROUP), np.int64)
    parameters[:, :outputs] = exact.parameters
    return Layer(
        node=node,
        kernel=f"linear_mve_w{stored}",
        header="linear_mve.h",
        files=(*(f"mve/{name}" for name in (f"linear_mve_w{stored}.c", "linear_mve_body.h", "linear_mve.h", "mve.h")),),
        struct="kdp_linear_mve",
        fields=[
            *(features, outputs, "@weights", "@parameters", exact.left),
            *(output.zero_point, output.qmin, output.qmax),
        ],
        arrays={
            "weights": ConstantArray("int8_t", pack_groups(rows, stored)),
            "parameters": ConstantArray("int32_t", pack_parameters(parameters, _GROUP)),
        },
    )


def pack_groups(rows: NDArray[np.int8], stored_bits: int) -> NDArray[np.int8]:
    """Return weights [O, I] as bytes in the order in which they are read: of four outputs, block by block of 16 inputs.

    Of 8 bits, a block is a vector for each output; of 4, the bytes 16 * w1 + w0 of two outputs each; of 2, the bytes
    64 * w3 + 16 * w2 + 4 * w1 + w0. A last block of fewer inputs is as many bytes; the vectors that are read there may
    reach beyond the last weight, where zeros follow.
    """
    outputs, features = rows.shape
    padded = np.zeros((-(-outputs // _GROUP) * _GROUP, features), np.int64)
    padded[:outputs] = rows
    per_byte = 8 // stored_bits
    shared = padded.reshape(-1, _GROUP // per_byte, per_byte, features)
    vectors = (shared << (stored_bits * np.arange(per_byte)[:, None])).sum(axis=2)
    parts = [vectors[:, :, start : start + LANES].reshape(len(vectors), -1) for start in range(0, features, LANES)]
    packed = np.concatenate([*np.concatenate(parts, axis=1), np.zeros(LANES, np.int64)])
    ordered: NDArray[np.int8] = (packed & 255).astype(np.uint8).view(np.int8)
    return ordered
