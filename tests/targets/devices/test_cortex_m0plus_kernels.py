"""The kernels for Armv6-M on emulated cores, against the integer reference, to the bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kdpipe.targets import reference
from kdpipe.targets.c.convolution_v6m import block_taps, table_offsets, unsigned_bytes
from kdpipe.targets.c.generator import export
from kdpipe.targets.c.kernel_choice import lower_node
from kdpipe.targets.devices import c_compiler, cortex_m, host_c
from kdpipe.targets.errors import ArtifactError
from kdpipe.targets.fixed_point import Rounding
from kdpipe.targets.graph import Add, Conv2d, IntegerGraph, Node, Quantization, Requantize, TensorType, Weight

for package in ("unicorn", "ziglang", "elftools", "capstone"):
    pytest.importorskip(package)

Inputs = Callable[..., NDArray[np.int8]]
OPERATORS = ("conv", "depthwise", "residual")
CORES = ("cortex-m0plus", "cortex-m3", "cortex-m4")
STRING_H = Path(cortex_m.__file__).parent / "firmware_sources" / "include"


def check(
    graph: IntegerGraph,
    inputs: NDArray[np.int8],
    directory: Path,
    core: str = "cortex-m0plus",
    sources: str = "cortex-m0plus",
) -> None:
    """Run sources on a core; those for the M0+ every larger core runs too."""
    limits = graph.input.quantization
    extremes = [np.full((1, *graph.input.shape), value, dtype=np.int8) for value in (limits.qmin, limits.qmax)]
    inputs = np.concatenate([inputs, *extremes])
    export(graph, directory, sources)
    traced = cortex_m.create(core).trace(directory, inputs)
    for name, expected in reference.run_all(graph, inputs).items():
        if name in traced:
            np.testing.assert_array_equal(traced[name], expected, err_msg=f"{graph.name}, layer {name}")


def extreme(bits: int, weight: int, channels: int, start: int, outputs: int = 5) -> IntegerGraph:
    """One 3x3 convolution all of whose weights are `weight`, outputs scaled to fill their range."""
    count = 9 * channels
    values = np.full((outputs, channels, 3, 3), weight, np.int8)
    scales = np.full(outputs, 1.0 / (count * max(1, abs(weight))), np.float32)
    op = Conv2d(Weight(values, scales, bits), np.arange(outputs, dtype=np.int32) * start, padding=(1, 1, 1, 1))
    quantization = Quantization(0.5, -128)
    source = TensorType((channels, 5, 7), quantization)
    nodes = (Node("conv", op, ("input",), TensorType((outputs, 5, 7), quantization)),)
    return IntegerGraph("net", "input", source, nodes, "single")


@pytest.mark.parametrize("seed", [300, 301, 302, 303, 305])
def test_random_graphs(
    seed: int, random_graph: Callable[..., IntegerGraph], random_inputs: Inputs, tmp_path: Path
) -> None:
    rounding = ("single", "tflite")[seed % 3 == 0]
    graph = random_graph(seed, rounding=rounding, depth=5, operators=OPERATORS)
    kernels = {lower_node(graph, node, "cortex-m0plus").kernel for node in graph.nodes}
    assert any(kernel.startswith("conv_dot") for kernel in kernels)
    check(graph, random_inputs(graph, 3), tmp_path, CORES[seed % 3])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2000, 2030))
def test_many_random_graphs(
    seed: int, random_graph: Callable[..., IntegerGraph], random_inputs: Inputs, tmp_path: Path
) -> None:
    graph = random_graph(seed, rounding=("single", "tflite")[seed % 2], narrow=seed % 4 < 2)
    check(graph, random_inputs(graph, 3), tmp_path, CORES[seed % 3])


@pytest.mark.parametrize(("bits", "weight"), [(8, -127), (8, 127), (4, -7), (4, 7), (3, 3), (2, -1), (2, 1)])
def test_half_words_at_their_limit(bits: int, weight: int, random_inputs: Inputs, tmp_path: Path) -> None:
    """The largest weights and values fill the 16 bits of each sum as far as anything can; taps end within a block."""
    graph = extreme(bits, weight, channels=7, start=3)
    layer = lower_node(graph, graph.nodes[0], "cortex-m0plus")
    assert layer.kernel == f"conv_dot_w{4 if bits == 3 else bits}"
    check(graph, random_inputs(graph, 3), tmp_path)


@pytest.mark.parametrize("start", [0, 2**30 // 4])
def test_large_sums_go_the_long_way(start: int, random_inputs: Inputs, tmp_path: Path) -> None:
    graph = extreme(8, 3, channels=4, start=start)
    assert ("multipliers" in lower_node(graph, graph.nodes[0], "cortex-m0plus").arrays) == (start > 0)
    check(graph, random_inputs(graph, 3), tmp_path)


def test_channels_of_too_different_scale_go_the_long_way(random_inputs: Inputs, tmp_path: Path) -> None:
    graph = extreme(8, 3, channels=4, start=2**24)
    node = graph.nodes[0]
    assert isinstance(node.op, Conv2d)
    scales = node.op.weight.scales * np.array([1, 1e-5, 30, 1e-3, 5], np.float32)
    op = replace(node.op, weight=replace(node.op.weight, scales=scales))
    graph = replace(graph, nodes=(replace(node, op=op),))
    assert "multipliers" in lower_node(graph, graph.nodes[0], "cortex-m0plus").arrays
    check(graph, random_inputs(graph, 3), tmp_path)


def ternary(shape: tuple[int, int, int, int], in_size: tuple[int, int], stride: int = 1) -> IntegerGraph:
    """One convolution of random ternary weights [O, I, KH, KW], padded to keep the size at stride 1."""
    rng = np.random.default_rng(sum(shape))
    values = rng.integers(-1, 2, shape).astype(np.int8)
    scales = (rng.uniform(0.5, 2.0, shape[0]) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    bias = rng.integers(-99, 99, shape[0]).astype(np.int32)
    padding = shape[2] // 2, shape[3] // 2
    op = Conv2d(Weight(values, scales, 2), bias, stride=(stride, stride), padding=padding * 2)
    quantization = Quantization(0.5, -7)
    output = [
        (size + 2 * pad - kernel) // stride + 1 for size, pad, kernel in zip(in_size, padding, shape[2:], strict=True)
    ]
    nodes = (Node("conv", op, ("input",), TensorType((shape[0], *output), quantization)),)
    return IntegerGraph("net", "input", TensorType((shape[1], *in_size), quantization), nodes, "single")


@pytest.mark.parametrize(
    ("shape", "in_size", "stride"),
    [((12, 1, 1, 1), (3, 3), 1), ((13, 5, 3, 3), (5, 6), 1), ((16, 17, 3, 3), (4, 4), 2), ((64, 64, 1, 1), (5, 5), 1)],
)
@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m3"])
def test_ternary_tables(
    core: str,
    shape: tuple[int, int, int, int],
    in_size: tuple[int, int],
    stride: int,
    random_inputs: Inputs,
    tmp_path: Path,
) -> None:
    """One tap, a last chunk that is not whole, several, and positions that are no multiple of four."""
    graph = ternary(shape, in_size, stride)
    assert lower_node(graph, graph.nodes[0], "cortex-m0plus").kernel == "conv_table"
    check(graph, random_inputs(graph, 3), tmp_path, core)


@pytest.mark.parametrize("weight", [-1, 1])
def test_ternary_sums_of_a_chunk_at_their_limit(weight: int, random_inputs: Inputs, tmp_path: Path) -> None:
    graph = extreme(2, weight, channels=16, start=3, outputs=12)
    assert lower_node(graph, graph.nodes[0], "cortex-m0plus").kernel == "conv_table"
    check(graph, random_inputs(graph, 3), tmp_path)


def test_few_channels_double_rounding_and_multiply_accumulate_need_no_tables() -> None:
    graph = ternary((11, 4, 3, 3), (5, 5))
    assert lower_node(graph, graph.nodes[0], "cortex-m0plus").kernel == "conv_dot_w2"
    graph = ternary((12, 4, 3, 3), (5, 5))
    assert lower_node(graph, graph.nodes[0], "cortex-m3").kernel == "conv_dot_w2"
    graph = replace(graph, rounding="tflite")
    assert lower_node(graph, graph.nodes[0], "cortex-m0plus").kernel == "conv_dot_w2"


def test_ternary_weights_are_offsets_of_entries() -> None:
    rows = np.array([[-1, 0, 1, 1], [1, 1, 1, -1]], np.int8)
    assert table_offsets(rows, 4).tolist() == [40, 176, 104, 104, 208, 32, 104, 104]
    long = np.zeros((2, 60), np.int8)
    long[1, 48] = 1
    # All channels of one chunk of 12 groups, then all of the next.
    assert np.flatnonzero(table_offsets(long, 20) != 104).tolist() == [2 * 12 + 8 + 4]


def depthwise(bits: int, shape: tuple[int, int, int], stride: int, weight: int | None = None) -> IntegerGraph:
    """One 3x3 depthwise convolution with padding, of random weights or all of one weight."""
    channels, height, width = shape
    rng = np.random.default_rng(bits)
    values = rng.integers(1 - 2 ** (bits - 1), 2 ** (bits - 1), (channels, 1, 3, 3)).astype(np.int8)
    if weight is not None:
        values[:] = weight
    scales = (rng.uniform(0.5, 2.0, channels) / 2 ** (bits - 1) / 3).astype(np.float32)
    op = Conv2d(
        Weight(values, scales, bits),
        rng.integers(-300, 300, channels).astype(np.int32),
        stride=(stride, stride),
        padding=(1, 1, 1, 1),
        groups=channels,
    )
    quantization = Quantization(0.5, -7)
    output = TensorType((channels, (height - 1) // stride + 1, (width - 1) // stride + 1), quantization)
    nodes = (Node("depthwise", op, ("input",), output),)
    return IntegerGraph("net", "input", TensorType(shape, quantization), nodes, "single")


@pytest.mark.parametrize(
    ("bits", "shape", "stride"),
    [
        (8, (5, 7, 6), 1),
        (4, (3, 1, 1), 1),
        (2, (4, 6, 9), 2),
        (3, (2, 2, 5), 1),
        (8, (2, 29, 31), 1),
        (4, (2, 41, 40), 2),
    ],
)
@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m3"])
def test_depthwise_convolutions(
    core: str, bits: int, shape: tuple[int, int, int], stride: int, random_inputs: Inputs, tmp_path: Path
) -> None:
    """An odd number of rows, one row, several strips, stride 2, and M3's own multiplication of 64 bits."""
    graph = depthwise(bits, shape, stride)
    assert lower_node(graph, graph.nodes[0], core).kernel == "depthwise_pairs"
    check(graph, random_inputs(graph, 3), tmp_path, core, core)


