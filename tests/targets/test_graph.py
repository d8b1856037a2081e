"""What an integer graph refuses, and that each refusal names the layer."""

import re
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest

from kdpipe.targets import reference
from kdpipe.targets.errors import GraphError
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
    Quantization,
    Requantize,
    Slice,
    Softmax,
    TensorType,
    Upsample,
    Weight,
    accumulator_bound,
)

Q = Quantization(0.5, 0)
INPUT = TensorType((2, 4, 4), Q)


def weight(*shape: int, bits: int = 8, scale: float = 0.25) -> Weight:
    return Weight(np.ones(shape, np.int8), np.full(shape[0], scale, np.float32), bits)


def conv(**changes: Any) -> Conv2d:
    fields: dict[str, Any] = {"weight": weight(3, 2, 3, 3), "bias": np.zeros(3, np.int32), "padding": (1, 1, 1, 1)}
    return Conv2d(**(fields | changes))


def graph(op: Any, shape: tuple[int, ...] = (3, 4, 4), quantization: Quantization = Q, **changes: Any) -> IntegerGraph:
    fields: dict[str, Any] = {
        "name": "net",
        "input_name": "x",
        "input": INPUT,
        "nodes": (Node("conv", op, ("x",), TensorType(shape, quantization)),),
    }
    return IntegerGraph(**(fields | changes))


def joined(
    op: Any,
    shape: tuple[int, ...],
    *,
    first: tuple[int, ...] = (2, 4, 4),
    second: tuple[int, ...] = (2, 4, 4),
    quantization: Quantization = Q,
    second_quantization: Quantization = Q,
) -> None:
    """Check an operator of two inputs, called conv."""
    from kdpipe.targets.graph_checks import _check_node

    inputs = [TensorType(first, Q), TensorType(second, second_quantization)]
    try:
        _check_node(Node("conv", op, ("a", "b"), TensorType(shape, quantization)), inputs)
    except GraphError as error:
        raise GraphError(error.message, where="layer conv") from None


