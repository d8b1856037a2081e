"""What a tensor of a QDQ file is while the file is read: a constant, stored integers, or a real number to be rounded.

QuantizeLinear is where a real tensor becomes stored integers, and so where a node of the integer graph ends. All that
lies between DequantizeLinear and QuantizeLinear is gathered in a `Real`: at most one operator that mixes channels or
tensors, lines y = gain * x + offset by channel, bounds (Relu, Clip), and operators that only choose or move elements
(maximum pooling, flattening). Rounding is monotonous, so the bounds become those of the stored integers, and what
chooses or moves elements does the same to the integers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.absorption import absorb
from kdpipe.targets.errors import GraphError, UnsupportedError
from kdpipe.targets.graph import (
    AveragePool2d,
    ChannelShuffle,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Padding,
    Pair,
    Quantization,
    Slice,
    Upsample,
    Weight,
)
from kdpipe.targets.qdq.onnx_file import Constant

RANGES = {"UINT8": (0, 255), "INT8": (-128, 127), "UINT4": (0, 15), "INT4": (-8, 7), "UINT2": (0, 3), "INT2": (-2, 1)}
"""The element types of stored integers."""
Rearrangement = MaxPool2d | Flatten | Slice | ChannelShuffle | Upsample
"""What only chooses or moves elements."""
WEIGHT_LIMITS = {2: 1, 3: 3, 4: 7, 8: 127}
_SAME_SCALE = 1e-6
"""Two scales that differ by less, relatively, are meant to be one: files store products as float32."""


def offset_of(kind: str) -> int:
    """Return what an element type's integers are above the graph's own: 128 for UINT8, whose values don't fit int8."""
    return 128 if kind == "UINT8" else 0


@dataclass(frozen=True, eq=False)
class Steps:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear.

    Args:
        scales: float64, [] or [channels].
        zero_points: int64, shaped alike, in the file's element type.
        kind: the stored integers' element type in ONNX.
        axis: of the channels; None where there is one scale for all.
    """

    scales: NDArray[np.float64]
    zero_points: NDArray[np.int64]
    kind: str
    axis: int | None

    def spread(self, values: NDArray[np.float64] | NDArray[np.int64], rank: int) -> NDArray[np.float64]:
        """Return `values`, one for each channel, so that they broadcast against a tensor of `rank` axes."""
        shape = [1] * rank
        if self.axis is not None:
            shape[self.axis] = -1
        return np.asarray(values, dtype=np.float64).reshape(shape)

    def by_channel(self) -> tuple[Steps, NDArray[np.float64] | None]:
        """Return one scale for all channels of an activation, the largest, and what that leaves to each channel.

        Raises:
            UnsupportedError: the channels are not those of an activation, or have different zero points.
        """
        if self.axis is None:
            return self, None
        if self.axis != 1 or (self.zero_points != self.zero_points[0]).any():
            raise UnsupportedError(
                "the channels of an activation have different zero points", remedy="Quantize activations per tensor"
            )
        largest = self.scales.max()
        return replace(self, scales=largest, zero_points=self.zero_points[0], axis=None), self.scales / largest

    def of_activation(self) -> Quantization:
        """Return the steps as the graph has them.

        Raises:
            UnsupportedError: there is a scale for each channel, or the integers are wider than 8 bits.
            GraphError: the scale is not positive and finite.
        """
        if self.kind not in RANGES:
            raise UnsupportedError(
                f"activations of type {self.kind} have no integer form", remedy="Quantize activations to 8 bits"
            )
        if self.axis is not None:
            raise UnsupportedError(
                "an activation has a scale for each channel", remedy="Quantize activations per tensor"
            )
        (lowest, highest), offset = RANGES[self.kind], offset_of(self.kind)
        zero_point = int(self.zero_points) - offset
        return Quantization(float(self.scales), zero_point, lowest - offset, highest - offset)


@dataclass(frozen=True, eq=False)
class Dequantized:
    """A constant that was stored as integers: scale * (value - zero point). `values` is int64."""

    values: NDArray[np.int64]
    steps: Steps

    def real(self) -> NDArray[np.float64]:
        """Return the numbers."""
        rank = self.values.ndim
        product: NDArray[np.float64] = self.steps.spread(self.steps.scales, rank) * (
            self.values - self.steps.spread(self.steps.zero_points, rank)
        )
        return product

    def transposed(self, order: tuple[int, ...]) -> Dequantized:
        """Return the constant with its axes in another order."""
        axis = None if self.steps.axis is None else order.index(self.steps.axis)
        return Dequantized(self.values.transpose(order), replace(self.steps, axis=axis))

    def weight(self, channel_axis: int) -> Weight:
        """Return the constant as weights, output channels first, at the narrowest width that holds them.

        Raises:
            UnsupportedError: they are not symmetric, or there is a scale along another axis than the outputs'.
            GraphError: a scale is not positive and finite.
        """
        if self.steps.axis not in (None, channel_axis):
            raise UnsupportedError(
                f"its weights have a scale for each index of axis {self.steps.axis}",
                remedy=f"Quantize them per tensor or along the output channels, axis {channel_axis}",
            )
        rank = self.values.ndim
        centred = self.values - self.steps.spread(self.steps.zero_points, rank).astype(np.int64)
        largest = int(np.abs(centred).max(initial=0))
        if largest > WEIGHT_LIMITS[8]:
            raise UnsupportedError(
                f"its weights lie up to {largest} steps from their zero point, beyond 127",
                remedy="Quantize weights symmetrically to [-127, 127], as signed integers with the zero point 0: "
                "kernels add pairs of products in 16 bits, which -128 overflows (in PyTorch, quant_min=-127)",
            )
        bits = min(bits for bits, limit in WEIGHT_LIMITS.items() if largest <= limit)
        values = np.moveaxis(centred, channel_axis, 0).astype(np.int8)
        with np.errstate(over="ignore"):
            scales = np.broadcast_to(self.steps.scales, values.shape[:1]).astype(np.float32)
        return Weight(np.ascontiguousarray(values), np.ascontiguousarray(scales), bits)


@dataclass(frozen=True)
class Stored:
    """Integers of the graph's tensor `tensor`, which the file stores as the element type `kind`."""

    tensor: str
    kind: str


