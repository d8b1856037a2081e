"""Random integer graphs: what exporters, kernels and the reference are compared on."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.graph import (
    PROBABILITIES,
    Add,
    AveragePool2d,
    ChannelShuffle,
    Concat,
    Conv2d,
    Flatten,
    IntegerGraph,
    Linear,
    Lookup,
    MaxPool2d,
    Mul,
    Node,
    Normalization,
    Operator,
    Padding,
    Pair,
    Quantization,
    Requantize,
    Slice,
    Softmax,
    TensorType,
    Upsample,
    Weight,
    convolution_output_size,
)
from kdpipe.targets.lookup import FUNCTIONS

OPERATORS = (
    *("conv", "grouped", "depthwise", "residual", "max_pool", "average_pool", "requantize"),
    *("product", "squeeze_excite", "lookup", "concat", "slice", "channel_shuffle", "upsample", "softmax"),
)

SMALLEST_REACH = 4e-6
"""What keeps a chain of small weights, or of zeros, above the steps that OpenVINO computes rightly."""


def random_inputs(graph: IntegerGraph, count: int, seed: int = 0) -> NDArray[np.int8]:
    """Return stored integers over the whole of the input's range, int8 [count, *shape]."""
    quantization = graph.input.quantization
    rng = np.random.default_rng(seed)
    return rng.integers(quantization.qmin, quantization.qmax + 1, (count, *graph.input.shape)).astype(np.int8)


def random_graph(
    seed: int,
    *,
    rounding: str = "tflite",
    weight_bits: tuple[int, ...] = (2, 3, 4, 8),
    operators: tuple[str, ...] = OPERATORS,
    narrow: bool = True,
    depth: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    channel_step: int = 1,
) -> IntegerGraph:
    """Return a small network that depends on nothing but the arguments.

    Args:
        seed: of everything that is drawn.
        rounding: of the graph.
        weight_bits: widths to draw from, layer by layer.
        operators: what to draw the convolutional part from, of `OPERATORS`. The end is always a Flatten and a
            Linear, with or without a global mean before them.
        narrow: whether activations may have fewer than 8 bits.
        depth: number of draws for the convolutional part; drawn from 2 to 5 if None.
        input_shape: [C, H, W]; drawn if None.
        channel_step: what convolutions' output channels are multiples of.
    """
    builder = GraphBuilder(np.random.default_rng(seed), weight_bits, narrow, channel_step)
    return builder.build(f"random_{seed}", rounding, operators, depth, input_shape)


