"""Convolutions on the DSP extension: which layers `conv8` computes, and with which constants.

Its code is in kernels/cortex_m4. A layer is taken only where its sums are proved to keep to their places
(packing_m4.py), its requantization is proved equal to the graph's (requantization_m4.py) and its offsets fit the
instructions; others are left to the kernels for any core.
"""

from __future__ import annotations

from typing import TypeGuard

import numpy as np

from kdpipe.targets.c.layer import Assembly, Layer
from kdpipe.targets.c.packing import STORED_BITS, ConstantArray, convolution_rows
from kdpipe.targets.c.packing_m4 import (
    CHANNEL_FACTORS,
    REQUANTIZED_ORDER,
    accumulator_ranges,
    channel_pairs,
    neighbour_pairs,
    pack_quads,
    quad_starts,
    quads_fit,
)
from kdpipe.targets.c.requantization_m4 import Requantization, plan_requantization
from kdpipe.targets.fixed_point import quantize_multipliers
from kdpipe.targets.graph import Conv2d, IntegerGraph, Node, Operator

_MAX_KERNEL_HEIGHT = 16
_MAX_FLAT_CHANNELS = 3
_MAX_FLAT_WORDS = 64
_LINE_WIDTH = 16
# What the instructions' immediate operands can hold.
_MAX_LDRD_OFFSET, _MAX_LDR_OFFSET, _MAX_STREAM = 1020, 4095, 0xFFFF
_ALIGNMENT_SLACK = 3
_UNPACK_FILES = {
    8: ("conv8_unpack.S", "conv8_unpack.inc"),
    4: ("conv8_unpack_sums.S", "conv8_unpack.inc"),
}


