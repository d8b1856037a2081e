"""Softmax in a prepared module: in evaluation the integer graph's, to the bit."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from kdpipe.stages.quantization.layers import StoresIntegers
from kdpipe.targets import graph
from kdpipe.targets.graph import PROBABILITIES, Operator, Quantization
from kdpipe.targets.softmax import softmax


class Softmax(nn.Module):
    """exp(x) / sum exp(x) over the channels."""

    def __init__(self) -> None:
        super().__init__()
        # In a tuple, so that it is not registered as a submodule a second time.
        self._source: tuple[StoresIntegers, ...] = ()

    def read_from(self, source: StoresIntegers) -> None:
        """Set the quantizer of the input."""
        self._source = (source,)

    def integer_operator(self) -> Operator:
        """Return the integer graph's operator."""
        return graph.Softmax()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> the same; in evaluation multiples of 1/256."""
        if self.training or not self._source or not self._source[0].rounds_now:
            return torch.softmax(x, 1)
        scale = self._source[0].quantization().scale
        # The zero point is left out: only differences count.
        steps = (x.detach().double() / scale).round_().to(torch.int64).cpu().numpy()
        stored = softmax(steps, scale).astype(np.float32) - np.float32(PROBABILITIES.zero_point)
        return torch.from_numpy(stored * np.float32(PROBABILITIES.scale)).to(x.device, x.dtype)


class ProbabilityQuantizer(nn.Module):
    """Rounds a Softmax's output to 8 bits, in steps that are known: 1/256 from 0 up.

    Args:
        name: the tensor's name in the integer graph.
    """

    bits = PROBABILITIES.bits
    signed = False

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._observing = False

    @property
    def rounds_now(self) -> bool:
        """Whether outputs lie on the quantizer's own steps."""
        return not self._observing

    def observe(self) -> None:
        """Let inputs through unrounded from now on."""
        self._observing = True

    def quantization(self) -> Quantization:
        """Return scale, zero point and range as stored."""
        return PROBABILITIES

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> the same; the gradient is that of the input."""
        if self._observing:
            return x
        steps = (x.detach() * 256).round_().clamp_(max=255)
        return x + (steps.div_(256) - x.detach())
