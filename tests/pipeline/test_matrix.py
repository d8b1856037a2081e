from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
import yaml

from kdpipe.pipeline.events import CellFinished, RunStarted
from kdpipe.pipeline.json_schema import pipeline_schema
from kdpipe.pipeline.problems import SpecError
from kdpipe.pipeline.report_json import report_schema
from kdpipe.targets.errors import UsageError

HEAD = """\
kdpipe: 1
name: toy
seed: 7
data:
  digits: {uses: numbers}
stages:
  teacher: {uses: learn, data: "${data.digits.train}", seed: 0}
  student: {uses: learn, data: "${data.digits.train}", epochs: 2}
  host: {uses: check, artifact: "${student}", baseline: "${teacher}", data: "${data.digits.test}",
    gates: {accuracy: 0.8}}
"""
MATRIX = """\
matrix:
  axes:
    epochs: {set: stages.student.epochs, values: [1, 2]}
    level: {set: stages.host.accuracy, values: {low: 0.5, high: 0.9}}
  seeds: [0, 1]
  metrics: [host.accuracy, student.accuracy]
"""
CELLS = [
    f"@epochs={epochs}@level={level}@seed={seed}" for epochs in (1, 2) for level in ("low", "high") for seed in (0, 1)
]


def problems(toy: Any, text: str, *overrides: str) -> list[str]:
    toy.write(text)
    with pytest.raises(SpecError) as caught:
        toy.spec(*overrides)
    return [str(problem).replace(str(toy.file), "p.yaml") for problem in caught.value.problems]


def test_a_stage_stands_once_for_every_value_that_makes_a_difference_to_it(toy: Any) -> None:
    toy.write(HEAD + MATRIX)
    spec = toy.spec()
    assert {name for name in spec.stages if "@" not in name} == {"data.digits", "teacher"}
    students = [name for name in spec.stages if name.startswith("student")]
    assert students == [f"student@epochs={epochs}@seed={seed}" for epochs in (1, 2) for seed in (0, 1)]
    assert {name for name in spec.stages if name.startswith("host")} == {"host" + cell for cell in CELLS}
    for name, epochs, seed in [("student@epochs=1@seed=1", 1, 1), ("student@epochs=2@seed=0", 2, 0)]:
        assert (spec.stages[name].params.epochs, spec.stages[name].seed) == (epochs, seed)
    host = spec.stages["host@epochs=2@level=high@seed=1"]
    assert host.params.accuracy == 0.9
    assert host.needs == ("student@epochs=2@seed=1", "data.digits", "teacher")
    assert spec.stages["teacher"].seed == 0
    assert spec.stages["data.digits"].seed == 7  # of the file: all cells see the same data
    assert spec.matrix.size() == "epochs 2 x level 2 x 2 seeds = 8 cells"


def test_what_a_run_does_and_reports(toy: Any) -> None:
    toy.write(HEAD + MATRIX)
    result = toy.run()
    assert result.exit_code == 1  # 0.5 breaks the gate
    report = json.loads((toy.out / "report.json").read_text())
    jsonschema.validate(report, report_schema(), cls=jsonschema.Draft202012Validator)
    matrix = report["matrix"]
    assert matrix["axes"][1] == {"name": "level", "set": ["stages.host.accuracy"], "values": ["low", "high"]}
    assert [(cell["at"], cell["seed"]) for cell in matrix["cells"]][:3] == [([0, 0], 0), ([0, 0], 1), ([0, 1], 0)]
    assert [cell["status"] for cell in matrix["cells"]] == ["failed", "failed", "passed", "passed"] * 2
    assert matrix["cells"][0]["problems"] == ["gate accuracy of host@epochs=1@level=low@seed=0"]
    first = matrix["figures"][0]
    assert first["name"] == "host.accuracy"
    assert first["cells"][1] == {
        "at": [0, 1], "values": [0.9, 0.9], "mean": 0.9, "deviation": 0.0, "reason": None,
    }  # fmt: skip
    variants = {stage["name"]: stage["variant"] for stage in report["stages"]}
    assert variants["teacher"] is None
    assert variants["student@epochs=2@seed=1"] == {"of": "student", "at": {"epochs": "2", "seed": "1"}}
    cells = [event for event in toy.events if isinstance(event, CellFinished)]
    assert [(cell.done, cell.total) for cell in cells] == [(done, 8) for done in range(1, 9)]
    assert cells[2].figures == {"host.accuracy": 0.9, "student.accuracy": 0.9}
    assert next(e for e in toy.events if isinstance(e, RunStarted)).matrix == "epochs 2 x level 2 x 2 seeds = 8 cells"
    cases = ElementTree.parse(toy.out / "junit.xml").getroot().iter("testcase")  # noqa: S314 - our own file
    gates = {case.get("classname") for case in cases if case.get("name") == "accuracy"}
    assert gates == {"toy.host" + cell for cell in CELLS}
    assert toy.ran() == []


