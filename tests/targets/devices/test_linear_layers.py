"""Linear layers by the kernels of emulated cores, against the integer reference, to the bit."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kdpipe.targets import reference
from kdpipe.targets.c.generator import export
from kdpipe.targets.c.kernel_choice import lower_node
from kdpipe.targets.devices import c_compiler, cortex_m
from kdpipe.targets.graph import IntegerGraph, Linear, Node, Quantization, TensorType, Weight

for package in ("unicorn", "ziglang", "elftools", "capstone"):
    pytest.importorskip(package)

STRING_H = Path(cortex_m.__file__).parent / "firmware_sources" / "include"
PORTABLE = {8: "linear_w8", 4: "linear_w4", 3: "linear_w4", 2: "linear_w2"}


def linears(seed: int, bits: int, rounding: str, features: tuple[int, ...], value: int | None = None) -> IntegerGraph:
    """Linear layers one after the other, of random weights or of one value."""
    rng = np.random.default_rng(seed)
    known = TensorType((features[0],), Quantization(0.0625, int(rng.integers(-128, 100))))
    source, nodes, limit = known, [], 2 ** (bits - 1) - 1
    spread = 1.5 if seed % 2 else 0.3
    for index, (inputs, outputs) in enumerate(pairwise(features)):
        rows = (
            rng.integers(-limit, limit + 1, (outputs, inputs)) if value is None else np.full((outputs, inputs), value)
        )
        deviation = 75 * (float(rows.std()) * np.sqrt(inputs) if value is None else abs(value) / 2)
        scales = (np.exp(rng.normal(0, spread, outputs)) * 45 / deviation).astype(np.float32)
        bias = rng.integers(-int(deviation), int(deviation) + 1, outputs).astype(np.int32)
        known = TensorType((outputs,), Quantization(0.0625, int(rng.integers(-128, 128))))
        op = Linear(Weight(rows.astype(np.int8), scales, bits), bias)
        nodes.append(Node(f"linear{index}", op, (nodes[-1].name if nodes else "input",), known))
    return IntegerGraph("net", "input", source, tuple(nodes), rounding)  # type: ignore[arg-type]


def check(graph: IntegerGraph, inputs: NDArray[np.int8], directory: Path, core: str) -> None:
    extremes = [np.full((1, *graph.input.shape), value, dtype=np.int8) for value in (-128, 127)]
    inputs = np.concatenate([inputs, *extremes])
    export(graph, directory, core)
    traced = cortex_m.create(core).trace(directory, inputs)
    for name, expected in reference.run_all(graph, inputs).items():
        if name in traced:
            np.testing.assert_array_equal(traced[name], expected, err_msg=f"{core}, layer {name}")


@pytest.mark.parametrize("rounding", ["single", "tflite"])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m0plus"])
def test_linear_layers(
    core: str, bits: int, rounding: str, random_inputs: Callable[..., NDArray[np.int8]], tmp_path: Path
) -> None:
    """Outputs and inputs that are whole blocks of the kernels, and others."""
    graph = linears(bits, bits, rounding, (64, 24, 36, 8, 6))
    kernels = [lower_node(graph, node, core).kernel for node in graph.nodes]
    mixed = ["linear_dsp", PORTABLE[bits], "linear_dsp", PORTABLE[bits]]
    assert kernels == (["linear_blocks"] * 4 if core == "cortex-m0plus" else mixed)
    check(graph, random_inputs(graph, 3), tmp_path, core)


def test_armv7m_takes_those_of_armv6m(random_inputs: Callable[..., NDArray[np.int8]], tmp_path: Path) -> None:
    graph = linears(1, 4, "single", (40, 12, 5))
    assert lower_node(graph, graph.nodes[0], "cortex-m3").kernel == "linear_blocks"
    check(graph, random_inputs(graph, 2), tmp_path, "cortex-m3")


@pytest.mark.parametrize(("bits", "features"), [(8, 516), (4, 584), (2, 1020)])
def test_sums_of_linear_dsp_fill_their_places(
    bits: int, features: int, random_inputs: Callable[..., NDArray[np.int8]], tmp_path: Path
) -> None:
    value = 2 ** (bits - 1) - 1
    fitting, too_many = (linears(2, bits, "single", (count, 8), value) for count in (features, features + 4))
    assert lower_node(fitting, fitting.nodes[0], "cortex-m4").kernel == "linear_dsp"
    assert lower_node(too_many, too_many.nodes[0], "cortex-m4").kernel == PORTABLE[bits]
    check(fitting, random_inputs(fitting, 2), tmp_path / "fitting", "cortex-m4")
    check(too_many, random_inputs(too_many, 2), tmp_path / "too_many", "cortex-m4")


@pytest.mark.parametrize(("bits", "value"), [(8, 127), (4, 7), (2, 1), (4, -7)])
def test_half_words_of_linear_blocks_hold_the_largest_products(
    bits: int, value: int, random_inputs: Callable[..., NDArray[np.int8]], tmp_path: Path
) -> None:
    graph = linears(2, bits, "single", (96, 9), value)
    check(graph, random_inputs(graph, 2), tmp_path, "cortex-m0plus")


@pytest.mark.parametrize(("core", "cpu"), [("cortex-m4", "cortex_m4"), ("cortex-m0plus", "cortex_m0plus")])
def test_sources_compile_without_warnings(core: str, cpu: str, tmp_path: Path) -> None:
    export(linears(1, 4, "single", (16, 8)), tmp_path, core)
    names = ["model.c", "model_weights.c", *(f"kernels/{path.name}" for path in tmp_path.glob("kernels/*.[cS]"))]
    target = ["-target", "thumb-freestanding-eabi", f"-mcpu={cpu}", "-I.", "-I", str(STRING_H)]
    strict = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
    c_compiler.compile_c([*c_compiler.zig_compiler(), *target, *strict, "-c", *names], tmp_path)
