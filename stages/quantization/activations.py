"""Activation quantizers: 2 to 8 bits, unsigned after ReLU, signed elsewhere, with a learned clip.

In training, out = s * clamp(round(x / s), low, high) with s = clip / high. The gradient passes where x lies inside
the clip; what the clip itself learns from is told in `kdpipe.stages.quantization.fake_quantize`. In evaluation the
same quantizer computes what integer hardware computes, in the fixed point of `kdpipe.targets.fixed_point`: the
accumulator in whole units, the bias rounded to them, multiplier and shift. No gradient passes there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from kdpipe.stages.quantization.accumulators import Source
from kdpipe.stages.quantization.fake_quantize import ActivationGradient, RoundActivations, StepOfRange
from kdpipe.stages.quantization.layers import ExactBatchNorm, TrainingRounding
from kdpipe.targets.errors import GraphError, UnsupportedError
from kdpipe.targets.fixed_point import Rounding, multiply_by_quantized_multiplier, quantize_multipliers
from kdpipe.targets.graph import Quantization

FLOAT_BITS = 32
_KEPT_VALUES = 1 << 14
_CLIP_CANDIDATES = 48


class ActivationQuantizer(nn.Module):
    """Rounds activations to `2**bits` values.

    Args:
        name: the tensor's name in the integer graph, for messages.
        bits: 2 to 8.
        signed: symmetric around 0; otherwise from 0 up, which is a ReLU as well.
        rounding: of the fixed point, in evaluation.
        source: what the fixed point requantizes; None where it rounds a real number.
        in_place: whether the input may be overwritten in training: nobody else reads it.
        producers: modules whose output is the input: with a hook on one of them it is left as it is.
        ceiling: of the function that the quantizer stands for (6 for a ReLU6): the clip starts at most there.
        gradient: pact, lsq or ewgs.
        ewgs_delta: EWGS's delta.
    """

    def __init__(
        self,
        name: str,
        bits: int,
        *,
        signed: bool,
        rounding: Rounding = "single",
        source: Source | None = None,
        in_place: bool = False,
        producers: Iterable[nn.Module] = (),
        ceiling: float | None = None,
        gradient: ActivationGradient = "pact",
        ewgs_delta: float = 1e-3,
    ) -> None:
        super().__init__()
        if not 2 <= bits <= 8:
            raise UnsupportedError(
                f"activations of {bits} bits are not supported", where=f"layer {name}", remedy="Use 2 to 8"
            )
        self.name = name
        self.bits = bits
        self.signed = signed
        self.rounding: Rounding = rounding
        self.precision = bits
        self.gradient: ActivationGradient = gradient
        self.ewgs_delta = ewgs_delta
        self.clip = nn.Parameter(torch.tensor(1.0))
        # In tuples, so that they are not registered as submodules a second time.
        self._source = (source,)
        self._in_place = in_place
        self._ceiling = ceiling
        self._producers = tuple(producers)
        self._norm: tuple[ExactBatchNorm, ...] = ()
        self._observed: list[Tensor] | None = None

    def follow(self, norm: ExactBatchNorm) -> None:
        """Let the batch norm whose output is the input round it already in training."""
        self._norm = (norm,)
        norm.round_with(self)

    def add_producer(self, producer: nn.Module) -> None:
        """Name one more module whose output is the input."""
        self._producers = (*self._producers, producer)

    @property
    def rounds_now(self) -> bool:
        """Whether outputs lie on the quantizer's own steps: not while observing or at another precision."""
        return self._observed is None and self.precision == self.bits

    def levels(self, bits: int | None = None) -> tuple[int, int]:
        """Return the lowest and the highest output in steps, at `bits` bits (its own by default)."""
        bits = bits or self.bits
        return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if self.signed else (0, 2**bits - 1)

    def scale(self, bits: int | None = None) -> Tensor:
        """Return the step, a float32 scalar."""
        return self.clip / self.levels(bits)[1]

    def quantization(self) -> Quantization:
        """Return scale, zero point and range as stored.

        Raises:
            GraphError: the clip is zero, negative or not finite.
        """
        scale = float(self.scale().detach())
        if not scale > 0 or not np.isfinite(scale):
            raise GraphError(
                f"its activation quantizer is dead: scale {scale}",
                where=f"layer {self.name}",
                remedy="Calibrate on samples that reach this layer, or train with a lower learning rate",
            )
        half = 2 ** (self.bits - 1)
        return Quantization(scale, 0 if self.signed else -half, -half, half - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape [B, ...] -> the same, float32."""
        if not self.training and self.rounds_now:
            return self._deployed(x)
        if self._norm and self._norm[0].rounds_ahead(x):
            return x
        x = x.to(self.clip.dtype)  # in evaluation sums and accumulators come in float64
        if self._observed is not None:
            x = x if self.signed else x.clamp(0, self._ceiling)
            self._observed.append(_thin(x.detach()))
            return x
        how = self.training_rounding()
        if not how.rounds:
            return x.clamp(how.low * how.scale, how.high * how.scale)
        in_place = self._in_place and not self._is_watched()
        return RoundActivations.apply(x, how.scale, how.low, how.high, how.gradient, how.delta, in_place)

    @property
    def can_be_anticipated(self) -> bool:
        """Whether nobody reads the input now, and all that is done to it is what `training_rounding` says."""
        # at float precision the clip has another gradient than where it rounds
        rounds = self.precision < FLOAT_BITS or not torch.is_grad_enabled()
        return self.training and self._observed is None and rounds and not self._is_watched()

    def _is_watched(self) -> bool:
        return any(producer._forward_hooks or producer._backward_hooks for producer in self._producers)

    def training_rounding(self) -> TrainingRounding:
        """Return how activations are rounded in training at the current precision."""
        if self.precision >= FLOAT_BITS:
            return TrainingRounding(self.clip.detach(), -int(self.signed), 1, False, self.gradient, self.ewgs_delta)
        low, high = self.levels(self.precision)
        scale = StepOfRange.apply(self.clip, high) if self.gradient == "lsq" else self.clip / high
        return TrainingRounding(scale, low, high, True, self.gradient, self.ewgs_delta)

    def _deployed(self, x: Tensor) -> Tensor:
        quantization = self.quantization()
        low, high = self.levels()
        if self._source[0] is None:
            steps = (x / quantization.scale).round_().clamp_(low, high)
            return steps.mul_(quantization.scale).to(self.clip.dtype)  # a function's values come in float64
        try:
            accumulator = self._source[0].accumulator(x.detach(), quantization)
        except GraphError as error:
            raise GraphError(error.message, where=f"layer {self.name}", remedy=error.remedy) from None
        multiplier, shift = quantize_multipliers(accumulator.units / quantization.scale)
        by_channel = (1, -1, *[1] * (x.ndim - 2))
        scaled = multiply_by_quantized_multiplier(
            accumulator.integers, multiplier.reshape(by_channel), shift.reshape(by_channel), self.rounding
        )
        # float32 also where a sum came in float64
        stored = torch.from_numpy(scaled).clamp_(low, high).to(x.device, self.clip.dtype)
        return stored.mul_(quantization.scale)

    def observe(self) -> None:
        """Let activations through unrounded from now on, and remember a sample of them."""
        self._observed = []

    def calibrate(self) -> None:
        """Set the clip that minimises the squared error on what was observed, and round from now on."""
        observed, self._observed = self._observed or [], None
        values = torch.cat(observed) if observed else torch.empty(0)
        with torch.no_grad():
            self.clip.fill_(best_clip(values, *self.levels()))

    def extra_repr(self) -> str:
        """Return name, width and sign."""
        return f"{self.name!r}, bits={self.bits}, {'signed' if self.signed else 'unsigned'}"


class InputQuantizer(nn.Module):
    """Rounds the network's input to 8 bits with a zero point: its range is known or observed, never learned.

    Args:
        name: the input's name in the integer graph.
        low: the smallest real value.
        high: the largest; both together with 0 lie in the range.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, name: str, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0))
        self._observing = False
        self.set_range(low, high)

    def set_range(self, low: float, high: float) -> None:
        """Set scale and zero point so that [low, high], extended to hold 0, is covered."""
        low, high = min(low, 0.0), max(high, 0.0)
        self.scale.fill_((high - low) / 255)
        self.zero_point.fill_(int(np.clip(round(-128 - low / max(float(self.scale), 1e-38)), -128, 127)))

    @property
    def rounds_now(self) -> bool:
        """Whether outputs lie on the quantizer's own steps."""
        return not self._observing

    def observe(self) -> None:
        """Let inputs through unrounded from now on."""
        self._observing = True

    def quantization(self) -> Quantization:
        """Return scale, zero point and range as stored.

        Raises:
            GraphError: the range was empty.
        """
        scale = float(self.scale)
        if not scale > 0 or not np.isfinite(scale):
            raise GraphError(
                f"its input quantizer is dead: scale {scale}",
                where=f"input {self.name}",
                remedy="Calibrate on samples that are not all zero",
            )
        return Quantization(scale, int(self.zero_point), -128, 127)

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> the same; no gradient."""
        if self._observing:
            return x
        with torch.no_grad():
            steps = (x / self.scale).round_()
            return steps.clamp_(-128 - self.zero_point, 127 - self.zero_point).mul_(self.scale)


def best_clip(values: Tensor, low: int, high: int) -> float:
    """Return the clip c that minimises the mean squared error of rounding with the step c / high.

    Args:
        values: observed activations, any shape; none, or only zeros, give 0, which `quantization` refuses.
        low: the lowest output in steps.
        high: the highest.
    """
    values = values.flatten().float()
    largest = float(values.abs().max()) if values.numel() else 0.0
    if not largest > 0:
        return 0.0
    best, least = largest, float("inf")
    for index in range(_CLIP_CANDIDATES):
        clip = largest * 0.96**index
        step = clip / high
        error = float((values - (values / step).round_().clamp_(low, high).mul_(step)).square_().mean())
        if error < least:
            best, least = clip, error
    return best


@contextmanager
def calibrating(module: nn.Module) -> Iterator[None]:
    """Let every activation quantizer in `module` observe inside the context and set its clip at the end."""
    quantizers = [part for part in module.modules() if isinstance(part, ActivationQuantizer)]
    for quantizer in quantizers:
        quantizer.observe()
    yield
    for quantizer in quantizers:
        quantizer.calibrate()


def _thin(values: Tensor) -> Tensor:
    """Return fewer than 2 * `_KEPT_VALUES` of the values, evenly spaced, and the extreme ones."""
    flat = values.flatten()
    stride = max(1, flat.numel() // _KEPT_VALUES)
    return torch.cat([flat[::stride], flat.min().view(1), flat.max().view(1)]).float()