def test_a_valid_graph_is_built() -> None:
    built = graph(conv())
    assert built.output_name == "conv"
    assert built.tensor("x") is INPUT
    assert [node.name for node, _ in built.weights()] == ["conv"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: graph(conv(), shape=(3, 2, 2)), "has shape"),
        (lambda: graph(conv(bias=np.zeros(2, np.int32))), "bias must be int32"),
        (lambda: graph(conv(bias=np.full(3, 2**31 - 1, np.int32))), "beyond int32"),
        (lambda: graph(conv(weight=weight(3, 1, 3, 3))), "do not fit 2 input channels"),
        (lambda: graph(conv(stride=(0, 1))), "out of range"),
        (lambda: graph(conv(weight=weight(3, 2, 9, 9)), shape=(3, -2, -2)), "does not fit the input"),
        (lambda: graph(conv(), quantization=Quantization(2.0**-40, 0)), "factor must be below"),
        (lambda: graph(conv(bias=np.full(3, 2**24, np.int32)), quantization=Quantization(2.0**-14, 0)), "leaves int32"),
        (lambda: graph(Linear(weight(3, 5), np.zeros(3, np.int32)), shape=(3,)), "take 5 features"),
        # a factor of 1 - 2**-24, and a sum near int32's end, to which the zero point is added
        (
            lambda: graph(
                conv(
                    weight=weight(3, 2, 3, 3, scale=float(np.nextafter(np.float32(0.25), np.float32(0)))),
                    bias=np.full(3, 2**31 - 1 - 18 * 128, np.int32),
                ),
                quantization=Quantization(0.125, 0),
            ),
            "requantizing 2147483647 by 1 leaves int32",
        ),
        (lambda: graph(MaxPool2d((2, 2), (2, 2)), (2, 2, 2), Quantization(0.25, 0)), "keep its input's quantization"),
        (lambda: graph(MaxPool2d((2, 2), (2, 2), (2, 0, 0, 0)), (2, 3, 2)), "not smaller than its window"),
        (lambda: graph(AveragePool2d((5, 5), (1, 1)), (2, 0, 0)), "does not fit"),
        (lambda: graph(Flatten(), (3,)), "its operator gives"),
        (lambda: graph(Requantize(), (2, 4, 4), Quantization(2.0**-26, 0)), "leaves int32"),
        (lambda: graph(Add(), (2, 4, 4)), "takes 2 inputs"),
        (lambda: graph(Mul(), (2, 4, 4)), "takes 2 inputs"),
        (lambda: joined(Mul(), (2, 4, 4), second=(1, 4, 4)), r"multiplies tensors of shapes \(2, 4, 4\) and \(1, 4, 4"),
        (lambda: joined(Mul(), (2, 1, 1), first=(2, 1, 1), second=(2, 4, 4)), "multiplies tensors"),
        (lambda: joined(Mul(), (2, 4, 4), quantization=Quantization(2.0**-34, 0)), "factor must be below"),
        (lambda: joined(Mul(), (2, 4, 4), quantization=Quantization(2.0**-20, 0)), "leaves int32"),
        (lambda: graph(Lookup("tanh"), (2, 4, 4)), "unknown function 'tanh'"),
        (lambda: graph(Concat(), (2, 4, 4)), "at least 2 inputs"),
        (lambda: joined(Concat(), (4, 4, 4), quantization=Quantization(0.25, 0)), "keep its input's quantization"),
        (lambda: joined(Concat(), (4, 4, 4), second_quantization=Quantization(0.25, 0)), "keep its input's"),
        (lambda: joined(Concat(), (4, 4, 4), second=(2, 4, 3)), "joins the channels"),
        (lambda: graph(Slice(1, 3), (2, 4, 4)), "takes channels 1 to 3 of 2"),
        (lambda: graph(Slice(1, 1), (0, 4, 4)), "takes channels 1 to 1 of 2"),
        (lambda: graph(Slice(-1, 1), (2, 4, 4)), "takes channels -1 to 1"),
        (lambda: graph(ChannelShuffle(3), (2, 4, 4)), "3 groups do not divide 2 channels"),
        (lambda: graph(ChannelShuffle(0), (2, 4, 4)), "groups 0 is out of range"),
        (lambda: graph(Linear(weight(3, 2, 1, 1), np.zeros(3, np.int32)), shape=(3,)), "its weights have the shape"),
        (lambda: graph(conv(weight=weight(3, 2))), r"its weights have the shape \[3, 2\]"),
        (lambda: graph(conv(stride=(1.0, 1))), r"its stride \(1.0, 1\) is out of range"),
        (lambda: graph(conv(dilation=(0, 1))), "its dilation"),
        (lambda: graph(conv(dilation=(1,))), "1 numbers instead of 2"),
        (lambda: graph(conv(padding=(1, 1, 1, -1))), "its padding"),
        (lambda: graph(MaxPool2d((2, 2), (0, 1)), (2, 3, 3)), r"its stride \(0, 1\) is out of range"),
        (lambda: graph(MaxPool2d((2, 2), (1, 1), (-1, 0, 0, 0)), (2, 2, 3)), "its padding"),
        (lambda: graph(AveragePool2d((0, 1), (1, 1)), (2, 5, 4)), "its kernel"),
        (
            lambda: graph(AveragePool2d((5000, 4000), (1, 1)), (1, 1, 1), input=TensorType((1, 5000, 4000), Q)),
            "its sum of 20000000 elements can leave int32",
        ),
        (lambda: graph(Slice(0, 1.0), (1, 4, 4)), "its stop 1.0"),
        (lambda: graph("Conv", (2, 4, 4)), "unknown operator 'Conv'"),
        (
            lambda: graph(
                conv(weight=weight(3, 2, 3, 3, scale=1e-37)), input=TensorType((2, 4, 4), Quantization(2.0**-9, 0))
            ),
            "one unit of its bias",
        ),
        (lambda: graph(Upsample((0, 1)), (2, 0, 4)), "out of range"),
        (lambda: graph(Softmax(), (2, 4, 4)), "steps of 1/256"),
        (lambda: graph(Softmax(), (2, 4, 4), Quantization(1 / 256, -128, -128, 0)), "steps of 1/256"),
        (lambda: graph(Softmax(), (1, 4, 4), PROBABILITIES, input=TensorType((1, 4, 4), Q)), "2 to 4095 channels"),
        (lambda: graph(Softmax(), (4096,), PROBABILITIES, input=TensorType((4096,), Q)), "2 to 4095 channels"),
        (
            lambda: graph(Softmax(), (2,), PROBABILITIES, input=TensorType((2,), Quantization(2.0**-26, 0))),
            "takes steps above",
        ),
    ],
)
def test_invalid_layers_are_refused_by_name(build: Callable[[], object], message: str) -> None:
    with pytest.raises(GraphError, match=message) as refused:
        build()
    assert refused.value.where == "layer conv"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: graph(conv(), name="a b"), "not an identifier"),
        (lambda: graph(conv(), nodes=()), "no nodes"),
        (lambda: graph(conv(), rounding="up"), "unknown rounding"),
        (lambda: graph(conv(), class_names=("a",)), "class names"),
        (lambda: graph(conv(), input_name="conv"), "two tensors have this name"),
        (lambda: graph(conv(), input_name="y"), "nothing before it produces"),
        (lambda: weight(1, 2, bits=5), "not supported"),
        (lambda: weight(1, 2, scale=0.0), "scale is zero"),
        (lambda: weight(1, 2, scale=float("nan")), "not finite"),
        (lambda: Weight(np.full((1, 2), 2, np.int8), np.ones(1, np.float32), 2), "range of 2 bits"),
        (lambda: Weight(np.full((1, 2), -128, np.int8), np.ones(1, np.float32), 8), "range of 8 bits"),
        (lambda: Weight(np.ones((2, 2), np.int8), np.ones(1, np.float32), 8), "2 output channels"),
        (lambda: graph(conv(), input=TensorType((2, 4), Q)), r"\[C, H, W\] or \[features\], not \[2, 4\]"),
        (lambda: graph(conv(), input=TensorType((2, 0, 4), Q)), r"\[C, H, W\] or \[features\]"),
        (lambda: graph(conv(), input=TensorType((2, 4, 4.0), Q)), r"\[C, H, W\] or \[features\]"),
        (lambda: graph(conv(), normalization=Normalization((0.5,), (0.5,))), "1 means and 1 deviations for 2 channels"),
        (lambda: graph(conv(), normalization=Normalization((0.5, 0.5), (0.5, 0.0))), "not positive"),
        (lambda: graph(conv(), normalization=Normalization((0.5, float("nan")), (0.5, 1.0))), "not finite"),
        (
            lambda: graph(conv(), nodes=(Node("", conv(), ("x",), TensorType((3, 4, 4), Q)),)),
            "after x: a layer has no name",
        ),
        (lambda: Weight(np.zeros((0, 2), np.int8), np.ones(0, np.float32), 8), "weights have the shape"),
        (lambda: Weight(np.zeros(3, np.int8), np.ones(3, np.float32), 8), "weights have the shape"),
        (lambda: weight(1, 2, scale=1e-40), "too small"),
        (lambda: Quantization(float(np.float32(1e-40)), 0), "flush to zero"),
        (lambda: Quantization(0.5, 1.5), "are integers"),
        (lambda: Quantization(0.5, True), "are integers"),
        (lambda: Quantization(0.1, 0), "not a float32"),
        (lambda: Quantization(0.0, 0), "positive"),
        (lambda: Quantization(float("inf"), 0), "finite"),
        (lambda: Quantization(0.5, 9, -8, 7), "zero point"),
        (lambda: Quantization(0.5, 0, -129, 7), "does not lie"),
    ],
)
def test_invalid_parts_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        build()


