"""The kernels for MVE on QEMU's Cortex-M55, against the integer reference, to the bit."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rows_everywhere import rows_everywhere

from kdpipe.targets import reference
from kdpipe.targets.c.generator import export, render
from kdpipe.targets.c.kernel_choice import lower_node
from kdpipe.targets.devices import c_compiler, cortex_m, host_c, qemu
from kdpipe.targets.devices.c_artifact import load_c_artifact
from kdpipe.targets.devices.firmware import link_firmware
from kdpipe.targets.errors import ArtifactError, DeviceError
from kdpipe.targets.graph import (
    Add,
    AveragePool2d,
    Conv2d,
    Flatten,
    IntegerGraph,
    Linear,
    Node,
    Operator,
    Quantization,
    TensorType,
    Weight,
    convolution_output_size,
)

Inputs = Callable[..., NDArray[np.int8]]
CORE, DEVICE = "cortex-m55", "qemu-cortex-m55"
STRING_H = Path(qemu.__file__).parent / "firmware_sources" / "include"
SAME = {"padding": (1, 1, 1, 1)}
OPERATORS = ("conv", "depthwise", "residual", "average_pool")

VARIANTS = [
    *((8, "single"), (4, "tflite"), (2, "single")),
    *(pytest.param(*variant, marks=pytest.mark.slow) for variant in ((8, "tflite"), (4, "single"), (2, "tflite"))),
    *(pytest.param(3, rounding, marks=pytest.mark.slow) for rounding in ("single", "tflite")),
]
"""Widths of the weights, and roundings."""

needs_qemu = pytest.mark.skipif(
    shutil.which(qemu.COMPILER) is None or shutil.which(qemu.EMULATOR) is None,
    reason=f"needs {qemu.COMPILER} and {qemu.EMULATOR}: apt install gcc-arm-none-eabi qemu-system-arm",
)


def check(graph: IntegerGraph, inputs: NDArray[np.int8], directory: Path, by_rows: bool = False) -> None:
    pytest.importorskip("elftools")
    limits = graph.input.quantization
    extremes = [np.full((1, *graph.input.shape), value, dtype=np.int8) for value in (limits.qmin, limits.qmax)]
    inputs = np.concatenate([inputs, *extremes])
    with rows_everywhere(by_rows):
        export(graph, directory, CORE)
    traced = qemu.create(DEVICE).trace(directory, inputs)
    for name, expected in reference.run_all(graph, inputs).items():
        if name in traced:
            np.testing.assert_array_equal(traced[name], expected, err_msg=f"{graph.name}, layer {name}")


def kernels(graph: IntegerGraph) -> list[str]:
    return [lower_node(graph, node, CORE).kernel for node in graph.nodes]


class Builder:
    """Layers one after the other, with random weights and outputs that fill their range."""

    def __init__(self, seed: int, shape: tuple[int, ...], bits: int, limits: tuple[int, int] = (-128, 127)) -> None:
        self.rng = np.random.default_rng(seed)
        self.bits, self.limits = bits, limits
        self.source = TensorType(shape, Quantization(0.0625, int(self.rng.integers(-128, 100))))
        self.nodes: list[Node] = []

    @property
    def last(self) -> TensorType:
        return self.nodes[-1].output if self.nodes else self.source

    def append(self, op: Operator, shape: tuple[int, ...], quantization: Quantization, *more: str) -> None:
        previous = self.nodes[-1].name if self.nodes else "input"
        self.nodes.append(Node(f"layer{len(self.nodes)}", op, (previous, *more), TensorType(shape, quantization)))

    def output(self) -> Quantization:
        low, high = self.limits
        return Quantization(0.0625, int(self.rng.integers(low, high + 1)), low, high)

    def weight(self, shape: tuple[int, ...], factor: float = 1.0) -> tuple[Weight, NDArray[np.int32]]:
        limit = 2 ** (self.bits - 1) - 1
        values = self.rng.integers(-limit, limit + 1, shape).astype(np.int8)
        deviation = max(float(values.std()), 0.5) * 75 * np.sqrt(values[0].size)
        scales = (factor * np.exp(self.rng.normal(0, 0.3, shape[0])) * 45 / deviation).astype(np.float32)
        bias = self.rng.integers(-int(deviation), int(deviation) + 1, shape[0]).astype(np.int32)
        return Weight(values, scales, self.bits), bias

    def convolution(self, outputs: int, kernel: tuple[int, int], factor: float = 1.0, **options: object) -> None:
        """A depthwise one if `outputs` is 0."""
        channels, height, width = self.last.shape
        weight, bias = self.weight((outputs or channels, channels if outputs else 1, *kernel), factor)
        op = Conv2d(weight, bias, groups=1 if outputs else channels, **options)  # type: ignore[arg-type]
        top, left, bottom, right = op.padding
        size = (
            convolution_output_size(height, kernel[0], op.stride[0], top, bottom, op.dilation[0]),
            convolution_output_size(width, kernel[1], op.stride[1], left, right, op.dilation[1]),
        )
        self.append(op, (outputs or channels, *size), self.output())

    def linear(self, outputs: int, factor: float = 1.0) -> None:
        weight, bias = self.weight((outputs, self.last.shape[0]), factor)
        self.append(Linear(weight, bias), (outputs,), self.output())

    def graph(self, rounding: str) -> IntegerGraph:
        return IntegerGraph("net", "input", self.source, tuple(self.nodes), rounding)  # type: ignore[arg-type]


Case = tuple[int, tuple[int, int], dict[str, object]]
COLUMNS: list[Case] = [
    (48, (3, 3), SAME),
    (16, (3, 3), {"stride": (2, 2), "padding": (0, 0, 1, 1)}),
    (32, (1, 2), {"padding": (0, 1, 0, 1), "stride": (2, 1)}),
    (16, (3, 1), {"padding": (6, 0, 5, 0), "dilation": (2, 1)}),
    (6, (7, 1), {"padding": (3, 0, 3, 0)}),
]
GATHER: list[Case] = [
    (6, (3, 3), SAME),
    (16, (4, 5), {"stride": (2, 1), "padding": (1, 2, 2, 1)}),
    (10, (3, 2), {"padding": (2, 1, 0, 2), "dilation": (2, 2), "stride": (1, 2)}),
    (4, (2, 2), {"stride": (3, 3)}),
]
POINTWISE: list[Case] = [(24, (1, 1), {}), (64, (1, 1), {"stride": (2, 2)}), (6, (1, 1), {})]
DEPTHWISE: list[Case] = [
    (0, (3, 3), SAME),
    (0, (5, 4), {"padding": (2, 2, 2, 2), "stride": (2, 1)}),
    (0, (1, 2), {"dilation": (1, 3)}),
    (0, (2, 1), {"stride": (1, 3)}),
]
SHAPES = {"columns": (32, 13, 11), "gather": (3, 13, 11), "pointwise": (20, 9, 7), "depthwise": (21, 13, 11)}


@needs_qemu
@pytest.mark.parametrize(("bits", "rounding"), VARIANTS)
@pytest.mark.parametrize("kind", ["columns", "gather", "pointwise", "depthwise"])
def test_kernels(kind: str, bits: int, rounding: str, random_inputs: Inputs, tmp_path: Path) -> None:
    cases = {"columns": COLUMNS, "gather": GATHER, "pointwise": POINTWISE, "depthwise": DEPTHWISE}[kind]
    limits = {3: (-90, 101)}.get(bits, (-128, 127))
    builder = Builder(len(kind), SHAPES[kind], bits, limits)
    for outputs, kernel, options in cases:
        # ternary channels of few taps would be multiplied with more than a half, which `tflite` leaves to others
        builder.convolution(outputs, kernel, 0.25 if rounding == "tflite" and bits == 2 else 1.0, **options)
    graph = builder.graph(rounding)
    assert set(kernels(graph)) == {"conv_mve_columns" if kind == "depthwise" else f"conv_mve_{kind}"}
    check(graph, random_inputs(graph, 2), tmp_path, by_rows=bits != 8)


@needs_qemu
@pytest.mark.parametrize(("bits", "rounding"), VARIANTS)
def test_classifiers_and_sums(bits: int, rounding: str, random_inputs: Inputs, tmp_path: Path) -> None:
    builder = Builder(bits, (21, 20, 15), bits)
    builder.append(Add(), (21, 20, 15), Quantization(0.15625, 5), "input")
    builder.nodes[0] = Node("layer0", Add(), ("input", "input"), builder.nodes[0].output)
    builder.append(AveragePool2d((20, 15), (1, 1)), (21, 1, 1), Quantization(0.15625, 5))
    builder.append(Flatten(), (21,), Quantization(0.15625, 5))
    for outputs in (37, 16, 3):
        builder.linear(outputs, 0.25 if rounding == "tflite" and bits == 2 else 1.0)
    graph = builder.graph(rounding)
    found = [lower_node(graph, node, CORE).kernel for node in graph.nodes if not isinstance(node.op, Flatten)]
    assert found == ["scaled_add_mve", "mean_mve", *[f"linear_mve_w{4 if bits == 3 else bits}"] * 3]
    check(graph, random_inputs(graph, 2), tmp_path)


@needs_qemu
@pytest.mark.parametrize(("bits", "factor"), [(8, 0.5), (4, 8), (2, 32)])
def test_linear_layers_whose_sums_are_first_shifted_left(
    bits: int, factor: float, random_inputs: Inputs, tmp_path: Path
) -> None:
    """As those are that are multiplied with a half or more; their biases have been when the code was written."""
    rng = np.random.default_rng(bits)
    rows = rng.integers(-1, 2, (6, 18)).astype(np.int8)
    scales = (factor * rng.uniform(1, 3, 6)).astype(np.float32)
    op = Linear(Weight(rows, scales, bits), np.array([-1, 1, 2, -2, 0, 3], np.int32))
    source, output = (Quantization(0.0625, zero_point) for zero_point in (0, -20))
    node = Node("linear", op, ("input",), TensorType((6,), output))
    graph = IntegerGraph("net", "input", TensorType((18,), source), (node,), "single")
    assert kernels(graph) == [f"linear_mve_w{bits}"]
    assert lower_node(graph, node, CORE).fields[4] > 0
    check(graph, random_inputs(graph, 20) // 64, tmp_path)


@needs_qemu
@pytest.mark.parametrize("seed", [0, 1])
def test_random_graphs(
    seed: int, random_graph: Callable[..., IntegerGraph], random_inputs: Inputs, tmp_path: Path
) -> None:
    rounding = ("single", "tflite")[seed % 2]
    graph = random_graph(500 + seed, rounding=rounding, depth=6, operators=OPERATORS, channel_step=2)
    assert any("mve" in kernel for kernel in kernels(graph))
    check(graph, random_inputs(graph, 2), tmp_path, by_rows=seed == 1)


@needs_qemu
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3000, 3060))
def test_many_random_graphs(
    seed: int, random_graph: Callable[..., IntegerGraph], random_inputs: Inputs, tmp_path: Path
) -> None:
    step = (1, 2, 4, 16)[seed // 2 % 4]
    graph = random_graph(seed, rounding=("single", "tflite")[seed % 2], channel_step=step)
    check(graph, random_inputs(graph, 2), tmp_path, by_rows=seed % 3 == 0)


def extreme(weight: int, channels: int, groups: int = 1) -> IntegerGraph:
    """One 3x3 convolution all of whose weights are `weight`, outputs scaled to fill their range."""
    per_group = channels // groups
    values = np.full((channels, per_group, 3, 3), weight, np.int8)
    scales = np.full(channels, 1.0 / (9 * per_group * abs(weight)), np.float32)
    op = Conv2d(Weight(values, scales, 8), np.zeros(channels, np.int32), padding=(1, 1, 1, 1), groups=groups)
    source = TensorType((channels, 6, 5), Quantization(0.5, -128))
    return IntegerGraph(
        "net",
        "input",
        source,
        (Node("conv", op, ("input",), TensorType((channels, 6, 5), source.quantization)),),
        "single",
    )


@needs_qemu
@pytest.mark.parametrize(("weight", "groups"), [(-127, 16), (127, 16), (-127, 1)])
def test_sums_at_their_limit(weight: int, groups: int, random_inputs: Inputs, tmp_path: Path) -> None:
    """The largest weights and values fill the half-words of a depthwise convolution as far as anything can."""
    graph = extreme(weight, 16, groups)
    assert kernels(graph) == ["conv_mve_columns"]
    check(graph, random_inputs(graph, 2), tmp_path)


@needs_qemu
@pytest.mark.parametrize("bits", [8, 2])
def test_instructions(bits: int, random_inputs: Inputs, tmp_path: Path) -> None:
    """A 3x3 convolution, 32 to 32 channels at 16x16: at most 0.12 instructions a multiplication, of whatever width."""
    pytest.importorskip("elftools")
    builder = Builder(1, (32, 16, 16), bits)
    builder.convolution(32, (3, 3), **SAME)
    graph = builder.graph("single")
    export(graph, tmp_path, CORE)
    inputs = random_inputs(graph, 1)
    measured = qemu.create(DEVICE).measure(tmp_path, inputs)
    np.testing.assert_array_equal(measured.outputs, reference.run(graph, inputs))
    assert measured.instructions is not None
    assert measured.instructions / (256 * 288 * 32) < 0.12


@needs_qemu
def test_clang_builds_the_same(
    random_graph: Callable[..., IntegerGraph], random_inputs: Inputs, tmp_path: Path
) -> None:
    """What ziglang's compiler and assembler make of the sources, on the same emulator."""
    pytest.importorskip("ziglang")
    pytest.importorskip("elftools")
    graph = random_graph(500, rounding="single", depth=6, operators=OPERATORS, channel_step=2)
    export(graph, tmp_path / "c", CORE)
    sources = load_c_artifact(tmp_path / "c", CORE)
    target = ["-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m55+mve"]
    (tmp_path / "build").mkdir()
    memories = qemu.BOARDS[DEVICE].memories
    compiler = [*c_compiler.zig_compiler(), *target]
    firmware = link_firmware(sources, compiler, tmp_path / "build", memories=memories, semihosting=True)
    inputs = random_inputs(graph, 3)
    records = qemu.create(DEVICE).run(sources, firmware, tmp_path / "build" / "run", sources.pack_inputs(inputs))
    np.testing.assert_array_equal(sources.unpack_outputs(records["output"]), reference.run(graph, inputs))


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_sources_compile_without_warnings(compiler: str, tmp_path: Path) -> None:
    for bits, rounding in ((8, "single"), (4, "tflite"), (2, "single")):
        builder = Builder(3, (3, 9, 9), bits)
        for outputs, kernel, options in [(16, (3, 3), SAME), (16, (3, 3), SAME), (0, (3, 3), SAME), (8, (1, 1), {})]:
            builder.convolution(outputs, kernel, 0.25, **options)
        builder.append(AveragePool2d((9, 9), (1, 1)), (8, 1, 1), builder.last.quantization)
        builder.append(Flatten(), (8,), builder.last.quantization)
        builder.linear(5)
        export(builder.graph(rounding), tmp_path / str(bits), CORE)
        found = {path.name for path in (tmp_path / str(bits)).glob("kernels/*.c")}
        assert {"conv_mve_gather.c", "conv_mve_columns.c", "conv_mve_pointwise.c", f"linear_mve_w{bits}.c"} <= found
        names = ["model.c", "model_weights.c"]
        names += [f"kernels/{path.name}" for path in sorted((tmp_path / str(bits)).glob("kernels/*.[cS]"))]
        strict = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-I.", "-I", str(STRING_H), "-c", *names]
        if compiler == "gcc":
            path = shutil.which(qemu.COMPILER)
            if path is None:
                pytest.skip(f"needs {qemu.COMPILER}: apt install gcc-arm-none-eabi")
            command = [path, "-mthumb", "-mcpu=cortex-m55", "-mfloat-abi=hard", "-ffreestanding"]
        else:
            pytest.importorskip("ziglang")
            target = ["-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m55+mve"]
            command = [*c_compiler.zig_compiler(), *target]
        c_compiler.compile_c([*command, *strict], tmp_path / str(bits))


