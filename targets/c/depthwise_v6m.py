"""3x3 depthwise convolutions for Armv6-M: two output rows at a time."""

from __future__ import annotations

import numpy as np

from kdpipe.targets.c.layer import Assembly, Layer
from kdpipe.targets.c.packing import STORED_BITS, ConstantArray, fold_zero_point, pack_rows
from kdpipe.targets.c.packing_m4 import accumulator_ranges
from kdpipe.targets.c.requantization_v6m import plan_sums
from kdpipe.targets.fixed_point import quantize_multipliers
from kdpipe.targets.graph import Conv2d, IntegerGraph, Node

_SCRATCH_BYTES = 2048
"""How much a strip may take, where it has more than two rows."""

_VALUE_OFFSET = 129
"""As the kernel has it: values become 1 to 256."""

_FILES = ("depthwise_pairs.c", "depthwise_pairs.h", "depthwise_channel.inc", "requantize.inc", "pair_values.S")


def depthwise_pairs(graph: IntegerGraph, node: Node) -> Layer | None:
    """Plan a 3x3 depthwise convolution, or return None."""
    op, source, output = node.op, graph.tensor(node.inputs[0]), node.output.quantization
    assert isinstance(op, Conv2d)  # noqa: S101 - narrows the type
    channels, in_height, in_width = source.shape
    outputs, out_height, out_width = node.output.shape
    if op.weight.values.shape[1:] != (1, 3, 3) or not op.groups == channels == outputs or op.dilation != (1, 1):
        return None
    multipliers, shifts = quantize_multipliers(
        source.quantization.scale * op.weight.scales.astype(np.float64) / output.scale
    )
    smallest, largest = accumulator_ranges(op, source.quantization)
    plan = plan_sums(multipliers.tolist(), shifts.tolist(), output, graph.rounding, smallest, largest)
    if plan is None:
        return None
    stored = STORED_BITS[op.weight.bits]
    rows = op.weight.values.reshape(channels, 9)
    weights = pack_rows(rows, op.weight.bits)
    starts = fold_zero_point(op.bias, rows, source.quantization.zero_point + _VALUE_OFFSET)
    parameters = np.stack([starts, plan.multipliers], axis=1).astype(np.int32).reshape(-1)
    columns = (out_width - 1) * op.stride[1] + 3
    strip = _strip(out_height, out_width, op.stride[0], columns)
    plane_rows = _plane_rows(strip, op.stride[0])
    return Layer(
        node=node,
        kernel="depthwise_pairs",
        header="depthwise_pairs.h",
        files=(*(f"armv6m/{name}" for name in _FILES), "rows.h"),
        struct="kdp_depthwise_pairs",
        fields=[
            *(in_height, in_width, out_height, out_width, channels, *op.stride, *op.padding[:2]),
            *(source.quantization.zero_point, strip, columns, plane_rows),
            *(stored, weights.nbytes // channels, "@weights", "@parameters"),
            *(plan.start, plan.shift, plan.low_bits, output.qmin, output.qmax, "@row"),
        ],
        arrays={"weights": weights, "parameters": ConstantArray("int32_t", parameters)},
        scratch=_scratch(strip, out_width, op.stride[0], columns) + 3,
        assembly=Assembly(
            "armv6m/depthwise_channel.inc",
            "depthwise_channel",
            "kdp_depthwise_channel",
            (("BITS", 8 if stored == 8 else 4), ("FORM", plan.form)),
        ),
        # Each channel has been read before it is written, if all of its rows are.
        in_place=strip >= out_height and node.output.shape == source.shape,
        rows=(out_height, in_height),
        row_step=2,
    )


def _plane_rows(strip: int, stride: int) -> int:
    return (strip // 2 - 1) * stride + 3


def _scratch(strip: int, out_width: int, stride: int, columns: int) -> int:
    """Return the bytes of the plane and the sums."""
    return 4 * (_plane_rows(strip, stride) * columns + strip * out_width)


def _strip(out_height: int, out_width: int, stride: int, columns: int) -> int:
    """Return how many output rows are computed at a time: an even number, all of them if that takes little scratch."""
    strip = out_height + out_height % 2
    while strip > 2 and _scratch(strip, out_width, stride, columns) > _SCRATCH_BYTES:
        strip -= 2
    return strip
