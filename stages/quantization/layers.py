"""Layers of a prepared module beside its quantizers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from kdpipe.stages.quantization.fake_quantize import ActivationGradient
from kdpipe.stages.quantization.normalize_and_round import NormalizeAndRound, can_normalize_and_round
from kdpipe.targets import reference
from kdpipe.targets.absorption import batch_norm_line
from kdpipe.targets.fixed_point import Rounding, multiply_by_quantized_multiplier
from kdpipe.targets.graph import Add, Operator, Pair, Quantization


class StoresIntegers(Protocol):
    """An activation quantizer, as a layer that works on its integers needs it."""

    @property
    def rounds_now(self) -> bool:
        """Whether outputs lie on the quantizer's own steps."""
        ...

    def quantization(self) -> Quantization:
        """Return scale, zero point and range."""
        ...


class Scope(nn.Identity):
    """Stands where a container or a fused ReLU stood, so that its path keeps its children and its hooks.

    Called with what the original would have returned, it returns just that.

    Args:
        children: modules by name.
    """

    def __init__(self, children: dict[str, nn.Module | None] | None = None) -> None:
        super().__init__()
        if children is not None:
            self._modules = children


@dataclass(frozen=True)
class TrainingRounding:
    """How a quantizer rounds now, in training; the fields are the arguments of `NormalizeAndRound`."""

    scale: Tensor
    low: int
    high: int
    rounds: bool
    gradient: ActivationGradient
    delta: float


class RoundsInTraining(Protocol):
    """An activation quantizer, as a batch norm before it needs it."""

    @property
    def can_be_anticipated(self) -> bool:
        """Whether nobody reads the input now, and all that is done to it is what `training_rounding` says."""
        ...

    def training_rounding(self) -> TrainingRounding:
        """Return how it rounds in training."""
        ...


class ExactBatchNorm(nn.Module):
    """Mixed into a batch norm whose output is rounded.

    In evaluation, accumulators that come in float64 are normalized in float64. In training, the output is normalized
    and rounded at once where that is possible and nobody watches the output (`rounds_ahead`): the quantizer, to which
    rounded values are nothing new, then passes it on.
    """

    _quantizer: tuple[RoundsInTraining, ...] = ()

    def round_with(self, quantizer: RoundsInTraining) -> None:
        """Set the quantizer that alone reads the output."""
        # In a tuple, so that it is not registered as a submodule a second time.
        self._quantizer = (quantizer,)

    def rounds_ahead(self, x: Tensor) -> bool:
        """Return whether a call with `x`, or one that returned `x`, rounds what its quantizer would round."""
        return (
            self.training
            and self.affine
            and "forward" not in vars(self)  # processes that share a batch replace it while they train
            and any(quantizer.can_be_anticipated for quantizer in self._quantizer)
            and can_normalize_and_round(x)
        )

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, ...] -> the same."""
        if self.rounds_ahead(input):
            rounding = self._quantizer[0].training_rounding()
            mean, var = self._statistics(input)
            return NormalizeAndRound.apply(
                *(input, self.weight, self.bias, rounding.scale, mean, var, self.eps),
                *(rounding.low, rounding.high, rounding.rounds, rounding.gradient, rounding.delta),
            )
        if self.training or input.dtype != torch.float64:
            return super().forward(input)  # type: ignore[misc]
        by_channel = (1, -1, *[1] * (input.ndim - 2))
        gain, offset = (torch.from_numpy(line).to(input.device).view(by_channel) for line in batch_norm_line(self))
        return input * gain + offset

    @torch.no_grad()
    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the batch's mean and biased variance, [C], and move the running ones as nn.BatchNorm2d does."""
        follow = self.track_running_stats and self.running_mean is not None
        momentum = self.momentum or 0.0
        if follow and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        running = (self.running_mean, self.running_var) if follow else (None, None)
        mean, var = torch.ops.aten.batch_norm_update_stats(x, *running, momentum)
        return mean, var


