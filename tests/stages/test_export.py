"""The export stage, and the export of one target by the command line."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from kdpipe.stages import export
from kdpipe.stages.base import Artifact
from kdpipe.stages.export import ExportParams, export_graph
from kdpipe.targets.artifact import read_artifact
from kdpipe.targets.errors import ArtifactError, StorageError, UsageError
from kdpipe.targets.exporters import EXPORTERS, Exporter
from kdpipe.targets.graph_files import save_graph


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

    def full_disk(self: Exporter, graph: object, directory: Path, core: str) -> list[Path]:
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
    export_graph(model, "c", tmp_path / "m4", "cortex-m4")
    assert read_artifact(tmp_path / "m4").core == "cortex-m4"
    with pytest.raises(UsageError, match="Did you mean cortex-m4"):
        export_graph(model, "c", tmp_path / "other", "cortex-m44")
    with pytest.raises(UsageError, match="onnx is not written for a core"):
        export_graph(model, "onnx", tmp_path / "other", "cortex-m4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m4", "model"]
