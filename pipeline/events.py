"""What happens during a run, as typed events: the progress display, the log and the report all read these.

A sink is any callable that takes an event. Events are plain data: `event_to_json` turns each into one JSON object,
which is one line of log.jsonl. A run emits, in this order: one `RunStarted`; for each stage of the plan either one
`StageCached`, one `StageSkipped`, or one `StageStarted`, any number of `StageProgress` and `StageLogged`, and one of
`StageFinished`, `StageFailed` or `StageInterrupted`; after a validation one `GateEvaluated` a gate; one `RunFinished`.
`RunLogged` may come at any time, and with a matrix one `CellFinished` a cell as soon as its last stage is over.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events.

    Args:
        at: when, in seconds since the Unix epoch.
    """

    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class PlannedStage:
    """One stage of the plan, as RunStarted lists them in the order of execution.

    Args:
        name: as in pipeline.yaml (data sources are named `data.NAME`).
        uses: the kind of stage.
        cached: whether the plan expects to find it in the store. A stage whose inputs are rebuilt is listed as not
            cached, and may still turn out to be when the rebuilt inputs are the same to the byte.
        reasons: why it is to run, in words; empty when cached.
    """

    name: str
    uses: str
    cached: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """A run begins.

    Args:
        pipeline: the pipeline's name.
        out: the directory of the report, as the user would type it.
        stages: the plan, in the order of execution.
        matrix: the size of the matrix in words, or None.
    """

    pipeline: str
    out: str
    stages: tuple[PlannedStage, ...]
    matrix: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunLogged(Event):
    """Something worth telling that belongs to no running stage, such as a corrupted artifact that is rebuilt."""

    message: str
    level: Literal["info", "warning", "error"] = "info"


@dataclass(frozen=True, kw_only=True)
class StageEvent(Event):
    """Base of the events of one stage."""

    stage: str


@dataclass(frozen=True, kw_only=True)
class StageStarted(StageEvent):
    """A stage begins to run.

    Args:
        uses: the kind of stage.
        key: its cache key, hexadecimal SHA-256.
        reasons: why it runs, in words.
    """

    uses: str
    key: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StageProgress(StageEvent):
    """`done` of `total` units are finished, with the latest metrics."""

    done: int
    total: int
    unit: str = "epoch"
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageLogged(StageEvent):
    """One line that a stage wrote into the log."""

    message: str


@dataclass(frozen=True, kw_only=True)
class StageFinished(StageEvent):
    """A stage ran and its outputs are published.

    Args:
        key: its cache key.
        seconds: how long it ran.
        metrics: its figures; of a validation, those of the target that are numbers.
    """

    key: str
    seconds: float
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageCached(StageEvent):
    """A stage's outputs were in the store: nothing ran. `seconds` is how long it took when it did."""

    key: str
    seconds: float
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageFailed(StageEvent):
    """A stage raised.

    Args:
        message: one line for the user: the cause and its remedy.
        seconds: how long it ran.
        traceback: the whole traceback, for the log and `--debug`.
    """

    message: str
    seconds: float
    traceback: str = ""


@dataclass(frozen=True, kw_only=True)
class StageInterrupted(StageEvent):
    """The user interrupted the run while this stage was running."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class StageSkipped(StageEvent):
    """A stage did not run, because of a stage that failed or because the run was interrupted. `because` says which."""

    because: str


@dataclass(frozen=True, kw_only=True)
class GateEvaluated(StageEvent):
    """A gate of a validation was compared with its limit.

    Args:
        gate: its name, such as `accuracy`.
        limit: as declared.
        value: as found, or None when there is none; then `reason` says why.
        passed: whether it holds.
    """

    gate: str
    limit: float
    value: float | None
    passed: bool
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class CellFinished(Event):
    """All stages of a cell of the matrix are over.

    Args:
        coordinates: its values by the names of the axes, the seed last.
        done: how many cells are over.
        total: how many there are in this run.
        problems: its stages that failed and its gates that are broken.
        figures: the matrix's metrics, as far as they were found.
    """

    coordinates: Mapping[str, str]
    done: int
    total: int
    problems: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """A run is over and its report is written.

    Args:
        status: passed, failed (a gate or a stage) or interrupted.
        seconds: of the whole run.
        out: the directory of the report, as the user would type it.
        counts: how many stages ran, were cached, failed and were skipped, by status.
    """

    status: Literal["passed", "failed", "interrupted"]
    seconds: float
    out: str
    counts: Mapping[str, int] = field(default_factory=dict)


Sink = Callable[[Event], None]


def event_to_json(event: Event) -> dict[str, Any]:
    """Return `event` as a JSON object whose `event` is its type's name.

    >>> event_to_json(StageLogged(stage="student", message="hello", at=0.0))
    {'event': 'StageLogged', 'at': 0.0, 'stage': 'student', 'message': 'hello'}
    """
    return {"event": type(event).__name__, **dataclasses.asdict(event)}