class ExactBatchNorm1d(ExactBatchNorm, nn.BatchNorm1d):
    """nn.BatchNorm1d, exact in evaluation."""


class ExactBatchNorm2d(ExactBatchNorm, nn.BatchNorm2d):
    """nn.BatchNorm2d, exact in evaluation."""


def exact_batch_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> ExactBatchNorm1d | ExactBatchNorm2d:
    """Return a batch norm with the parameters and buffers of `norm`."""
    kind = ExactBatchNorm2d if isinstance(norm, nn.BatchNorm2d) else ExactBatchNorm1d
    exact = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, device="meta")
    exact._parameters, exact._buffers = norm._parameters, norm._buffers
    return exact.train(norm.training)


class AveragePool(nn.AvgPool2d):
    """Mean over a window of stored integers, rounded as `kdpipe.targets.graph.AveragePool2d` says.

    The gradient is the exact mean's.

    Args:
        kernel: (height, width).
        stride: (vertical, horizontal).
    """

    def __init__(self, kernel: Pair, stride: Pair) -> None:
        super().__init__(kernel, stride)
        # In a tuple, so that it is not registered as a submodule a second time.
        self._source: tuple[StoresIntegers, ...] = ()

    def read_from(self, source: StoresIntegers) -> None:
        """Set the quantizer whose integers are averaged."""
        self._source = (source,)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H', W']."""
        mean = super().forward(input)
        if not self._source or not self._source[0].rounds_now:
            return mean
        quantization = self._source[0].quantization()
        height, width = self.kernel_size  # type: ignore[misc]
        rounded = _round_mean(mean.detach(), int(height * width), quantization)
        return mean + (rounded - mean).detach() if mean.requires_grad else rounded


class Sum(nn.Module):
    """a + b; in evaluation as `kdpipe.targets.graph.Add` computes it before it requantizes, in float64.

    Args:
        first: the quantizer of a's integers.
        second: the quantizer of b's integers.
        rounding: of the fixed point.
    """

    def __init__(self, first: StoresIntegers, second: StoresIntegers, rounding: Rounding) -> None:
        super().__init__()
        # In a tuple, so that they are not registered as submodules a second time.
        self._sources = (first, second)
        self.rounding: Rounding = rounding

    def integer_operator(self) -> Operator:
        """Return the integer graph's operator."""
        return Add()

    def unit(self) -> float:
        """Return what one unit of the integer sum stands for: 2 * max(s_1, s_2) / 2**20."""
        scales = [source.quantization().scale for source in self._sources]
        return float(2.0 * max(scales) / 2**reference.ADD_LEFT_SHIFT)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two of [B, ...] -> the same."""
        if self.training or not all(source.rounds_now for source in self._sources):
            return a + b
        first, second = (source.quantization() for source in self._sources)
        # the output's factor is not used here
        *factors, _ = reference.add_factors(first, second, first)
        total = torch.zeros_like(a, dtype=torch.float64)
        for value, source, (multiplier, shift) in zip((a, b), (first, second), factors, strict=True):
            steps = (value.double() / source.scale).round_().to(torch.int64).cpu().numpy()
            shifted = steps << reference.ADD_LEFT_SHIFT
            scaled = multiply_by_quantized_multiplier(shifted, multiplier, shift, self.rounding)
            total += torch.from_numpy(scaled).to(total.device)
        return total.mul_(self.unit())


def _round_mean(mean: Tensor, count: int, quantization: Quantization) -> Tensor:
    """Return the mean of `count` stored integers, rounded half away from zero, as a real number."""
    total = (mean.double() * (count / quantization.scale)).round_() + quantization.zero_point * count
    stored = torch.sign(total) * torch.floor((total.abs() + count // 2) / count)
    stored = stored.clamp_(quantization.qmin, quantization.qmax) - quantization.zero_point
    return stored.to(mean.dtype) * quantization.scale
