"""The kernels for the DSP extension on an emulated core, against the integer reference, to the bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rows_everywhere import rows_everywhere

from kdpipe.targets import reference
from kdpipe.targets.c import nibble_m4
from kdpipe.targets.c.generator import export
from kdpipe.targets.c.kernel_choice import lower_node
from kdpipe.targets.c.program import plan_program
from kdpipe.targets.devices import c_compiler, cortex_m, host_c
from kdpipe.targets.errors import ArtifactError
from kdpipe.targets.graph import (
    AveragePool2d,
    Conv2d,
    IntegerGraph,
    Node,
    Quantization,
    TensorType,
    Weight,
    convolution_output_size,
)

for package in ("unicorn", "ziglang", "elftools", "capstone"):
    pytest.importorskip(package)

STRING_H = Path(cortex_m.__file__).parent / "firmware_sources" / "include"


def check(
    graph: IntegerGraph, inputs: NDArray[np.int8], directory: Path, core: str = "cortex-m4", optimize: str = "speed"
) -> None:
    limits = graph.input.quantization
    extremes = [np.full((1, *graph.input.shape), value, dtype=np.int8) for value in (limits.qmin, limits.qmax)]
    inputs = np.concatenate([inputs, *extremes])
    export(graph, directory, core, optimize=optimize)
    traced = cortex_m.create(core).trace(directory, inputs)
    for name, expected in reference.run_all(graph, inputs).items():
        if name in traced:
            np.testing.assert_array_equal(traced[name], expected, err_msg=f"{graph.name}, layer {name}")


def convolutions(
    seed: int,
    bits: int,
    rounding: str,
    cases: list[tuple[int, tuple[int, int], dict[str, object]]],
    spread: float = 0.3,
    size: tuple[int, int] = (13, 11),
) -> IntegerGraph:
    """A chain of convolutions, outputs scaled to fill their range.

    Args:
        seed: of the weights.
        bits: of the weights.
        rounding: of the graph.
        cases: output channels (0: as many groups as inputs), kernel, and Conv2d's arguments.
        spread: of the channels' scales.
        size: of the input's maps.
    """
    rng = np.random.default_rng(seed)
    shape, source = (cases[0][2].pop("inputs"), *size), Quantization(0.0625, int(rng.integers(-128, 100)))
    nodes: list[Node] = []
    known = TensorType(shape, source)
    for index, (outputs, kernel, options) in enumerate(cases):
        channels, height, width = known.shape
        groups = 1 if outputs else channels
        limit = 2 ** (bits - 1) - 1
        values = rng.integers(-limit, limit + 1, (outputs or channels, channels // groups, *kernel)).astype(np.int8)
        deviation = max(float(values.std()), 0.5) * 75 * np.sqrt(values[0].size)
        scales = (np.exp(rng.normal(0, spread, len(values))) * 45 / deviation).astype(np.float32)
        bias = rng.integers(-int(deviation), int(deviation) + 1, len(values)).astype(np.int32)
        op = Conv2d(Weight(values, scales, bits), bias, groups=groups, **options)  # type: ignore[arg-type]
        top, left, bottom, right = op.padding
        out_size = (
            convolution_output_size(height, kernel[0], op.stride[0], top, bottom, op.dilation[0]),
            convolution_output_size(width, kernel[1], op.stride[1], left, right, op.dilation[1]),
        )
        output = Quantization(0.0625, -128 if index % 2 else int(rng.integers(-128, 128)))
        nodes.append(
            Node(
                f"conv{index}",
                op,
                (nodes[-1].name if nodes else "input",),
                TensorType((len(values), *out_size), output),
            )
        )
        known = nodes[-1].output
    # The scales above are for steps of 1.
    return IntegerGraph("net", "input", TensorType(shape, source), tuple(nodes), rounding)  # type: ignore[arg-type]


SAME = {"padding": (1, 1, 1, 1)}
QUADS = [
    (8, (3, 3), {"inputs": 6, **SAME}),
    (12, (3, 3), {"padding": (0, 0, 1, 1), "stride": (2, 2)}),
    (8, (1, 1), {}),
    (4, (3, 2), {"padding": (2, 1, 0, 2), "dilation": (2, 1), "stride": (1, 2)}),
    (8, (1, 1), {"stride": (1, 2)}),
]
FLAT = [(8, (5, 4), {"inputs": 1, "stride": (2, 1), "padding": (1, 2, 2, 1)})]
FLAT_COLOURS = [(4, (3, 3), {"inputs": 3, "stride": (1, 2), "padding": (1, 0, 1, 1)})]
TERNARY = [
    (8, (3, 3), {"inputs": 4, **SAME}),
    (16, (3, 3), {}),
    (16, (1, 1), {}),
    (12, (3, 3), {"padding": (0, 0, 1, 1), "stride": (2, 2)}),
    (6, (3, 3), SAME),
]
TERNARY_ODD = [
    (16, (1, 1), {"inputs": 20, "stride": (2, 2)}),
    (32, (3, 3), SAME),
    (4, (3, 3), {"padding": (2, 1, 0, 1)}),
    (8, (2, 3), {"padding": (1, 2, 1, 2), "dilation": (2, 2)}),
]
# Whole tiles of eight columns; then partial ones, of the first and the last of which columns lie outside the input.
NIBBLES = [
    (32, (3, 3), {"inputs": 8, **SAME}),
    (16, (3, 3), SAME),
    (8, (5, 3), {"padding": (2, 1, 2, 0), "stride": (2, 1)}),
    (3, (1, 3), {"padding": (0, 1, 0, 1)}),
    (8, (2, 3), {"padding": (0, 1, 1, 3)}),
]
DEPTHWISE = [
    (0, (3, 3), {"inputs": 8, **SAME}),
    (0, (3, 3), {"stride": (2, 2), "padding": (0, 0, 1, 1)}),
    (0, (3, 3), {}),
]

GRAPHS = {
    "8 bits": (8, QUADS, {"conv8_w8"}),
    "4 bits": (4, QUADS, {"conv8_w4"}),
    "3 bits": (3, QUADS, {"conv8_w4"}),
    "grey": (8, FLAT, {"conv8_flat"}),
    "colours": (8, FLAT_COLOURS, {"conv8_flat"}),
    "ternary": (2, TERNARY, {"ternary_taps", "ternary_outer"}),
    "ternary odd": (2, TERNARY_ODD, {"ternary_taps", "ternary_outer"}),
    "depthwise": (8, DEPTHWISE, {"depthwise3"}),
    "ternary depthwise": (2, DEPTHWISE, {"depthwise3"}),
}


@pytest.mark.parametrize("rounding", ["single", "tflite"])
@pytest.mark.parametrize("kind", GRAPHS)
def test_kernels(kind: str, rounding: str, random_inputs: Callable[..., NDArray[np.int8]], tmp_path: Path) -> None:
    bits, cases, kernels = GRAPHS[kind]
    graph = convolutions(len(kind), bits, rounding, [(o, k, dict(options)) for o, k, options in cases])
    used = {lower_node(graph, node, "cortex-m4").kernel for node in graph.nodes}
    assert used == kernels
    check(graph, random_inputs(graph, 3), tmp_path)


@pytest.mark.parametrize("kind", GRAPHS)
def test_kernels_by_rows(kind: str, random_inputs: Callable[..., NDArray[np.int8]], tmp_path: Path) -> None:
    bits, cases, kernels = GRAPHS[kind]
    graph = convolutions(len(kind), bits, "single", [(o, k, dict(options)) for o, k, options in cases])
    with rows_everywhere():
        program = plan_program(graph, "cortex-m4")
        assert [len(chain.layers) for chain in program.chains] == [len(graph.nodes)]
        assert {layer.kernel for layer in program.layers.values()} == kernels
        check(graph, random_inputs(graph, 2), tmp_path)


def test_kernels_for_size(random_inputs: Callable[..., NDArray[np.int8]], tmp_path: Path) -> None:
    """The fast kernel for three taps stores 2.67 bits a weight, that for any kernel 2, portable ones 1.6."""
    cases = [(8, (3, 3), {"inputs": 4, **SAME}), (16, (3, 3), {}), (0, (3, 3), {}), (6, (3, 3), SAME)]
    graph = convolutions(3, 2, "single", [(o, k, dict(options)) for o, k, options in cases])
    sizes = {}
    for optimize in ("speed", "size"):
        layers = [lower_node(graph, node, "cortex-m4", optimize) for node in graph.nodes]
        sizes[optimize] = [(layer.kernel, layer.arrays["weights"].nbytes) for layer in layers]
    assert sizes["speed"] == [
        *(("ternary_taps", 8 * 36 * 8 // 24), ("ternary_taps", 16 * 72 * 8 // 24)),
        *(("depthwise3", 16 * 12), ("ternary_taps", 6 * 144 * 8 // 24)),
    ]
    assert sizes["size"] == [
        *(("ternary_outer", 8 * 36 // 4), ("ternary_outer", 16 * 72 // 4)),
        *(("depthwise_t5", 16 * 2), ("conv2d_t5", 6 * 29)),
    ]
    check(graph, random_inputs(graph, 3), tmp_path, optimize="size")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_channels_of_different_scale(bits: int, random_inputs: Callable[..., NDArray[np.int8]], tmp_path: Path) -> None:
    """Where no shift suits all channels, each gets its own."""
    cases = TERNARY if bits == 2 else QUADS
    graph = convolutions(5, bits, "single", [(o, k, dict(options)) for o, k, options in cases], spread=1.5)
    check(graph, random_inputs(graph, 3), tmp_path)


@pytest.mark.parametrize("seed", range(200, 206))
def test_random_graphs(
    seed: int,
    random_graph: Callable[..., IntegerGraph],
    random_inputs: Callable[..., NDArray[np.int8]],
    tmp_path: Path,
) -> None:
    graph = random_graph(seed, rounding=("single", "tflite")[seed % 2], channel_step=4, depth=4)
    check(graph, random_inputs(graph, 3), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1040))
def test_many_random_graphs(
    seed: int,
    random_graph: Callable[..., IntegerGraph],
    random_inputs: Callable[..., NDArray[np.int8]],
    tmp_path: Path,
) -> None:
    graph = random_graph(seed, rounding=("single", "tflite")[seed % 2], channel_step=4, narrow=seed % 4 < 2)
    check(graph, random_inputs(graph, 3), tmp_path, ("cortex-m4", "cortex-m7", "cortex-m33")[seed % 3])


@pytest.mark.parametrize("kind", ["8 bits", "4 bits", "colours", "ternary", "depthwise"])
@pytest.mark.parametrize("core", ["cortex-m7", "cortex-m33"])
def test_other_cores(core: str, kind: str, random_inputs: Callable[..., NDArray[np.int8]], tmp_path: Path) -> None:
    bits, cases, kernels = GRAPHS[kind]
    graph = convolutions(1, bits, "single", [(o, k, dict(options)) for o, k, options in cases])
    assert {lower_node(graph, node, core).kernel for node in graph.nodes} <= kernels
    check(graph, random_inputs(graph, 2), tmp_path, core)


@pytest.mark.parametrize(("bits", "channel", "limit"), [(8, 1, 2**23), (4, 3, 2**19), (4, 2, 2**23)])
def test_sums_that_leave_their_place_go_to_the_kernel_for_any_core(
    bits: int, channel: int, limit: int, random_inputs: Callable[..., NDArray[np.int8]], tmp_path: Path
) -> None:
    graph = convolutions(2, bits, "single", [(8, (3, 3), {"inputs": 8, **SAME})])
    node = graph.nodes[0]
    assert lower_node(graph, node, "cortex-m4").kernel == f"conv8_w{bits}"
    bias = node.op.bias.copy()
    bias[channel] = limit
    scales = node.op.weight.scales.copy()
    scales[channel] = 0.0625 * 100 / 0.0625 / limit
    op = replace(node.op, weight=replace(node.op.weight, scales=scales), bias=bias)
    graph = replace(graph, nodes=(replace(node, op=op),))
    assert lower_node(graph, graph.nodes[0], "cortex-m4").kernel == f"conv2d_w{bits}"
    check(graph, random_inputs(graph, 3), tmp_path)


@pytest.mark.parametrize("rounding", ["single", "tflite"])
@pytest.mark.parametrize(("bits", "width"), [(4, 16), (4, 8), (4, 23), (3, 7)])
def test_nibble_taps(
    bits: int, width: int, rounding: str, random_inputs: Callable[..., NDArray[np.int8]], tmp_path: Path
) -> None:
    cases = [(outputs, kernel, dict(options)) for outputs, kernel, options in NIBBLES]
    graph = convolutions(width, bits, rounding, cases, spread=1.5 if width == 23 else 0.3, size=(6, width))
    assert lower_node(graph, graph.nodes[0], "cortex-m4").kernel == "nibble_taps"
    check(graph, random_inputs(graph, 3), tmp_path)


def test_nibble_taps_by_rows(random_inputs: Callable[..., NDArray[np.int8]], tmp_path: Path) -> None:
    cases = [(outputs, kernel, dict(options)) for outputs, kernel, options in NIBBLES]
    graph = convolutions(3, 4, "single", cases, size=(9, 15))
    with rows_everywhere():
        layers = plan_program(graph, "cortex-m4").layers.values()
        assert [layer.kernel for layer in layers].count("nibble_taps") >= 3
        check(graph, random_inputs(graph, 2), tmp_path)


def full_nibbles(channels: int) -> IntegerGraph:
    """Weights of the largest magnitude, of either sign by turns of channels: what fills 20-bit fields soonest."""
    graph = convolutions(1, 4, "single", [(4, (3, 3), {"inputs": channels, **SAME})], size=(4, 8))
    node = graph.nodes[0]
    values = np.empty_like(node.op.weight.values)
    values[0::2], values[1::2] = 7, -7
    scales = (0.1 / np.full(len(values), values[0].size)).astype(np.float32)
    op = replace(node.op, weight=replace(node.op.weight, values=values, scales=scales))
    source = replace(graph.input, quantization=Quantization(0.0625, -128))
    return replace(graph, input=source, nodes=(replace(node, op=op),))


def test_fields_of_20_bits_are_used_to_their_end(
    random_inputs: Callable[..., NDArray[np.int8]], tmp_path: Path
) -> None:
    fitting, too_many = full_nibbles(32), full_nibbles(40)
    assert lower_node(fitting, fitting.nodes[0], "cortex-m4").kernel == "nibble_taps"
    assert lower_node(too_many, too_many.nodes[0], "cortex-m4").kernel == "conv2d_w4"
    for graph in (fitting, too_many):
        check(graph, random_inputs(graph, 2), tmp_path / str(graph.input.shape[0]))


def test_beyond_20_bits_fields_would_be_wrong(
    random_inputs: Callable[..., NDArray[np.int8]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is needed: these weights, which it rejects, give wrong outputs without it."""
    monkeypatch.setattr(nibble_m4, "FIELD_BITS", 22)
    graph = full_nibbles(40)
    with pytest.raises(AssertionError, match="layer conv0"):
        check(graph, random_inputs(graph, 1), tmp_path)


