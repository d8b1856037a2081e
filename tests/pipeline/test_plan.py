from __future__ import annotations

from typing import Any

import pytest

from kdpipe.pipeline import keys
from kdpipe.pipeline.keys import changes
from kdpipe.targets.errors import UsageError

ALL = ["data.digits", "teacher", "rounded", "ensemble", "samples", "export", "host"]


def reasons(toy: Any, *overrides: str, **options: Any) -> dict[str, tuple[str, ...]]:
    return {name: step.reasons for name, step in toy.plan(*overrides, **options).items() if step.entry is None}


def test_a_new_pipeline_is_all_new_and_planning_writes_nothing(toy: Any) -> None:
    assert list(reasons(toy)) == ALL
    assert reasons(toy)["data.digits"] == ("new",)
    assert reasons(toy)["ensemble"] == ("new", "teacher runs first", "rounded runs first")
    assert not toy.store.root.exists()


def test_what_ran_is_cached(toy: Any) -> None:
    assert toy.ran() == ALL
    assert reasons(toy) == {}
    assert toy.ran() == []


def test_a_parameter_reruns_what_depends_on_it_and_says_which(toy: Any) -> None:
    toy.run()
    found = reasons(toy, "stages.teacher.epochs=50", "stages.teacher.rate=1")
    assert found["teacher"] == ("parameter epochs: 3 -> 50", "parameter rate: 0.1 -> 1.0")
    assert found["rounded"] == ("teacher runs first",)
    assert "data.digits" not in found
    assert toy.ran("stages.teacher.epochs=50") == ALL[1:5]


def test_an_output_that_stays_the_same_stops_the_rebuilding(toy: Any) -> None:
    toy.write(
        toy.file.read_text().replace('networks: ["${teacher}", "${rounded}"]', 'networks: ["${rounded.network}"]')
    )
    assert toy.ran() == ALL
    # 3 // 10 == 5 // 10: the rounded network is the same, so nothing behind it runs, though it was planned to.
    assert set(reasons(toy, "stages.teacher.epochs=5")) == set(ALL) - {"data.digits"}
    assert toy.ran("stages.teacher.epochs=5") == ["teacher", "rounded"]
    assert toy.ran("stages.teacher.epochs=50") == ["teacher", "rounded", "ensemble", "samples"]
    assert toy.ran("stages.teacher.epochs=5") == []


def test_a_changed_input_is_named(toy: Any) -> None:
    toy.run()
    toy.run("stages.teacher.epochs=50", only=["teacher"])
    assert reasons(toy, "stages.teacher.epochs=50")["rounded"] == ("input network changed",)


def test_defaults_written_out_change_nothing(toy: Any) -> None:
    toy.run()
    assert reasons(toy, "stages.rounded.step=10", "stages.teacher.kind=small") == {}


def test_a_gate_or_a_name_changes_no_key(toy: Any) -> None:
    toy.run()
    assert reasons(toy, "stages.host.gates.accuracy=0.99") == {}
    toy.write(toy.file.read_text().replace("  samples:", "  dreams:").replace("name: toy", "name: other"))
    assert reasons(toy) == {}


def test_the_seed_and_the_accelerator_are_named(toy: Any) -> None:
    toy.run()
    found = reasons(toy, "stages.teacher.seed=1")
    assert found["teacher"] == ("seed 0 -> 1",)
    assert "data.digits" not in found
    assert reasons(toy, "accelerator=cpu")["data.digits"] == ("accelerator auto -> cpu",)
    assert reasons(toy, "threads=2")["data.digits"] == ("threads None -> 2",)


def test_changed_code_is_named_but_comments_and_docstrings_are_no_change(toy: Any) -> None:
    toy.run()
    source = toy.source.read_text()
    toy.source.write_text(source.replace('"""Small stages', '"""Other words. Small stages') + "\n# a comment\n")
    assert reasons(toy) == {}
    toy.source.write_text(source.replace("CONSTANT = 1", "CONSTANT = 2"))
    found = reasons(toy)
    assert found["data.digits"] == (f"code changed: {toy.module}",)
    assert set(found) == set(ALL)


def test_a_library_is_named(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.run()
    monkeypatch.setattr(keys, "version", lambda name: "99.0")
    found = reasons(toy)
    assert found["teacher"][0].startswith("library numpy ")
    assert found["teacher"][0].endswith(" -> 99.0")
    assert "data.digits" not in found


def test_forced(toy: Any) -> None:
    toy.run()
    assert reasons(toy, force=["rounded"])["rounded"] == ("forced",)
    assert toy.ran(force=["rounded"]) == ["rounded"]  # and the same content: nothing behind it runs


def test_only_takes_what_is_needed_along(toy: Any) -> None:
    assert toy.ran(only=["rounded"]) == ["data.digits", "teacher", "rounded"]
    assert list(toy.plan(only=["rounded"])) == ["data.digits", "teacher", "rounded"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["rouded"]}, "--only: unknown stage 'rouded'. Did you mean rounded?"),
        ({"force": ["x"]}, "--force: unknown stage 'x'"),
        ({"only": ["teacher"], "force": ["host"]}, "'host' is not among the stages selected by --only"),
    ],
)
def test_unknown_names_in_options(toy: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        toy.plan(**options)
    assert message in str(caught.value)


def test_a_lost_artifact_is_rebuilt(toy: Any) -> None:
    import shutil

    toy.run()
    shutil.rmtree(toy.store.root / "executions")
    assert reasons(toy)["data.digits"] == ("its artifact is gone from the store",)
    assert toy.ran() == ALL


def test_many_changed_parameters_are_abridged() -> None:
    base: dict[str, Any] = {"uses": "x", "seed": 0, "accelerator": "auto", "code": {}, "libraries": {}, "files": {}}
    old = {**base, "params": {f"p{n}": 0 for n in range(9)}}
    new = {**base, "params": {f"p{n}": 1 for n in range(9)}}
    said = changes(old, new)
    assert said[0] == "parameter p0: 0 -> 1"
    assert said[-1] == "3 more parameters"


def test_nested_parameters_are_named_by_their_path() -> None:
    base: dict[str, Any] = {"uses": "x", "seed": 0, "accelerator": "auto", "code": {}, "libraries": {}, "files": {}}
    old = {**base, "params": {"members": [{"width": 8}, {"width": 4}], "losses": {"kd": {"weight": 1}}}}
    new = {**base, "params": {"members": [{"width": 8}, {"width": 6}], "losses": {"kd": {"weight": 1}, "ce": {}}}}
    assert changes(old, new) == ["parameter losses.ce: None -> {}", "parameter members.1.width: 4 -> 6"]
