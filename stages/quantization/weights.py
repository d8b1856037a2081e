"""Weight quantizers: ternary (2 bits), 3, 4 and 8 bits, symmetric, with one step for each output channel or layer.

    Q(w) = sign(w) * D * min(floor(|w| / D + 1/2), M),  M = 2**(b - 1) - 1

so that 2 bits give {-D, 0, D}. The step D minimises ||w - Q(w)||^2 over the channel (Hwang and Sung 2014, "Fixed-point
feedforward deep neural network design using weights +1, 0, and -1"), or is learned (LSQ). The gradients are in
`kdpipe.stages.quantization.fake_quantize`; the plain one is straight-through: the float weights behind Q receive the
gradient of Q(w) unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kdpipe.stages.quantization.fake_quantize import RoundWeights, StepOfRange, WeightGradient, to_steps
from kdpipe.stages.quantization.layers import StoresIntegers
from kdpipe.targets.errors import UnsupportedError
from kdpipe.targets.graph import WEIGHT_BITS

CALIBRATION_ROUNDS = 20
EXACT_IN_FLOAT32 = 2**24
LEAST_REACH = 0.01
"""The least that a learned range reaches, as a share of the largest weight."""


def weight_limit(bits: int) -> int:
    """Return M, the largest stored weight at `bits` bits."""
    return int(2 ** (bits - 1) - 1)


def ternary_step(weight: Tensor) -> Tensor:
    """Return the step that minimises ||w - Q(w)||^2 among all ternary Q, exactly, for each row.

    With the k largest |w| kept, D is their mean S_k / k and the error ||w||^2 - S_k^2 / k; so the best k maximises
    S_k^2 / k, and a sort finds it.

    Args:
        weight: [O, K].

    Returns:
        [O, 1], positive: a row of zeros gets 1, which represents it as well as any step.
    """
    sums = weight.abs().sort(dim=1, descending=True).values.cumsum(dim=1)
    counts = torch.arange(1, weight.shape[1] + 1, dtype=weight.dtype, device=weight.device)
    best = (sums.square() / counts).argmax(dim=1, keepdim=True)
    return _positive(sums.gather(1, best) / counts[best])


def refine_step(weight: Tensor, step: Tensor, limit: int, rounds: int = 1) -> Tensor:
    """Lower ||w - Q(w)||^2 by alternation: q = to_steps(w, D), then D = sum(w q) / sum(q^2).

    Args:
        weight: [O, K].
        step: where to start, [O, 1], positive.
        limit: M.
        rounds: how often.

    Returns:
        [O, 1], positive. A row of which every weight rounds to zero keeps its step.
    """
    for _ in range(rounds):
        q = to_steps(weight, step, limit)
        energy = q.square().sum(dim=1, keepdim=True)
        step = torch.where(energy > 0, (weight * q).sum(dim=1, keepdim=True) / energy.clamp(min=1), step)
    return step


def optimal_step(weight: Tensor, bits: int) -> Tensor:
    """Return the L2-optimal step for each row of `weight [O, K]` as [O, 1]: exact at 2 bits, by alternation above.

    The alternation starts from the step that reaches the largest weight, and from smaller ones that clip it, and
    keeps the best.
    """
    if bits == 2:
        return ternary_step(weight)
    limit = weight_limit(bits)
    widest = weight.abs().amax(dim=1, keepdim=True) / limit
    best, least = _positive(widest), None
    for shrink in (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        step = refine_step(weight, _positive(widest * shrink), limit, CALIBRATION_ROUNDS)
        error = (weight - to_steps(weight, step, limit) * step).square().sum(dim=1, keepdim=True)
        if least is None:
            best, least = step, error
        else:
            best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    return best


def _positive(step: Tensor) -> Tensor:
    return torch.where(step > 0, step, torch.ones_like(step))


@dataclass(frozen=True)
class WeightTraining:
    """How steps and weights are trained.

    Args:
        gradient: straight-through, lsq (which learns the steps) or ewgs.
        scales: a step for each output `channel`, or one for the `layer`.
        ewgs_delta: EWGS's delta.
    """

    gradient: WeightGradient = "straight-through"
    scales: Literal["channel", "layer"] = "channel"
    ewgs_delta: float = 1e-3


DEFAULT_TRAINING = WeightTraining()


class WeightQuantizer(nn.Module):
    """Q(w) with steps that follow the weights during training, or learn (LSQ).

    In training each call takes one round of the alternation from the last step: the weights move little between two
    calls, so it stays at the optimum without being solved anew. What LSQ learns is the range's end M * D, which is a
    parameter of one dimension, so that no weight decay pulls at it.

    Args:
        channels: output channels.
        bits: 2, 3, 4 or 8.
        training: of steps and weights.

    Raises:
        UnsupportedError: another width.
    """

    step: Tensor

    def __init__(self, channels: int, bits: int, training: WeightTraining = DEFAULT_TRAINING) -> None:
        super().__init__()
        self.channels = channels
        self.set_bits(bits)
        self.how = training
        self.follow = True
        rows = channels if training.scales == "channel" else 1
        if training.gradient == "lsq":
            self.reach = nn.Parameter(torch.ones(rows))
        else:
            self.register_buffer("step", torch.ones(rows, 1))

    def set_bits(self, bits: int) -> None:
        """Change the width; calibrate afterwards."""
        if bits not in WEIGHT_BITS:
            raise UnsupportedError(f"weights of {bits} bits are not supported", remedy=f"Use one of {WEIGHT_BITS}")
        self.bits = bits

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """Set the optimal step for `weight [O, ...]`."""
        step = optimal_step(self._rows(weight), self.bits)
        if self.how.gradient == "lsq":
            self.reach.copy_((step * weight_limit(self.bits)).flatten())
        else:
            self.step.copy_(step)

    def forward(self, weight: Tensor) -> Tensor:
        """[O, ...] -> [O, ...], laid out in memory alike."""
        if weight.dim() == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last):
            # a view: the order of a row's weights does not matter
            return self.forward(weight.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        limit = weight_limit(self.bits)
        rows = self._rows(weight)
        if self.how.gradient == "lsq":
            if self.training and self.follow:
                self._keep_alive(rows.detach())
            step = StepOfRange.apply(self.reach, limit).unsqueeze(1)
        else:
            if self.training and self.follow:
                with torch.no_grad():
                    self.step.copy_(refine_step(rows.detach(), self.step, limit))
            step = self.step.clone()
        return RoundWeights.apply(rows, step, limit, self.how.gradient, self.how.ewgs_delta).view_as(weight)

    @torch.no_grad()
    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is stored for `weight [O, ...]`: int8 of its shape, and the steps, float32 [O]."""
        limit = weight_limit(self.bits)
        step = self.reach.unsqueeze(1) / limit if self.how.gradient == "lsq" else self.step
        q = to_steps(self._rows(weight), step, limit)
        return q.view_as(weight).to(torch.int8), step.flatten().to(torch.float32).expand(self.channels).contiguous()

    def extra_repr(self) -> str:
        """Return the width."""
        return f"bits={self.bits}"

    def _rows(self, weight: Tensor) -> Tensor:
        return weight.flatten(1) if self.how.scales == "channel" else weight.reshape(1, -1)

    @torch.no_grad()
    def _keep_alive(self, rows: Tensor) -> None:
        """Let no learned range fall to zero or below, from where no gradient would lead back."""
        least = LEAST_REACH * rows.abs().amax(dim=1)
        self.reach.copy_(torch.where(self.reach > least, self.reach, _positive(least)))