def test_an_additional_value_runs_only_its_own_stages(toy: Any) -> None:
    toy.write(HEAD + MATRIX)
    toy.run()
    ran = toy.ran("matrix.axes.epochs.values=[1, 2, 3]", only=["student"])
    assert ran == ["student@epochs=3@seed=0", "student@epochs=3@seed=1"]


def test_the_deviation_is_that_of_a_sample_and_a_failed_cell_stops_no_other(toy: Any) -> None:
    toy.write(
        "kdpipe: 1\nname: toy\ndata: {d: {uses: numbers}}\nstages:\n"
        "  a: {uses: mischief}\n  b: {uses: check, artifact: '${a}', data: '${data.d.test}'}\n"
        "matrix:\n  axes: {how: {set: stages.a.how, values: [nothing, crash, empty]}}\n"
        "  metrics: [b.accuracy, a.lost]\n"
    )
    result = toy.run()
    assert result.exit_code == 3
    report = json.loads((toy.out / "report.json").read_text())
    accuracy, lost = report["matrix"]["figures"]
    assert [cell["mean"] for cell in accuracy["cells"]] == [0.9, None, None]
    assert [cell["deviation"] for cell in accuracy["cells"]] == [None, None, None]
    assert "did not finish" in accuracy["cells"][1]["reason"]
    assert lost["cells"][0]["reason"] == "a has no metric 'lost'; it has none"
    assert [cell["status"] for cell in report["matrix"]["cells"]] == ["passed", "failed", "failed"]
    assert "a@how=crash" in (toy.out / "report.html").read_text()


def test_mean_and_deviation_over_the_seeds(toy: Any) -> None:
    from kdpipe.pipeline.matrix_result import matrix_report

    toy.write(HEAD + MATRIX.replace("[0, 1]", "[0, 1, 2]"))
    result = toy.run()
    names = [f"host@epochs=1@level=low@seed={seed}" for seed in range(3)]
    for stage in result.stages:
        if stage.stage.name in names:  # the toys' accuracy does not depend on the seed
            stage.entry.manifest.target["accuracy"] = [0.5, 0.6, 0.7][names.index(stage.stage.name)]
    cell = matrix_report(result.spec.matrix, result.stages).figures[0].cells[0]
    assert cell.values == [0.5, 0.6, 0.7]
    assert cell.mean == pytest.approx(0.6)
    assert cell.deviation == pytest.approx(0.1)


def test_names_of_stages_on_the_command_line(toy: Any) -> None:
    toy.write(HEAD + MATRIX)
    assert list(toy.plan(only=["student"])) == ["data.digits", *(
        f"student@epochs={epochs}@seed={seed}" for epochs in (1, 2) for seed in (0, 1)
    )]  # fmt: skip
    assert list(toy.plan(only=["student@seed=1"])) == [
        "data.digits",
        "student@epochs=1@seed=1",
        "student@epochs=2@seed=1",
    ]
    toy.run(only=["student@epochs=1"])
    report = json.loads((toy.out / "report.json").read_text())
    assert {cell["status"] for cell in report["matrix"]["cells"]} == {"incomplete"}
    forced = toy.plan(only=["student@epochs=1"], force=["student@epochs=1@seed=0"])
    assert [name for name, step in forced.items() if step.entry is None] == ["student@epochs=1@seed=0"]
    with pytest.raises(UsageError, match="Did you mean student"):
        toy.plan(only=["studnt"])
    with pytest.raises(UsageError, match="unknown stage"):
        toy.plan(only=["student@epochs=9"])


