"""Rounding with a gradient: the autograd functions behind the quantizers of activations and of weights.

With u = x / s, q = clamp(round(u), low, high), out = s * q and g the gradient of out, the input receives g where u lies
inside (low, high) and nothing elsewhere. What the step s receives, and what else may happen to the input's gradient:

| gradient | of the input, inside | of the step |
| --- | --- | --- |
| pact | g | sum of g * q over what is cut off (Choi et al. 2018, arXiv:1805.06085, also for signed ranges) |
| lsq | g | sum of g * (q - u) inside and g * q outside (Esser et al. 2020, arXiv:1902.08153, equation 3) |
| ewgs | g * (1 + delta * sign(g) * (u - q) / high) | as pact (Lee et al. 2021, arXiv:2104.00903, equation 5) |

`RoundWeights` does the same for weights. EWGS's difference of a value and its discrete value is taken on the paper's
scale, where the range ends at 1.

LSQ scales the step's gradient by 1 / sqrt(N * Q_P), N values to the step (of activations: in one image), Q_P = high.
The parameter is not s but the range's end c = high * s, whose size hardly depends on the width; `StepOfRange` lets
gradient descent on c move s as descent on s itself would.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

WeightGradient = Literal["straight-through", "lsq", "ewgs"]
ActivationGradient = Literal["pact", "lsq", "ewgs"]
WEIGHT_GRADIENTS: tuple[str, ...] = get_args(WeightGradient)
ACTIVATION_GRADIENTS: tuple[str, ...] = get_args(ActivationGradient)

CHUNK = 1 << 16
"""Values that all operations are done on before the next ones: 256 KiB, so that memory is passed through once."""


def lsq_factor(count: int, high: int) -> float:
    """Return 1 / sqrt(count * high), LSQ's scale of a step's gradient.

    Args:
        count: N, values that share the step.
        high: Q_P, the largest level.

    >>> lsq_factor(25, 4)
    0.1
    """
    return 1.0 / math.sqrt(count * high)


class StepOfRange(torch.autograd.Function):
    """s = c / high, with high * (gradient of s) as the gradient of c.

    Descent on c at some learning rate then changes s = c / high by that rate times the gradient of s.
    """

    @staticmethod
    def forward(ctx: Any, end: Tensor, high: int) -> Tensor:
        """Return c / high."""
        ctx.high = high
        return end / high

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of c."""
        return gradient * ctx.high, None