@pytest.mark.parametrize(("bits", "weight"), [(8, -127), (8, 127), (4, -7), (4, 7), (2, -1)])
def test_depthwise_half_words_at_their_limit(bits: int, weight: int, random_inputs: Inputs, tmp_path: Path) -> None:
    graph = depthwise(bits, (2, 5, 5), 1, weight)
    check(graph, random_inputs(graph, 3), tmp_path)


@pytest.mark.parametrize(
    ("core", "rounding"), [("cortex-m0plus", "tflite"), ("cortex-m0plus", "single"), ("cortex-m3", "single")]
)
@pytest.mark.parametrize("size", [1, 5, 300])
def test_sums(core: str, rounding: Rounding, size: int, random_inputs: Inputs, tmp_path: Path) -> None:
    """Two multiplications an element; the output's scale lets some saturate on either side."""
    kinds = [Quantization(float(np.float32(scale)), zero) for scale, zero in ((0.05, -3), (0.07, 9), (0.065, -20))]
    types = [TensorType((size, 1, 1), kind) for kind in kinds]
    nodes = (Node("other", Requantize(), ("input",), types[1]), Node("sum", Add(), ("input", "other"), types[2]))
    graph = IntegerGraph("net", "input", types[0], nodes, rounding)
    assert lower_node(graph, nodes[1], core).kernel == {"cortex-m3": "scaled_add_v7m"}.get(core, "scaled_add_v6m")
    inputs = random_inputs(graph, 3)
    check(graph, inputs, tmp_path, core, core)
    layers = cortex_m.create(core).measure(tmp_path, inputs).layers
    assert layers is not None
    # 13 an element of the M0+ and 5 more where it saturates; the M3 has an instruction for that.
    assert layers[1].instructions < (6.2 if core == "cortex-m3" else 14.5) * size + 40


