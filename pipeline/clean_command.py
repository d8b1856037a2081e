"""`kdpipe clean`: the store without what some pipelines do not need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdpipe.pipeline.plan import make_plan
from kdpipe.pipeline.spec_file import load_spec
from kdpipe.pipeline.store import Store
from kdpipe.stages.registry import STAGES, StageRegistry
from kdpipe.targets.errors import UsageError


@dataclass(frozen=True)
class Cleaning:
    """What a cleaning removes, and what it leaves.

    Args:
        kept: how many executions are left.
        removed: the directories of those that go.
        bytes: what these take on the disk.
    """

    kept: int
    removed: tuple[Path, ...]
    bytes: int


def plan_cleaning(files: Sequence[Path], store: Store, stages: StageRegistry = STAGES) -> Cleaning:
    """Find the executions that no stage of the pipelines would take from the store. Nothing is removed.

    Args:
        files: the pipelines to keep, each complete in the store.
        store: where finished stages lie.
        stages: the kinds of stage that the files may use.

    Raises:
        UsageError: a pipeline has stages to run: what it has behind them can't be told from what nobody needs.
        SpecError: a file is wrong.
    """
    kept = set()
    for file in files:
        for step in make_plan(load_spec(file, stages=stages), store):
            if step.entry is None:
                raise UsageError(
                    f"stage {step.stage.name!r} is not in the store ({', '.join(step.reasons)}), so what the stages "
                    "behind it need is not known",
                    where=str(file),
                    remedy=f"Run `kdpipe run {file}` first, or leave the file out to keep nothing of it",
                )
            kept.add(step.entry.directory)
    removed = tuple(directory for directory in store.executions() if directory not in kept)
    size = sum(path.stat().st_size for directory in removed for path in directory.rglob("*") if path.is_file())
    return Cleaning(len(kept), removed, size)
