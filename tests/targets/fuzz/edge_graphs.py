"""Small integer graphs at the edges of what a graph may be, each with one edge; the random ones seldom have them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kdpipe.targets.fixed_point import INT32_MAX
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
    accumulator_bound,
    convolution_output_size,
)

SOURCE = Quantization(0.0625, -7)
OUTPUT = Quantization(float(np.float32(0.3)), 11)
NAMES = (
    *("input", "logits", "x,y", "x/output", "x/q", "x/weight", "x/stored", "x/columns", "0", "a", "model"),
    *("*/ int y; /*", 'quoted "name" \\', "two\nlines", "schön/层", " ", "a" * 3000, "%s {0}", "../up", "<b>&amp;"),
)
"""What tensors may be called, exporters' own names and suffixes among them."""


def weight(*shape: int, bits: int = 8, scale: float = 0.02, seed: int = 0) -> Weight:
    """Return weights over the whole of their range."""
    limit = 2 ** (bits - 1) - 1
    values = np.random.default_rng(seed).integers(-limit, limit + 1, shape).astype(np.int8)
    return Weight(values, np.full(shape[0], scale, np.float32), bits)


def convolution(
    shape: tuple[int, int, int],
    outputs: int,
    kernel: Pair,
    stride: Pair = (1, 1),
    padding: Padding = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    bits: int = 8,
) -> tuple[Conv2d, tuple[int, int, int]]:
    """Return a convolution of an input of `shape`, and the shape of its output."""
    op = Conv2d(
        weight(outputs, shape[0] // groups, *kernel, bits=bits),
        np.arange(-outputs, outputs, 2, dtype=np.int32) * 50,
        *(stride, padding, dilation, groups),
    )
    height, width = (
        convolution_output_size(size, kernel[axis], stride[axis], padding[axis], padding[2 + axis], dilation[axis])
        for axis, size in enumerate(shape[1:])
    )
    return op, (outputs, height, width)


def graph(shape: tuple[int, ...], *nodes: Node, source: Quantization = SOURCE) -> IntegerGraph:
    """Return a graph of these nodes; its input is called x."""
    return IntegerGraph("net", "x", TensorType(shape, source), nodes)


def one(
    shape: tuple[int, ...],
    op: Operator,
    output: tuple[int, ...],
    quantization: Quantization = OUTPUT,
    source: Quantization = SOURCE,
    inputs: int = 1,
) -> IntegerGraph:
    """Return a graph of one node, which reads the input, so many times."""
    return graph(shape, Node("only", op, ("x",) * inputs, TensorType(output, quantization)), source=source)


def convolved(shape: tuple[int, int, int], *arguments: Any, **options: Any) -> IntegerGraph:
    """Return a graph of one convolution."""
    return one(shape, *convolution(shape, *arguments, **options))


def keeping(shape: tuple[int, ...], op: Operator, output: tuple[int, ...], inputs: int = 1) -> IntegerGraph:
    """Return a graph of one operator that keeps its input's steps."""
    return one(shape, op, output, SOURCE, inputs=inputs)


def linear(features: int, outputs: int, name: str = "linear", source: str = "x", **options: Any) -> Node:
    """Return a linear layer."""
    op = Linear(weight(outputs, features, **options), np.zeros(outputs, np.int32))
    return Node(name, op, (source,), TensorType((outputs,), OUTPUT))


def residual_with_itself() -> IntegerGraph:
    op, shape = convolution((2, 5, 5), 2, (3, 3), padding=(1, 1, 1, 1))
    kind = TensorType(shape, OUTPUT)
    return graph(
        (2, 5, 5),
        Node("conv", op, ("x",), kind),
        Node("twice", Add(), ("conv", "conv"), TensorType(shape, Quantization(0.5, 3))),
        Node("squared", Mul(), ("twice", "twice"), TensorType(shape, Quantization(8.0, -20))),
        Node("joined", Concat(), ("squared", "squared", "squared"), TensorType((6, 5, 5), Quantization(8.0, -20))),
    )


def zero_channels() -> IntegerGraph:
    """The weights of one channel, and of a whole layer, are zero: constants, saturated ones among them."""
    op, shape = convolution((2, 4, 4), 3, (3, 3), padding=(1, 1, 1, 1))
    op.weight.values[1] = 0
    constant = Conv2d(
        Weight(np.zeros((3, 3, 1, 1), np.int8), np.full(3, 0.5, np.float32), 2),
        np.array([0, 10**6, -(10**6)], np.int32),
    )
    return graph(
        (2, 4, 4),
        Node("conv", op, ("x",), TensorType(shape, OUTPUT)),
        Node("constant", constant, ("conv",), TensorType(shape, OUTPUT)),
    )


def extreme_biases() -> IntegerGraph:
    """Accumulators that reach the ends of int32, in a layer that brings them back to 8 bits."""
    values = np.ones((2, 16), np.int8)
    weights = Weight(values, np.full(2, 2.0**-10, np.float32), 2)
    room = accumulator_bound(Linear(weights, np.zeros(2, np.int32)), SOURCE)
    bias = np.array([INT32_MAX - room, room - INT32_MAX], np.int32)
    return one((16,), Linear(weights, bias), (2,), Quantization(2.0**10, 0))


def factors_below_int32() -> IntegerGraph:
    """Scales so small that the multiplier is zero: every output is the zero point."""
    return one((4,), Linear(weight(3, 4, scale=1e-20), np.zeros(3, np.int32)), (3,), Quantization(1.0, 5))


def features_read_twice() -> IntegerGraph:
    """Of what a Flatten gives, a linear layer reads one part and a function all."""
    flat = TensorType((18,), SOURCE)
    return graph(
        (2, 3, 3),
        Node("flat", Flatten(), ("x",), flat),
        Node("half", Slice(3, 14), ("flat",), TensorType((11,), SOURCE)),
        Node("swish", Lookup("hard_swish"), ("flat",), TensorType((18,), OUTPUT)),
        linear(18, 4, "first", "flat"),
        linear(18, 4, "second", "swish"),
        linear(11, 4, "third", "half"),
        Node("joined", Concat(), ("first", "second", "third"), TensorType((12,), OUTPUT)),
    )


def flatten_of_rearranged(features: bool) -> IntegerGraph:
    """Pixels in another order reach a linear layer, with or without something between."""
    nodes = [
        Node("shuffle", ChannelShuffle(2), ("x",), TensorType((4, 2, 3), SOURCE)),
        Node("flat", Flatten(), ("shuffle",), TensorType((24,), SOURCE)),
    ]
    if features:
        nodes.append(Node("finer", Requantize(), ("flat",), TensorType((24,), OUTPUT)))
    return graph((4, 2, 3), *nodes, linear(24, 3, source=nodes[-1].name))


def read_by_three() -> IntegerGraph:
    """A tensor that a pool, a sum and a join read; the input is read late too."""
    shape = (2, 4, 4)
    op, _ = convolution(shape, 2, (1, 1))
    kind = TensorType(shape, SOURCE)
    return graph(
        shape,
        Node("conv", op, ("x",), kind),
        Node("pool", MaxPool2d((3, 3), (1, 1), (1, 1, 1, 1)), ("conv",), kind),
        Node("sum", Add(), ("conv", "x"), kind),
        Node("all", Concat(), ("conv", "pool", "sum", "x"), TensorType((8, 4, 4), SOURCE)),
    )


def gated() -> IntegerGraph:
    """A product of two numbers a channel, and with an image."""
    kind = TensorType((3, 1, 1), SOURCE)
    return graph(
        (3, 4, 4),
        Node("mean", AveragePool2d((4, 4), (1, 1)), ("x",), kind),
        Node("square", Mul(), ("mean", "mean"), TensorType((3, 1, 1), OUTPUT)),
        Node("gated", Mul(), ("x", "square"), TensorType((3, 4, 4), Quantization(1.0, 0))),
    )


def strange_names() -> IntegerGraph:
    """A chain of layers with every name of `NAMES`, and an input whose name no file can have as it is."""
    nodes, last = [], 'in "put"/*\n'
    for index, name in enumerate(NAMES):
        op, _ = convolution((2, 3, 1), 2, (1, 1), bits=(2, 4, 8)[index % 3])
        chosen = (op, MaxPool2d((3, 1), (1, 1), (1, 0, 1, 0)), Requantize(), Lookup("silu"))[index % 4]
        quantization = nodes[-1].output.quantization if isinstance(chosen, MaxPool2d) else Quantization(0.25, index)
        nodes.append(Node(name, chosen, (last,), TensorType((2, 3, 1), quantization)))
        last = name
    return IntegerGraph("net", 'in "put"/*\n', TensorType((2, 3, 1), SOURCE), tuple(nodes))


PIXEL = (3, 1, 1)
EDGES: Mapping[str, Callable[[], IntegerGraph]] = {
    "1x1, convolution": lambda: convolved(PIXEL, 4, (1, 1)),
    "1x1, 3x3 convolution": lambda: convolved(PIXEL, 4, (3, 3), padding=(1, 1, 1, 1)),
    "1x1, depthwise": lambda: convolved(PIXEL, 3, (3, 3), padding=(1, 1, 1, 1), groups=3, bits=2),
    "1x1, one channel": lambda: convolved((1, 1, 1), 1, (1, 1), bits=2),
    "1x1, sum": lambda: one(PIXEL, Add(), PIXEL, inputs=2),
    "1x1, product": lambda: one(PIXEL, Mul(), PIXEL, inputs=2),
    "1x1, function": lambda: one(PIXEL, Lookup("sigmoid"), PIXEL, Quantization(2.0**-8, -128)),
    "1x1, softmax": lambda: one(PIXEL, Softmax(), PIXEL, PROBABILITIES),
    "1x1, maximum": lambda: keeping(PIXEL, MaxPool2d((1, 1), (1, 1)), PIXEL),
    "1x1, padded maximum": lambda: keeping(PIXEL, MaxPool2d((3, 3), (2, 2), (1, 1, 1, 1)), PIXEL),
    "1x1, mean": lambda: keeping(PIXEL, AveragePool2d((1, 1), (1, 1)), PIXEL),
    "1x1, flatten": lambda: keeping(PIXEL, Flatten(), (3,)),
    "1x1, upsampling": lambda: keeping(PIXEL, Upsample((3, 2)), (3, 3, 2)),
    "1x1, requantize": lambda: one(PIXEL, Requantize(), PIXEL),
    "flatten alone": lambda: keeping((2, 3, 4), Flatten(), (24,)),
    "slice alone": lambda: keeping((5, 3, 4), Slice(1, 4), (3, 3, 4)),
    "slice of all": lambda: keeping((5, 3, 4), Slice(0, 5), (5, 3, 4)),
    "shuffle alone": lambda: keeping((6, 3, 4), ChannelShuffle(3), (6, 3, 4)),
    "shuffle of single channels": lambda: keeping((6, 3, 4), ChannelShuffle(6), (6, 3, 4)),
    "upsampling by one": lambda: keeping((2, 3, 4), Upsample((1, 1)), (2, 3, 4)),
    "features, sum with itself": lambda: one((7,), Add(), (7,), inputs=2),
    "features, product with itself": lambda: one((7,), Mul(), (7,), inputs=2),
    "features, join with itself": lambda: keeping((7,), Concat(), (14,), inputs=2),
    "features, softmax of two": lambda: one((2,), Softmax(), (2,), PROBABILITIES),
    "features, one to one": lambda: graph((1,), linear(1, 1, bits=2)),
    "join of three times the input": lambda: keeping((2, 3, 4), Concat(), (6, 3, 4), inputs=3),
    "stride above the kernel": lambda: convolved((2, 9, 8), 3, (2, 1), stride=(3, 4), bits=4),
    "stride above the input": lambda: convolved((2, 4, 4), 3, (3, 3), stride=(9, 7)),
    "depthwise stride above the kernel": lambda: convolved((2, 9, 8), 2, (1, 1), stride=(3, 4), groups=2),
    "maximum, stride above the window": lambda: keeping((2, 8, 9), MaxPool2d((2, 1), (3, 4)), (2, 3, 3)),
    "mean, stride above the window": lambda: keeping((2, 8, 9), AveragePool2d((2, 1), (3, 4)), (2, 3, 3)),
    "padding above the kernel": lambda: convolved((2, 3, 4), 3, (2, 3), padding=(4, 5, 3, 6)),
    "depthwise padding above the kernel": lambda: convolved((2, 3, 4), 2, (3, 3), padding=(4, 4, 4, 4), groups=2),
    "padding above the kernel, stride": lambda: convolved((2, 3, 4), 3, (1, 1), stride=(2, 3), padding=(4, 2, 1, 3)),
    "channel multiplier": lambda: convolved((3, 5, 5), 9, (3, 3), padding=(1, 1, 1, 1), groups=3, bits=4),
    "groups of one channel out": lambda: convolved((6, 5, 5), 3, (3, 3), groups=3, bits=2),
    "largest dilation": lambda: convolved((2, 7, 5), 3, (3, 2), dilation=(3, 4)),
    "one level and the next": lambda: one((2, 3, 3), Requantize(), (2, 3, 3), Quantization(0.5, 126, 126, 127)),
    "input of one bit": lambda: one((2, 3, 3), Requantize(), (2, 3, 3), OUTPUT, Quantization(4.0, -1, -1, 0)),
    "residual with itself": residual_with_itself,
    "channels of zeros": zero_channels,
    "extreme biases": extreme_biases,
    "factors of zero": factors_below_int32,
    "features read twice": features_read_twice,
    "flatten of a shuffle": lambda: flatten_of_rearranged(features=False),
    "flatten with a step between": lambda: flatten_of_rearranged(features=True),
    "read by three": read_by_three,
    "products by channel": gated,
    "names": strange_names,
}
"""By what is at its edge."""
