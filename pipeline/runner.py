"""Carries a plan out, in this process, one stage after another in the order of execution.

A stage that raises takes down only those that need it. Whatever happens, the store holds complete stages only, so
that the next run goes on from there, and the report tells what was done.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kdpipe.pipeline.events import (
    Event,
    GateEvaluated,
    RunLogged,
    Sink,
    StageCached,
    StageFailed,
    StageFinished,
    StageInterrupted,
    StageSkipped,
    StageStarted,
)
from kdpipe.pipeline.execution import execute
from kdpipe.pipeline.gates import GateResult, evaluate_gates
from kdpipe.pipeline.plan import Planner, Step, select_stages
from kdpipe.pipeline.source_fingerprint import SourceFingerprints
from kdpipe.pipeline.spec import Spec, StageSpec
from kdpipe.pipeline.storage import is_disk_full
from kdpipe.pipeline.store import Entry, Store
from kdpipe.targets.errors import KdpipeError

Status = Literal["ran", "cached", "failed", "skipped"]


@dataclass(frozen=True)
class StageResult:
    """What became of one stage.

    Args:
        stage: the stage.
        status: ran, cached, failed or skipped.
        key: its key, where its inputs were known.
        seconds: how long it ran; of a cached one, how long it took when it did.
        entry: its outputs, when it has any.
        reasons: why it ran, in words.
        error: why it failed or was skipped.
        gates: of a validation.
    """

    stage: StageSpec
    status: Status
    key: str | None = None
    seconds: float = 0.0
    entry: Entry | None = None
    reasons: tuple[str, ...] = ()
    error: str | None = None
    gates: tuple[GateResult, ...] = ()


@dataclass
class RunResult:
    """What became of a run: its stages in the order of execution."""

    spec: Spec
    started: float
    seconds: float = 0.0
    stages: list[StageResult] = field(default_factory=list)
    interruption: KeyboardInterrupt | None = None

    @property
    def interrupted(self) -> bool:
        """Return whether the user ended the run."""
        return self.interruption is not None

    @property
    def status(self) -> Literal["passed", "failed", "interrupted"]:
        """Return passed when every stage has its outputs and every gate holds."""
        if self.interrupted:
            return "interrupted"
        is_whole = all(result.status in ("ran", "cached") for result in self.stages)
        return (
            "passed" if is_whole and all(gate.passed for result in self.stages for gate in result.gates) else "failed"
        )

    @property
    def exit_code(self) -> int:
        """Return 0 for passed, 1 when a gate failed, 3 when a stage did, 130 when the user interrupted the run."""
        if self.interrupted:
            return 130
        if any(result.status in ("failed", "skipped") for result in self.stages):
            return 3
        return 0 if self.status == "passed" else 1

    @property
    def counts(self) -> dict[str, int]:
        """Return how many stages there are of each status."""
        statuses = [result.status for result in self.stages]
        return {status: statuses.count(status) for status in ("ran", "cached", "failed", "skipped")}


def run_stages(
    spec: Spec,
    store: Store,
    sinks: Iterable[Sink],
    *,
    only: Sequence[str] = (),
    force: Sequence[str] = (),
    fingerprints: SourceFingerprints | None = None,
    on_result: Callable[[StageResult], None] | None = None,
) -> RunResult:
    """Run what the store does not hold.

    Args:
        spec: the pipeline.
        store: where finished stages lie and new ones go.
        sinks: take the events of the stages.
        only: the stages to run, with all they need; empty for all.
        force: stages to run whatever the store holds.
        fingerprints: of the code, as far as it was read already.
        on_result: takes the result of each stage when it is over.

    Raises:
        UsageError: a name in `only` or `force` is unknown.
        StorageError: the store can't be used at all.
    """
    selected = select_stages(spec, only, force)
    sinks = list(sinks)

    def emit(event: Event) -> None:
        for sink in sinks:
            sink(event)

    result = RunResult(spec, time.time())
    began = time.monotonic()
    runner = _Runner(spec, store, Planner(spec, store, force, fingerprints), emit)
    try:
        store.clean()
        for stage in selected:
            result.stages.append(runner.run(stage))
            if on_result is not None:
                on_result(result.stages[-1])
    except KeyboardInterrupt as interruption:
        result.interruption = interruption
        if runner.running is not None:
            result.stages.append(runner.interrupted())
        known = {entry.stage.name for entry in result.stages}
        for stage in selected:
            if stage.name not in known:
                result.stages.append(runner.skip(stage, "the run was interrupted"))
    result.seconds = time.monotonic() - began
    return result


@dataclass
class _Runner:
    """Runs stage by stage and keeps what the later ones need."""

    spec: Spec
    store: Store
    planner: Planner
    emit: Sink
    finished: dict[str, Entry] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    running: StageSpec | None = None
    began: float = 0.0
    key: str | None = None
    reasons: tuple[str, ...] = ()

    def run(self, stage: StageSpec) -> StageResult:
        broken = [need for need in stage.needs if need in self.failed]
        if broken:
            self.failed.add(stage.name)
            return self.skip(stage, f"{' and '.join(broken)} did not finish")
        self.running, self.began, self.key, self.reasons = stage, time.monotonic(), None, ()
        try:
            result = self._find_or_run(stage)
        except Exception as error:
            result = self._fail(stage, error)
        self.running = None
        for gate in result.gates:
            self.emit(
                GateEvaluated(
                    stage=stage.name,
                    gate=gate.name,
                    limit=gate.limit,
                    value=gate.value,
                    passed=gate.passed,
                    reason=gate.reason,
                )
            )
        return result

    def _find_or_run(self, stage: StageSpec) -> StageResult:
        step = self.planner.assess(stage, self.finished)
        self.key, self.reasons = step.key, step.reasons
        status: Status
        if step.entry is not None:
            status, entry, seconds = "cached", step.entry, step.entry.manifest.seconds
        else:
            status, (entry, seconds) = "ran", self._run(step)
        manifest = entry.manifest
        self.finished[stage.name] = entry
        self.store.remember(self.spec.name, stage.name, step.parts)
        metrics = {**manifest.metrics, **main_figures(manifest.target)}
        event = StageFinished if status == "ran" else StageCached
        self.emit(event(stage=stage.name, key=manifest.key, seconds=seconds, metrics=metrics))
        gates = evaluate_gates(stage.gates, manifest.target) if manifest.target is not None else []
        return StageResult(stage, status, manifest.key, seconds, entry, step.reasons, gates=tuple(gates))

    def _run(self, step: Step) -> tuple[Entry, float]:
        stage = step.stage
        if any(reason.startswith("artifact corrupted") for reason in step.reasons):
            for reason in step.reasons:
                self.emit(RunLogged(message=f"{stage.name}: {reason}; it is rebuilt", level="warning"))
            self.store.discard_corrupted(step.key or "")
        if "forced" in step.reasons and step.key is not None:
            self.store.discard_scratch(step.key)
        self.emit(StageStarted(stage=stage.name, uses=stage.uses, key=step.key or "", reasons=step.reasons))
        return execute(self.spec, step, self.finished, self.store, self.emit)

    def _fail(self, stage: StageSpec, error: Exception) -> StageResult:
        self.failed.add(stage.name)
        seconds = time.monotonic() - self.began
        message = describe_failure(error)
        trace = "".join(traceback.format_exception(error))
        self.emit(StageFailed(stage=stage.name, message=message, seconds=seconds, traceback=trace))
        return StageResult(stage, "failed", self.key, round(seconds, 3), None, self.reasons, message)

    def interrupted(self) -> StageResult:
        """Return the result of the stage that was running."""
        stage = self.running
        if stage is None:
            raise ValueError("no stage is running")
        seconds = time.monotonic() - self.began
        self.emit(StageInterrupted(stage=stage.name, seconds=seconds))
        return StageResult(stage, "failed", self.key, round(seconds, 3), None, self.reasons, "interrupted")

    def skip(self, stage: StageSpec, because: str) -> StageResult:
        """Return the result of a stage that does not run."""
        self.emit(StageSkipped(stage=stage.name, because=because))
        return StageResult(stage, "skipped", error=because)


def describe_failure(error: BaseException) -> str:
    """Return one message for the user: the cause, and what to do about it."""
    if isinstance(error, KdpipeError):
        return str(error)
    if is_disk_full(error):
        return "the disk is full. Free some space, or put the store elsewhere with --store"
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return f"out of memory ({error or type(error).__name__}). Lower batch_size, or use a smaller model"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    if isinstance(error, ImportError):
        return f"{error}. Install what is missing; `kdpipe doctor` says how"
    text = str(error).strip()
    return f"unexpected {type(error).__name__}{': ' + text if text else ''}. This is a defect, please report it"


def main_figures(target: Mapping[str, object] | None) -> dict[str, object]:
    """Return the figures of a validation that are worth a line on the screen."""
    if target is None:
        return {}
    names = ("accuracy", "instructions", "cycles", "flash_bytes", "ram_bytes")
    figures = {name: target[name] for name in names if target.get(name) is not None}
    for group in ("latency_ms", "parity"):
        nested = target.get(group)
        if isinstance(nested, Mapping):
            key = "median" if group == "latency_ms" else "top1_agreement"
            if nested.get(key) is not None:
                figures["latency_ms" if group == "latency_ms" else "top1_agreement"] = nested[key]
    return figures
