"""This machine as a device: each format on its runtime, measured, traced, and refused when it is broken."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.targets import reference
from kdpipe.targets.artifact import FILE
from kdpipe.targets.devices import host
from kdpipe.targets.devices.session import TIMED_RUNS
from kdpipe.targets.errors import ArtifactError, DeviceError, KdpipeError, MissingDependencyError, UsageError
from kdpipe.targets.exporters import EXPORTERS
from kdpipe.targets.graph_files import save_graph

RUNTIMES = {"onnx": "model.onnx", "openvino": "model.xml", "tflite": "model.tflite"}


@pytest.fixture(params=list(RUNTIMES))
def exported(request: pytest.FixtureRequest, random_graph, tmp_path: Path) -> tuple[str, Any, Path]:
    graph = random_graph(17)
    EXPORTERS[request.param].export(graph, tmp_path)
    return request.param, graph, tmp_path


def test_every_input_is_run_and_some_are_timed(exported, random_inputs) -> None:
    _, graph, directory = exported
    inputs = random_inputs(graph, 130)
    done: list[tuple[int, int]] = []
    measured = host.create().measure(directory, inputs, lambda *progress: done.append(progress))
    assert measured.outputs.dtype == np.int8
    assert measured.outputs.shape == (130, *graph.output.shape)
    assert np.abs(measured.outputs.astype(int) - reference.run(graph, inputs)).mean() < 0.5
    assert len(measured.latency_ms) == TIMED_RUNS
    assert min(measured.latency_ms) > 0
    assert done == [(64, 130), (128, 130), (130, 130)]


def test_one_input_is_enough(exported, random_inputs) -> None:
    _, graph, directory = exported
    inputs = random_inputs(graph, 1)
    measured = host.create().measure(directory, inputs)
    trace = host.create().trace(directory, inputs)
    assert len(measured.latency_ms) == 1
    assert (trace[graph.output_name] == measured.outputs).all()


def test_an_output_that_is_a_picture_keeps_channels_first(random_graph, random_inputs, tmp_path: Path) -> None:
    from dataclasses import replace

    whole = random_graph(21, operators=("conv",), input_shape=(3, 6, 9), narrow=False)
    last = max(index for index, node in enumerate(whole.nodes) if len(node.output.shape) == 3)
    graph = replace(whole, nodes=whole.nodes[: last + 1], class_names=())
    inputs = random_inputs(graph, 3)
    for target in RUNTIMES:
        directory = tmp_path / target
        directory.mkdir()
        EXPORTERS[target].export(graph, directory)
        outputs = host.create().measure(directory, inputs).outputs
        assert outputs.shape == (3, *graph.output.shape)
        assert np.abs(outputs.astype(int) - reference.run(graph, inputs)).max() <= 3, target


def test_a_damaged_model_is_refused(exported, random_inputs) -> None:
    target, graph, directory = exported
    inputs = random_inputs(graph, 1)
    path = directory / RUNTIMES[target]
    content = path.read_bytes()
    for damaged in (b"", b"nonsense", content[: len(content) // 2]):
        path.write_bytes(damaged)
        for use in (host.create().measure, host.create().trace):
            with pytest.raises(DeviceError) as refused:
                use(directory, inputs)
            assert refused.value.where == str(path)


def test_a_message_of_openvino_that_is_not_text(random_graph, random_inputs, tmp_path: Path) -> None:
    graph = random_graph(0)
    EXPORTERS["openvino"].export(graph, tmp_path)
    path = tmp_path / RUNTIMES["openvino"]
    path.write_bytes(path.read_bytes().replace(b'"Parameter"', b'"Param\xffter"'))
    with pytest.raises(DeviceError, match="can't load the model"):
        host.create().measure(tmp_path, random_inputs(graph, 1))


def test_a_missing_model_is_refused(exported, random_inputs) -> None:
    target, graph, directory = exported
    (directory / RUNTIMES[target]).unlink()
    with pytest.raises(KdpipeError, match=r"can't be read|is missing"):
        host.create().measure(directory, random_inputs(graph, 1))


def test_a_missing_runtime_names_the_extra(exported, random_inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    target, graph, directory = exported
    import kdpipe.targets.dependencies as dependencies

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(dependencies, "import_module", missing)
    with pytest.raises(MissingDependencyError) as refused:
        host.create().measure(directory, random_inputs(graph, 1))
    assert refused.value.remedy == f'pip install "kdpipe[{target}]"'


def test_the_reference_is_a_runtime_too(random_graph, random_inputs, tmp_path: Path) -> None:
    graph = random_graph(3)
    save_graph(graph, tmp_path)
    inputs = random_inputs(graph, 70)
    measured = host.create().measure(tmp_path, inputs)
    assert (measured.outputs == reference.run(graph, inputs)).all()
    assert measured.latency_ms == ()
    assert set(host.create().trace(tmp_path, inputs)) == {graph.input_name, *(node.name for node in graph.nodes)}


def test_a_directory_without_an_artifact_is_refused(random_graph, random_inputs, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no artifact"):
        host.create().measure(tmp_path, random_inputs(random_graph(0), 1))


def test_an_unknown_format_is_refused(exported, random_inputs) -> None:
    target, graph, directory = exported
    text = (directory / FILE).read_text()
    (directory / FILE).write_text(text.replace(f'"target": "{target}"', '"target": "coreml"'))
    with pytest.raises(UsageError, match="can't run coreml"):
        host.create().measure(directory, random_inputs(graph, 1))