class GraphBuilder:
    """Draws one graph.

    Args:
        rng: a NumPy generator, or anything that has its `integers`, `random`, `uniform` and `choice`.
        weight_bits: as of `random_graph`; likewise the others.
    """

    def __init__(self, rng: Any, weight_bits: tuple[int, ...], narrow: bool, channel_step: int) -> None:
        self.channel_step = channel_step
        self.rng = rng
        self.weight_bits = weight_bits
        self.narrow = narrow
        self.nodes: list[Node] = []
        self.types: dict[str, TensorType] = {}
        self.current = "input"

    def build(
        self,
        name: str,
        rounding: str,
        operators: tuple[str, ...],
        depth: int | None,
        input_shape: tuple[int, int, int] | None,
    ) -> IntegerGraph:
        shape = input_shape or (self.draw(1, 4), self.draw(5, 12), self.draw(5, 12))
        source = TensorType(shape, self.quantization(0.03))
        self.types["input"] = source
        steps: dict[str, Callable[[], None]] = {
            "conv": self.conv,
            "grouped": self.grouped,
            "depthwise": self.depthwise,
            "residual": self.residual,
            "max_pool": self.max_pool,
            "average_pool": self.average_pool,
            "requantize": self.requantize,
            "product": self.product,
            "squeeze_excite": self.squeeze_excite,
            "lookup": self.lookup,
            "concat": self.concat,
            "slice": self.slice,
            "channel_shuffle": self.channel_shuffle,
            "upsample": self.upsample,
            "softmax": self.softmax,
        }
        for _ in range(depth or self.draw(2, 5)):
            steps[str(self.rng.choice(operators))]()
        self.head(operators)
        classes = self.types[self.current].shape[0]
        channels = shape[0]
        return IntegerGraph(
            name,
            "input",
            source,
            tuple(self.nodes),
            rounding=rounding,  # type: ignore[arg-type]
            class_names=tuple(f"class {index}" for index in range(classes)),
            normalization=Normalization((0.5,) * channels, (0.25,) * channels),
            metadata={"key": "0" * 64},
        )

    def draw(self, low: int, high: int) -> int:
        """Return an integer of [low, high]."""
        return int(self.rng.integers(low, high + 1))

    def coin(self) -> bool:
        return bool(self.rng.random() < 0.5)

    def quantization(self, reach: float) -> Quantization:
        """Return a quantization whose steps cover about [-reach, reach] times 4."""
        bits = int(self.rng.choice((2, 4, 5, 7))) if self.narrow and self.rng.random() < 0.15 else 8
        qmin = -128 if bits == 8 or self.coin() else self.draw(-128, 127 - (2**bits - 1))
        qmax = qmin + 2**bits - 1
        # Half of them stand for what follows a ReLU.
        quarter = (qmax - qmin) // 4
        zero_point = qmin if self.rng.random() < 0.4 else self.draw(qmin + quarter, qmax - quarter)
        if bits == 8 and zero_point > -128 and self.rng.random() < 0.2:
            qmin = zero_point
        scale = reach * 8 / 2**bits * self.rng.uniform(0.5, 1.5)
        return Quantization(float(np.float32(scale)), zero_point, qmin, qmax)

    def add(self, op: Operator, inputs: tuple[str, ...], shape: tuple[int, ...], quantization: Quantization) -> None:
        name = f"{type(op).__name__.lower()}.{len(self.nodes)}"
        self.types[name] = TensorType(shape, quantization)
        self.nodes.append(Node(name, op, inputs, self.types[name]))
        self.current = name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.types[self.current].shape

    def weight(self, *shape: int) -> Weight:
        bits = int(self.rng.choice(self.weight_bits))
        limit = 2 ** (bits - 1) - 1
        values = self.rng.integers(-limit, limit + 1, shape).astype(np.int8)
        return Weight(values, self.rng.uniform(0.005, 0.02, shape[0]).astype(np.float32), bits)

    def reach(self, weight: Weight) -> float:
        """Return about one standard deviation of the accumulator, as a real number."""
        source = self.types[self.current].quantization
        steps = (source.qmax - source.qmin) / np.sqrt(12) + abs((source.qmax + source.qmin) / 2 - source.zero_point)
        fan_in = weight.values[0].size
        return max(
            float(source.scale * steps * weight.scales.mean() * weight.values.std() * np.sqrt(fan_in)), SMALLEST_REACH
        )

    def bias(self, weight: Weight) -> NDArray[np.int32]:
        source = self.types[self.current].quantization
        limit = max(2, int(self.reach(weight) / (source.scale * float(weight.scales.mean()))))
        return self.rng.integers(-limit, limit + 1, weight.values.shape[0]).astype(np.int32)

    def convolve(self, outputs: int, groups: int, *, keep_shape: bool = False) -> None:
        channels, height, width = self.shape
        if keep_shape:
            kernel, stride, padding, dilation = (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)
        else:
            kernel, stride, padding, dilation = self.window(height, width)
        weight = self.weight(outputs, channels // groups, *kernel)
        shape = (
            outputs,
            convolution_output_size(height, kernel[0], stride[0], padding[0], padding[2], dilation[0]),
            convolution_output_size(width, kernel[1], stride[1], padding[1], padding[3], dilation[1]),
        )
        bias = self.bias(weight)
        self.accumulate(Conv2d(weight, bias, stride, padding, dilation, groups), shape)

    def window(self, height: int, width: int) -> tuple[Pair, Pair, Padding, Pair]:
        """Return a convolution's kernel, stride, padding and dilation for an input of this size."""
        kernel = (min(self.draw(1, 3), height), min(self.draw(1, 3), width))
        stride = (self.draw(1, 2), self.draw(1, 2))
        dilation = (1, 1)
        if self.rng.random() < 0.2 and height >= 5 and width >= 5:
            dilation, stride = (2, 2), (1, 1)
        same = (kernel[0] // 2, kernel[1] // 2) * 2
        free = tuple(self.draw(0, kernel[axis] - 1) for axis in (0, 1, 0, 1))
        padding: Padding = same if self.coin() else free  # type: ignore[assignment]
        return kernel, stride, padding, dilation

    def accumulate(self, op: Conv2d | Linear, shape: tuple[int, ...]) -> None:
        """Add a convolution or linear layer."""
        self.add(op, (self.current,), shape, self.quantization(self.reach(op.weight)))

    def conv(self) -> None:
        self.convolve(self.draw(1, 9) * self.channel_step, 1)

    def grouped(self) -> None:
        if self.shape[0] % 2:
            self.convolve(4 * self.channel_step, 1)
        self.convolve(2 * self.draw(1, 4) * self.channel_step, 2)

    def depthwise(self) -> None:
        channels = self.shape[0]
        self.convolve(channels * self.draw(1, 2), channels)

    def residual(self) -> None:
        shortcut = self.current
        self.convolve(self.shape[0], 1, keep_shape=True)
        first, second = self.types[shortcut].quantization, self.types[self.current].quantization
        reach = (first.scale * 2**first.bits + second.scale * 2**second.bits) / 8
        inputs = (shortcut, self.current) if self.coin() else (self.current, shortcut)
        self.add(Add(), inputs, self.shape, self.quantization(reach))

    def max_pool(self) -> None:
        channels, height, width = self.shape
        kernel = (min(self.draw(2, 3), height), min(self.draw(2, 3), width))
        stride = (self.draw(1, 2), self.draw(1, 2))
        padding = (kernel[0] // 2, kernel[1] // 2) * 2 if self.coin() else (0, 0, 0, 0)
        shape = (
            channels,
            convolution_output_size(height, kernel[0], stride[0], padding[0], padding[2]),
            convolution_output_size(width, kernel[1], stride[1], padding[1], padding[3]),
        )
        quantization = self.types[self.current].quantization
        self.add(MaxPool2d(kernel, stride, padding), (self.current,), shape, quantization)

    def average_pool(self) -> None:
        channels, height, width = self.shape
        kernel = (min(self.draw(1, 3), height), min(self.draw(1, 3), width))
        stride = (self.draw(1, 2), self.draw(1, 2))
        shape = (
            channels,
            convolution_output_size(height, kernel[0], stride[0], 0, 0),
            convolution_output_size(width, kernel[1], stride[1], 0, 0),
        )
        self.add(AveragePool2d(kernel, stride), (self.current,), shape, self.types[self.current].quantization)

    def requantize(self) -> None:
        source = self.types[self.current].quantization
        self.add(Requantize(), (self.current,), self.shape, self.quantization(source.scale * 2**source.bits / 8))

    def product(self) -> None:
        shortcut = self.current
        self.convolve(self.shape[0], 1, keep_shape=True)
        self.multiply((shortcut, self.current) if self.coin() else (self.current, shortcut))

    def squeeze_excite(self) -> None:
        source = self.current
        channels, height, width = self.shape
        quantization = self.types[source].quantization
        self.add(AveragePool2d((height, width), (1, 1)), (source,), (channels, 1, 1), quantization)
        self.convolve(channels, 1)
        self.lookup()
        self.multiply((source, self.current))

    def multiply(self, inputs: tuple[str, str]) -> None:
        spreads = [self.types[name].quantization for name in inputs]
        reach = spreads[0].scale * 2 ** spreads[0].bits * spreads[1].scale * 2 ** spreads[1].bits / 16
        self.add(Mul(), inputs, self.types[inputs[0]].shape, self.quantization(max(reach, SMALLEST_REACH)))

    def lookup(self) -> None:
        function = str(self.rng.choice(tuple(FUNCTIONS)))
        source = self.types[self.current].quantization
        reach = 0.25 if "sigmoid" in function else min(source.scale * 2**source.bits / 8, 2.0)
        self.add(Lookup(function), (self.current,), self.shape, self.quantization(reach))

    def softmax(self) -> None:
        if self.shape[0] == 1:
            self.convolve(self.draw(2, 9), 1)
        self.add(Softmax(), (self.current,), self.shape, PROBABILITIES)

    def concat(self) -> None:
        """Join the current tensor, or a narrower one before it, with a convolution of it; each gets one scale."""
        inputs = [self.current]
        for _ in range(self.draw(1, 2)):
            self.current = inputs[0]
            outputs = self.draw(1, 4)
            weight = self.weight(outputs, self.shape[0], 1, 1)
            shape = (outputs, *self.shape[1:])
            self.accumulate(Conv2d(weight, self.bias(weight)), shape)
            inputs.append(self.current)
        largest = max((self.types[name].quantization for name in inputs), key=lambda q: q.scale * 2**q.bits)
        quantization = self.quantization(largest.scale * 2**largest.bits / 8)
        joined = []
        for name in inputs:
            self.current = name
            self.add(Requantize(), (name,), self.shape, quantization)
            joined.append(self.current)
        if self.coin():
            joined.reverse()
        channels = sum(self.types[name].shape[0] for name in joined)
        self.add(Concat(), tuple(joined), (channels, *self.shape[1:]), quantization)

    def slice(self) -> None:
        channels = self.shape[0]
        start = self.draw(0, channels - 1)
        stop = self.draw(start + 1, channels)
        shape = (stop - start, *self.shape[1:])
        self.add(Slice(start, stop), (self.current,), shape, self.types[self.current].quantization)

    def channel_shuffle(self) -> None:
        divisors = [groups for groups in range(1, self.shape[0] + 1) if self.shape[0] % groups == 0]
        groups = int(self.rng.choice(divisors))
        self.add(ChannelShuffle(groups), (self.current,), self.shape, self.types[self.current].quantization)

    def upsample(self) -> None:
        channels, height, width = self.shape
        factor = (self.draw(1, 3) if height < 9 else 1, self.draw(1, 3) if width < 9 else 1)
        shape = (channels, height * factor[0], width * factor[1])
        self.add(Upsample(factor), (self.current,), shape, self.types[self.current].quantization)

    def head(self, operators: tuple[str, ...]) -> None:
        channels, height, width = self.shape
        if self.coin():
            quantization = self.types[self.current].quantization
            self.add(AveragePool2d((height, width), (1, 1)), (self.current,), (channels, 1, 1), quantization)
        features = int(np.prod(self.shape))
        self.add(Flatten(), (self.current,), (features,), self.types[self.current].quantization)
        if self.rng.random() < 0.3:
            self.linear(self.draw(3, 12))
        self.linear(self.draw(2, 10))
        if "softmax" in operators and self.rng.random() < 0.1:
            self.softmax()

    def linear(self, outputs: int) -> None:
        weight = self.weight(outputs, self.shape[0])
        self.accumulate(Linear(weight, self.bias(weight)), (outputs,))
