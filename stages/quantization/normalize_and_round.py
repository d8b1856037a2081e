"""Batch norm in training and the quantizer after it as one operation, on pieces that stay in the processor's cache.

With mean mu and variance var of the batch, r = 1 / sqrt(var + eps), N values to a channel:

    u = x * (gamma * r / s) + (beta - mu * gamma * r) / s,   q = clamp(round(u), low, high),   out = s * q

where ReLU is part of it (low = 0). The gradients are those of `torch.nn.functional.batch_norm` and of
`kdpipe.stages.quantization.fake_quantize.RoundActivations`; what a training step pays for are the passes over memory:

| | as two operations | here |
| --- | --- | --- |
| forward | statistics, normalize, round in place, write a mask | statistics, normalize and round |
| backward | mask with the clip's gradient, batch norm's | u again with mask and clip's gradient, batch norm's |

Neither a mask nor the rounding error nor the output is kept: the backward pass has x, as batch norm's would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdpipe.stages.quantization.fake_quantize import CHUNK, ActivationGradient, lsq_factor, where_inside

_PERIOD = 1 << 10
"""Values, at least, in which a pattern of channels is repeated: longer rows cost less than short ones."""

_LEAST_STEP = 1e-19
"""Stands for a step of 0; x / _LEAST_STEP is still finite."""


def can_normalize_and_round(x: Tensor) -> bool:
    """Return whether the operation is made for `x`: images in float32 on a processor, channels first or last."""
    return (
        x.dim() == 4
        and x.numel() > x.shape[1]  # otherwise batch norm refuses it
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))
    )


class NormalizeAndRound(torch.autograd.Function):
    """out = s * clamp(round(batch_norm(x) / s), low, high).

    `apply(x, gamma, beta, scale, mean, var, eps, low, high, rounds, gradient, delta)`: x as `can_normalize_and_round`
    says; gamma, beta, mean, var [C]; scale a scalar; mean and var the batch's, var biased, which get no gradient of
    their own: that of x has it. Without `rounds`, out = s * clamp(batch_norm(x) / s, low, high), without gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        scale: Tensor,
        mean: Tensor,
        var: Tensor,
        eps: float,
        low: int,
        high: int,
        rounds: bool,
        gradient: ActivationGradient,
        delta: float,
    ) -> Tensor:
        """Return out."""
        layout = _Layout.of(x)
        inverse = torch.rsqrt(var + eps)
        # of a dead quantizer everything is cut off
        step = float(scale) or _LEAST_STEP
        slope = gamma * inverse
        lines = torch.stack([torch.addcmul(beta, mean, slope, value=-1), slope]).div_(step)
        offsets, gains = layout.tiled(lines)
        out = torch.empty_like(x)
        for given, levels in layout.pieces(x, out):
            line, factor = layout.fitting(given, offsets, gains)
            torch.addcmul(line, given, factor, out=levels).clamp_(low, high)
            if rounds:
                levels.round_()
            levels.mul_(scale)
        ctx.save_for_backward(x, gamma, lines, mean, inverse)
        ctx.low, ctx.high, ctx.gradient, ctx.delta, ctx.eps = low, high, gradient, delta, eps
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override, no-untyped-def]
        """Return the gradients of x, gamma, beta and s."""
        x, gamma, lines, mean, inverse = ctx.saved_tensors
        low, high, kind = ctx.low, ctx.high, ctx.gradient
        layout = _Layout.of(x)
        offsets, gains = layout.tiled(lines)
        if gradient.stride() != x.stride():
            gradient = torch.empty_like(x).copy_(gradient)
        passed = torch.empty_like(x)
        pieces = layout.pieces(x, gradient, passed)
        buffers = torch.empty((2, *pieces[0][0].shape), dtype=x.dtype).unbind()
        cut, misses = 0.0, 0.0
        for given, arrived, through in pieces:
            u, other = (buffer if buffer.shape == given.shape else torch.empty_like(given) for buffer in buffers)
            line, factor = layout.fitting(given, offsets, gains)
            torch.addcmul(line, given, factor, out=u)
            where_inside(arrived, u, low, high, through)
            if kind == "pact" and low == 0:
                # below, the output is 0 whatever the step
                cut += high * _dot(arrived, u.ge_(high))
                continue
            if kind == "pact":
                cut += _dot(torch.sub(arrived, through, out=other), u.clamp_(low, high))
                continue
            levels = torch.clamp(u, low, high, out=other).round_()
            miss = torch.sub(levels, u, out=u)
            misses += _dot(through, miss)
            cut += _dot(arrived - through, levels)
            if kind == "ewgs":
                through.addcmul_(through.abs(), miss, value=-ctx.delta / high)
        to_x, to_gamma, to_beta = torch.ops.aten.native_batch_norm_backward(
            passed, x, gamma, None, None, mean, inverse, True, ctx.eps, [True, True, True]
        )
        # where the range cut, out = limit * s, so d out / d s = limit
        to_scale = lsq_factor(x[0].numel(), high) * (cut + misses) if kind == "lsq" else cut
        nothing = (None,) * 8
        return to_x, to_gamma, to_beta, x.new_tensor(to_scale), *nothing


def _dot(first: Tensor, second: Tensor) -> float:
    return torch.dot(first.view(-1), second.view(-1)).item()


@dataclass(frozen=True)
class _Layout:
    """How channels lie in memory: with a period, after which the same channels come in the same order.

    Args:
        channels: C.
        count: values of one channel.
        run: neighbours of one channel: 1 with channels last, a whole map with channels first.
        period: values, a multiple of C * run.
    """

    channels: int
    count: int
    run: int
    period: int

    @classmethod
    def of(cls, x: Tensor) -> _Layout:
        """Return the layout of `x [B, C, H, W]`, which has no gaps."""
        channels = x.shape[1]
        run = x.shape[2] * x.shape[3] if x.is_contiguous() else 1
        once = channels * run
        return cls(channels, x.numel() // channels, run, min(once * max(1, _PERIOD // once), x.numel()))

    def tiled(self, lines: Tensor) -> tuple[Tensor, ...]:
        """Return lines of a value a channel, [L, C], each as the values of a period."""
        if self.run > 1:
            lines = lines.repeat_interleave(self.run, dim=1)
        return lines.repeat(1, self.period // lines.shape[1]).unbind()

    def fitting(self, piece: Tensor, *periods: Tensor) -> tuple[Tensor, ...]:
        """Return values of a period as a piece needs them: it may be shorter than a period."""
        width = piece.shape[1]
        return periods if width == self.period else tuple(period[:width] for period in periods)

    def pieces(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Return tensors of this layout in pieces of rows of a period; the last piece may be one shorter row."""
        size = tensors[0].numel()
        rows = size // self.period
        whole = [tensor.as_strided((rows, self.period), (self.period, 1)) for tensor in tensors]
        found = list(zip(*(part.split(max(1, CHUNK // self.period)) for part in whole), strict=True))
        rest = size - rows * self.period
        if rest:
            last = tuple(
                tensor.as_strided((1, rest), (rest, 1), tensor.storage_offset() + size - rest) for tensor in tensors
            )
            found.append(last)
        return found