def test_weights_of_8_bits_are_unsigned_and_padded_by_zeros() -> None:
    rows = np.array([[1, -128, 0], [-1, 127, 1]], np.int8)
    words = unsigned_bytes(rows, 8).tolist()
    assert words == [129 | 128 << 16, 0, 127 | 255 << 8 | 129 << 16, 0]


def test_blocks_are_as_long_as_half_words_allow() -> None:
    rows = np.zeros((2, 100), np.int8)
    rows[1, :] = 2
    # 64 * 2 * 255 = 32640; two blocks of 56 need less padding than one of 64 and another.
    assert block_taps(rows, 255, 8) == 56
    assert block_taps(rows, 127, 8) == 104
    rows[0, :16] = -8
    assert block_taps(rows, 255, 8) == 56
    rows[0, 16] = -1
    assert block_taps(rows, 255, 8) == 16
    rows[0, 17:32] = -8
    assert block_taps(rows, 255, 8) == 16
    assert block_taps(rows, 255, 16) == 16


@pytest.mark.parametrize(
    "graph",
    [*(extreme(bits, 1, 4, 1) for bits in (8, 4, 2)), ternary((12, 2, 3, 3), (5, 5)), depthwise(4, (2, 5, 5), 1)],
    ids=["w8", "w4", "w2", "table", "depthwise"],
)
def test_sources_compile_without_warnings(graph: IntegerGraph, tmp_path: Path) -> None:
    export(graph, tmp_path, "cortex-m0plus")
    names = ["model.c", "model_weights.c", *(f"kernels/{path.name}" for path in tmp_path.glob("kernels/*.[cS]"))]
    target = ["-target", "thumb-freestanding-eabi", "-mcpu=cortex_m0plus", "-I.", "-I", str(STRING_H)]
    strict = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
    c_compiler.compile_c([*c_compiler.zig_compiler(), *target, *strict, "-c", *names], tmp_path)


def test_this_machine_refuses_them(random_inputs: Inputs, tmp_path: Path) -> None:
    graph = extreme(8, 1, 4, 1)
    export(graph, tmp_path, "cortex-m0plus")
    with pytest.raises(ArtifactError, match="the Thumb instructions"):
        host_c.create().measure(tmp_path, random_inputs(graph, 1))
