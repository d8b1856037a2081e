"""Batch norm absorbed into the scales of the layer before it.

With the trained scale s_w[o], the statistics mu and var and the parameters gamma and beta of a channel o,

    y[o] = a * (s_in * s_w * acc + b - mu) + beta,   a = gamma / sqrt(var + eps),   b the layer's own bias
         = s_in * (s_w * |a|) * (sign(a) * acc + bias),   bias = round((a * (b - mu) + beta) / (s_in * s_w * |a|))

so a negative gamma flips the signs of the channel's weights, and no weight leaves its width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.errors import GraphError
from kdpipe.targets.fixed_point import INT32_MAX
from kdpipe.targets.graph import Quantization

NEGLIGIBLE_STEPS = 1e-3
"""A channel that can't move its output by more than this many steps, whatever its input, is deployed as a constant."""

HIDDEN_STEPS = 0.25
"""As `NEGLIGIBLE_STEPS`, of a channel whose bias int32 can't hold in units of its weights."""


@dataclass(frozen=True)
class Channels:
    """How each output channel of a layer is deployed.

    Args:
        signs: by what the trained integer weights are multiplied: 1, -1 or (a constant channel) 0; int8 [O].
        scales: float32 [O], positive.
        bias: in units of s_in * scales, int32 [O].
    """

    signs: NDArray[np.int8]
    scales: NDArray[np.float32]
    bias: NDArray[np.int32]


def absorb(
    values: NDArray[np.int8],
    scales: NDArray[np.float32],
    gain: NDArray[np.float64],
    offset: NDArray[np.float64],
    source: Quantization,
    output: Quantization,
) -> Channels:
    """Absorb y[o] = gain[o] * (s_in * scales[o] * acc[o]) + offset[o] into weights, scales and bias.

    Args:
        values: integer weights [O, ...].
        scales: of the weights [O], positive.
        gain: of the batch norm, 1 without one; [O].
        offset: what is added to the channel in all; [O].
        source: of the layer's input.
        output: of the layer's output.

    Raises:
        GraphError: a scale or an offset is not finite, or a bias leaves int32.
    """
    if not (np.isfinite(gain).all() and np.isfinite(offset).all() and np.isfinite(scales).all()):
        raise GraphError("its weights, bias or batch norm hold a value that is not finite")
    if (scales <= 0).any():
        raise GraphError("its weight quantizer is dead: a scale is zero or negative", remedy="Train it again")
    reach = max(source.qmax - source.zero_point, source.zero_point - source.qmin)
    sums = np.abs(values.astype(np.int64)).reshape(len(values), -1).sum(axis=1) * reach
    units = source.scale * scales.astype(np.float64) * np.abs(gain)
    # In units this small a bias may not fit beside the sums: it counts more than they, which no rounding may see.
    has_room = np.abs(offset) <= units * (INT32_MAX - sums)
    steps = np.where(has_room, NEGLIGIBLE_STEPS, HIDDEN_STEPS)
    constant = units * sums < steps * output.scale
    # In units of the output's step a constant is represented as well as it can be.
    kept = np.where(constant, output.scale / source.scale, scales * np.abs(gain)).astype(np.float32)
    if not np.isfinite(kept).all() or (kept <= 0).any():
        raise GraphError("a channel's scale with its batch norm is too small or too large for float32")
    bias = np.rint(offset / (source.scale * kept.astype(np.float64)))
    largest = float(np.abs(bias).max(initial=0))
    if largest > INT32_MAX:
        channel = int(np.abs(bias).argmax())
        raise GraphError(
            f"the bias of channel {channel} needs {largest:.3g} of its units, beyond int32",
            remedy="Its batch norm's gamma is nearly zero: train longer, or remove the channel",
        )
    return Channels(np.where(constant, 0, np.sign(gain)).astype(np.int8), kept, bias.astype(np.int32))


def batch_norm_line(norm: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return gain and offset, float64 [C], of a batch norm in evaluation mode: y = gain * x + offset."""
    deviation = np.sqrt(float64(norm.running_var) + norm.eps)
    gain = (np.ones_like(deviation) if norm.weight is None else float64(norm.weight)) / deviation
    shift = np.zeros_like(gain) if norm.bias is None else float64(norm.bias)
    return gain, shift - gain * float64(norm.running_mean)


def float64(tensor: Any) -> NDArray[np.float64]:
    """Return a torch tensor as a NumPy array."""
    array: NDArray[np.float64] = tensor.detach().cpu().double().numpy()
    return array