def conv8(graph: IntegerGraph, node: Node) -> Layer | None:
    """Plan a convolution of 8-bit or 4-bit weights over a ring of rows in channel pairs, or return None."""
    op = node.op
    if not _is_ordinary(op) or STORED_BITS[op.weight.bits] not in (8, 4):
        return None
    source = graph.tensor(node.inputs[0])
    channels, in_height, in_width = source.shape
    outputs, out_height, out_width = node.output.shape
    _, _, kernel_height, kernel_width = op.weight.values.shape
    in_positions, out_positions = in_height * in_width, out_height * out_width
    is_line = (kernel_height, kernel_width) == op.stride == (1, 1) and op.padding == (0, 0, 0, 0)
    if is_line:
        # Positions are one line, which may be cut into rows of any length.
        in_width = out_width = min(_LINE_WIDTH, out_positions)
        in_height = -(-out_positions // out_width)
    stored, stride, dilation = STORED_BITS[op.weight.bits], op.stride[1], op.dilation[1]
    # Of a kernel one tap wide, only the columns that are read lie in the ring.
    column_step = stride if kernel_width == 1 else 1
    phases = stride // column_step
    pixel_pairs = -(-out_width // 2)
    columns = (2 * pixel_pairs - 1) * phases + (kernel_width - 1) * dilation + 1
    phase_words = -(-columns // phases)
    pair_words = phases * phase_words
    pairs = channel_pairs(channels)
    taps = [4 * (u * dilation % phases * phase_words + u * dilation // phases) for u in range(kernel_width)]
    is_point = kernel_height * kernel_width == 1
    unroll = _unrolled_pairs(len(pairs), 4 * pair_words, max(taps), 16 if is_point else 4)
    packed = pack_quads(op.weight.values, pairs, stored)
    stream = 4 * packed.size // (outputs // 4)
    if unroll is None or 4 * pair_words * len(pairs) > _MAX_STREAM or stream > _MAX_STREAM:
        return None
    ring_rows = (kernel_height - 1) * op.dilation[0] + 1
    ring_words = ring_rows * (len(pairs) * pair_words + (pair_words if stored == 4 else 0))
    return _layer(
        graph,
        node,
        stored=stored,
        kernel=f"conv8_w{stored}",
        files=(f"conv8_w{stored}.c", "conv8_body.h", *_UNPACK_FILES[stored]),
        geometry=[
            *(in_height, in_width, channels, in_positions, out_width, out_positions, outputs),
            *(kernel_height, kernel_width, *op.stride, *op.padding[:2], *op.dilation),
            source.quantization.zero_point,
            *(columns, column_step, phases, phase_words, pair_words, len(pairs)),
        ],
        packed=packed,
        rows=(-(-out_positions // out_width), in_height),
        scratch=4 * ring_words + (16 * pixel_pairs if stored == 4 and not is_point else 0) + _ALIGNMENT_SLACK,
        in_place=stays_behind(graph, node, out_width if is_line else 0),
        constants={
            "FLAT": 0,
            "POINT": int(is_point),
            "KH": kernel_height,
            "TAP_OFFSETS": ", ".join(map(str, taps)),
            "PITCH": 4 * pair_words,
            "U": unroll,
            "ITERS": len(pairs) // unroll,
            "SLIDE": int(kernel_width == 3 and stride == dilation == 1),
            "PAIR_STEP": 8,
            "ODD_WIDTH": int(out_width % 2 or out_positions % 2),
            "WEIGHT_BYTES": stream,
        },
    )


def conv8_flat(graph: IntegerGraph, node: Node) -> Layer | None:
    """Plan a convolution of 8-bit weights over few input channels, or return None."""
    op = node.op
    if not _is_ordinary(op) or op.weight.bits != 8 or op.dilation != (1, 1):
        return None
    source = graph.tensor(node.inputs[0])
    channels, in_height, in_width = source.shape
    outputs, out_height, out_width = node.output.shape
    _, _, kernel_height, kernel_width = op.weight.values.shape
    run = kernel_width * channels
    pairs = neighbour_pairs(run)
    pixel_step = op.stride[1] * channels
    copies = 1 + pixel_step % 2
    halves = ((-(-out_width // 2) * 2 - 1) * op.stride[1] + kernel_width) * channels + 2
    halves += halves % 2
    second = 2 * pixel_step if copies == 1 else 2 * halves + 2 * (pixel_step - 1)
    values = op.weight.values.transpose(0, 3, 1, 2).reshape(outputs, run, kernel_height, 1)
    packed = pack_quads(values, pairs, 8)
    stream = 4 * packed.size // (outputs // 4)
    if (
        channels > _MAX_FLAT_CHANNELS
        or kernel_height * len(pairs) > _MAX_FLAT_WORDS
        or second + 4 * len(pairs) > _MAX_LDR_OFFSET
        or 4 * pixel_step > _MAX_LDR_OFFSET
        or stream > _MAX_STREAM
    ):
        return None
    return _layer(
        graph,
        node,
        stored=8,
        kernel="conv8_flat",
        files=("conv8_flat.c",),
        geometry=[
            *(in_height, in_width, channels, in_height * in_width, out_width, out_height * out_width, outputs),
            *(kernel_height, kernel_width, *op.stride, *op.padding[:2], *op.dilation),
            source.quantization.zero_point,
            *(halves, 1, 1, 0, 0, copies),
        ],
        packed=packed,
        rows=(out_height, in_height),
        scratch=2 * kernel_height * copies * halves + _ALIGNMENT_SLACK,
        in_place=stays_behind(graph, node),
        constants={
            "FLAT": 1,
            "POINT": 0,
            "KH": kernel_height,
            "U": len(pairs),
            "X1_OFFSET": second,
            "PAIR_STEP": 4 * pixel_step,
            "ODD_WIDTH": out_width % 2,
            "WEIGHT_BYTES": stream,
        },
    )


def stays_behind(graph: IntegerGraph, node: Node, line_width: int = 0) -> bool:
    """Return whether no row of output, laid over the input, reaches an input row that is not yet in the ring.

    Args:
        graph: the network.
        node: a convolution over a ring of rows.
        line_width: how many positions are a row, where they are one line.
    """
    op = node.op
    assert isinstance(op, Conv2d)  # noqa: S101 - narrows the type
    channels, in_height, in_width = graph.tensor(node.inputs[0]).shape
    outputs, out_height, out_width = node.output.shape
    if line_width:
        return outputs <= channels
    span = (op.weight.values.shape[2] - 1) * op.dilation[0] + 1
    for y in range(out_height):
        unread = max(0, y * op.stride[0] - op.padding[0] + span)
        if unread < in_height and (y + 1) * out_width * outputs > unread * in_width * channels:
            return False
    return True


def _is_ordinary(op: Operator) -> TypeGuard[Conv2d]:
    return (
        isinstance(op, Conv2d)
        and op.groups == 1
        and len(op.weight.values) % 4 == 0
        and 2 * len(op.weight.values) <= _MAX_LDR_OFFSET
        and op.weight.values.shape[2] <= _MAX_KERNEL_HEIGHT
    )


def _unrolled_pairs(pairs: int, pitch: int, last_tap: int, most: int) -> int | None:
    """Return the largest divisor of `pairs` up to `most` whose offsets fit the loads, or None if not even 1 does."""
    fitting = [
        count
        for count in range(1, most + 1)
        if pairs % count == 0
        and (count - 1) * pitch + last_tap + 4 <= _MAX_LDRD_OFFSET
        and count * pitch <= _MAX_LDR_OFFSET
    ]
    return max(fitting, default=None)


def _layer(
    graph: IntegerGraph,
    node: Node,
    *,
    stored: int,
    kernel: str,
    files: tuple[str, ...],
    geometry: list[int],
    packed: np.ndarray[tuple[int], np.dtype[np.uint32]],
    rows: tuple[int, int],
    scratch: int,
    in_place: bool,
    constants: dict[str, int | str],
) -> Layer | None:
    """Complete a plan with its requantization, or return None where its arithmetic is not proved."""
    op, source, output = node.op, graph.tensor(node.inputs[0]).quantization, node.output.quantization
    assert isinstance(op, Conv2d)  # noqa: S101 - narrows the type
    if not quads_fit(op, source, stored):
        return None
    requantization = requantize_quads(graph, node, stored)
    if requantization is None:
        return None
    sums = convolution_rows(op.weight.values).astype(np.int64).sum(axis=1)
    starts = quad_starts(op.bias.astype(np.int64) - source.zero_point * sums, stored)
    factors = requantization.parameters.reshape(len(starts) // 4, 4, -1)[:, REQUANTIZED_ORDER[stored]]
    parameters = np.concatenate([starts.reshape(-1, 4), factors.reshape(len(factors), -1)], axis=1).reshape(-1)
    constants = {
        **constants,
        "WEIGHT_BITS": stored,
        "QUADS": len(starts) // 4,
        "COUT": len(starts),
        "REQUANT": requantization.form,
        "SHIFT": requantization.shift,
        "LEFT": requantization.left,
        "BITS": output.bits,
        "ZERO_POINT": f"({output.zero_point})",
    }
    return Layer(
        node=node,
        kernel=kernel,
        header="conv8.h",
        files=(*(f"cortex_m4/{name}" for name in (*files, "conv8.h", "dsp.h", "conv8.inc")), "rows.h"),
        struct="kdp_conv8",
        fields=[*geometry, "@weights", "@parameters", "@row"],
        arrays={
            "weights": ConstantArray("uint32_t", packed),
            "parameters": ConstantArray("int32_t", (parameters & 0xFFFFFFFF).astype(np.uint32).view(np.int32)),
        },
        scratch=scratch,
        in_place=in_place,
        rows=rows,
        keeps_rows=True,
        assembly=Assembly("cortex_m4/conv8.inc", "conv8_row", "kdp_conv8_row", tuple(sorted(constants.items()))),
    )


def requantize_quads(graph: IntegerGraph, node: Node, stored: int) -> Requantization | None:
    """Return how sums of four channels each, packed at `stored` bits, are requantized, or None."""
    op, source, output = node.op, graph.tensor(node.inputs[0]).quantization, node.output.quantization
    assert isinstance(op, Conv2d)  # noqa: S101
    multipliers, shifts = quantize_multipliers(source.scale * op.weight.scales.astype(np.float64) / output.scale)
    smallest, largest = accumulator_ranges(op, source)
    return plan_requantization(
        multipliers.tolist(),
        shifts.tolist(),
        output,
        graph.rounding,
        CHANNEL_FACTORS[stored] * (len(multipliers) // 4),
        int(max(abs(smallest).max(), abs(largest).max())),
    )