def test_other_cores_refuse_them(random_inputs: Inputs, tmp_path: Path) -> None:
    graph = extreme(1, 16)
    export(graph, tmp_path, CORE)
    for device in (cortex_m.create("cortex-m33"), host_c.create()):
        with pytest.raises(ArtifactError, match="the vector extension MVE"):
            device.measure(tmp_path, random_inputs(graph, 1))


def test_compilers_for_other_cores_are_told(tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    export(extreme(1, 16), tmp_path, CORE)
    command = [*c_compiler.zig_compiler(), "-target", "thumb-freestanding-eabi", "-mcpu=cortex_m33"]
    command.append("-Wfatal-errors")
    with pytest.raises(DeviceError, match="These kernels need a core with MVE"):
        c_compiler.compile_c([*command, "-I.", "-I", str(STRING_H), "-c", "kernels/conv_mve_columns.c"], tmp_path)


def test_cmake_asks_for_mve(tmp_path: Path) -> None:
    texts = render(extreme(1, 16), CORE)
    assert "defined(__ARM_FEATURE_MVE)" in texts["CMakeLists.txt"]
    assert "MVE" in texts["README.md"]
    assert "MVE" not in render(extreme(1, 16), "cortex-m4")["CMakeLists.txt"]
    if shutil.which("cmake") is None or shutil.which(qemu.COMPILER) is None:
        pytest.skip(f"needs cmake and {qemu.COMPILER}")
    export(extreme(1, 16), tmp_path, CORE)
    for core, built in (("cortex-m55", "kernels"), ("cortex-m33", "portable")):
        options = [f"-DCMAKE_C_COMPILER={qemu.COMPILER}", f"-DCMAKE_ASM_COMPILER={qemu.COMPILER}"]
        options += [f"-DCMAKE_C_FLAGS=-mcpu={core} -mfloat-abi=hard", f"-DCMAKE_ASM_FLAGS=-mcpu={core}"]
        options += ["-DCMAKE_SYSTEM_NAME=Generic", "-DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY"]
        subprocess.run(["cmake", "-B", core, *options], cwd=tmp_path, check=True, capture_output=True)
        said = (tmp_path / core / "CMakeFiles" / "net_model.dir" / "build.make").read_text()
        assert f"{built}/" in said
        assert ("portable/" in said) == (built == "portable")
