"""Validation: exact figures on labels that are known to be right or wrong, and everything that does not fit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdpipe.pipeline.cli import app
from kdpipe.pipeline.problems import SpecError
from kdpipe.pipeline.spec_file import load_spec
from kdpipe.stages import validate
from kdpipe.stages.artifacts import (
    ImageSpace,
    NetworkDescription,
    Split,
    build_network,
    normalize,
    save_ensemble,
    save_network,
    save_split,
)
from kdpipe.stages.base import Artifact
from kdpipe.stages.validate import ValidateParams, validate_artifact
from kdpipe.targets import reference
from kdpipe.targets.errors import ArtifactError, DataError, UsageError
from kdpipe.targets.exporters import EXPORTERS
from kdpipe.targets.graph import Conv2d, IntegerGraph, Linear, Node
from kdpipe.targets.graph_files import save_graph

COUNT, WRONG = 50, 10


@pytest.fixture
def graph(random_graph) -> IntegerGraph:
    return random_graph(14, operators=("conv",), input_shape=(2, 8, 8), narrow=False, weight_bits=(2,))


def space_of(graph: IntegerGraph) -> ImageSpace:
    assert graph.normalization is not None
    shape: Any = graph.input.shape
    return ImageSpace(shape, graph.class_names, graph.normalization.mean, graph.normalization.std)


def folder(root: Path, name: str) -> Path:
    path = root / name
    path.mkdir()
    return path


@pytest.fixture
def split(graph: IntegerGraph, tmp_path: Path) -> Path:
    """Images whose labels are what the reference says, but for the last WRONG of them."""
    generator = torch.Generator().manual_seed(0)
    space = space_of(graph)
    images = torch.randint(0, 256, (COUNT, *space.shape), dtype=torch.uint8, generator=generator)
    stored = graph.input.quantization.quantize(normalize(images, space).numpy())
    labels = torch.from_numpy(reference.run(graph, stored).argmax(axis=1))
    labels[-WRONG:] = (labels[-WRONG:] + 1) % len(space.classes)
    directory = folder(tmp_path, "split")
    save_split(directory, Split("test", images, labels, space))
    return directory


@pytest.fixture
def model(graph: IntegerGraph, tmp_path: Path) -> Path:
    directory = folder(tmp_path, "model")
    save_graph(graph, directory)
    return directory


def exported(graph: IntegerGraph, target: str, tmp_path: Path) -> Path:
    directory = folder(tmp_path, target)
    EXPORTERS[target].export(graph, directory)
    return directory


def test_the_integer_graph_itself(model: Path, split: Path) -> None:
    record = validate_artifact(model, device="host", split=split, reference=model, baseline=model)
    assert record.format == "integer-graph"
    assert record.accuracy == record.baseline_accuracy == (COUNT - WRONG) / COUNT
    assert record.samples == COUNT
    assert record.latency_ms is None
    assert record.parity == {
        "max_step_difference": 0,
        "top1_agreement": 1.0,
        "first_divergent_layer": None,
        "layers": [],
    }
    assert [name for name, _ in record.files] == ["graph.json", "weights.safetensors"]


@pytest.mark.parametrize("target", ["onnx", "openvino", "tflite"])
def test_runtimes_of_this_machine(target: str, graph, model: Path, split: Path, tmp_path: Path) -> None:
    artifact = exported(graph, target, tmp_path)
    done: list[tuple[int, int]] = []
    record = validate_artifact(
        artifact, device="host", split=split, reference=model, progress=lambda *step: done.append(step)
    )
    assert record.format == target
    assert record.parity is not None
    assert record.parity["max_step_difference"] <= 3
    assert abs(record.accuracy - (COUNT - WRONG) / COUNT) <= 1 - record.parity["top1_agreement"] + 1e-9
    assert record.latency_ms is not None
    assert 0 < record.latency_ms["median"] <= record.latency_ms["p95"]
    assert dict(record.files) == {name: (artifact / name).stat().st_size for name, _ in record.files}
    assert record.baseline_accuracy is None
    assert done[-1] == (COUNT, COUNT)


def test_c_on_this_machine_and_emulated(graph, model: Path, split: Path, tmp_path: Path) -> None:
    artifact = exported(graph, "c", tmp_path)
    exact = {"max_step_difference": 0, "top1_agreement": 1.0, "first_divergent_layer": None, "layers": []}
    here = validate_artifact(artifact, device="host", split=split, reference=model)
    assert here.parity == exact
    pytest.importorskip("unicorn")
    emulated = validate_artifact(artifact, device="cortex-m4", split=split, reference=model, samples=5)
    assert emulated.parity == exact
    assert emulated.samples == 5
    assert emulated.accuracy == 1.0
    assert emulated.latency_ms is None
    assert all((emulated.cycles, emulated.instructions, emulated.flash_bytes, emulated.ram_bytes))


def test_a_changed_weight_is_found_by_layer(graph, model: Path, split: Path, tmp_path: Path) -> None:
    """An export of another network than the reference is caught, and the layer that differs is named."""

    def changed(node: Node) -> Node:
        if node.name != victim or not isinstance(node.op, Conv2d | Linear):
            return node
        return replace(node, op=replace(node.op, bias=(node.op.bias + 5000).astype(np.int32)))

    victim = [node.name for node in graph.nodes if isinstance(node.op, Conv2d)][1]
    other = replace(graph, nodes=tuple(changed(node) for node in graph.nodes))
    record = validate_artifact(exported(other, "c", tmp_path), device="host", split=split, reference=model)
    assert record.parity is not None
    assert record.parity["first_divergent_layer"] == victim
    first = next(layer for layer in record.parity["layers"] if layer["own_steps"])
    assert first["name"] == victim
    assert first["misrounded"] > 0
    assert first["exact"] < 1
    assert record.parity["max_step_difference"] > 1


def test_the_stage_returns_the_record(graph, model: Path, split: Path, tmp_path: Path, context) -> None:
    params = ValidateParams(artifact="${a}", data="${d}", reference="${r}", samples=20)
    inputs = {
        "artifact": Artifact("tflite", exported(graph, "tflite", tmp_path)),
        "data": Artifact("split", split),
        "reference": Artifact("integer-graph", model),
    }
    made = context()
    outcome = validate.STAGE.run(params, inputs, made)
    assert outcome.target is not None
    assert outcome.metrics["accuracy"] == outcome.target.accuracy
    assert outcome.metrics["samples"] == outcome.target.samples == 20
    assert made.reports[-1][:3] == (20, 20, "image")
    assert validate.STAGE.validates
    assert validate.STAGE.outputs(params) == {}


@pytest.fixture
def network(graph: IntegerGraph) -> tuple[torch.nn.Module, NetworkDescription]:
    description = NetworkDescription("resnet", {"depth": 8, "width": 4}, space_of(graph))
    torch.manual_seed(0)
    return build_network(description).eval(), description


def test_float_networks_and_ensembles(network, split: Path, tmp_path: Path) -> None:
    single, several = folder(tmp_path, "network"), folder(tmp_path, "ensemble")
    save_network(single, *network)
    save_ensemble(several, [network, network])
    before = torch.get_num_threads()
    one = validate_artifact(single, device="host", split=split, baseline=several)
    two = validate_artifact(several, device="host", split=split)
    assert torch.get_num_threads() == before
    assert one.format == two.format == "torch"
    assert one.accuracy == two.accuracy == one.baseline_accuracy
    assert one.parity is None
    assert one.latency_ms is not None
    assert {name for name, _ in two.files} == {
        "ensemble.json",
        *(f"{member}/{file}" for member in "01" for file in ("network.json", "weights.safetensors")),
    }


def test_what_a_device_can_not_run_is_refused(graph, network, model: Path, split: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cortex-m4 can't run onnx") as refused:
        validate_artifact(exported(graph, "onnx", tmp_path), device="cortex-m4", split=split)
    assert refused.value.remedy == "It runs c"
    save_network(folder(tmp_path, "network"), *network)
    with pytest.raises(UsageError, match="can't run torch networks"):
        validate_artifact(tmp_path / "network", device="cortex-m4", split=split)
    with pytest.raises(UsageError, match="no integer reference"):
        validate_artifact(tmp_path / "network", device="host", split=split, reference=model)
    with pytest.raises(UsageError, match="unknown device"):
        validate_artifact(model, device="toaster", split=split)


def test_images_that_do_not_fit_are_refused(graph, network, model: Path, split: Path, tmp_path: Path) -> None:
    space = space_of(graph)
    labels = torch.zeros(3, dtype=torch.int64)
    small, more, renamed = (folder(tmp_path, name) for name in ("small", "more", "renamed"))
    save_split(
        small,
        Split("small", torch.zeros(3, 2, 4, 4, dtype=torch.uint8), labels, replace(space, shape=(2, 4, 4))),
    )
    images = torch.zeros(3, *space.shape, dtype=torch.uint8)
    save_split(more, Split("more", images, labels, replace(space, classes=(*space.classes, "another"))))
    save_split(renamed, Split("renamed", images, labels, replace(space, classes=tuple(reversed(space.classes)))))
    save_network(folder(tmp_path, "network"), *network)
    for artifact in (model, tmp_path / "network"):
        for directory, message in ((small, "of shape"), (more, "classes apart"), (renamed, "its classes are")):
            with pytest.raises(DataError, match=message):
                validate_artifact(artifact, device="host", split=directory)
            with pytest.raises(DataError, match=message):
                validate_artifact(artifact, device="host", split=directory, baseline=artifact)
    with pytest.raises(DataError, match="fewer than the 51"):
        validate_artifact(model, device="host", split=split, samples=51)


def test_another_networks_reference_is_refused(random_graph, graph, model: Path, split: Path, tmp_path: Path) -> None:
    other = random_graph(15, operators=("conv",), input_shape=(2, 8, 8), narrow=False)
    save_graph(other, folder(tmp_path, "other"))
    with pytest.raises(UsageError, match="another network's"):
        validate_artifact(model, device="host", split=split, reference=tmp_path / "other")


def test_damaged_artifacts_are_refused(graph, model: Path, split: Path, tmp_path: Path) -> None:
    artifact = exported(graph, "openvino", tmp_path)
    (artifact / "model.bin").unlink()
    with pytest.raises(ArtifactError, match=r"model\.bin is missing"):
        validate_artifact(artifact, device="host", split=split)
    (model / "graph.json").write_text("{")
    with pytest.raises(ArtifactError, match="not a readable integer graph"):
        validate_artifact(model, device="host", split=split)
    with pytest.raises(ArtifactError, match="no artifact"):
        validate_artifact(tmp_path, device="host", split=split)
    (split / "split.json").unlink()
    with pytest.raises(ArtifactError):
        validate_artifact(artifact, device="host", split=split)


def test_a_device_that_cannot_run_the_artifact_is_found_before_anything_runs() -> None:
    pipeline = Path(__file__).resolve().parents[2] / "pipeline.yaml"
    with pytest.raises(SpecError) as refused:
        load_spec(pipeline, ["stages.mcu.artifact=${export.onnx}", "stages.onnx.device=cortex-m0plus"])
    messages = [(problem.path, problem.message) for problem in refused.value.problems]
    assert messages == [
        (("stages", "onnx", "device"), "the device cortex-m0plus can't run onnx"),
        (("stages", "mcu", "device"), "the device cortex-m4 can't run onnx"),
    ]


def test_an_onnx_file_is_a_reference_too(graph, split: Path, tmp_path: Path) -> None:
    theirs = exported(graph, "onnx", tmp_path) / "model.onnx"
    artifact = exported(graph, "c", tmp_path)
    record = validate_artifact(artifact, device="host", split=split, reference=theirs)
    assert record.parity == {
        "max_step_difference": 0,
        "top1_agreement": 1.0,
        "first_divergent_layer": None,
        "layers": [],
    }


@pytest.mark.parametrize(
    ("overrides", "path", "message"),
    [
        (["device=null", "board=nucleo"], "board", "unknown board 'nucleo'"),
        (["board=arduino-due"], "board", "the board arduino-due has a cortex-m3, not a cortex-m4"),
        (["device=host", "clock_mhz=100"], "clock_mhz", "host measures its latency itself"),
    ],
)
def test_a_wrong_board_is_found_before_anything_runs(overrides: list[str], path: str, message: str) -> None:
    pipeline = Path(__file__).resolve().parents[2] / "pipeline.yaml"
    with pytest.raises(SpecError) as refused:
        load_spec(pipeline, [f"stages.mcu.{override}" for override in overrides])
    assert [problem.path for problem in refused.value.problems] == [("stages", "mcu", path)]
    assert message in refused.value.problems[0].message


def test_limits_on_the_command_line(graph, split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 where the board's and the command's limits are kept, 1 where one is not, 2 for a wrong board."""
    pytest.importorskip("unicorn")
    artifact = exported(graph, "c", tmp_path)

    def kdpipe(*options: str) -> tuple[int, str]:
        words = ["validate", str(artifact), "--data", str(split), "--samples", "2", *options]
        code = app(words, standalone_mode=False)
        captured = capsys.readouterr()
        return code or 0, captured.out + captured.err

    code, text = kdpipe("--board", "nucleo-l4r5zi", "--ram-kib", "64", "--latency-ms", "1000", "--json")
    found = json.loads(text)
    assert code == 0
    assert {gate["name"]: gate["limit"] for gate in found["gates"]} == {
        "flash_kib": 2048,
        "ram_kib": 64,
        "latency_ms": 1000,
    }
    assert found["clock"] == {"mhz": 120, "wait_state_factor": 1.29}
    assert found["arena"]["lower_bound"] <= found["arena"]["bytes"] < found["ram_bytes"]
    assert max(buffer["last"] for buffer in found["arena"]["buffers"]) < len(found["arena"]["layers"])
    assert found["latency_ms"]["median"] == pytest.approx(found["cycles"] * 1.29 / 120e3, rel=0.05)
    code, text = kdpipe("--device", "cortex-m4", "--flash-kib", "1", "--ram-kib", "0.5", "--clock-mhz", "1")
    assert code == 1
    assert "flash_kib is" in text
    assert "the largest constants are of" in text
    assert "KiB of arena at once" in text
    assert "estimated at 1 MHz" in text
    assert kdpipe("--board", "nucleo")[0] == 2
