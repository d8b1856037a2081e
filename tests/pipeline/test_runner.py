from __future__ import annotations

import json
from typing import Any

import pytest

from kdpipe.pipeline.events import (
    GateEvaluated,
    RunFinished,
    RunStarted,
    StageFailed,
    StageFinished,
    StageProgress,
    StageSkipped,
    StageStarted,
)

TROUBLE = """\
kdpipe: 1
name: trouble
data: {digits: {uses: numbers}}
stages:
  bad: {uses: mischief, how: HOW}
  behind: {uses: round, network: "${bad}"}
  further: {uses: combine, networks: ["${behind}"]}
  aside: {uses: learn, data: "${data.digits.train}"}
"""

MESSAGES = {
    "diverge": "epoch 3: the loss is not finite. Lower lr",
    "crash": "unexpected ZeroDivisionError: division by zero",
    "memory": "out of memory",
    "disk": "the disk is full",
    "empty": "output 'network': the stage wrote no file into it",
    "target": "a stage returns a TargetRecord if and only if it validates",
    "figure": "names a figure that it did not write",
}


@pytest.mark.parametrize("how", MESSAGES)
def test_a_stage_that_fails_takes_down_only_what_needs_it(toy: Any, how: str) -> None:
    toy.write(TROUBLE.replace("HOW", how))
    result = toy.run()
    assert {entry.stage.name: entry.status for entry in result.stages} == {
        "data.digits": "ran",
        "bad": "failed",
        "behind": "skipped",
        "further": "skipped",
        "aside": "ran",
    }
    assert result.exit_code == 3
    assert result.status == "failed"
    failed = next(event for event in toy.events if isinstance(event, StageFailed))
    assert MESSAGES[how] in failed.message
    assert "Traceback" in failed.traceback
    skipped = [event.because for event in toy.events if isinstance(event, StageSkipped)]
    assert skipped == ["bad did not finish", "behind did not finish"]
    report = json.loads((toy.out / "report.json").read_text())
    assert report["status"] == "failed"
    by_name = {stage["name"]: stage for stage in report["stages"]}
    assert MESSAGES[how] in by_name["bad"]["error"]["message"]
    assert by_name["behind"]["error"] == {"message": "bad did not finish"}
    assert "Traceback" in (toy.out / "log.jsonl").read_text()


def test_a_failed_stage_is_not_kept(toy: Any) -> None:
    toy.write(TROUBLE.replace("HOW", "crash"))
    toy.run()
    assert [entry.status for entry in toy.run().stages if entry.stage.name == "bad"] == ["failed"]
    assert list((toy.store.root / "temporary").iterdir()) == []


def test_the_events_of_a_run(toy: Any) -> None:
    toy.run()
    assert isinstance(toy.events[0], RunStarted)
    assert [stage.name for stage in toy.events[0].stages][:2] == ["data.digits", "teacher"]
    assert isinstance(toy.events[-1], RunFinished)
    assert toy.events[-1].counts == {"ran": 7, "cached": 0, "failed": 0, "skipped": 0}
    teacher = [event for event in toy.events if getattr(event, "stage", None) == "teacher"]
    assert isinstance(teacher[0], StageStarted)
    assert [event.done for event in teacher if isinstance(event, StageProgress)] == [1, 2, 3]
    assert isinstance(teacher[-1], StageFinished)
    gates = [(event.gate, event.passed) for event in toy.events if isinstance(event, GateEvaluated)]
    assert gates == [("accuracy", True), ("size_kib", True)]


def test_a_failed_gate_fails_the_run_and_runs_nothing_again(toy: Any) -> None:
    assert toy.run().exit_code == 0
    result = toy.run("stages.host.gates.accuracy=0.95")
    assert result.exit_code == 1
    assert result.status == "failed"
    assert {entry.status for entry in result.stages} == {"cached"}
    report = json.loads((toy.out / "report.json").read_text())
    assert report["status"] == "failed"
    assert report["targets"][0]["gates"][0] == {
        "name": "accuracy",
        "limit": 0.95,
        "value": 0.9,
        "passed": False,
        "reason": None,
    }


def test_the_log_has_a_line_for_each_event(toy: Any) -> None:
    toy.run()
    lines = [json.loads(line) for line in (toy.out / "log.jsonl").read_text().splitlines()]
    assert lines[0]["event"] == "RunStarted"
    assert lines[-1]["event"] == "RunFinished"
    assert {"event": "StageLogged", "stage": "teacher", "message": "learned"}.items() <= next(
        line for line in lines if line["event"] == "StageLogged"
    ).items()


def test_a_stage_can_only_read_and_write_what_it_declares(toy: Any) -> None:
    from pathlib import Path

    from kdpipe.pipeline.execution import RunContext

    spec = toy.spec()
    outputs, scratch = (Path(toy.folder / name) for name in ("outputs", "scratch"))
    context = RunContext(spec, spec.stages["teacher"], outputs, scratch, lambda event: None)
    with pytest.raises(ValueError, match="has no output 'other'"):
        context.output("other")
    with pytest.raises(ValueError, match="not a file that the parameters"):
        context.file("pipeline.yaml")
