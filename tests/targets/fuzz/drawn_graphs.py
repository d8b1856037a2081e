"""Integer graphs, extremes among them, and the inputs to run them on.

Which operators there are, and how each is drawn, stands in `random_graphs.py` alone: an operator added there is fuzzed.
Here its numbers are picked one by one, so that a graph that fails shrinks to a small one, and widths, windows, zero
points, scales, weights and biases go to their ends.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from fuzz.examples import Pick
from numpy.typing import NDArray
from random_graphs import OPERATORS, GraphBuilder

from kdpipe.targets.fixed_point import INT32_MAX
from kdpipe.targets.graph import Conv2d, IntegerGraph, Linear, Padding, Pair, Quantization, Weight, accumulator_bound

SMALLEST_SCALE, LARGEST_SCALE = 5e-8, 2.0**24
"""OpenVINO refuses steps a little smaller, and products of larger ones leave float32 after a few layers."""


class DrawnNumbers:
    """What `GraphBuilder` asks of a NumPy generator, made of single integers: arrays from a seed that is picked."""

    def __init__(self, pick: Pick) -> None:
        self._pick = pick

    def integers(self, low: int, high: int, size: Any = None) -> Any:
        return self._pick(low, high - 1) if size is None else self._generator().integers(low, high, size)

    def random(self) -> float:
        # Shrinks to the largest, with which what is rare does not happen.
        return 1 - self._pick(1, 100) / 100

    def uniform(self, low: float, high: float, size: Any = None) -> Any:
        if size is not None:
            return self._generator().uniform(low, high, size)
        return low + (high - low) * self._pick(0, 256) / 256

    def choice(self, options: Sequence[Any]) -> Any:
        return options[self._pick(0, len(options) - 1)]

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng(self._pick(0, 2**16))


class ExtremeGraphBuilder(GraphBuilder):
    """As its base, where nothing rare is drawn; else with what lies at the ends of what a graph may have."""

    def is_rare(self, probability: float = 0.15) -> bool:
        return bool(self.rng.random() < probability)

    def quantization(self, reach: float) -> Quantization:
        drawn = super().quantization(reach)
        if self.is_rare():
            bits = self.draw(1, 8)
            qmin = self.draw(-128, 128 - 2**bits)
            drawn = replace(drawn, qmin=qmin, qmax=qmin + 2**bits - 1, zero_point=qmin)
        if self.is_rare():
            drawn = replace(drawn, zero_point=int(self.rng.choice((drawn.qmin, drawn.qmax))))
        scale = drawn.scale
        if self.is_rare(0.1):
            # From where everything saturates to where everything rounds to the zero point.
            scale *= 2.0 ** self.draw(-6, 34)
        return replace(drawn, scale=float(np.float32(np.clip(scale, SMALLEST_SCALE, LARGEST_SCALE))))

    def weight(self, *shape: int) -> Weight:
        drawn = super().weight(*shape)
        values, scales = drawn.values, drawn.scales
        limit = 2 ** (drawn.bits - 1) - 1
        if self.is_rare(0.25):
            signs = np.where(np.arange(values.size).reshape(shape) % 2, -1, 1)
            kinds = {
                "largest": np.full(shape, limit),
                "smallest": np.full(shape, -limit),
                "alternating": limit * signs,
                "zero": np.zeros(shape),
                "limits": limit * np.sign(values),
                "sparse": values * (self.rng.integers(0, 4, shape) == 0),
            }
            values = kinds[str(self.rng.choice(tuple(kinds)))].astype(np.int8)
        if self.is_rare():
            # Some so small that their multiplier is zero, one large.
            scales = scales * 2.0 ** -self.rng.integers(0, self.draw(1, 36) + 1, len(scales)).astype(np.float64)
        return replace(drawn, values=values, scales=scales.astype(np.float32))

    def window(self, height: int, width: int) -> tuple[Pair, Pair, Padding, Pair]:
        if not self.is_rare(0.4):
            return super().window(height, width)
        kernel, stride, dilation, padding = [], [], [], []
        for size in (height, width):
            before, after = self.draw(0, 4), self.draw(0, 4)
            taps = self.draw(1, min(5, size + before + after))
            widest = (size + before + after - 1) // (taps - 1) if taps > 1 else 3
            kernel.append(taps)
            dilation.append(self.draw(1, min(3, widest)))
            stride.append(self.draw(1, 3))
            padding.append((before, after))
        (top, bottom), (left, right) = padding
        return tuple(kernel), tuple(stride), (top, left, bottom, right), tuple(dilation)  # type: ignore[return-value]

    def grouped(self) -> None:
        channels = self.shape[0]
        groups = int(self.rng.choice([groups for groups in range(1, channels + 1) if channels % groups == 0]))
        self.convolve(groups * self.draw(1, 3), groups)

    def accumulate(self, op: Conv2d | Linear, shape: tuple[int, ...]) -> None:
        if not self.is_rare(0.1):
            super().accumulate(op, shape)
            return
        source = self.types[self.current].quantization
        plain = replace(op, bias=np.zeros_like(op.bias))
        room = INT32_MAX - accumulator_bound(plain, source)
        signs = self.rng.integers(-1, 2, len(op.bias))
        reach = self.reach(op.weight)
        if self.coin():
            # Steps so large that a bias at the accumulator's limit is not beyond the output's.
            reach = room * float(source.scale * op.weight.scales.astype(np.float64).max())
        output = self.quantization(reach)
        largest = max(source.scale * float(scale) / output.scale for scale in op.weight.scales)
        room = (INT32_MAX >> max(0, math.frexp(largest)[1])) - accumulator_bound(plain, source)
        bias = signs * max(room, 0)
        self.add(replace(op, bias=bias.astype(np.int32)), (self.current,), shape, output)


def build_graph(pick: Pick) -> IntegerGraph:
    """Return a small graph over all operators, widths, windows, scales and both roundings.

    Raises:
        GraphError: a factor is too large, or an accumulator could overflow: the graph's own checks refuse it.
    """
    rounding = ("single", "tflite")[pick(0, 1)]
    depth = pick(1, 4)
    shape = (pick(1, 8), pick(1, 9), pick(1, 9))
    builder = ExtremeGraphBuilder(DrawnNumbers(pick), (2, 3, 4, 8), True, channel_step=(1, 4)[pick(0, 1)])
    return builder.build("net", rounding, OPERATORS, depth, shape)


def fuzz_inputs(graph: IntegerGraph) -> NDArray[np.int8]:
    """Return stored integers [8, *shape]: all smallest, all largest, the two alternating, all zero, and four random."""
    limits, shape = graph.input.quantization, graph.input.shape
    parity = np.indices(shape).sum(axis=0) % 2 == 0
    extremes = [
        np.full(shape, limits.qmin),
        np.full(shape, limits.qmax),
        np.where(parity, limits.qmin, limits.qmax),
        np.full(shape, limits.zero_point),
    ]
    drawn = np.random.default_rng(0).integers(limits.qmin, limits.qmax + 1, (4, *shape))
    return np.concatenate([np.stack(extremes), drawn]).astype(np.int8)
