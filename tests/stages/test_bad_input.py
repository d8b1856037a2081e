"""What goes wrong while networks are trained, as the user of a pipeline sees it: no traceback, and nothing lost."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdpipe.models.arguments import ModelArguments
from kdpipe.models.registry import MODELS, ModelEntry
from kdpipe.pipeline.cli import main

TEACHERS = {
    "uses": "teacher-ensemble",
    "train": "${data.digits.train}",
    "members": [{"model": "cnn", "channels": [4, 6]}, {"model": "cnn", "channels": [4, 8]}],
    "epochs": 1,
}
SAMPLES = {
    "uses": "synthesize",
    "teachers": "${teachers.ensemble}",
    "iterations": 2,
    "count": 40,
    "batch_size": 32,
    "channels": 4,
    "collapse_below": 0,
}
STUDENT = {
    "uses": "distill",
    "teachers": "${teachers.ensemble}",
    "samples": "${data.digits.train}",
    "model": {"model": "cnn", "channels": [4]},
    "epochs": 2,
}
QUANTIZED = {
    "uses": "quantize",
    "network": "${student.network}",
    "samples": "${data.digits.train}",
    "losses": {"ce": {}},
    "epochs": 1,
}


class Branching(nn.Module):
    """A network whose forward looks at values."""

    def __init__(self, *, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(math.prod(input_shape), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(x.flatten(1))
        return logits if logits.sum() > 0 else 2 * logits


@pytest.fixture(autouse=True)
def branching(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model named `branching`, as somebody may have added one."""
    entry = ModelEntry("looks at values", f"{__name__}:Branching", ModelArguments, None)
    monkeypatch.setitem(MODELS._entries, "branching", entry)


def write(folder: Path, stages: dict[str, Any]) -> None:
    document = {"kdpipe": 1, "name": "bad", "accelerator": "cpu", "data": {"digits": {"uses": "digits"}}}
    (folder / "pipeline.yaml").write_text(json.dumps({**document, "stages": stages}))


def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, list[dict[str, Any]]]:
    """Run the pipeline in this process: its exit code, what it printed, and its events."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(sys, "argv", ["kdpipe", "run", "pipeline.yaml", "--store", str(folder / "store")])
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as done:
        main()
    log = folder / "runs" / "bad" / "log.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return int(done.value.code or 0), said.getvalue(), events


CASES = {
    "a tap that does not exist": (
        {"student": {**STUDENT, "losses": {"feed": {}}, "student_tap": "featurs"}},
        ["student_tap: the network has no module 'featurs'", "Did you mean features?"],
    ),
    "a tap of a teacher that does not exist": (
        {"student": {**STUDENT, "losses": {"feed": {}}, "teacher_taps": ["features", "feature.*"]}},
        ["teacher_taps.1: the network has no module like 'feature.*'", "Did you mean features"],
    ),
    "a loss that is not finite": (
        {"student": {**STUDENT, "losses": {"kd": {}, "ce": {"weight": 1e39}}, "generations": 2}},
        [
            "generation 1: the loss term 'ce' is inf at step 1 (epoch 1)",
            "Lower the learning rate or that term's weight",
        ],
    ),
    "a collapsed generator": (
        {"samples": {**SAMPLES, "collapse_below": 1.0, "weights": {"entropy": 0}}},
        ["the generator collapsed onto few classes", "Raise weights.entropy"],
    ),
    "a collapsed generator beside its student": (
        {
            "student": {
                "uses": "data-free-distill",
                "teachers": "${teachers.ensemble}",
                "model": {"model": "cnn", "channels": [4]},
                "synthesis": {"method": "dafl", "entropy": 0, "batch_size": 32, "channels": 4},
                "epochs": 3,
                "iterations": 2,
                "collapse_below": 1.0,
            }
        },
        ["the generator collapsed onto few classes", "Raise synthesis.entropy"],
    ),
    "a teacher whose training breaks": (
        {"others": {**TEACHERS, "lr": 100, "weight_decay": 1, "schedule": "constant", "epochs": 30}},
        ["others: members.0 (cnn): the loss term 'cross_entropy' is", "Lower the learning rate"],
    ),
    "a student that cannot be traced": (
        {"student": {**STUDENT, "model": {"model": "branching"}, "epochs": 1}, "quantized": QUANTIZED},
        ["quantized: Branching can't be traced", "Its forward must not branch on tensor values"],
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_it_is_named_at_once_and_what_is_finished_stays(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, words = CASES[case]
    write(tmp_path, {"teachers": TEACHERS, **stages})
    code, said, _ = run(tmp_path, monkeypatch)
    assert code == 3, said
    for word in words:
        assert word in said
    assert "Traceback" not in said
    _, _, events = run(tmp_path, monkeypatch)
    finished = ["data.digits", "teachers", *(["student"] if "quantized" in stages else [])]
    assert [event["stage"] for event in events if event["event"] == "StageCached"] == finished


def brought(classes: list[str]) -> dict[str, Any]:
    """A teacher ensemble of one network from a file."""
    member = {"model": "cnn", "channels": [4], "checkpoint": "net.pt", "mean": [0.3], "std": [0.4]}
    return {"uses": "teacher-ensemble", "members": [member], "input_shape": [1, 8, 8], "classes": classes}


def state(classes: int) -> dict[str, torch.Tensor]:
    network = MODELS["cnn"].build(input_shape=(1, 8, 8), classes=classes, channels=(4,))
    return network.state_dict()


def test_teachers_that_know_other_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(state(3), tmp_path / "net.pt")
    others = {**STUDENT, "teachers": "${brought.ensemble}"}
    quantized = {**QUANTIZED, "network": "${student.network}", "teachers": "${brought.ensemble}", "losses": {"kd": {}}}
    write(tmp_path, {"brought": brought(["a", "b", "c"]), "distilled": others})
    code, said, _ = run(tmp_path, monkeypatch)
    assert (code, "distilled: the images have 10 classes, the networks 3" in said) == (3, True), said
    write(tmp_path, {"brought": brought(["a", "b", "c"]), "teachers": TEACHERS, "student": STUDENT, "small": quantized})
    code, said, _ = run(tmp_path, monkeypatch)
    assert (code, "small: teachers with 3 classes for a network with 10" in said) == (3, True), said


def test_a_checkpoint_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = state(3)
    write(tmp_path, {"brought": brought(["a", "b"])})
    torch.save(content, tmp_path / "net.pt")
    code, said, _ = run(tmp_path, monkeypatch)
    assert (code, "fc.weight: [3, 4] in the file, [2, 4] in the network" in said) == (3, True), said
    write(tmp_path, {"brought": brought(["a", "b", "c"])})
    content["fc.weight"][0, 0] = torch.nan
    torch.save(content, tmp_path / "net.pt")
    code, said, _ = run(tmp_path, monkeypatch)
    assert (code, "net.pt: the checkpoint holds values that are not finite: fc.weight" in said) == (3, True), said