class _Quantized:
    """What quantized layers share: integer weights, and in evaluation integer arithmetic on them."""

    weight: Tensor
    bias: Tensor | None
    training: bool
    weight_quantizer: WeightQuantizer
    _source: tuple[StoresIntegers, ...] = ()

    def read_from(self, source: StoresIntegers) -> None:
        """Set the quantizer of the layer's input."""
        # In a tuple, so that it is not registered as a submodule a second time.
        self._source = (source,)

    def integer_weight(self) -> tuple[Tensor, Tensor, int]:
        """Return int8 weights, float32 scales [O], and the width."""
        values, scales = self.weight_quantizer.integers(self.weight)
        return values, scales, self.weight_quantizer.bits

    @property
    def computes_integers(self) -> bool:
        """Whether a call computes exact accumulators now: in evaluation, behind a quantizer that rounds."""
        return not self.training and bool(self._source) and self._source[0].rounds_now

    @torch.no_grad()
    def _accumulate(self, x: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return s_in * s_w * acc + bias in float64, acc being exact; without gradient."""
        source = self._source[0].quantization()
        values, scales, _ = self.integer_weight()
        reach = max(source.qmax - source.zero_point, source.zero_point - source.qmin)
        bound = reach * int(values.flatten(1).abs().sum(dim=1, dtype=torch.int64).max())
        dtype = torch.float32 if bound < EXACT_IN_FLOAT32 else torch.float64
        steps = (x.double() / source.scale).round_().to(dtype)
        # rounded, because a fast algorithm (Winograd) is only nearly exact
        accumulator = multiply(steps, values.to(dtype)).double().round_()
        by_channel = (1, -1, *[1] * (accumulator.ndim - 2))
        real = accumulator.mul_((source.scale * scales.double()).view(by_channel))
        return real if self.bias is None else real.add_(self.bias.double().view(by_channel))


class QuantizedConv2d(_Quantized, nn.Conv2d):
    """A convolution computed with Q(weight). Its parameters have the names that nn.Conv2d gives them."""

    weight_quantizer: WeightQuantizer

    @classmethod
    def of(cls, layer: nn.Conv2d, bits: int, training: WeightTraining = DEFAULT_TRAINING) -> QuantizedConv2d:
        """Return a copy of `layer` with its weights, at `bits` bits."""
        quantized = cls(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            layer.bias is not None,
            layer.padding_mode,
            device="meta",
        )
        quantized.weight, quantized.bias = layer.weight, layer.bias
        quantized.weight_quantizer = WeightQuantizer(layer.out_channels, bits, training).to(layer.weight.device)
        quantized.weight_quantizer.calibrate(layer.weight)
        return quantized.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, O, H', W']; in evaluation float64, see `_accumulate`."""
        if self.computes_integers:
            return self._accumulate(input, lambda x, weight: self._conv_forward(x, weight, None))
        return self._conv_forward(input, self.weight_quantizer(self.weight), self.bias)


class QuantizedLinear(_Quantized, nn.Linear):
    """A linear layer computed with Q(weight). Its parameters have the names that nn.Linear gives them."""

    weight_quantizer: WeightQuantizer

    @classmethod
    def of(cls, layer: nn.Linear, bits: int, training: WeightTraining = DEFAULT_TRAINING) -> QuantizedLinear:
        """Return a copy of `layer` with its weights, at `bits` bits."""
        quantized = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        quantized.weight, quantized.bias = layer.weight, layer.bias
        quantized.weight_quantizer = WeightQuantizer(layer.out_features, bits, training).to(layer.weight.device)
        quantized.weight_quantizer.calibrate(layer.weight)
        return quantized.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """[B, I] -> [B, O]; in evaluation float64, see `_accumulate`."""
        if self.computes_integers:
            return self._accumulate(input, nn.functional.linear)
        return nn.functional.linear(input, self.weight_quantizer(self.weight), self.bias)