class RoundActivations(torch.autograd.Function):
    """out = s * clamp(round(x / s), low, high).

    `apply(x, scale, low, high, gradient, delta, in_place)`: x of any shape [B, ...], scale a scalar. In place where
    allowed, and with a mask of one byte a value kept for the backward pass: the cost is memory passes. `lsq` and
    `ewgs` keep the rounding error too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        low: int,
        high: int,
        gradient: ActivationGradient,
        delta: float,
        in_place: bool,
    ) -> Tensor:
        """Return out, which is x itself where it is computed in place."""
        if in_place and _is_dense(x):
            ctx.mark_dirty(x)
            out = x
        else:
            x = x if _is_dense(x) else x.contiguous()
            out = torch.empty_like(x)
        # without a gradient, as in SPEQ's teacher, nothing is kept
        learns = any(ctx.needs_input_grad)
        inside = torch.empty_like(out, dtype=torch.int8) if learns else None
        error = torch.empty_like(out) if learns and gradient != "pact" else None
        pieces = _pieces(x, out, inside, error)
        ones = torch.ones_like(pieces[0][1])
        passes = torch.empty_like(ones)
        for given, rounded, mask, miss in pieces:
            count = len(given)
            torch.div(given, scale, out=rounded)
            if mask is not None:
                mask.copy_(where_inside(ones[:count], rounded, low, high, passes[:count]))
            if miss is None:
                rounded.round_().clamp_(low, high).mul_(scale)
            else:
                levels = rounded.round().clamp_(low, high)
                torch.sub(levels, rounded, out=miss).mul_(passes[:count])
                torch.mul(levels, scale, out=rounded)
        ctx.save_for_backward(inside, out, scale, error)
        ctx.high, ctx.gradient, ctx.delta = high, gradient, delta
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override, no-untyped-def]
        """Return the gradients of x and s."""
        inside, out, scale, error = ctx.saved_tensors
        to_input = torch.empty_like(out)
        if gradient.stride() != out.stride():
            gradient = torch.empty_like(out).copy_(gradient)
        trained = ctx.needs_input_grad[1]
        cut, misses = torch.zeros((2,), dtype=out.dtype, device=out.device).unbind()
        pieces = _pieces(gradient, to_input, inside, error, out)
        difference = torch.empty_like(pieces[0][0])
        for given, passed, mask, miss, rounded in pieces:
            # copied first: a product of different types is six times slower
            passed.copy_(mask).mul_(given)
            if trained:
                cut += torch.dot(torch.sub(given, passed, out=difference[: len(given)]), rounded)
            if ctx.gradient == "lsq" and trained:
                misses += torch.dot(passed, miss)
            elif ctx.gradient == "ewgs":
                # miss is q - u, and sign(g) * g is |g|
                passed.addcmul_(passed.abs(), miss, value=-ctx.delta / ctx.high)
        to_scale = None
        if trained:
            # Where the range cut, out = limit * s, so d out / d s = out / s.
            to_scale = cut / scale
        if trained and ctx.gradient == "lsq":
            to_scale = lsq_factor(out[0].numel(), ctx.high) * (to_scale + misses)
        return to_input, to_scale, None, None, None, None, None


class RoundWeights(torch.autograd.Function):
    """out = D * q, q = sign(w) * min(floor(|w| / D + 1/2), M) as in `weights`.

    `apply(weight, step, limit, gradient, delta)`: weight [R, K], a row a step; step is D, [R, 1], positive; limit is M.
    Only `lsq` gives a gradient to the step, and only it keeps the gradient from weights beyond the range: elsewhere the
    step follows the weights and nothing could bring them back.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, limit: int, gradient: WeightGradient, delta: float) -> Tensor:
        """Return out."""
        levels = to_steps(weight, step, limit)
        ctx.limit, ctx.gradient, ctx.delta = limit, gradient, delta
        if gradient == "lsq":
            ctx.save_for_backward(weight / step, levels)
        elif gradient == "ewgs":
            ctx.save_for_backward((weight / step).clamp_(-limit, limit), levels)
        return levels * step

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override, no-untyped-def]
        """Return the gradients of w and D."""
        if ctx.gradient == "straight-through":
            return gradient, None, None, None, None
        steps, levels = ctx.saved_tensors
        if ctx.gradient == "ewgs":
            passed = torch.addcmul(gradient, gradient.abs(), steps - levels, value=ctx.delta / ctx.limit)
            return passed, None, None, None, None
        inside = steps.abs() < ctx.limit
        slope = torch.where(inside, levels - steps, levels)
        factor = lsq_factor(gradient.shape[1], ctx.limit)
        return gradient * inside, factor * (gradient * slope).sum(dim=1, keepdim=True), None, None, None


def to_steps(weight: Tensor, step: Tensor, limit: int) -> Tensor:
    """Return sign(w) * min(floor(|w| / D + 1/2), M).

    Args:
        weight: [O, K].
        step: D, [O, 1], positive.
        limit: M.

    Returns:
        Whole numbers in [-M, M], in weight's type, [O, K].
    """
    return (weight / step).abs_().add_(0.5).floor_().clamp_(max=limit).copysign_(weight)


def where_inside(gradient: Tensor, steps: Tensor, low: int, high: int, out: Tensor) -> Tensor:
    """Return gradient where low < steps < high and 0 elsewhere, in one operation."""
    return torch.ops.aten.hardtanh_backward.grad_input(gradient, steps, low, high, grad_input=out)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def _pieces(*tensors: Tensor | None) -> list[tuple[Any, ...]]:
    """Return dense tensors that lie in memory alike as flat pieces, those at one place together; None stays None."""
    flat = [None if tensor is None else tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors]
    first = flat[0]
    if first is None or first.device.type != "cpu" or len(first) <= CHUNK:
        return [tuple(flat)]
    count = -(-len(first) // CHUNK)
    return list(zip(*([None] * count if tensor is None else tensor.split(CHUNK) for tensor in flat), strict=True))
