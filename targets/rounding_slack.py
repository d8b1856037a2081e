"""By how much a runtime's correct result may miss half a step: what its arithmetic loses before it rounds.

Measured on random graphs over all operators (`tests/targets/test_layer_differences.py` checks that it holds).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.fixed_point import quantize_multipliers
from kdpipe.targets.graph import Conv2d, Linear, Operator, Requantize, TensorType

FLOAT_SLACK = 1e-3
"""Steps that float32 arithmetic may be off; measured: 5e-5."""

ROUNDING_SLACK = ("onnx", "openvino", "tflite", "quantized-torch")
"""The formats that are run by something that requantizes in its own way; the others are exact."""

_VCVT_STEP = 2.0**-8
"""XNNPACK's QUANTIZE multiplies by the ratio of the scales rounded to this (src/qs8-vcvt)."""


def rounding_slack(
    runtime: str, op: Operator, inputs: Sequence[NDArray[np.int8]], types: Sequence[TensorType], output: TensorType
) -> float | NDArray[np.floating[Any]]:
    """Return the slack of an operator's elements, in steps: a number, or an array that broadcasts with the output.

    LiteRT's own kernels round twice: to a fraction of a step that the shift says, then to a step, with either rounding
    of halves. Its XNNPACK kernels round once, but requantize with few bits.

    Args:
        runtime: the format that is run.
        op: the operator.
        inputs: what it read.
        types: what that stands for.
        output: what the output's integers stand for.
    """
    if runtime != "tflite" or not isinstance(op, Conv2d | Linear | Requantize):
        return FLOAT_SLACK
    source = types[0].quantization
    ratios = np.atleast_1d(np.float64(source.scale / output.quantization.scale))
    if not isinstance(op, Requantize):
        ratios = ratios * op.weight.scales.astype(np.float64)
    _, shifts = quantize_multipliers(ratios)
    twice = FLOAT_SLACK + np.where(shifts < 0, np.exp2(shifts.astype(np.float64) - 1), 0.0)
    if isinstance(op, Requantize):
        steps = np.abs(inputs[0].astype(np.float64) - source.zero_point)
        coarse: NDArray[np.floating[Any]] = twice[0] + steps * (_VCVT_STEP / 2)
        return coarse
    return twice[:, None, None] if isinstance(op, Conv2d) else twice
