"""Random graphs through every target; what each promises is in `runtimes.py`, and C is equal to the bit.

On a failure the graph is shrunk, printed and stored; see `conftest.py` for how many are run.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from fuzz.c_batch import HOST, QEMU, Compilers, check_c
from fuzz.conftest import SLICE
from fuzz.drawn_graphs import build_graph, fuzz_inputs
from fuzz.examples import Example, draw_examples, shrink
from fuzz.failures import failure_report
from fuzz.runtimes import RUNTIMES, MismatchError, RefusedError

from kdpipe.targets.errors import UnsupportedError
from kdpipe.targets.graph import Conv2d, IntegerGraph
from kdpipe.targets.graph_files import load_graph

for package in ("ai_edge_litert", "elftools", "onnxruntime", "openvino", "unicorn", "ziglang"):
    pytest.importorskip(package)

FAILURES = Path("fuzz-failures")
CORES = ("cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33")
C_SLICE = 3 * SLICE


def graphs_of(examples: Sequence[Example[IntegerGraph]], count: Counter[str]) -> list[Example[IntegerGraph]]:
    for example in examples:
        count["graphs"] += 1
        count[f"graphs, rounding {example.value.rounding}"] += 1
        for node in example.value.nodes:
            count[f"operator {type(node.op).__name__}"] += 1
        for _, weight in example.value.weights():
            count[f"layers of {weight.bits} bits"] += 1
    return list(examples)


def test_runtimes(runtime_slice: int, replayed: Path | None, count: Counter[str], tmp_path: Path) -> None:
    if replayed:
        pytest.skip("a stored graph is run")
    pytest.importorskip("tflite_micro")
    failures = []
    for number, example in enumerate(graphs_of(draw_examples(build_graph, SLICE, runtime_slice), count)):
        for name in RUNTIMES:

            def check(graph: IntegerGraph, name: str = name) -> None:
                directory = tmp_path / name
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir()
                RUNTIMES[name](graph, fuzz_inputs(graph), directory)

            try:
                check(example.value)
                count[f"on {name}"] += 1
            except (RefusedError, UnsupportedError):
                count[f"refused: {name}"] += 1
            except Exception as error:
                print(f"graph {number} of slice {runtime_slice}, {name}: {error}")
                failures.append((example, name, check))
    report(failures)


def test_c(c_slice: int, replayed: Path | None, compilers: Compilers, count: Counter[str]) -> None:
    """On this machine, under the sanitizers, and on three emulated cores, with the kernels of their own."""
    if replayed:
        pytest.skip("a stored graph is run")
    # Three cores in turn, all five in time.
    cores = (HOST, "cortex-m0plus", "cortex-m4", ("cortex-m3", "cortex-m7", "cortex-m33")[c_slice % 3])
    report(run_c(c_slice, cores, compilers, count))


def test_c_in_qemu(c_slice: int, qemu: bool, replayed: Path | None, compilers: Compilers, count: Counter[str]) -> None:
    """The same graphs on cores that only QEMU emulates."""
    if replayed or not qemu:
        pytest.skip("a stored graph is run" if replayed else "without --qemu")
    report(run_c(c_slice, tuple(QEMU), compilers, count))


def run_c(
    c_slice: int, cores: Sequence[str], compilers: Compilers, count: Counter[str]
) -> list[tuple[Example[IntegerGraph], str, Callable[[IntegerGraph], None]]]:
    """Return what fails of a slice of graphs, as `report` takes it."""
    examples = draw_examples(build_graph, C_SLICE, 10_000 + c_slice)
    count["graphs in C"] += len(examples)
    failures = []
    for core in cores:

        def check(graph: IntegerGraph, core: str = core) -> None:
            if check_c(compilers, [graph], core):
                raise MismatchError("a layer differs")

        failing = check_c(compilers, [example.value for example in examples], core)
        count[f"in C on {core}"] += len(examples)
        failures += [(examples[index], f"C on {core}", check) for index in failing]
    return failures


def report(failures: list[tuple[Example[IntegerGraph], str, Callable[[IntegerGraph], None]]]) -> None:
    # Each takes its time to shrink; what fails is often one thing.
    if failures:
        first = "\n\n".join(failure_report(*failure, FAILURES) for failure in failures[:2])
        pytest.fail(f"{len(failures)} of the runs failed. The first ones, shrunk:\n\n{first}", pytrace=False)


def test_a_stored_graph(replayed: Path | None, qemu: bool, compilers: Compilers, tmp_path: Path) -> None:
    if replayed is None:
        pytest.skip("without --replay FOLDER")
    graph = replace(load_graph(replayed), name="net")
    said = []
    for name, check in RUNTIMES.items():
        directory = tmp_path / name
        directory.mkdir()
        try:
            check(graph, fuzz_inputs(graph), directory)
        except (RefusedError, UnsupportedError) as error:
            print(f"refused: {name}: {error}")
        except Exception as error:
            said.append(f"{name}: {error}")
    cores = (HOST, *CORES, *(QEMU if qemu else ()))
    said += [f"C on {core}: a layer differs" for core in cores if check_c(compilers, [graph], core)]
    assert not said, "\n".join(said)


def test_a_failing_graph_shrinks_and_its_file_runs_again(tmp_path: Path) -> None:
    """Plants a fault: no convolution may have a stride."""

    def check(graph: IntegerGraph) -> None:
        if any(isinstance(node.op, Conv2d) and max(node.op.stride) > 1 for node in graph.nodes):
            raise MismatchError("a stride")

    def fails(graph: IntegerGraph) -> bool:
        return any(isinstance(node.op, Conv2d) and max(node.op.stride) > 1 for node in graph.nodes)

    example = next(example for example in draw_examples(build_graph, SLICE, 0) if fails(example.value))
    said = failure_report(example, "nothing", check, tmp_path)
    graph = load_graph(tmp_path / "000")
    assert fails(graph)
    assert len(graph.nodes) == 3
    assert graph.input.shape == (1, 1, 1)
    assert f"--replay {tmp_path / '000'}" in said
    assert "MismatchError: a stride" in said
    assert shrink(build_graph, example, lambda graph: False) is example.value