@pytest.mark.parametrize("value", [-1, 1])
def test_fields_at_their_limit_are_taken_out_in_time(
    value: int, random_inputs: Callable[..., NDArray[np.int8]], tmp_path: Path
) -> None:
    """All weights 1 and all inputs 127 fill the fields as fast as anything can."""
    graph = convolutions(3, 2, "single", [(4, (3, 3), {"inputs": 64, **SAME}), (8, (5, 5), {"padding": (2, 2, 2, 2)})])
    nodes = []
    for node in graph.nodes:
        values = np.full_like(node.op.weight.values, value)
        scales = (0.5 / np.full(len(values), values[0].size)).astype(np.float32)
        weight = replace(node.op.weight, values=values, scales=scales)
        nodes.append(replace(node, op=replace(node.op, weight=weight)))
    graph = replace(graph, nodes=tuple(nodes))
    layer = lower_node(graph, graph.nodes[0], "cortex-m4")
    assert layer.kernel == "ternary_taps"
    flushes = int((layer.arrays["schedule"].values[1::2] & 1).sum())
    assert flushes == (6 if value == 1 else 1)
    check(graph, random_inputs(graph, 2), tmp_path)


@pytest.mark.parametrize(("channels", "adds_sums"), [(64, 0), (68, 1)])
def test_whole_sums_fill_their_fields(
    channels: int, adds_sums: int, random_inputs: Callable[..., NDArray[np.int8]], tmp_path: Path
) -> None:
    """All weights of a channel are 1 or all are -1, so that the largest inputs fill the fields from end to end."""
    graph = convolutions(4, 2, "single", [(8, (1, 1), {"inputs": channels})], size=(3, 3))
    node = graph.nodes[0]
    values = np.empty_like(node.op.weight.values)
    values[0::2], values[1::2] = 1, -1
    scales = (1.5 / np.full(len(values), channels)).astype(np.float32)
    op = replace(node.op, weight=replace(node.op.weight, values=values, scales=scales))
    graph = replace(graph, nodes=(replace(node, op=op),))
    layer = lower_node(graph, graph.nodes[0], "cortex-m4")
    assert layer.kernel == "ternary_outer"
    assert layer.assembly is not None
    assert dict(layer.assembly.constants)["ADD_SUMS"] == adds_sums
    check(graph, random_inputs(graph, 2), tmp_path)


