from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.cli import main
from kdpipe.pipeline.cli_words import spread_names
from kdpipe.pipeline.data_source import split_directory
from kdpipe.pipeline.store import Store
from kdpipe.targets.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
LONG = "w" * 300
"""A name that no disk can hold."""


@dataclass
class Done:
    """What a command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def kdpipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run a command line in this process, in a folder."""

    def run(*words: str, folder: Path, **environment: str) -> Done:
        monkeypatch.chdir(folder)
        for name, value in {"COLUMNS": "200", **environment}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["kdpipe", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main()
        printed = capsys.readouterr()
        return Done(int(done.value.code or 0), printed.out, printed.err)

    return run


def toy_run(toy: Any, *words: str) -> tuple[int, str, str]:
    process = toy.process(*words)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def test_help_and_version_load_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.argv = ['kdpipe', WORD]\nfrom kdpipe.pipeline.cli import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert done.code == 0, done.code\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'rich', 'yaml', 'sklearn', 'onnx', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for word in ("--help", "--version"):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("WORD", repr(word))], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "kdpipe" in done.stdout


def test_planning_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom kdpipe.pipeline.spec_file import load_spec\n"
        "from kdpipe.pipeline.plan import make_plan\nfrom kdpipe.pipeline.store import Store\n"
        f"make_plan(load_spec(Path({str(ROOT / 'pipeline.yaml')!r})), Store(Path('store')))\n"
        "heavy = {'torch', 'sklearn', 'onnx', 'onnxruntime', 'openvino', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


COMMANDS = ["run", "plan", "export", "validate", "diff", "clean", "report", "ls", "schema", "doctor", "init"]


