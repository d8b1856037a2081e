"""What a run will do, and why: for each stage whether its outputs are in the store, or what has changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdpipe.pipeline.events import PlannedStage
from kdpipe.pipeline.graph import with_ancestors
from kdpipe.pipeline.keys import changes, key_of, key_parts, with_inputs
from kdpipe.pipeline.source_fingerprint import SourceFingerprints
from kdpipe.pipeline.spec import Spec, StageSpec
from kdpipe.pipeline.store import Entry, Store
from kdpipe.targets.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Step:
    """One stage of a plan.

    Args:
        stage: the stage.
        key: its key; None while it depends on a stage that is still to run.
        parts: what the key was made of; without inputs while they are unknown.
        entry: the outputs in the store, or None when the stage is to run.
        reasons: why it is to run, in words; empty when it is not.
    """

    stage: StageSpec
    key: str | None
    parts: Mapping[str, Any]
    entry: Entry | None
    reasons: tuple[str, ...]

    def planned(self) -> PlannedStage:
        """Return it as events show it."""
        return PlannedStage(self.stage.name, self.stage.uses, self.entry is not None, self.reasons)


class Planner:
    """Finds out, stage by stage, what is in the store. Nothing is written.

    Args:
        spec: the pipeline.
        store: where finished stages lie.
        force: stages that are to run whatever the store holds.
        fingerprints: of the code; given where several planners share what was read.
    """

    def __init__(
        self,
        spec: Spec,
        store: Store,
        force: Collection[str] = (),
        fingerprints: SourceFingerprints | None = None,
    ) -> None:
        self._spec = spec
        self._store = store
        self._force = frozenset(found for name in force for found in spec.named(name))
        self._fingerprints = fingerprints or SourceFingerprints()

    def assess(self, stage: StageSpec, finished: Mapping[str, Entry]) -> Step:
        """Plan one stage.

        Args:
            stage: the stage.
            finished: the outputs of the stages before it, as far as they are known.
        """
        parts = key_parts(self._spec, stage, self._fingerprints)
        before = self._store.recall(self._spec.name, stage.name)
        forced = ["forced"] if stage.name in self._force else []
        rebuilt = [need for need in stage.needs if need not in finished]
        if rebuilt:
            waiting = [f"{need} runs first" for need in rebuilt]
            changed = changes(before, parts) if before else ["new"]
            return Step(stage, None, parts, None, (*forced, *changed, *waiting))
        parts = with_inputs(
            parts,
            {
                field: [finished[reference.stage].manifest.outputs[reference.output or ""] for reference in references]
                for field, references in stage.inputs.items()
            },
        )
        key = key_of(parts)
        lookup = self._store.find(key)
        if lookup.entry is not None and not forced:
            return Step(stage, key, parts, lookup.entry, ())
        reasons = [*forced, *(f"artifact corrupted: {problem}" for problem in lookup.corrupted)]
        if not reasons:
            reasons = (changes(before, parts) or ["its artifact is gone from the store"]) if before else ["new"]
        return Step(stage, key, parts, None, tuple(reasons))


def make_plan(
    spec: Spec,
    store: Store,
    only: Sequence[str] = (),
    force: Sequence[str] = (),
    fingerprints: SourceFingerprints | None = None,
) -> list[Step]:
    """Plan a run, in the order of execution. Every file in the store that would be used is verified by its hash.

    A stage behind one that is to run is planned to run too, and may still be found in the store when the time comes:
    when what it depends on turns out to be the same as before.

    Args:
        spec: the pipeline.
        store: where finished stages lie.
        only: the stages to plan, with all they need; empty for all.
        force: stages that are to run whatever the store holds.
        fingerprints: of the code; given where several plans share what was read.

    Raises:
        UsageError: a name in `only` or `force` is unknown.
    """
    planner = Planner(spec, store, force, fingerprints)
    finished: dict[str, Entry] = {}
    steps = []
    for stage in select_stages(spec, only, force):
        step = planner.assess(stage, finished)
        if step.entry is not None:
            finished[stage.name] = step.entry
        steps.append(step)
    return steps


def select_stages(spec: Spec, only: Sequence[str], force: Sequence[str]) -> list[StageSpec]:
    """Return the stages that a run deals with, in the order of execution.

    Raises:
        UsageError: a name is unknown, or a forced stage is not among those selected.
    """
    for option, names in (("--only", only), ("--force", force)):
        for name in names:
            if not spec.named(name):
                known = [*spec.yaml_names, *spec.stages] if "@" in name else spec.yaml_names
                raise UsageError(f"unknown stage {name!r}", where=option, remedy=did_you_mean(name, known))
    needs = {name: stage.needs for name, stage in spec.stages.items()}
    selected = with_ancestors([found for name in only for found in spec.named(name)] or list(needs), needs)
    for name in force:
        if selected.isdisjoint(spec.named(name)):
            raise UsageError(f"{name!r} is not among the stages selected by --only", where="--force")
    return [stage for name, stage in spec.stages.items() if name in selected]