@pytest.mark.parametrize("size", [(2, 3), (19, 17)])
def test_means(size: tuple[int, int], random_inputs: Callable[..., NDArray[np.int8]], tmp_path: Path) -> None:
    """Half-words hold the sums of 256 values, so larger maps take several rounds."""
    quantization = Quantization(0.5, 3)
    mean = Node("mean", AveragePool2d(size, size), ("input",), TensorType((8, 1, 1), quantization))
    graph = IntegerGraph("net", "input", TensorType((8, *size), quantization), (mean,), "single")
    assert lower_node(graph, mean, "cortex-m4").kernel == "mean_dsp"
    check(graph, random_inputs(graph, 3), tmp_path)


def test_sums_of_codes_that_exceed_their_fields_go_to_another_kernel() -> None:
    graph = convolutions(3, 2, "single", [(4, (3, 3), {"inputs": 1364, **SAME})])
    assert lower_node(graph, graph.nodes[0], "cortex-m4").kernel == "ternary_taps"
    graph = convolutions(3, 2, "single", [(4, (3, 3), {"inputs": 1368, **SAME})])
    assert lower_node(graph, graph.nodes[0], "cortex-m4").kernel != "ternary_taps"


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_sources_compile_without_warnings(bits: int, tmp_path: Path) -> None:
    cases = TERNARY if bits == 2 else QUADS
    kinds = [(cases, 11), (DEPTHWISE, 11), (FLAT, 11), (NIBBLES, 16)]
    graphs = [
        convolutions(1, bits, "single", [(o, k, dict(options)) for o, k, options in kind], size=(13, width))
        for kind, width in kinds
    ]
    for number, graph in enumerate(graphs):
        directory = tmp_path / str(number)
        export(graph, directory, "cortex-m4")
        names = ["model.c", "model_weights.c", *(f"kernels/{path.name}" for path in directory.glob("kernels/*.[cS]"))]
        target = ["-target", "thumb-freestanding-eabi", "-mcpu=cortex_m4", "-I.", "-I", str(STRING_H)]
        strict = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
        c_compiler.compile_c([*c_compiler.zig_compiler(), *target, *strict, "-c", *names], directory)


@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m3", "host"])
def test_devices_that_lack_what_the_sources_use_refuse_them(
    core: str, random_inputs: Callable[..., NDArray[np.int8]], tmp_path: Path
) -> None:
    graph = convolutions(1, 2, "single", [(4, (3, 3), {"inputs": 4})])
    export(graph, tmp_path, "cortex-m4")
    device = host_c.create() if core == "host" else cortex_m.create(core)
    with pytest.raises(ArtifactError, match="the sources are for cortex-m4") as caught:
        device.measure(tmp_path, random_inputs(graph, 1))
    assert "the DSP extension" in caught.value.message
    assert caught.value.remedy is not None