def test_the_promised_commands_are_there(kdpipe: Any, tmp_path: Path) -> None:
    text = kdpipe("--help", folder=tmp_path).stdout
    assert all(f"  {command} " in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(kdpipe: Any, tmp_path: Path, command: str) -> None:
    done = kdpipe(command, "--help", folder=tmp_path)
    assert done.returncode == 0
    assert f"Usage: kdpipe {command}" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "missing.yaml"], "missing.yaml: no such file"),
        (["plan", "."], "a directory, not a file"),
        (["run"], "Missing argument"),
        (["rum", "x"], "No such command"),
        (["run", "pipeline.yaml", "--fast"], "No such option"),
        (["plan", "pipeline.yaml", "--set", "stages.teachers.epoch=3"], "Did you mean epochs?"),
        (["plan", "pipeline.yaml", "--only", "teecher"], "unknown stage 'teecher'"),
        (["plan", "pipeline.yaml", "--only"], "requires an argument"),
        (["plan", "pipeline.yaml", "--only", ""], "unknown stage ''"),
        (["plan", "pipeline.yaml", "--force=,"], "unknown stage ''"),
        (["run", "pipeline.yaml", "--out", "pipeline.yaml/out"], "a file stands where a directory is needed"),
        (["run", "pipeline.yaml", "--store", "pipeline.yaml/store"], "a file stands where a directory is needed"),
        (["export", "onnx", "nowhere", "-o", "out"], "no such directory: nowhere"),
        (["export", "onnx", "pipeline.yaml", "-o", "out"], "neither a directory nor an .onnx file"),
        (["export", "onnxx", ".", "-o", "out"], "onnxx"),
        (["validate", ".", "--data", "digits", "--reference", "pipeline.yaml"], "neither a directory nor an .onnx"),
        (["export", "c", ".", "-o", "out", "--core", "cortex-m44"], "cortex-m44"),
        (["export", "onnx", ".", "-o", "out", "--core", "cortex-m4"], "onnx has no option core"),
        (["validate", "nowhere", "--data", "digits"], "no such directory: nowhere"),
        (["diff", ".", "nowhere", "--data", "digits"], "B: no such directory: nowhere"),
        (["diff", ".", ".", "--data", "digits", "--max-steps", "-1"], "--max-steps"),
        (["validate", ".", "--data", "mnist"], "'mnist' can't be named alone: it needs folder"),
        (["validate", ".", "--data", "digit"], "no data 'digit'. Did you mean digits?"),
        (["validate", ".", "--data", "digits.tset"], "'digits' has no split 'tset'. Did you mean test?"),
        (["validate", ".", "--data", "."], "no split here"),
        (["validate", LONG, "--data", "digits"], "ARTIFACT: wwww"),
        (["export", "c", LONG, "-o", "out"], "MODEL: wwww"),
        (["validate", ".", "--data", LONG], "--data: wwww"),
        (["validate", ".", "--data", "digits", "--device", "", "--clock-mhz", "80"], "unknown device ''"),
        (["validate", ".", "--data", "digits", "--device", "nope", "--clock-mhz", "80"], "unknown device 'nope'"),
        (["ls", "networks"], "networks"),
        (["report", "nowhere"], "DIR: no such directory: nowhere"),
        (["report", "pipeline.yaml"], "DIR: no such directory: pipeline.yaml"),
        (["clean", "missing.yaml"], "missing.yaml: no such file"),
        (["init"], "is there already"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_no_traceback(
    kdpipe: Any, tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "pipeline.yaml").write_text((ROOT / "pipeline.yaml").read_text(encoding="utf-8"))
    done = kdpipe(*words, folder=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_all_mistakes_of_a_file_are_printed(kdpipe: Any, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("kdpipe: 1\nname: x\nstages:\n  a: {uses: distil}\n  b: {uses: exprt}\n")
    done = kdpipe("run", "p.yaml", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "kdpipe: p.yaml:4:13: stages.a.uses: unknown stage 'distil'. Did you mean distill?",
        "kdpipe: p.yaml:5:13: stages.b.uses: unknown stage 'exprt'. Did you mean export?",
    ]
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / ".kdpipe").exists()


def test_init_writes_the_projects_own_pipeline(kdpipe: Any, tmp_path: Path) -> None:
    done = kdpipe("init", folder=tmp_path)
    assert done.returncode == 0
    written = (tmp_path / "pipeline.yaml").read_text(encoding="utf-8")
    assert written == (ROOT / "pipeline.yaml").read_text(encoding="utf-8")
    planned = kdpipe("plan", "pipeline.yaml", "--json", folder=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert {step["status"] for step in json.loads(planned.stdout)} == {"run"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipeline.yaml"]


@pytest.mark.parametrize("what", ["stages", "models", "targets", "ops", "devices", "losses", "data"])
def test_ls(kdpipe: Any, tmp_path: Path, what: str) -> None:
    rows = json.loads(kdpipe("ls", what, "--json", folder=tmp_path).stdout)
    assert rows
    assert all(row["name"] and row["summary"] for row in rows)
    table = kdpipe("ls", what, folder=tmp_path).stdout
    assert all(row["name"] in table for row in rows)


def test_ls_ops_says_what_each_target_can_write(kdpipe: Any, tmp_path: Path) -> None:
    from kdpipe.targets.exporters import EXPORTERS
    from kdpipe.targets.onnx import OPERATORS

    rows = {row["name"]: row for row in json.loads(kdpipe("ls", "ops", "--json", folder=tmp_path).stdout)}
    assert {name for name, row in rows.items() if row["onnx"]} == {operator.__name__ for operator in OPERATORS}
    assert all(set(EXPORTERS) < set(row) for row in rows.values())


def test_doctor(kdpipe: Any, tmp_path: Path) -> None:
    done = kdpipe("doctor", "--json", folder=tmp_path)
    assert done.returncode == 0
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert findings["torch"]["version"]
    assert 'pip install "kdpipe[mcu]"' in findings["unicorn"]["remedy"]


def test_doctor_says_how_to_get_what_is_missing(kdpipe: Any, tmp_path: Path) -> None:
    # An empty PATH: no compiler is found.
    text = kdpipe("doctor", folder=tmp_path, PATH=str(tmp_path)).stdout
    assert "missing" in text
    assert "apt install gcc-arm-none-eabi" in text


def test_schema_is_json(kdpipe: Any, tmp_path: Path) -> None:
    done = kdpipe("schema", folder=tmp_path)
    assert json.loads(done.stdout)["title"] == "kdpipe pipeline"


def test_run_ends_with_0_then_finds_everything(toy: Any) -> None:
    code, output, errors = toy_run(toy)
    assert code == 0, errors
    assert f"report: {toy.out / 'report.html'}" in output
    code, output, _ = toy_run(toy)
    assert code == 0
    assert "7 cached" in output
    for name in ("report.json", "report.html", "junit.xml", "log.jsonl"):
        assert (toy.out / name).is_file()


def test_a_failed_gate_ends_with_1(toy: Any) -> None:
    assert toy_run(toy, "--set", "stages.host.gates.accuracy=0.99")[0] == 1


def test_a_failed_stage_ends_with_3_and_says_what_where_and_the_log(toy: Any) -> None:
    toy.write(toy.file.read_text() + "  bad: {uses: mischief, how: crash}\n")
    code, _, errors = toy_run(toy)
    assert code == 3
    assert "stage bad: unexpected ZeroDivisionError: division by zero" in errors
    assert str(toy.out / "log.jsonl") in errors
    assert "Traceback" not in errors
    code, _, errors = toy_run(toy, "--debug")
    assert code == 3
    assert "Traceback" in errors


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8")
@pytest.mark.parametrize(("option", "where"), [("--out", "--out"), ("--store", "--store"), ("file", "FILE")])
def test_a_path_that_is_not_unicode_is_refused_before_anything_runs(toy: Any, option: str, where: str) -> None:
    odd = toy.folder / os.fsdecode(b"odd\xff")
    if option == "file":
        odd.mkdir()
        toy.file = toy.file.rename(odd / "pipeline.yaml")
    code, _, errors = toy_run(toy, *([option, str(odd)] if option != "file" else []))
    assert code == 2
    assert errors.startswith(f"kdpipe: {where}: a path that is not Unicode: ")
    assert not toy.out.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="closed pipes of POSIX")
def test_a_run_goes_on_when_nobody_reads_what_it_prints(toy: Any) -> None:
    run = toy.process()
    run.stdout.close()
    assert run.wait(timeout=60) == 0, run.stderr.read()
    assert run.stderr.read() == ""
    assert json.loads((toy.out / "report.json").read_text())["status"] == "passed"


def test_only_and_force(toy: Any) -> None:
    assert toy_run(toy, "--only", "teacher", "rounded")[0] == 0
    report = json.loads((toy.out / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == ["data.digits", "teacher", "rounded"]
    assert toy_run(toy, "--only", "rounded", "--force", "teacher")[0] == 0
    report = json.loads((toy.out / "report.json").read_text())
    assert [stage["status"] for stage in report["stages"]] == ["cached", "ran", "cached"]


@pytest.mark.parametrize(
    ("words", "spread"),
    [
        ("run p.yaml --only a b --out d", "run p.yaml --only a --only b --out d"),
        ("run --only a b p.yaml", "run --only a --only b p.yaml"),
        ("run p.yaml --only=a,b --force c", "run p.yaml --only a --only b --force c"),
        ("run p.yaml --only a --only b", "run p.yaml --only a --only b"),
        ("run p.yaml --only", "run p.yaml --only"),
        ("run p.yaml --only a,,b", "run p.yaml --only a --only b"),
        ("run p.yaml --only --debug", "run p.yaml --only --debug"),
        ("export c runs/x/model -o d", "export c runs/x/model -o d"),
    ],
)
def test_options_that_take_several_names(words: str, spread: str) -> None:
    assert spread_names(words.split()) == spread.split()


def test_data_by_name_is_made_once(toy: Any) -> None:
    store = Store(toy.folder / "store")
    directory = split_directory("numbers", store, toy.registry)
    assert json.loads((directory / "value.json").read_text())[1]["split"] == "test"
    assert split_directory("numbers.test", store, toy.registry) == directory
    assert split_directory("numbers.train", store, toy.registry).name == "train"
    (toy.folder / "mine").mkdir()
    (toy.folder / "mine" / "split.json").write_text("{}")
    assert split_directory(str(toy.folder / "mine"), store, toy.registry) == toy.folder / "mine"
    with pytest.raises(UsageError, match="no data"):
        split_directory("nothing", store, toy.registry)


def test_report_rebuilds_the_pages_and_prints_the_summary(kdpipe: Any, toy: Any) -> None:
    toy.run("stages.host.gates.accuracy=0.99")
    (toy.out / "report.html").unlink()
    done = kdpipe("report", str(toy.out), folder=toy.folder)
    assert done.returncode == 0, done.stderr
    assert (toy.out / "report.html").is_file()
    assert "teacher" in done.stdout
    assert "failed" in done.stdout
    assert kdpipe("report", str(toy.folder), folder=toy.folder).returncode == 3


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        ('"uses": "learn",', "", 0),
        ('"accuracy": 0.9,', "", 0),
        ('"gates": [', '"others": [', 0),
        ('"p95": 2.0', '"p95": null', 0),
        ('"uses": "learn"', '"uses": "\\u001b[2J"', 0),
        ('"name": "teacher"', '"name": 3', 3),
        ("{", "[" * 100_000, 3),
    ],
)
def test_a_report_that_somebody_changed_is_shown_or_refused(
    kdpipe: Any, toy: Any, before: str, after: str, code: int
) -> None:
    toy.run()
    file = toy.out / "report.json"
    text = file.read_text(encoding="utf-8")
    assert before in text
    file.write_text(text.replace(before, after), encoding="utf-8")
    done = kdpipe("report", str(toy.out), folder=toy.folder)
    assert done.returncode == code, done.stderr
    assert "defect" not in done.stderr
    assert "\x1b" not in done.stdout