@dataclass(frozen=True, eq=False)
class Exact:
    """Real numbers that the stored integers of a tensor stand for exactly.

    Args:
        tensor: of the graph.
        factors: what each channel's numbers are to be multiplied by; None where each channel has the tensor's steps.
    """

    tensor: str
    factors: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Sum:
    """The sum of two tensors of one shape."""

    first: str
    second: str


@dataclass(frozen=True)
class Product:
    """The product of two tensors; the second has the first's shape or [C, 1, 1]."""

    first: str
    second: str


@dataclass(frozen=True)
class Function:
    """A function of `lookup.FUNCTIONS` of a tensor."""

    tensor: str
    name: str


@dataclass(frozen=True)
class Probabilities:
    """The softmax of a tensor over its channels."""

    tensor: str


@dataclass(frozen=True)
class Joined:
    """Tensors one after the other along the channels."""

    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Grouped:
    """Channels as [groups, C / groups], on the way to a channel shuffle.

    Args:
        source: name in the file of the tensor that was reshaped.
        shape: of that tensor, without the batch.
        groups: divides its channels.
        is_swapped: whether the two axes have been exchanged.
    """

    source: str
    shape: tuple[int, ...]
    groups: int
    is_swapped: bool = False


@dataclass(frozen=True, eq=False)
class Accumulation:
    """A convolution or linear layer and what was done to its channels: gain * (s_in * scale * acc) + offset.

    Args:
        tensor: what it reads.
        weight: output channels first.
        gain: float64 [O].
        offset: float64 [O], the bias included.
        bias: the bias in units of s_in * scale, int64 [O], where the file has it so and nothing has changed it.
        geometry: stride, padding, dilation and groups of a convolution; None for a linear layer.
        mean: the pooling that this is, should its output keep the input's quantization.
        is_line: whether each channel has a single weight that is not zero and stands for 1, so that any integer will
            do with a scale to match.
    """

    tensor: str
    weight: Weight
    gain: NDArray[np.float64]
    offset: NDArray[np.float64]
    bias: NDArray[np.int64] | None = None
    geometry: tuple[Pair, Padding, Pair, int] | None = None
    mean: AveragePool2d | None = None
    is_line: bool = False

    def line(self, gain: NDArray[np.float64], offset: NDArray[np.float64]) -> Accumulation:
        """Return gain * self + offset."""
        return replace(self, gain=self.gain * gain, offset=self.offset * gain + offset, bias=None, mean=None)

    def estimated_range(self, source: Quantization) -> tuple[float, float]:
        """Return a range that the outputs hardly ever leave, should nobody have measured one.

        It is that of a sum of independent inputs, uniform over their range, eight standard deviations to each side,
        or the sum of the extremes where that is narrower.
        """
        weights = self.weight.values.reshape(len(self.gain), -1).astype(np.float64)
        weights *= (self.gain * self.weight.scales * source.scale)[:, None]
        low, high = source.qmin - source.zero_point, source.qmax - source.zero_point
        lowest = (np.minimum(weights * low, weights * high)).sum(axis=1)
        highest = (np.maximum(weights * low, weights * high)).sum(axis=1)
        mean = weights.sum(axis=1) * (low + high) / 2
        spread = 8 * (high - low) / math.sqrt(12) * np.sqrt((weights**2).sum(axis=1))
        return (
            float((np.maximum(lowest, mean - spread) + self.offset).min()),
            float((np.minimum(highest, mean + spread) + self.offset).max()),
        )

    def _finest_line(self, source: Quantization) -> Weight:
        """Return the weights of a line with those integers in whose units the bias loses least by rounding.

        With the weight w the bias is in units of s_in * |gain| / w, so that of 127 units one nearly divides it.
        """
        integers = np.arange(1, WEIGHT_LIMITS[8] + 1)
        wanted = self.offset / (source.scale * np.maximum(np.abs(self.gain), np.finfo(np.float32).tiny))
        biases = wanted[:, None] * integers
        chosen = integers[(np.abs(biases - np.rint(biases)) / integers).argmin(axis=1)]
        shape = (-1, *[1] * (self.weight.values.ndim - 1))
        values = ((self.weight.values != 0) * chosen.reshape(shape)).astype(np.int8)
        return Weight(values, (1 / chosen).astype(np.float32), self.weight.bits)

    def operator(self, source: Quantization, output: Quantization) -> Conv2d | Linear | AveragePool2d:
        """Return the operator that rounds this to `output`.

        Raises:
            GraphError: a value is not finite, or the bias leaves int32.
        """
        if self.mean is not None and source == output:
            return self.mean
        if self.bias is not None and np.abs(self.bias).max(initial=0) < 2**31:
            weight, bias = self.weight, self.bias.astype(np.int32)
        else:
            given = self._finest_line(source) if self.is_line else self.weight
            channels = absorb(given.values, given.scales, self.gain, self.offset, source, output)
            signs = channels.signs.reshape(-1, *[1] * (given.values.ndim - 1))
            weight = Weight(np.ascontiguousarray(given.values * signs), channels.scales, given.bits)
            bias = channels.bias
        return Linear(weight, bias) if self.geometry is None else Conv2d(weight, bias, *self.geometry)


