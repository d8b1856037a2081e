"""Ternary convolutions by long multiplications: which layers these kernels compute, and with which constants.

One UMLAL is a product of two polynomials in 2**15 whose coefficients are inputs and weights, so it does four or six
multiplications. Weights are stored as codes w + 1 in {0, 1, 2}, and inputs as unsigned bytes, so that no coefficient is
negative; what the offsets add is taken off with sums of the inputs. Sums of products share a 64-bit accumulator in
fields of 15 bits: a schedule, made for the actual weights, takes them out before any could overflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.c.convolution_m4 import stays_behind
from kdpipe.targets.c.layer import Assembly, Field, Layer
from kdpipe.targets.c.packing import ConstantArray
from kdpipe.targets.c.requantization_m4 import (
    LEFT_SHIFT,
    SHARED_SHIFT,
    Requantization,
    requantize_sums,
    rounding_term,
    shift_with_bias,
)
from kdpipe.targets.graph import Conv2d, IntegerGraph, Node, Operator, Quantization

FIELD_MAX, TOP_FIELD_MAX = 2**15 - 1, 2**19 - 1
"""What fits the three lower fields of an accumulator and its last one."""

_FLUSH, _TILE_END, _ROW_END = 1, 2, 4
_MAX_KERNEL_HEIGHT = 16
_LINE_WIDTH = 16
_MAX_UNROLLED = 3
_MAX_EDGE = 2**13 - 1
"""What the fields for sums of codes can hold."""

_ALIGNMENT_SLACK = 3
_RING_FILES = ("ternary_ring.c", "ternary_unpack.S", "ternary.h", "dsp.h")


@dataclass(frozen=True, eq=False)
class Schedule:
    """When a row kernel takes its sums out.

    Args:
        flushes: how often for a tile.
        table: bytes {units, flags}, then a 0.
    """

    flushes: int
    table: NDArray[np.uint8]


def make_schedule(fields: NDArray[np.int64], limits: NDArray[np.int64], units_in_row: int) -> Schedule:
    """Take sums out as rarely as their fields allow.

    Args:
        fields: int64 [O, units, F], the most that a unit of the kernel's loop can add to each field of a channel.
        limits: int64 [F], what the fields can hold.
        units_in_row: units of one kernel row.
    """
    total = fields.shape[1]
    sums = np.concatenate([np.zeros_like(fields[:, :1]), fields.cumsum(axis=1)], axis=1)
    flush, start = set(), 0
    for end in range(1, total + 1):
        if (sums[:, end] - sums[:, start] > limits).any():
            flush.add(end - 1)
            start = end - 1
    flush.add(total)
    table, last = [], 0
    for end in range(1, total + 1):
        flags = _FLUSH if end in flush else 0
        if end == total:
            flags |= _TILE_END
        elif end % units_in_row == 0:
            flags |= _ROW_END
        if flags or end - last == 255:
            table += [end - last, flags]
            last = end
    return Schedule(len(flush), np.array([*table, 0], dtype=np.uint8))


def ternary_taps(graph: IntegerGraph, node: Node) -> Layer | None:
    """Plan a ternary convolution three taps wide that moves by one column, or return None."""
    op = node.op
    if not _is_ternary(op):
        return None
    source = graph.tensor(node.inputs[0])
    channels, _, in_width = source.shape
    outputs, _, out_width = node.output.shape
    _, _, kernel_height, kernel_width = op.weight.values.shape
    left = op.padding[1]
    columns = out_width + 2 - left
    if kernel_width != 3 or op.stride[1] != 1 or op.dilation != (1, 1) or left > 1 or columns > in_width + left:
        return None
    tiles = -(-min(columns, in_width) // 4)
    if outputs % 2 or 2 * kernel_height * channels > _MAX_EDGE:
        return None
    unit = _unit(channels)
    codes = op.weight.values.astype(np.int64).transpose(0, 2, 3, 1) + 1
    largest = source.quantization.qmax + 128
    steps = codes.transpose(0, 1, 3, 2).reshape(outputs, -1, unit, 3).sum(axis=2)
    fields = largest * np.stack(
        [steps[..., 2], steps[..., 1] + steps[..., 2], steps[..., 0] + steps[..., 1], steps[..., 0]], axis=-1
    )
    limits = np.array([FIELD_MAX, FIELD_MAX, FIELD_MAX, TOP_FIELD_MAX])
    schedule = make_schedule(fields, limits, channels // unit)
    requantization = requantize_sums(graph, node)
    if requantization is None:
        return None
    left_codes = codes[:, :, 0].reshape(outputs, -1).sum(axis=1) * left
    right_codes = codes[:, :, 2].reshape(outputs, -1).sum(axis=1) * int(columns > 4 * tiles)
    edges = left_codes | right_codes << 13 | _shifts(requantization) << 26
    sums = np.stack([_bias(op, source.quantization), requantization.parameters[:, 0]], axis=1)
    unrolled = schedule.flushes == 1 and channels == unit and kernel_height <= _MAX_UNROLLED
    ring = kernel_height * tiles * (2 * channels + 4)
    return _layer(
        graph,
        node,
        kernel="ternary_taps",
        includes=("ternary_taps.inc",),
        ring_taps=(1, 0),
        tiles=tiles,
        words=pack_taps(codes),
        parameters=np.concatenate([sums.reshape(-1, 4), edges.reshape(-1, 2)], axis=1),
        schedule=schedule,
        requantization=requantization,
        scratch=4 * ring + (4 + outputs) * (4 * tiles + 1),
        constants={
            "UNIT_WORDS": unit // 2,
            "ADD_SUMS": int(schedule.flushes > 1),
            **({"UNROLLED": 1, "KH": kernel_height} if unrolled else {"UNROLLED": 0}),
        },
    )


def ternary_outer(graph: IntegerGraph, node: Node) -> Layer | None:
    """Plan a ternary convolution of any kernel, or return None."""
    op = node.op
    if not _is_ternary(op):
        return None
    source = graph.tensor(node.inputs[0])
    channels = source.shape[0]
    outputs, out_height, out_width = node.output.shape
    _, _, kernel_height, kernel_width = op.weight.values.shape
    is_line = (kernel_height, kernel_width) == op.stride == (1, 1) and op.padding == (0, 0, 0, 0)
    width = min(_LINE_WIDTH, out_height * out_width) if is_line else out_width
    tiles = -(-width // 4)
    steps = kernel_width * channels
    if outputs % 4:
        return None
    unit = _unit(steps)
    codes = (op.weight.values.astype(np.int64).transpose(0, 2, 3, 1) + 1).reshape(outputs, kernel_height, steps)
    largest = source.quantization.qmax + 128
    # Where one accumulator holds a whole sum, it starts from `start` less the window's sum of inputs, which is what the
    # weights' offset adds. All is exact modulo 2**64, so only the final fields must fit: each lies between `start` less
    # what weights of -1 take off and `start` and what those of 1 add.
    below, above = (int((codes == code).sum(axis=(1, 2)).max()) for code in (0, 2))
    start = max(largest * below, 1)
    adds_sums = start + largest * above > FIELD_MAX
    start = 0 if adds_sums else start
    fields = largest * adds_sums * codes.reshape(outputs, -1, unit).sum(axis=2)[..., None]
    schedule = make_schedule(fields, np.array([FIELD_MAX]), steps // unit)
    requantization = requantize_sums(graph, node, LEFT_SHIFT)
    if requantization is None:
        return None
    bias = shift_with_bias(requantization, _bias(op, source.quantization) - start)
    if bias is None:
        return None
    ring = ((kernel_height - 1) * op.dilation[0] + 1) * tiles * (2 * steps + 4)
    return _layer(
        graph,
        node,
        kernel="ternary_outer",
        includes=("ternary_outer.inc", "scale.inc"),
        line_width=width if is_line else 0,
        ring_taps=(kernel_width, op.padding[1]),
        tiles=tiles,
        words=pack_outer(codes),
        parameters=np.stack([bias, requantization.parameters[:, 0]], axis=1).reshape(-1, 8),
        schedule=schedule,
        requantization=requantization,
        scratch=4 * ring + 16 * tiles + 4 * outputs,
        constants={"UNIT_WORDS": unit // 4, "ADD_SUMS": int(adds_sums)},
        start=start,
    )


def pack_taps(codes: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Lay out codes [O, KH, 3, I] in words of 2 channels by 2 inputs: [O / 2][KH][I / 2]."""
    products = codes[:, :, 2] | codes[:, :, 1] << 15 | codes[:, :, 0] << 30
    outputs, height, inputs = products.shape
    quads = products.reshape(outputs // 2, 2, height, inputs // 2, 2)
    words = sum(_rotate(quads[:, o, :, :, i], 8 * i + 4 * o) for i in range(2) for o in range(2))
    return np.asarray(words).astype(np.uint32).reshape(-1)


def pack_outer(codes: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Lay out codes [O, KH, steps] in words of 4 channels by 4 inputs, 2 bits each: [O / 4][KH][steps / 4]."""
    outputs, height, steps = codes.shape
    blocks = codes.reshape(outputs // 4, 2, 2, height, steps // 4, 4)
    products = blocks[:, :, 0] | blocks[:, :, 1] << 30
    words = sum(_rotate(products[:, pair, :, :, i], 8 * i + 4 * pair) for i in range(4) for pair in range(2))
    return np.asarray(words).astype(np.uint32).reshape(-1)


def _rotate(words: NDArray[np.int64], left: int) -> NDArray[np.int64]:
    rotated: NDArray[np.int64] = (words << left | words >> (32 - left)) & 0xFFFFFFFF
    return rotated


def _is_ternary(op: Operator) -> TypeGuard[Conv2d]:
    return (
        isinstance(op, Conv2d)
        and op.groups == 1
        and op.weight.bits == 2
        and op.weight.values.shape[1] % 4 == 0
        and op.weight.values.shape[2] <= _MAX_KERNEL_HEIGHT
    )


def _unit(steps: int) -> int:
    """Return how many inputs the kernel's loop takes at a time."""
    return next(unit for unit in (16, 8, 4) if steps % unit == 0)


def _bias(op: Conv2d, source: Quantization) -> NDArray[np.int64]:
    """Return each channel's bias with the zero point of inputs as unsigned bytes folded in."""
    rows = op.weight.values.astype(np.int64).reshape(len(op.weight.values), -1)
    bias: NDArray[np.int64] = op.bias.astype(np.int64) - (source.zero_point + 128) * rows.sum(axis=1)
    return bias


def _shifts(requantization: Requantization) -> NDArray[np.int64]:
    """Return each channel's shift to the right less one, or zeros where they share one."""
    own = requantization.form != SHARED_SHIFT
    return requantization.parameters[:, 2] - 1 if own else np.zeros(len(requantization.parameters), dtype=np.int64)


def _layer(
    graph: IntegerGraph,
    node: Node,
    *,
    kernel: str,
    includes: tuple[str, ...],
    ring_taps: tuple[int, int],
    tiles: int,
    words: NDArray[np.uint32],
    parameters: NDArray[np.int64],
    schedule: Schedule,
    requantization: Requantization,
    scratch: int,
    constants: dict[str, int | str],
    line_width: int = 0,
    start: int = 0,
) -> Layer:
    """Complete a plan; `parameters` has a row for each group of channels."""
    op, source, output = node.op, graph.tensor(node.inputs[0]), node.output.quantization
    assert isinstance(op, Conv2d)  # noqa: S101
    channels, height, width = source.shape
    outputs, out_height, out_width = node.output.shape
    in_positions, out_positions = height * width, out_height * out_width
    if line_width:
        # Positions are one line, which may be cut into rows of any length.
        width = out_width = line_width
        height = -(-out_positions // line_width)
    groups, group_parameters = parameters.shape
    fields: list[Field] = [
        *(height, width, channels, in_positions, out_width, out_positions, outputs),
        *(op.weight.values.shape[2], *op.stride, *op.padding[:2], *op.dilation),
        source.quantization.zero_point,
        *(*ring_taps, tiles, words.size // groups, group_parameters),
        *(start, rounding_term(requantization, output)),
        *("@weights", "@parameters", "@schedule", "@row"),
    ]
    constants = {
        **constants,
        "REQUANT": requantization.form,
        "SHIFT": requantization.shift,
        "LEFT": requantization.left,
        "BITS": output.bits,
    }
    return Layer(
        node=node,
        kernel=kernel,
        header="ternary.h",
        files=(*(f"cortex_m4/{name}" for name in (f"{kernel}.c", *includes, *_RING_FILES)), "rows.h"),
        struct="kdp_ternary",
        fields=fields,
        arrays={
            "weights": ConstantArray("uint32_t", words),
            "parameters": ConstantArray(
                "int32_t", (parameters.reshape(-1) & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
            ),
            "schedule": ConstantArray("uint8_t", schedule.table),
        },
        scratch=scratch + _ALIGNMENT_SLACK,
        in_place=stays_behind(graph, node, line_width),
        rows=(-(-out_positions // out_width), height),
        keeps_rows=True,
        assembly=Assembly(f"cortex_m4/{kernel}.inc", f"{kernel}_row", "void", tuple(sorted(constants.items()))),
    )