BAD = {
    "axes missing": ("matrix: {metrics: [host.accuracy]}", "must be a mapping of 1 to 4 names"),
    "not a mapping": ("matrix: [1]", "must be a mapping with the keys axes, seeds, metrics"),
    "unknown key": (
        MATRIX + "  metric: x\n",
        "p.yaml:17:3: matrix.metric: unknown key 'metric'. Did you mean metrics?",
    ),
    "unknown stage": (
        MATRIX.replace("stages.student", "stages.studnt"),
        "there is no stage 'studnt'. Did you mean student?",
    ),
    "unknown parameter": (
        MATRIX.replace("student.epochs", "student.epoch"),
        "unknown key 'epoch'. Did you mean epochs?",
    ),
    "wrong type": (
        MATRIX.replace("[1, 2]", "[1, many]"),
        "p.yaml:13:54: stages.student.epochs: must be a valid integer",
    ),
    "nested": (
        MATRIX.replace("[1, 2]", "[1, [2]]"),
        ":13:54: matrix.axes.epochs.values.1: the value needs a name",
    ),
    "twice": (MATRIX.replace("[1, 2]", "[1, 1]"), "'1' stands twice on this axis"),
    "bad label": (MATRIX.replace("low:", "a/b:"), "'a/b' can't be the name of a value"),
    "bad path": (MATRIX.replace("stages.student.epochs", "seed"), "must be the path of a stage's or data source's key"),
    "same path": (MATRIX.replace("stages.host.accuracy", "stages.student.epochs"), "set the same"),
    "seed": (MATRIX.replace("[0, 1]", "[0, -1]"), "p.yaml:15:14: matrix.seeds.1: must be an integer from 0"),
    "unknown metric stage": (MATRIX.replace("[host.", "[hots."), "there is no stage 'hots'. Did you mean host?"),
    "unknown metric": (MATRIX.replace("[host.accuracy", "[host.acuracy"), "a validation has no figure 'acuracy'"),
    "too many": (MATRIX.replace("[0, 1]", str(list(range(200)))), "800 cells are too many"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_have_a_place_and_a_remedy(toy: Any, name: str) -> None:
    text, message = BAD[name]
    found = problems(toy, HEAD + text)
    assert any(message in problem for problem in found), found


def test_mistakes_of_matrix_and_stages_come_together(toy: Any) -> None:
    found = problems(toy, HEAD.replace("epochs: 2", "epoch: 2") + MATRIX.replace("[0, 1]", "[x]"))
    assert len(found) == 2


def test_the_command_line_and_an_axis_do_not_set_the_same(toy: Any) -> None:
    found = problems(toy, HEAD + MATRIX, "stages.student.epochs=5", "seed=3")
    assert [problem.split(": ", 1)[1] for problem in found] == [
        "seed: `seeds` of the matrix takes its place. Set matrix.seeds instead",
        "stages.student.epochs: the axis 'epochs' of the matrix sets it. Set matrix.axes.epochs.values instead",
    ]


def test_an_assignment_to_no_stage_says_which_there_are(toy: Any) -> None:
    found = problems(toy, HEAD, "stages.studnt.epochs=3", "data.digit.count=2")
    assert found == [
        "--set data.digit.count=2: data.digit: there is no data source 'digit'. Did you mean digits?",
        "--set stages.studnt.epochs=3: stages.studnt: there is no stage 'studnt'. Did you mean student?",
    ]


def test_the_schema_for_editors_knows_it(toy: Any) -> None:
    check = jsonschema.Draft202012Validator(pipeline_schema(toy.registry))
    check.validate(yaml.safe_load(HEAD + MATRIX))
    for old, new in (("metrics:", "metric:"), ("stages.student.epochs", "student"), ("[0, 1]", "[0, 0]")):
        assert not check.is_valid(yaml.safe_load(HEAD + MATRIX.replace(old, new)))