def test_quantization_widths() -> None:
    assert Quantization(1.0, 0).bits == 8
    assert Quantization(1.0, 0, 0, 3).bits == 2
    assert Quantization(1.0, -128, -128, -113).bits == 4


def test_quantize_rounds_half_to_even_and_saturates() -> None:
    stored = Quantization(0.5, 1).quantize(np.array([0.25, 0.75, -0.25, 1e9, -1e9]))
    assert stored.tolist() == [1, 3, 1, 127, -128]


def test_packed_bytes_count_only_the_values() -> None:
    assert weight(3, 3, bits=2).packed_bytes == 3
    assert weight(3, 3, bits=4).packed_bytes == 5


def test_accumulator_bound_is_reached_by_the_worst_input() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(-127, 128, (4, 10)).astype(np.int8)
    bias = rng.integers(-1000, 1000, 4).astype(np.int32)
    op = Linear(Weight(values, np.ones(4, np.float32), 8), bias)
    bound = accumulator_bound(op, Quantization(1.0, -128))
    worst = max(abs(int(values[o].astype(int).clip(min=0).sum() * 255 + bias[o])) for o in range(4))
    assert bound >= worst
    assert bound == max(int(abs(values[o].astype(int)).sum() * 255 + abs(int(bias[o]))) for o in range(4))


@pytest.mark.parametrize("operator", get_args(Operator), ids=lambda operator: operator.__name__)
def test_every_operator_is_documented_by_its_equation(operator: type) -> None:
    assert re.search(r"out(\[.*\])? = ", operator.__doc__ or "")


@pytest.mark.parametrize("operator", [MaxPool2d, AveragePool2d, Flatten, Concat])
def test_the_equations_are_the_references(operator: type) -> None:
    """Those that only move or choose integers, spelled out in loops."""
    q = np.random.default_rng(0).integers(-128, 128, (1, 3, 5, 6)).astype(np.int8)
    source = TensorType((3, 5, 6), Q)
    image = q[0].astype(int)
    channels, height, width = image.shape
    if operator is Flatten:
        op: Any = Flatten()
        expected = np.zeros(90)
        for c, y, x in np.ndindex(channels, height, width):
            expected[(c * height + y) * width + x] = image[c, y, x]
    elif operator is Concat:
        op, expected = Concat(), np.concatenate([image, image])
    else:
        kernel, stride, (top, left) = (3, 2), (2, 3), ((1, 1) if operator is MaxPool2d else (0, 0))
        op = MaxPool2d(kernel, stride, (1, 1, 0, 1)) if operator is MaxPool2d else AveragePool2d(kernel, stride)
        rows, columns = (2, 3) if operator is MaxPool2d else (2, 2)
        expected = np.zeros((channels, rows, columns))
        for c, y, x in np.ndindex(channels, rows, columns):
            window = [
                image[c, y * stride[0] + u - top, x * stride[1] + v - left]
                for u in range(kernel[0])
                for v in range(kernel[1])
                if 0 <= y * stride[0] + u - top < height and 0 <= x * stride[1] + v - left < width
            ]
            mean = sum(window) / len(window)
            expected[c, y, x] = max(window) if operator is MaxPool2d else np.sign(mean) * np.floor(abs(mean) + 0.5)
    inputs = ("x", "x") if operator is Concat else ("x",)
    node = Node("n", op, inputs, TensorType(expected.shape, Q))
    computed = reference.run(IntegerGraph("net", "x", source, (node,)), q)[0]
    assert (computed == expected).all()
