"""Layers of a prepared module that work on stored integers: products, functions, and what moves channels or pixels.

In evaluation they compute what the integer graph's operators compute before they requantize; in training, real numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.stages.quantization.layers import StoresIntegers
from kdpipe.targets.graph import ChannelShuffle as GraphChannelShuffle
from kdpipe.targets.graph import Concat, Lookup, Mul, Operator, Pair, Slice
from kdpipe.targets.graph import Upsample as GraphUpsample
from kdpipe.targets.lookup import FUNCTIONS

_FUNCTIONS = {
    "hard_sigmoid": F.hardsigmoid,
    "hard_swish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
}
NOT_NEGATIVE = ("hard_sigmoid", "sigmoid")
"""Functions whose output needs no sign."""


class Function(nn.Module):
    """f(x); in evaluation exactly, in float64, of what the stored integers stand for.

    Args:
        name: of `kdpipe.targets.lookup.FUNCTIONS`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        # In a tuple, so that it is not registered as a submodule a second time.
        self._source: tuple[StoresIntegers, ...] = ()

    def read_from(self, source: StoresIntegers) -> None:
        """Set the quantizer of the input."""
        self._source = (source,)

    def integer_operator(self) -> Operator:
        """Return the integer graph's operator."""
        return Lookup(self.name)

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> the same; in evaluation float64."""
        if self.training or not self._source or not self._source[0].rounds_now:
            return _FUNCTIONS[self.name](x)
        scale = self._source[0].quantization().scale
        real = scale * (x.detach().double() / scale).round_()
        return torch.from_numpy(FUNCTIONS[self.name](real.cpu().numpy())).to(x.device)

    def extra_repr(self) -> str:
        """Return the function's name."""
        return repr(self.name)


class Product(nn.Module):
    """a * b; b has a's shape or [B, C, 1, 1]. In evaluation the integer product, in float64.

    Args:
        first: the quantizer of a's integers.
        second: the quantizer of b's integers.
    """

    def __init__(self, first: StoresIntegers, second: StoresIntegers) -> None:
        super().__init__()
        # In a tuple, so that they are not registered as submodules a second time.
        self._sources = (first, second)

    def unit(self) -> float:
        """Return what one unit of the integer product stands for: s_1 * s_2."""
        first, second = (source.quantization().scale for source in self._sources)
        return first * second

    def integer_operator(self) -> Operator:
        """Return the integer graph's operator."""
        return Mul()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two of [B, ...] -> the first's shape."""
        if self.training or not all(source.rounds_now for source in self._sources):
            return a * b
        steps = [
            (value.double() / source.quantization().scale).round_()
            for value, source in zip((a, b), self._sources, strict=True)
        ]
        return (steps[0] * steps[1]).mul_(self.unit())


class Concatenation(nn.Module):
    """The channels of several tensors, one after the other; the quantizer behind it brings them to one scale."""

    def integer_operator(self) -> Operator:
        """Return the integer graph's operator."""
        return Concat()

    def forward(self, *parts: Tensor) -> Tensor:
        """[B, C_k, ...] each -> [B, sum of C_k, ...]."""
        return torch.cat(parts, 1)


class ChannelSlice(nn.Module):
    """Channels start to stop - 1."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def rearrangement(self) -> Operator:
        """Return the integer graph's operator."""
        return Slice(self.start, self.stop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> [B, stop - start, ...]."""
        return x[:, self.start : self.stop]


class ChannelShuffle(nn.Module):
    """The first channel of every group, then the second of every group, and so on (arXiv:1707.01083)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def rearrangement(self) -> Operator:
        """Return the integer graph's operator."""
        return GraphChannelShuffle(self.groups)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class Upsample(nn.Module):
    """Nearest neighbour by whole factors.

    Args:
        factor: (vertical, horizontal).
    """

    def __init__(self, factor: Pair) -> None:
        super().__init__()
        self.factor = factor

    def rearrangement(self) -> Operator:
        """Return the integer graph's operator."""
        return GraphUpsample(self.factor)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H * vertical, W * horizontal]."""
        return x.repeat_interleave(self.factor[0], 2).repeat_interleave(self.factor[1], 3)


class StochasticDepth(nn.Module):
    """In training, drops a whole branch of a random image and scales up the others; nothing in evaluation.

    Source: Huang et al. 2016, arXiv:1603.09382.

    Args:
        probability: of dropping.
        by_image: draw for each image; otherwise once a batch.
    """

    def __init__(self, probability: float, by_image: bool = True) -> None:
        super().__init__()
        self.probability = probability
        self.by_image = by_image

    @property
    def only_in_training(self) -> bool:
        """Whether evaluation returns the input as it is."""
        return True

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> the same."""
        if not self.training or self.probability == 0:
            return x
        kept = 1.0 - self.probability
        mask = x.new_empty([len(x) if self.by_image else 1, *[1] * (x.ndim - 1)]).bernoulli_(kept)
        return x * (mask.div_(kept) if kept > 0 else mask)


REARRANGEMENTS = (ChannelSlice, ChannelShuffle, Upsample)
