"""The export stage, and the export of one target by the command line."""

import re
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from kdpipe.models.registry import MODELS
from kdpipe.pipeline.cli import main
from kdpipe.pipeline.cli_options import Core, Elements, Weights
from kdpipe.pipeline.store import describe_outputs
from kdpipe.pipeline.tables import weights_in_words
from kdpipe.stages import export
from kdpipe.stages.base import Artifact
from kdpipe.stages.export import OPTIONS, ExportParams, export_graph
from kdpipe.stages.quantization.prepare import QuantizationConfig, input_quantizer, prepare
from kdpipe.stages.quantization.training import calibrate
from kdpipe.targets.artifact import read_artifact
from kdpipe.targets.errors import ArtifactError, StorageError, UsageError
from kdpipe.targets.exporters import EXPORTERS, Exporter
from kdpipe.targets.graph import IntegerGraph, Normalization
from kdpipe.targets.graph_files import save_graph
from kdpipe.targets.lower import lower


@pytest.fixture
def model(random_graph, tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    save_graph(random_graph(9), directory)
    return directory


def test_the_stage_writes_an_output_for_each_target(model: Path, context) -> None:
    params = ExportParams(graph="${quantized.graph}", targets=("tflite", "c"))
    assert export.STAGE.outputs(params) == {"tflite": "tflite", "c": "c"}
    folder = context()
    outcome = export.STAGE.run(params, {"graph": Artifact("integer-graph", model)}, folder)
    for target in ("tflite", "c"):
        described = read_artifact(folder.root / target)
        assert described.target == target
        size = sum(path.stat().st_size for path in map((folder.root / target).joinpath, described.files))
        assert outcome.metrics[f"{target}_bytes"] == size
    assert folder.reports[-1][:3] == (2, 2, "target")


@pytest.mark.parametrize("targets", [(), ("onxx",), ("onnx", "onnx")])
def test_wrong_targets_are_refused(targets: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError):
        ExportParams(graph="${quantized.graph}", targets=targets)


def test_one_target_is_written_and_replaced(model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "new" / "out"
    first = export_graph(model, "onnx", directory)
    assert first == [directory / "model.onnx"]
    content = first[0].read_bytes()
    first[0].write_bytes(b"old")
    assert export_graph(model, "onnx", directory)[0].read_bytes() == content
    export_graph(model, "tflite", directory)
    assert sorted(path.name for path in directory.iterdir()) == ["artifact.json", "model.tflite"]
    assert [path.name for path in directory.parent.iterdir()] == ["out"]


def test_an_empty_directory_is_taken(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert export_graph(model, "tflite", tmp_path / "out")


def test_somebody_elses_files_are_left_alone(model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "out"
    directory.mkdir()
    (directory / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"):
        export_graph(model, "onnx", directory)
    (directory / "thesis.tex").unlink()
    export_graph(model, "c", directory)
    (directory / "build").mkdir()
    (directory / "build" / "mine.o").write_text("")
    with pytest.raises(UsageError, match=r"mine\.o"):
        export_graph(model, "c", directory)
    assert (directory / "build" / "mine.o").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_a_file_in_the_way_is_left_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="not a directory"):
        export_graph(model, "onnx", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_failure_leaves_what_was_there(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "out"
    (path,) = export_graph(model, "tflite", directory)
    content = path.read_bytes()

    def full_disk(self: Exporter, graph: object, directory: Path) -> list[Path]:
        (directory / "model.tflite").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Exporter, "export", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        export_graph(model, "tflite", directory)
    assert path.read_bytes() == content
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "out"]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no integer graph"):
        export_graph(tmp_path, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_target_is_refused(model: Path, tmp_path: Path) -> None:
    assert "onxx" not in EXPORTERS
    with pytest.raises(UsageError, match="unknown target"):
        export_graph(model, "onxx", tmp_path / "out")


def test_c_is_written_for_a_core(model: Path, tmp_path: Path) -> None:
    export_graph(model, "c", tmp_path / "m4", {"core": "cortex-m4"})
    assert read_artifact(tmp_path / "m4").core == "cortex-m4"
    with pytest.raises(UsageError, match="Did you mean cortex-m4"):
        export_graph(model, "c", tmp_path / "other", {"core": "cortex-m44"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m4", "model"]


@pytest.mark.parametrize(
    ("target", "option", "choice", "told"),
    [
        ("onnx", "core", "cortex-m4", "onnx has no option core. Leave it out; c can take it"),
        ("openvino", "weights", "int8", "openvino has no option weights. Leave it out; onnx and tflite can take it"),
        ("c", "io", "float32", "c has no option io. Leave it out; tflite can take it"),
        ("onnx", "rounding", "single", "onnx has no option rounding. Leave it out"),
        ("tflite", "io", "float", "tflite has no io 'float'. Did you mean float32"),
    ],
)
def test_options_that_a_target_lacks_are_refused(
    target: str, option: str, choice: str, told: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        export_graph(model, target, tmp_path / "other", {option: choice})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_stage_hands_each_target_the_options_that_it_has(model: Path, context) -> None:
    params = ExportParams(
        graph="${quantized.graph}", targets=("onnx", "openvino", "tflite"), weights="int8", io="float32"
    )
    folder = context()
    export.STAGE.run(params, {"graph": Artifact("integer-graph", model)}, folder)
    written = {target: read_artifact(folder.root / target) for target in params.targets}
    assert {set(written[target].stored_bits.values()) == {8} for target in ("onnx", "tflite")} == {True}
    assert written["tflite"].input.type == "float32"
    assert min(written["openvino"].stored_bits.values()) < 8


def test_an_option_that_no_target_of_the_stage_has_is_refused() -> None:
    with pytest.raises(ValidationError, match="io is an option of tflite, which the targets do not name"):
        ExportParams(graph="${quantized.graph}", targets=("onnx", "c"), io="float32")
    with pytest.raises(ValidationError, match="weights is an option of onnx and tflite"):
        ExportParams(graph="${quantized.graph}", targets=("c",), weights="packed")


def test_the_stage_and_the_command_line_offer_every_option() -> None:
    having = {name: option for target in EXPORTERS for name, option in EXPORTERS[target].options.items()}
    assert set(having) == OPTIONS
    for name, enumeration in {"core": Core, "weights": Weights, "io": Elements}.items():
        assert tuple(enumeration) == having[name].choices
        field = ExportParams.model_fields[name]
        assert get_args(field.annotation) == having[name].choices
        assert field.default == having[name].choices[0]


def resnet20(weight_bits: int) -> IntegerGraph:
    """ResNet-20 for CIFAR-10, with all that an export says about itself; sizes don't depend on training."""
    shape = (3, 32, 32)
    network = MODELS["resnet"].build(input_shape=shape, classes=10, depth=20, width=16)
    prepared = prepare(network, torch.zeros(2, *shape), QuantizationConfig(weight_bits=weight_bits))
    input_quantizer(prepared).set_range(-2.0, 2.0)
    calibrate(prepared, torch.randn(4, *shape))
    return lower(
        prepared.eval(),
        shape,
        name="resnet20",
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        normalization=Normalization((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
        metadata={"key": 64 * "0"},
    )


def test_a_resnet20_of_2_bits_is_at_most_90_kb_as_onnx(tmp_path: Path) -> None:
    graph = resnet20(2)
    (path,) = EXPORTERS["onnx"].export(graph, tmp_path)
    assert path.stat().st_size <= 90_000
    sizes = read_artifact(tmp_path).weight_bytes
    wide = sum(weight.values.size for _, weight in graph.weights() if weight.bits == 8)
    ternary = [weight.values.size for _, weight in graph.weights() if weight.bits == 2]
    assert sizes["values"] == wide + sum(-(-size // 4) for size in ternary)
    assert sizes["values"] + sizes["scales_and_biases"] < path.stat().st_size
    assert sum(ternary) > 0.99 * (sum(ternary) + wide)


def test_the_command_line_shows_what_the_weights_alone_need(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["kdpipe", "export", "tflite", str(model), "-o", str(tmp_path / "out"), "--io", "float32"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().out
    described = read_artifact(tmp_path / "out")
    assert described.input.type == "float32"
    assert str(tmp_path / "out" / "model.tflite") in printed
    assert f"{(tmp_path / 'out' / 'model.tflite').stat().st_size / 1024:.1f} KiB in 1 file" in printed
    assert weights_in_words(described.weight_bytes) in printed


def test_the_key_is_what_the_report_calls_the_graph(model: Path, tmp_path: Path, context) -> None:
    described = describe_outputs(tmp_path, {"model": "integer-graph"})
    folder = context()
    export.STAGE.run(
        ExportParams(graph="${quantized.graph}", targets=("c",)), {"graph": Artifact("integer-graph", model)}, folder
    )
    assert read_artifact(folder.root / "c").key == described["model"].digest
