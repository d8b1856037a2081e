"""Batch norm over the whole of a batch that several processes share.

torch's SyncBatchNorm computes on GPUs only; this one computes on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Sum = Callable[[Tensor], Tensor]
Gather = Callable[[Tensor], Tensor]


class _Normalize(torch.autograd.Function):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias with mean and biased variance of all processes' rows.

    The statistics of parts are joined as in Chan et al. 1979: variance = sum_r (n_r var_r + n_r (mean_r - mean)^2) / n.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, gather: Gather, total: Sum
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B_r, C, ...] -> y like x; mean [C], variance [C], and the number of values of a channel [1]."""
        values = x.numel() // x.shape[1]
        variance, mean = torch.var_mean(x.float(), dim=_all_but_channels(x), correction=0)
        parts = gather(torch.cat([mean.new_tensor([values]), mean, variance]))
        means, variances = parts[:, 1:].chunk(2, dim=1)
        counts = parts[:, :1]
        count = counts.sum()
        mean = (counts * means).sum(dim=0) / count
        variance = (counts * (variances + (means - mean).square())).sum(dim=0) / count
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps), count)
        ctx.total = total
        y = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *others: object) -> tuple[Tensor | None, ...]:
        """Return the gradient of the sum over all processes for x, and this process's part of those for the others."""
        x, weight, mean, scale, count = ctx.saved_tensors
        axes, shape = _all_but_channels(x), [1, -1] + [1] * (x.dim() - 2)
        gradient = gradient.float()
        normalized = (x - mean.view(shape)) * scale.view(shape)
        of_bias = gradient.sum(dim=axes)
        of_weight = (gradient * normalized).sum(dim=axes)
        bias_mean, weight_mean = (total / count for total in ctx.total(torch.stack([of_bias, of_weight])))
        factor = scale if weight is None else scale * weight
        of_x = factor.view(shape) * (gradient - bias_mean.view(shape) - normalized * weight_mean.view(shape))
        if weight is None:
            return of_x.to(x.dtype), None, None, None, None, None
        return of_x.to(x.dtype), of_weight, of_bias, None, None, None


def _all_but_channels(x: Tensor) -> list[int]:
    return [axis for axis in range(x.dim()) if axis != 1]


@contextmanager
def synchronized_norms(modules: Iterable[nn.Module], gather: Gather, total: Sum) -> Iterator[None]:
    """Let the batch norms in `modules` use, in training mode, the statistics of all processes' rows.

    Args:
        modules: networks; their batch norms keep class, place and hooks.
        gather: from every process's [n] to [processes, n].
        total: sums a tensor over the processes.
    """
    norms = list({id(m): m for network in modules for m in network.modules() if isinstance(m, _BatchNorm)}.values())

    def replaced(norm: _BatchNorm) -> Callable[[Tensor], Tensor]:
        alone = norm.forward

        def forward(x: Tensor) -> Tensor:
            if not norm.training:
                return alone(x)
            y, mean, variance, count = _Normalize.apply(x, norm.weight, norm.bias, norm.eps, gather, total)
            _remember(norm, mean, variance, count)
            return y

        return forward

    for norm in norms:
        norm.forward = replaced(norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward  # the class's is found again


@torch.no_grad()
def _remember(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Take a batch into the running statistics, as nn.BatchNorm2d does."""
    is_tracked = norm.track_running_stats
    if not is_tracked or norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * count / (count - 1), momentum)
