"""What stands before a quantizer in integer arithmetic, and the integers that it requantizes.

A prepared module computes with real numbers, also in evaluation; these classes find the accumulator of the integer
graph again: the numbers that the fixed point of `kdpipe.targets.fixed_point` brings to the quantizer's steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdpipe.stages.quantization.layers import StoresIntegers, Sum
from kdpipe.stages.quantization.stored_operations import Product
from kdpipe.stages.quantization.weights import QuantizedConv2d, QuantizedLinear
from kdpipe.targets.absorption import absorb, batch_norm_line
from kdpipe.targets.graph import Quantization


@dataclass(frozen=True)
class Accumulator:
    """What integer hardware requantizes.

    Args:
        integers: int64 [B, O, ...].
        units: what one unit stands for: float64 [O], or [1] for all channels.
    """

    integers: NDArray[np.int64]
    units: NDArray[np.float64]


class Source(Protocol):
    """What stands before a quantizer in integer arithmetic."""

    def accumulator(self, real: Tensor, output: Quantization) -> Accumulator:
        """Return the integers that `real [B, O, ...]` was computed from, given what they are requantized to."""
        ...


@dataclass(frozen=True)
class LayerSource:
    """A quantized convolution or linear layer, the batch norm after it if any, and the quantizer of its input."""

    layer: QuantizedConv2d | QuantizedLinear
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None
    input: StoresIntegers

    def accumulator(self, real: Tensor, output: Quantization) -> Accumulator:
        """Undo gain and offset, then flip signs and add the bias as the lowered layer does."""
        weight, steps, _ = self.layer.integer_weight()
        values, scales = weight.cpu().numpy(), steps.cpu().numpy()
        bias = self.layer.bias
        gain, offset = np.ones(len(values)), np.zeros(len(values))
        if bias is not None:
            offset = bias.detach().double().cpu().numpy()
        if self.norm is not None:
            gain, shift = batch_norm_line(self.norm)
            offset = gain * offset + shift
        source = self.input.quantization()
        channels = absorb(values, scales, gain, offset, source, output)
        trained = source.scale * scales.astype(np.float64) * gain
        trained[channels.signs == 0] = 1.0
        by_channel = (1, -1, *[1] * (real.ndim - 2))
        products = (real.double().cpu().numpy() - offset.reshape(by_channel)) / trained.reshape(by_channel)
        integers = np.rint(products).astype(np.int64) * channels.signs.astype(np.int64).reshape(by_channel)
        return Accumulator(
            integers + channels.bias.astype(np.int64).reshape(by_channel),
            source.scale * channels.scales.astype(np.float64),
        )


@dataclass(frozen=True)
class StoredSource:
    """A tensor that is stored already, with another quantization."""

    input: StoresIntegers

    def accumulator(self, real: Tensor, output: Quantization) -> Accumulator:
        """Return the stored integers without their zero point."""
        return _in_units(real, self.input.quantization().scale)


@dataclass(frozen=True)
class OperationSource:
    """A sum or a product of two stored tensors."""

    operation: Sum | Product

    def accumulator(self, real: Tensor, output: Quantization) -> Accumulator:
        """Return the integer sum or product."""
        return _in_units(real, self.operation.unit())


@dataclass(frozen=True)
class ConcatenationSource:
    """Stored tensors whose channels lie one after the other.

    Args:
        parts: for each tensor the quantizer of its integers and its number of channels.
    """

    parts: tuple[tuple[StoresIntegers, int], ...]

    def accumulator(self, real: Tensor, output: Quantization) -> Accumulator:
        """Return the stored integers without their zero points."""
        units = np.concatenate([np.full(count, part.quantization().scale) for part, count in self.parts])
        scales = torch.from_numpy(units).to(real.device).view(1, -1, *[1] * (real.ndim - 2))
        return Accumulator((real.double() / scales).round_().to(torch.int64).cpu().numpy(), units)


def _in_units(real: Tensor, unit: float) -> Accumulator:
    return Accumulator((real.double() / unit).round_().to(torch.int64).cpu().numpy(), np.array([unit]))
