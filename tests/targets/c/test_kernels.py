"""Every kernel against the integer reference, to the bit, under the sanitizers."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdpipe.targets.c.generator import export
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
    Quantization,
    Requantize,
    Slice,
    Softmax,
    TensorType,
    Upsample,
    Weight,
)

KERNELS = Path(__file__).parents[3] / "targets" / "c" / "kernels"
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror"]


Check = Callable[..., None]


@pytest.fixture(scope="module")
def check(c_compiler: str, sanitizers: list[str], tmp_path_factory: pytest.TempPathFactory) -> Check:
    """`check(graph, directory, **options)`: export it and run its test, strictly compiled and under the sanitizers.

    The graphs share a name, and so their kernels' names: the kernels are compiled once for each rounding.
    """
    objects: dict[str, list[str]] = {}

    def compiled_kernels(rounding: str, exported: Path) -> list[str]:
        if rounding not in objects:
            library = tmp_path_factory.mktemp(rounding)
            for source in [*KERNELS.glob("*.[ch]"), exported / "kernels" / "kernel_config.h"]:
                (library / source.name).write_text(source.read_text())
            sources = sorted(source.name for source in library.glob("*.c"))
            _compile([c_compiler, *STRICT, "-O1", *sanitizers, "-c", *sources], library)
            objects[rounding] = [str(library / f"{Path(name).stem}.o") for name in sources]
        return objects[rounding]

    def run(graph: IntegerGraph, directory: Path, **options: str) -> None:
        assert graph.name == "net"
        export(graph, directory, **options)
        (directory / "all.c").write_text(
            "".join(f'#include "{name}"\n' for name in ("model_weights.c", "model.c", "test/test_model.c"))
        )
        kernels = compiled_kernels(graph.rounding, directory)
        _compile([c_compiler, *STRICT, *sanitizers, "-I.", "all.c", *kernels, "-o", "test_model"], directory)
        result = subprocess.run([str(directory / "test_model")], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr

    return run


def _compile(command: list[str], directory: Path) -> None:
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("seed", range(300, 312))
def test_random_graphs_for_size(
    seed: int, random_graph: Callable[..., IntegerGraph], check: Check, tmp_path: Path
) -> None:
    operators = ("conv", "grouped", "depthwise")
    graph = random_graph(seed, rounding="single", weight_bits=(2,), operators=operators)
    check(replace(graph, name="net"), tmp_path, optimize="size")
    widths = {path.stem[-2:] for path in (tmp_path / "kernels").glob("*_[wt][0-9].c")}
    assert widths == {"t5"}


@pytest.mark.parametrize("seed", range(100, 126))
@pytest.mark.parametrize("rounding", ["tflite", "single"])
def test_random_graphs(
    rounding: str, seed: int, random_graph: Callable[..., IntegerGraph], check: Check, tmp_path: Path
) -> None:
    check(replace(random_graph(seed, rounding=rounding), name="net"), tmp_path)


Q = Quantization(0.0625, -3)
CONVOLUTIONS = {
    "dilated": ((6, 3, 3, 2), {"dilation": (2, 3), "padding": (2, 1, 0, 3)}, (3, 9, 8), (6, 7, 9)),
    "wide padding": ((4, 2, 3, 3), {"padding": (3, 0, 1, 4)}, (2, 4, 4), (4, 6, 6)),
    "strided": ((5, 4, 3, 3), {"stride": (3, 2), "padding": (1, 1, 1, 1)}, (4, 8, 7), (5, 3, 4)),
    "grouped": ((6, 2, 3, 3), {"groups": 3, "padding": (1, 1, 1, 1)}, (6, 5, 5), (6, 5, 5)),
    "depthwise": ((5, 1, 3, 3), {"groups": 5, "stride": (2, 2), "padding": (0, 1, 1, 0)}, (5, 7, 7), (5, 3, 3)),
    "depthwise multiplied": ((9, 1, 5, 4), {"groups": 3, "padding": (2, 2, 2, 2)}, (3, 6, 5), (9, 6, 6)),
    "pointwise": ((7, 19, 1, 1), {}, (19, 3, 3), (7, 3, 3)),
    "pointwise strided": ((3, 5, 1, 1), {"stride": (2, 2)}, (5, 6, 5), (3, 3, 3)),
    "1x1 padded": ((3, 5, 1, 1), {"padding": (1, 0, 1, 0)}, (5, 2, 2), (3, 4, 2)),
    "one position": ((8, 3, 4, 4), {}, (3, 4, 4), (8, 1, 1)),
    "one channel": ((4, 1, 3, 3), {"padding": (1, 1, 1, 1)}, (1, 5, 4), (4, 5, 4)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_convolutions(
    bits: int,
    kind: str,
    chain: Callable[..., IntegerGraph],
    convolution: Callable[..., Conv2d],
    check: Check,
    tmp_path: Path,
) -> None:
    shape, options, source, output = CONVOLUTIONS[kind]
    rounding = ("tflite", "single")[len(kind) % 2]
    check(chain(source, [("conv", convolution(shape, bits, **options), output)], rounding=rounding), tmp_path)


def test_other_operators(chain: Callable[..., IntegerGraph], check: Check, tmp_path: Path) -> None:
    narrow = Quantization(0.25, 2, 0, 15)
    identity = Linear(Weight(np.eye(24, dtype=np.int8), np.ones(24, dtype=np.float32), 8), np.zeros(24, dtype=np.int32))
    graphs = [
        chain((2, 5, 6), [("max", MaxPool2d((3, 2), (2, 3), (1, 0, 2, 1)), (2, 3, 2))], quantization=narrow),
        chain((3, 5, 6), [("mean", AveragePool2d((2, 3), (1, 2)), (3, 4, 2))]),
        chain((3, 5, 6), [("mean", AveragePool2d((5, 6), (1, 1)), (3, 1, 1))], quantization=narrow),
        chain((2, 3, 4), [("flat", Flatten(), (24,))]),
        chain((2, 3, 4), [("flat", Flatten(), (24,)), ("again", Flatten(), (24,)), ("fc", identity, (24,))]),
        chain((2, 3, 4), [("flat", Flatten(), (24,)), ("fc", identity, (24,))]),
    ]
    for first, second, output in [(Q, narrow, Q), (Quantization(2.0**-30, 100), Quantization(3.0, -128), narrow)]:
        kinds = [TensorType((2, 3, 3), kind) for kind in (first, second, output)]
        nodes = (
            Node("to", Requantize(), ("input",), kinds[1]),
            Node("sum", Add(), ("input", "to"), kinds[2]),
            Node("twice", Add(), ("sum", "sum"), kinds[2]),
        )
        graphs += [IntegerGraph("net", "input", kinds[0], nodes, rounding) for rounding in ("tflite", "single")]
    for index, graph in enumerate(graphs):
        check(graph, tmp_path / str(index))


@pytest.mark.parametrize("rounding", ["tflite", "single"])
def test_operators_of_channels(rounding: str, chain: Callable[..., IntegerGraph], check: Check, tmp_path: Path) -> None:
    image, flat, gate = (TensorType(shape, Q) for shape in ((6, 3, 4), (72,), (6, 1, 1)))
    wide = TensorType((12, 3, 4), Q)
    squeezed = (
        Node("mean", AveragePool2d((3, 4), (1, 1)), ("input",), gate),
        Node("gate", Lookup("hard_sigmoid"), ("mean",), gate),
        Node("scaled", Mul(), ("input", "gate"), image),
        Node("squared", Mul(), ("scaled", "scaled"), image),
        Node("both", Concat(), ("squared", "input"), wide),
        Node("shuffled", ChannelShuffle(4), ("both",), wide),
        Node("part", Slice(1, 12), ("shuffled",), TensorType((11, 3, 4), Q)),
        Node("large", Upsample((2, 3)), ("part",), TensorType((11, 6, 12), Q)),
    )
    flattened = (
        Node("flat", Flatten(), ("input",), flat),
        Node("silu", Lookup("silu"), ("flat",), flat),
        Node("product", Mul(), ("silu", "flat"), flat),
        Node("three", Concat(), ("flat", "product", "flat"), TensorType((216,), Q)),
        Node("part", Slice(70, 150), ("three",), TensorType((80,), Q)),
    )
    for index, nodes in enumerate((squeezed, flattened)):
        check(IntegerGraph("net", "input", image, nodes, rounding), tmp_path / str(index))
    check(chain((5, 2, 2), [("slice", Slice(0, 1), (1, 2, 2))], rounding=rounding), tmp_path / "slice")


@pytest.mark.parametrize("rounding", ["tflite", "single"])
def test_extreme_factors_and_biases(rounding: str, check: Check, tmp_path: Path) -> None:
    """Accumulators up to the end of int32, factors from 2**-40 (which is 0) to beyond 1, partial sums that wrap."""
    count, inputs = 12, 7
    rng = np.random.default_rng(5)
    values = rng.choice(np.array([-127, 127], dtype=np.int8), (count, inputs))
    room = 2**31 - 1 - 127 * inputs * 255
    bias = np.array([room, -room, room // 2, 0, 1, -1] * 2, dtype=np.int32)
    scales = np.array([2.0**-40, 2.0**-31, 2.0**-30, 0.001, 0.3, 0.9999999] * 2, dtype=np.float32)
    linear = Linear(Weight(values, scales, 8), bias)
    kinds = [TensorType((size,), Quantization(1.0, zero)) for size, zero in ((inputs, 127), (count, -128))]
    graph = IntegerGraph("net", "input", kinds[0], (Node("fc", linear, ("input",), kinds[1]),), rounding)
    check(graph, tmp_path)


@pytest.mark.parametrize("rounding", ["tflite", "single"])
def test_factors_above_one(rounding: str, check: Check, tmp_path: Path) -> None:
    linear = Linear(
        Weight(np.ones((3, 2), dtype=np.int8), np.array([1.5, 7.9, 300.0], dtype=np.float32), 2),
        np.array([-3, 5, 0], dtype=np.int32),
    )
    kinds = [TensorType((2,), Quantization(1.0, -5)), TensorType((3,), Quantization(0.5, 7, -100, 101))]
    graph = IntegerGraph("net", "input", kinds[0], (Node("fc", linear, ("input",), kinds[1]),), rounding)
    check(graph, tmp_path)


@pytest.mark.parametrize("scale", [3e-8, 0.004, 0.1, 4.0, 20.0])
def test_softmax(scale: float, check: Check, tmp_path: Path) -> None:
    narrow = Quantization(float(np.float32(scale)), 2, -30, 97)
    for index, (shape, quantization) in enumerate([((3, 4, 5), narrow), ((1000,), replace(narrow, qmin=-128))]):
        nodes = (Node("probabilities", Softmax(), ("input",), TensorType(shape, PROBABILITIES)),)
        check(IntegerGraph("net", "input", TensorType(shape, quantization), nodes), tmp_path / str(index))
