"""`kdpipe diff`: what it prints and with which code it ends."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from kdpipe.pipeline.cli import main
from kdpipe.stages.artifacts import ImageSpace, Split, save_split
from kdpipe.targets.exporters import EXPORTERS
from kdpipe.targets.graph_files import save_graph


@pytest.fixture
def folder(random_graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a split, a model, its ONNX export and a C export with a fault."""
    graph = random_graph(14, operators=("conv",), input_shape=(2, 8, 8), narrow=False)
    for name in ("split", "model", "onnx", "c"):
        (tmp_path / name).mkdir()
    space = ImageSpace(graph.input.shape, graph.class_names, graph.normalization.mean, graph.normalization.std)
    images = torch.randint(0, 256, (8, *space.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_split(tmp_path / "split", Split("test", images, torch.zeros(8, dtype=torch.int64), space))
    save_graph(graph, tmp_path / "model")
    for target in ("onnx", "c"):
        EXPORTERS[target].export(graph, tmp_path / target)
    weights = tmp_path / "c" / "model_weights.c"
    text = weights.read_text(encoding="utf-8")
    found = re.search(r"_bias1\[\d+\] = {\s*(-?\d+)", text)
    weights.write_text(f"{text[: found.start(1)]}{int(found[1]) + 5000}{text[found.end(1) :]}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["kdpipe", "diff", *words])
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


def test_equal_within_rounding_ends_with_0(folder, monkeypatch, capsys) -> None:
    assert run(monkeypatch, "model", "onnx", "--data", "split") == 0
    printed = capsys.readouterr().out
    assert "A: integer-graph on host; B: onnx on host; 8 images; limit of a layer: another rounding" in printed
    assert "No layer diverges" in printed


def test_a_divergent_layer_ends_with_1_and_is_named(folder, monkeypatch, capsys) -> None:
    assert run(monkeypatch, "model", "c", "--data", "split", "--samples", "4") == 1
    printed = capsys.readouterr().out
    assert "First layer that diverges: conv2d.1" in printed
    assert "Misrounded" in printed.splitlines()[0]
    assert run(monkeypatch, "model", "c", "--data", "split", "--max-steps", "255") == 0


def test_json_has_the_same(folder, monkeypatch, capsys) -> None:
    assert run(monkeypatch, "model", "c", "--data", "split", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["first_divergent_layer"] == "conv2d.1"
    assert found["limit"] == 0
    assert [layer["name"] for layer in found["layers"]][:2] == ["input", "conv2d.0"]
    assert set(found["layers"][0]) == {"name", "steps", "exact", "snr_db", "own_steps", "misrounded", "constants"}


def test_wrong_words_end_with_2_and_failures_with_3(folder, monkeypatch, capsys) -> None:
    assert run(monkeypatch, "model", "nowhere", "--data", "split") == 2
    assert run(monkeypatch, "model", "onnx", "--data", "split", "--device", "abacus") == 2
    assert run(monkeypatch, "model", "onnx") == 2
    (folder / "onnx" / "model.onnx").write_bytes(b"nonsense")
    assert run(monkeypatch, "model", "onnx", "--data", "split") == 3
    assert "Traceback" not in capsys.readouterr().err
