"""No real image is on the way from the teachers to the data-free student of the default pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdpipe.pipeline.spec_file import load_spec

PIPELINE = Path(__file__).parents[2] / "pipeline.yaml"


def data_ancestors(spec, name, without):
    """Names of the data sources that `name` depends on by a way that does not lead through `without`."""
    found, todo, seen = set(), [name], set()
    while todo:
        stage = todo.pop()
        if stage in seen or stage == without:
            continue
        seen.add(stage)
        for reference in spec.stages[stage].needs:
            if reference.startswith("data."):
                found.add(reference)
            else:
                todo.append(reference)
    return found


@pytest.mark.parametrize("stage", ["samples", "student"])
def test_data_reaches_the_student_only_through_the_teachers(stage):
    spec = load_spec(PIPELINE)
    assert data_ancestors(spec, "teachers", without="") == {"data.digits"}
    assert data_ancestors(spec, stage, without="teachers") == set()
    # the walk does find data where there is some
    assert data_ancestors(spec, stage, without="") == {"data.digits"}
