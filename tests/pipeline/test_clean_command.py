from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.clean_command import plan_cleaning
from kdpipe.targets.errors import StorageError, UsageError


def cleaning(toy: Any, *files: Path) -> Any:
    return plan_cleaning(files or (toy.file,), toy.store, toy.registry)


def test_what_earlier_parameters_left_goes_and_the_pipeline_stays_complete(toy: Any) -> None:
    toy.run("stages.teacher.epochs=50")
    toy.run()
    before = set(toy.store.executions())
    planned = cleaning(toy)
    assert set(toy.store.executions()) == before, "planning removes nothing"
    assert planned.kept == 7
    assert len(planned.removed) == len(before) - 7 > 0
    assert planned.bytes == sum(f.stat().st_size for d in planned.removed for f in d.rglob("*") if f.is_file())
    toy.store.remove(planned.removed)
    assert set(toy.store.executions()) == before - set(planned.removed)
    assert toy.ran() == []
    assert "teacher" in toy.ran("stages.teacher.epochs=50")


def test_nothing_goes_where_everything_is_needed(toy: Any) -> None:
    toy.run()
    assert cleaning(toy).removed == ()


def test_several_pipelines_keep_what_each_needs(toy: Any) -> None:
    toy.run("stages.teacher.epochs=50")
    other = toy.folder / "other.yaml"
    other.write_text(toy.file.read_text().replace("epochs: 3", "epochs: 50"))
    toy.run()
    assert cleaning(toy, toy.file, other).removed == ()


def test_an_incomplete_pipeline_is_refused_so_that_nothing_finished_is_lost(toy: Any) -> None:
    toy.run()
    toy.write(toy.file.read_text().replace("epochs: 3", "epochs: 4"))
    with pytest.raises(UsageError, match=r"'teacher' is not in the store.*epochs: 3 -> 4"):
        cleaning(toy)


def test_nothing_is_removed_while_a_stage_runs(toy: Any) -> None:
    toy.run("stages.teacher.epochs=50")
    toy.run()
    planned = cleaning(toy)
    with toy.store.workplace(), pytest.raises(StorageError, match="under way"):
        toy.store.remove(planned.removed)
    assert all(directory.is_dir() for directory in planned.removed)
