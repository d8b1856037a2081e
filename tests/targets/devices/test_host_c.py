"""The exported C, compiled for this machine."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rows_everywhere import rows_everywhere

from kdpipe.targets import reference
from kdpipe.targets.c.generator import export
from kdpipe.targets.devices import c_compiler, host_c
from kdpipe.targets.errors import DeviceError, MissingDependencyError
from kdpipe.targets.graph import IntegerGraph

Exported = tuple[IntegerGraph, Path]
Inputs = Callable[..., NDArray[np.int8]]


@pytest.mark.parametrize("compiler", ["native", "zig"])
def test_measure_and_trace(
    compiler: str, exported_graph: Exported, random_inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiler == "zig":
        pytest.importorskip("ziglang")
        monkeypatch.setattr(c_compiler, "_NATIVE_COMPILERS", ())
    graph, directory = exported_graph
    inputs = random_inputs(graph, 12)
    expected = reference.run_all(graph, inputs)
    done = []
    measured = host_c.create().measure(directory, inputs, lambda *progress: done.append(progress))
    np.testing.assert_array_equal(measured.outputs, expected[graph.output_name])
    assert len(measured.latency_ms) == 12
    assert min(measured.latency_ms) > 0
    assert done[-1] == (12, 12)
    assert measured.instructions is None
    for name, values in host_c.create().trace(directory, inputs).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_layers_by_rows_are_put_together(
    random_graph: Callable[..., IntegerGraph], random_inputs: Inputs, tmp_path: Path
) -> None:
    graph = random_graph(5, rounding="single")
    with rows_everywhere():
        export(graph, tmp_path)
    inputs = random_inputs(graph, 3)
    traced = host_c.create().trace(tmp_path, inputs)
    assert set(traced) == {node.name for node in graph.nodes}
    for name, expected in reference.run_all(graph, inputs).items():
        if name in traced:
            np.testing.assert_array_equal(traced[name], expected, err_msg=name)


def test_sources_that_do_not_compile(exported_graph: Exported, random_inputs: Inputs, tmp_path: Path) -> None:
    graph, directory = exported_graph
    shutil.copytree(directory, tmp_path / "copy")
    (tmp_path / "copy" / "model.c").write_text("this is not C;")
    with pytest.raises(DeviceError, match=r"(?s)compiler .* failed.*model\.c"):
        host_c.create().measure(tmp_path / "copy", random_inputs(graph, 1))


def test_sources_without_the_function(exported_graph: Exported, random_inputs: Inputs, tmp_path: Path) -> None:
    graph, directory = exported_graph
    shutil.copytree(directory, tmp_path / "copy")
    (tmp_path / "copy" / "model.c").write_text("int unrelated;\n")
    with pytest.raises(DeviceError, match=f"lack {graph.name}_run"):
        host_c.create().measure(tmp_path / "copy", random_inputs(graph, 1))


def test_no_compiler_at_all(exported_graph: Exported, random_inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_compiler, "_NATIVE_COMPILERS", ())
    monkeypatch.setattr(c_compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="no C compiler"):
        host_c.create().measure(exported_graph[1], random_inputs(exported_graph[0], 1))
