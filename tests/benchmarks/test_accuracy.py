"""The recipes of `benchmarks/accuracy`: each is a pipeline that can be run, and one is, small."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdpipe.pipeline.plan import make_plan
from kdpipe.pipeline.source_fingerprint import SourceFingerprints
from kdpipe.pipeline.store import Store

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "accuracy"
sys.path.insert(0, str(FOLDER))

from command import main  # noqa: E402
from recipe import RECIPES, Recipe, Variant, known, load_recipe, load_variant  # noqa: E402
from results import Found, make_table, with_error  # noqa: E402

NAMES = known()
FILES = re.compile(r"(?:folder|checkpoint): ([\w./-]+)")


@pytest.fixture(scope="module")
def fingerprints():
    """Of the code, which is read once."""
    return SourceFingerprints()


def test_every_pipeline_has_variants_and_the_other_way_round():
    assert len(NAMES) >= 5
    assert sorted(path.stem for path in RECIPES.glob("*.yaml") if ".variants" not in path.name) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_can_be_planned(name, tmp_path, fingerprints):
    recipe = load_recipe(name)
    for path in FILES.findall((RECIPES / f"{name}.yaml").read_text()):
        file = tmp_path / "data" / path
        (file.parent if file.suffix else file).mkdir(parents=True, exist_ok=True)
        if file.suffix:
            file.write_bytes(b"weights")
    planned = {}
    for variant, choice in recipe.variants.items():
        spec = load_variant(name, choice, 7, tmp_path / "data")
        assert {*recipe.stages, *recipe.time} <= set(spec.stages)
        steps = make_plan(spec, Store(tmp_path / "store"), fingerprints=fingerprints)
        assert all(step.entry is None for step in steps)
        planned[variant] = json.dumps([repr(stage.params) for stage in spec.stages.values()])
    assert len(set(planned.values())) == len(planned), "two variants are the same"


def test_the_command_answers():
    command = [sys.executable, str(FOLDER), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "digits-speq" in done.stdout


def test_a_recipe_is_run_and_what_is_finished_is_not_run_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--set=stages.float.epochs=1", "--set=stages.quantized.epochs=1", "--store=store", "--seeds", "3", "4"]
    command = ["digits-speq", *small, "--variants", "W2A2", "W2A8"]
    code, (table, progress) = main(command), capsys.readouterr()
    assert code == 0, progress
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert [row[0].strip("| ") for row in rows] == ["", "---", "float", "W2A2", "W2A8"]
    assert [row[2] for row in rows[2:]] == ["2", "2", "2"]
    assert "(W2A2)" in rows[4][3]
    assert "±" in rows[3][1]
    assert "Seeds 3, 4." in table
    assert "W2A8, seed 4: " in progress
    assert main(command) == 0
    assert capsys.readouterr().out == table
    report = json.loads((tmp_path / "runs" / "digits-speq" / "W2A8-4" / "report.json").read_text())
    assert {stage["name"]: stage["status"] for stage in report["stages"]} == dict.fromkeys(
        ["data.digits", "float", "quantized", "float-test", "test"], "cached"
    )
    # of a variant that needs less, less is run
    without = ["--variants", "W2A8", "--seeds", "3", "--set=stages.test.artifact=${float.ensemble}", "--out=less"]
    assert main([*command, *without]) == 0
    capsys.readouterr()
    report = json.loads((tmp_path / "less" / "digits-speq" / "W2A8-3" / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == ["data.digits", "float", "float-test", "test"]
    # a variant that fails is named, and the other is finished
    assert main([*command, "--set=stages.quantized.bits={nowhere: 4}"]) == 3
    table, progress = capsys.readouterr()
    assert "no convolution or linear layer of the network matches 'nowhere'" in progress
    assert [line for line in table.splitlines() if line.startswith("| float")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits-speq", "--variants", "W3"], "no variant 'W3'"),
        (["nothing"], "invalid choice"),
        (["digits-speq", "--set", "stages.float.epohcs=1"], "Did you mean epochs?"),
        (["mnist-ternary", "--data", "nowhere"], "no such folder: 'MNIST/raw'"),
    ],
)
def test_mistakes_are_named(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(SystemExit):  # argparse's way
        assert main(arguments) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*/*"))


def found(accuracy, key="k", **more):
    values = {"metrics": {}, "seconds": {"train": 10.0}, "error": None, **more}
    return Found(accuracies={"test": accuracy, "float": 0.75}, keys={"float": key}, **values)


def recipe(**more):
    variants = {"a": Variant(), "b": Variant(against="a")}
    return Recipe(question="?", protocol="", accuracy="test", time=("train",), variants=variants, **more)


def test_differences_are_paired_by_seed():
    runs = {
        "a": {0: found(0.5), 1: found(0.7), 2: found(0.6)},
        "b": {0: found(0.51), 1: found(0.73), 3: found(0.1)},
    }
    table = make_table(recipe(beside={"float": "float"}), runs).splitlines()
    assert table[2] == "| float | 75.00 | 1 | | |"
    assert table[3] == "| a | 60.00 ± 5.77 | 3 |  | 10 |"
    # (1 + 3) / 2, and the standard deviation of 1 and 3 over the root of 2
    assert table[4].split(" | ")[3] == "+2.00 ± 1.00 (a)"


def test_what_is_missing_is_left_out():
    empty = Found({}, {}, {}, {}, "train: no")
    runs = {"a": {0: found(0.5, metrics={"s.m": 2.0}), 1: empty}, "b": {0: empty}}
    table = make_table(recipe(columns={"m": "s.m"}), runs).splitlines()
    assert table[0] == "| | accuracy, % | n | against, points | m | s a run |"
    assert table[2] == "| a | 50.00 | 1 |  | 2.000 | 10 |"
    assert table[3] == "| b |  | 0 |  |  |  |"


def test_results_that_many_runs_share_are_counted_once():
    runs = {"a": {0: found(0.5, "x"), 1: found(0.5, "y")}, "b": {0: found(0.5, "x"), 1: found(0.5, "y")}}
    assert make_table(recipe(beside={"float": "float"}), runs).splitlines()[2].startswith("| float | 75.00 ± 0.00 | 2 ")


def test_a_variant_is_compared_with_another_one():
    for against in ("b", "c"):
        with pytest.raises(ValueError, match="can't be compared"):
            recipe().model_validate({**recipe().model_dump(), "variants": {"b": {"against": against}}})


@pytest.mark.parametrize(("values", "text"), [([], ""), ([2.0], "2.00"), ([1.0, 3.0], "2.00 ± 1.00")])
def test_means_with_their_standard_errors(values, text):
    assert with_error(values) == text
