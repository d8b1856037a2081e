"""Batch norm in training and the quantizer after it as one operation, on pieces that stay in the processor's cache.

With mean mu and variance var of the batch, r = 1 / sqrt(var + eps), N values to a channel:

    u = x * (gamma * r / s) + (beta - mu * gamma * r) / s,   q = clamp(round(u), low, high),   out = s * q

where ReLU is part of it (low = 0). The gradients are those of `torch.nn.functional.batch_norm` and of
`kdpipe.stages.quantization.fake_quantize.RoundActivations`; what a training step pays for are the passes over memory:

| | passes of the two operations | here |
| --- | --- | --- |
| forward | statistics (read twice), normalize, round in place, write a mask | statistics (read twice), one more |
| backward | mask and clip's gradient, sums, input's gradient | sums with them, input's gradient |

Neither a mask nor the rounding error is kept: the backward pass computes u again from x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdpipe.stages.quantization.fake_quantize import ActivationGradient, lsq_factor, where_inside

PIECE = 1 << 16
"""Values a piece: six such pieces fit into 1 MiB of cache together."""

_PERIOD = 1 << 10


def can_normalize_and_round(x: Tensor) -> bool:
    """Return whether the operation is made for `x`: images in float32 on a processor, channels first or last."""
    return (
        x.dim() == 4
        and x.numel() > 0
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
    def forward(  # type: ignore[override]
        ctx,
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
        gain, offset = _line(gamma, beta, scale, mean, inverse)
        gains, offsets = layout.tiled(gain), layout.tiled(offset)
        out = torch.empty_like(x)
        for given, levels in layout.pieces(x, out):
            width = given.shape[1]
            torch.addcmul(offsets[:width], given, gains[:width], out=levels).clamp_(low, high)
            if rounds:
                levels.round_()
            levels.mul_(scale)
        ctx.save_for_backward(x, gamma, gain, offset, mean, inverse)
        ctx.low, ctx.high, ctx.gradient, ctx.delta, ctx.eps = low, high, gradient, delta, eps
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override, no-untyped-def]
        """Return the gradients of x, gamma, beta and s."""
        x, gamma, gain, offset, mean, inverse = ctx.saved_tensors
        layout = _Layout.of(x)
        if gradient.stride() != x.stride():
            gradient = torch.empty_like(x).copy_(gradient)
        gains, offsets = layout.tiled(gain), layout.tiled(offset)
        passed = torch.empty_like(x)
        pieces = layout.pieces(x, gradient, passed)
        steps, spare = torch.empty((2, *pieces[0][0].shape), dtype=x.dtype).unbind()
        cut, misses = torch.zeros((2,), dtype=x.dtype).unbind()
        for given, arrived, through in pieces:
            u, other, line, factor = steps, spare, offsets, gains
            if given.shape != u.shape:
                count, width = given.shape
                u, other, line, factor = u[:count, :width], other[:count, :width], line[:width], factor[:width]
            torch.addcmul(line, given, factor, out=u)
            where_inside(arrived, u, ctx.low, ctx.high, through)
            if ctx.gradient == "pact":
                u.clamp_(ctx.low, ctx.high)
                cut += _dot(torch.sub(arrived, through, out=other), u)
                continue
            levels = torch.clamp(u, ctx.low, ctx.high, out=other).round_()
            miss = torch.sub(levels, u, out=u)
            misses += _dot(through, miss)
            cut += _dot(arrived - through, levels)
            if ctx.gradient == "ewgs":
                through.addcmul_(through.abs(), miss, value=-ctx.delta / ctx.high)
        to_x, to_gamma, to_beta = torch.ops.aten.native_batch_norm_backward(
            passed, x, gamma, None, None, mean, inverse, True, ctx.eps, [True, True, True]
        )
        # where the range cut, out = limit * s, so d out / d s = limit
        to_scale = cut
        if ctx.gradient == "lsq":
            to_scale = lsq_factor(x[0].numel(), ctx.high) * (cut + misses)
        nothing = (None,) * 8
        return to_x, to_gamma, to_beta, to_scale, *nothing


def _line(gamma: Tensor, beta: Tensor, scale: Tensor, mean: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return gain and offset, [C], of u = gain * x + offset."""
    gain = gamma * inverse
    # of a dead quantizer everything is cut off
    scale = torch.where(scale == 0, torch.finfo(scale.dtype).tiny ** 0.5, scale)
    return gain / scale, (beta - mean * gain) / scale


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return torch.dot(first.view(-1), second.view(-1))


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

    def tiled(self, line: Tensor) -> Tensor:
        """Return a value a channel, [C], as the values of a period."""
        once = line.repeat_interleave(self.run) if self.run > 1 else line
        return once.repeat(self.period // len(once))

    def pieces(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Return tensors of this layout in pieces of rows of a period; the last piece may be one shorter row."""
        size = tensors[0].numel()
        rows = size // self.period
        whole = [tensor.as_strided((rows, self.period), (self.period, 1)) for tensor in tensors]
        found = list(zip(*(part.split(max(1, PIECE // self.period)) for part in whole), strict=True))
        rest = size - rows * self.period
        if rest:
            last = tuple(
                tensor.as_strided((1, rest), (rest, 1), tensor.storage_offset() + size - rest) for tensor in tensors
            )
            found.append(last)
        return found
