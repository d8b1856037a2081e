"""The reference against independent computations: torch's integer-valued operators, and real arithmetic."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

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
    Operator,
    Quantization,
    Requantize,
    Slice,
    Softmax,
    TensorType,
    Upsample,
    Weight,
)


def float32(value: float) -> float:
    return float(np.float32(value))


IN = Quantization(float32(0.021), -7)
OUT = Quantization(float32(0.9), 11)


def run_one(op: Operator, x: np.ndarray, shape: tuple[int, ...], out: Quantization = OUT, rounding: str = "single"):
    graph = IntegerGraph(
        "net", "x", TensorType(x.shape[1:], IN), (Node("n", op, ("x",), TensorType(shape, out)),), rounding=rounding
    )
    return reference.run(graph, x)


def random_input(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(-128, 128, shape).astype(np.int8)


def expected(accumulator: np.ndarray, factor: np.ndarray | float, out: Quantization = OUT) -> np.ndarray:
    return np.clip(np.floor(accumulator * factor + 0.5) + out.zero_point, out.qmin, out.qmax)


@pytest.mark.parametrize("rounding", ["tflite", "single"])
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "stride", "padding", "dilation", "groups"),
    [
        (3, 5, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
        (4, 6, (3, 2), (2, 1), (0, 1, 2, 0), (1, 2), 2),
        (4, 4, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 4),
        (4, 8, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ],
)
def test_convolution_equals_torch(channels, outputs, kernel, stride, padding, dilation, groups, rounding) -> None:
    rng = np.random.default_rng(2)
    x = random_input(2, channels, 7, 6)
    w = rng.integers(-127, 128, (outputs, channels // groups, *kernel)).astype(np.int8)
    scales = rng.uniform(0.01, 0.05, outputs).astype(np.float32)
    bias = rng.integers(-500, 500, outputs).astype(np.int32)
    top, left, bottom, right = padding
    centred = F.pad(torch.from_numpy(x.astype(np.float64) - IN.zero_point), (left, right, top, bottom))
    accumulator = F.conv2d(
        centred, torch.from_numpy(w.astype(np.float64)), torch.from_numpy(bias.astype(np.float64)),
        stride, 0, dilation, groups,
    ).numpy()  # fmt: skip
    ours = run_one(
        Conv2d(Weight(w, scales, 8), bias, stride, padding, dilation, groups), x, accumulator.shape[1:], OUT, rounding
    )
    factor = (IN.scale * scales.astype(np.float64) / OUT.scale)[:, None, None]
    difference = np.abs(ours - expected(accumulator, factor))
    assert difference.max() <= (0 if rounding == "single" else 1)
    assert (difference == 0).mean() > 0.99


def test_linear_equals_real_arithmetic() -> None:
    rng = np.random.default_rng(3)
    x = random_input(5, 9)
    w = rng.integers(-1, 2, (4, 9)).astype(np.int8)
    scales, bias = rng.uniform(0.5, 1, 4).astype(np.float32), np.array([3, -3, 0, 9], np.int32)
    accumulator = (x.astype(np.int64) - IN.zero_point) @ w.T + bias
    ours = run_one(Linear(Weight(w, scales, 2), bias), x, (4,))
    assert (ours == expected(accumulator, IN.scale * scales.astype(np.float64) / OUT.scale)).all()


def test_add_is_the_real_sum_to_one_step() -> None:
    a, b = Quantization(float32(0.02), 3), Quantization(float32(0.05), -20)
    out = Quantization(float32(0.06), -1)
    x = random_input(4, 2, 3, 3)
    graph = IntegerGraph(
        "net",
        "x",
        TensorType((2, 3, 3), a),
        (
            Node("b", Requantize(), ("x",), TensorType((2, 3, 3), b)),
            Node("sum", Add(), ("x", "b"), TensorType((2, 3, 3), out)),
        ),
    )
    tensors = reference.run_all(graph, x)
    real = a.dequantize(x).astype(np.float64) + b.dequantize(tensors["b"])
    exact = np.clip(real / out.scale + out.zero_point, -128, 127)
    assert np.abs(tensors["sum"] - exact).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("rounding", ["tflite", "single"])
@pytest.mark.parametrize("second", [(3, 5, 5), (3, 1, 1)])
def test_mul_is_the_real_product_rounded(second: tuple[int, ...], rounding: str) -> None:
    a, b, out = Quantization(float32(0.02), 3), Quantization(float32(0.05), -128), Quantization(float32(0.03), -11)
    rng = np.random.default_rng(4)
    x, y = (rng.integers(-128, 128, (2, *shape)).astype(np.int8) for shape in ((3, 5, 5), second))
    types = [TensorType((3, 5, 5), a), TensorType(second, b)]
    ours = reference.compute(Mul(), [x, y], types, TensorType((3, 5, 5), out), rounding)  # type: ignore[arg-type]
    product = (x.astype(int) - a.zero_point) * (y.astype(int) - b.zero_point)
    difference = np.abs(ours - expected(product, a.scale * b.scale / out.scale, out))
    assert difference.max() <= (0 if rounding == "single" else 1)
    assert (difference == 0).mean() > 0.98


@pytest.mark.parametrize(
    ("function", "torchs"),
    [("hard_sigmoid", F.hardsigmoid), ("hard_swish", F.hardswish), ("sigmoid", torch.sigmoid), ("silu", F.silu)],
)
def test_lookup_is_the_function_of_every_integer(function: str, torchs) -> None:
    source, out = Quantization(float32(0.05), 11), Quantization(float32(0.02), -60, -100, 90)
    x = np.arange(-128, 128).astype(np.int8).reshape(1, 1, 16, 16)
    types = [TensorType((1, 16, 16), source)]
    ours = reference.compute(Lookup(function), [x], types, TensorType((1, 16, 16), out), "single")
    real = torchs(torch.from_numpy(source.scale * (x.astype(np.float64) - source.zero_point))).numpy()
    assert (ours == np.clip(np.rint(real / out.scale) + out.zero_point, out.qmin, out.qmax)).all()


def test_what_moves_channels_and_pixels_equals_torch() -> None:
    x = random_input(2, 12, 3, 4)
    tensor = torch.from_numpy(x.astype(np.float32))
    for groups in (1, 2, 3, 4, 6, 12):
        shuffled = run_one(ChannelShuffle(groups), x, (12, 3, 4), IN)
        # a module, for torch.nn.ChannelShuffle exists on every version
        assert (shuffled == torch.nn.ChannelShuffle(groups)(tensor).numpy()).all()
    upsampled = run_one(Upsample((3, 2)), x, (12, 9, 8), IN)
    assert (upsampled == F.interpolate(tensor, scale_factor=(3, 2), mode="nearest").numpy()).all()
    assert (run_one(Slice(2, 7), x, (5, 3, 4), IN) == x[:, 2:7]).all()
    types = [TensorType((12, 3, 4), IN), TensorType((1, 3, 4), IN)]
    joined = reference.compute(Concat(), [x, x[:, :1]], types, TensorType((13, 3, 4), IN), "single")
    assert (joined == np.concatenate([x, x[:, :1]], axis=1)).all()


def test_pools_equal_torch() -> None:
    x = random_input(2, 3, 7, 7)
    real = torch.from_numpy(x.astype(np.float64))
    pooled = run_one(MaxPool2d((3, 3), (2, 2), (1, 1, 1, 1)), x, (3, 4, 4), IN)
    assert (pooled == F.max_pool2d(real, 3, 2, 1).numpy()).all()
    mean = F.avg_pool2d(real, 7, 7).numpy()
    away_from_zero = np.sign(mean) * np.floor(np.abs(mean) + 0.5)
    assert (run_one(AveragePool2d((7, 7), (7, 7)), x, (3, 1, 1), IN) == away_from_zero).all()


def test_flatten_is_channels_first() -> None:
    x = random_input(1, 2, 2, 2)
    assert run_one(Flatten(), x, (8,), IN).tolist() == [x.reshape(-1).tolist()]


def test_outputs_saturate_at_the_declared_range() -> None:
    narrow = Quantization(float32(0.021), 0, 0, 3)
    assert set(np.unique(run_one(Requantize(), random_input(1, 2, 32, 32), (2, 32, 32), narrow))) == {0, 1, 2, 3}


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(GraphError, match="takes int8"):
        run_one(Flatten(), np.zeros((1, 2, 2, 2), np.int16), (8,), IN)
    graph = IntegerGraph(
        "net",
        "x",
        TensorType((4,), Quantization(0.5, 0, 0, 3)),
        (Node("n", Requantize(), ("x",), TensorType((4,), OUT)),),
    )
    with pytest.raises(GraphError, match="outside"):
        reference.run(graph, np.full((1, 4), 4, np.int8))


@pytest.mark.parametrize("scale", [3e-8, 1e-3, 0.02, 0.1, 1.0, 17.0, 40.0])
@pytest.mark.parametrize("shape", [(2,), (10,), (1000,), (3, 4, 5)])
def test_softmax_is_torchs_rounded(shape: tuple[int, ...], scale: float) -> None:
    source = Quantization(float32(scale), 5)
    x = random_input(6, *shape)
    x[0] = 3
    node = Node("n", Softmax(), ("x",), TensorType(shape, PROBABILITIES))
    computed = reference.run(IntegerGraph("net", "x", TensorType(shape, source), (node,)), x)
    real = torch.softmax(torch.from_numpy(source.dequantize(x)).double(), 1).numpy()
    difference = np.abs(computed - (real * 256 - 128).clip(-128, 127))
    # The fixed point is good for a ten-thousandth of a step.
    assert difference.max() <= 0.5001


def test_softmax_has_no_zero_point_and_no_rounding_of_the_graph() -> None:
    x = random_input(4, 7)
    results = [
        reference.compute(Softmax(), [x], [TensorType((7,), source)], TensorType((7,), PROBABILITIES), rounding)
        for source in (IN, Quantization(IN.scale, 100))
        for rounding in ("tflite", "single")
    ]
    assert all((result == results[0]).all() for result in results)
    assert results[0].max() > -100
