"""Fixtures of the C target's tests: a native compiler, and small graphs of one's own making."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdpipe.targets.graph import Conv2d, IntegerGraph, Node, Operator, Quantization, TensorType, Weight

STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror"]


@pytest.fixture(scope="session")
def c_compiler() -> str:
    path = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if path is None:
        pytest.skip("no C compiler on the PATH")
    return path


@pytest.fixture(scope="session")
def sanitizers(c_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags for the address and undefined-behaviour sanitizers, or none where they are not installed."""
    directory = tmp_path_factory.mktemp("sanitizers")
    (directory / "empty.c").write_text("int main(void) { return 0; }\n")
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    result = subprocess.run([c_compiler, *flags, "empty.c", "-o", "empty"], cwd=directory, capture_output=True)
    return flags if result.returncode == 0 else []


@pytest.fixture
def run_golden_test(c_compiler: str) -> Callable[..., str]:
    """`run_golden_test(directory, *flags)`: compile an export as its README says and run its test."""

    def run(directory: Path, *flags: str) -> str:
        sources = ["model.c", "model_weights.c", *map(str, sorted(directory.glob("kernels/*.c"))), "test/test_model.c"]
        command = [c_compiler, *STRICT, *flags, "-I.", *sources, "-o", "test_model"]
        compiled = subprocess.run(command, cwd=directory, capture_output=True, text=True)
        assert compiled.returncode == 0, compiled.stderr
        tested = subprocess.run([str(directory / "test_model")], capture_output=True, text=True)
        assert tested.returncode == 0, tested.stdout + tested.stderr
        return tested.stdout

    return run


@pytest.fixture(scope="session")
def chain() -> Callable[..., IntegerGraph]:
    """`chain((C, H, W), [(name, operator, output shape), ...])`: operators one after the other, one quantization."""

    def build(
        shape: tuple[int, ...],
        steps: list[tuple[str, Operator, tuple[int, ...]]],
        *,
        name: str = "net",
        quantization: Quantization | None = None,
        **options: object,
    ) -> IntegerGraph:
        quantization = quantization or Quantization(0.0625, -3)
        nodes, source = [], "input"
        for step, operator, output in steps:
            nodes.append(Node(step, operator, (source,), TensorType(output, quantization)))
            source = step
        return IntegerGraph(name, "input", TensorType(shape, quantization), tuple(nodes), **options)

    return build


@pytest.fixture(scope="session")
def convolution() -> Callable[..., Conv2d]:
    """`convolution([O, I/groups, KH, KW], bits, **Conv2d's arguments)` with random weights and biases."""

    def build(shape: tuple[int, int, int, int], bits: int = 2, seed: int = 0, **options: object) -> Conv2d:
        rng = np.random.default_rng(seed)
        limit = 2 ** (bits - 1) - 1
        values = rng.integers(-limit, limit + 1, shape).astype(np.int8)
        scales = (rng.uniform(0.2, 0.9, shape[0]) / limit / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        bias = rng.integers(-300, 300, shape[0]).astype(np.int32)
        return Conv2d(Weight(values, scales, bits), bias, **options)

    return build