@dataclass(frozen=True, eq=False)
class Real:
    """A real tensor on its way to QuantizeLinear: `what`, then the bounds, then `after`.

    Args:
        what: how it comes from stored tensors.
        name: of the layer that it will be.
        shape: without the batch.
        low: lower bound, -inf without one.
        high: upper bound, inf without one.
        after: what chooses or moves elements: name, operator and the shape before it.
        factors: what each channel has been divided by, where channels have scales of their own.
    """

    what: Exact | Sum | Product | Function | Probabilities | Joined | Accumulation
    name: str
    shape: tuple[int, ...]
    low: float = -math.inf
    high: float = math.inf
    after: tuple[tuple[str, Rearrangement, tuple[int, ...]], ...] = ()
    factors: NDArray[np.float64] | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether a Relu or Clip has been applied."""
        return self.low > -math.inf or self.high < math.inf

    def clipped(self, low: float, high: float) -> Real:
        """Return min(max(self, low), high)."""
        return replace(self, low=min(max(self.low, low), high), high=max(min(self.high, high), low))

    def limits(self, quantization: Quantization) -> Quantization:
        """Return `quantization` with the range that the bounds leave of it.

        Raises:
            UnsupportedError: the bounds leave out 0.
            GraphError: they leave a single stored integer.
        """

        def stored(bound: float) -> int:
            steps = np.rint(bound / quantization.scale) + quantization.zero_point
            return int(np.clip(steps, quantization.qmin, quantization.qmax))

        if not self.low <= 0 <= self.high:
            raise UnsupportedError(
                f"its bounds, {self.low:g} and {self.high:g}, leave out 0", remedy="Use bounds around 0, as ReLU6 does"
            )
        qmin, qmax = stored(self.low), stored(self.high)
        if qmin >= qmax:
            raise GraphError("its bounds leave a single value", remedy="Check the scale of its output")
        return replace(quantization, qmin=qmin, qmax=qmax)


Value = Constant | Dequantized | Stored | Real | Grouped


def integer_bias(bias: Dequantized, source: Quantization, weight: Weight) -> NDArray[np.int64] | None:
    """Return a bias's integers if they are in units of s_in * w.scales, or None."""
    units = source.scale * weight.scales.astype(np.float64)
    if bias.values.shape != units.shape or bias.steps.zero_points.any():
        return None
    if not np.allclose(bias.steps.scales, units, rtol=_SAME_SCALE, atol=0):
        return None
    return bias.values
