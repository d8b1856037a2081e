"""What a stage is, as the engine sees it. No heavy import happens here or at the top of any stage's module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict


class StageParams(BaseModel):
    """Base of every stage's parameters: the keys under a stage in pipeline.yaml.

    A field annotated with `Accepts` is an input: in YAML a reference such as `${teachers.ensemble}`, or a list of
    them. A field annotated with `ReadsFile` or `ReadsFolder` is a path whose content belongs to the stage's key. Every
    other field is a plain parameter. Ranges are declared with pydantic's Field, descriptions feed the JSON schema.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def further_libraries(self) -> tuple[str, ...]:
        """Return distributions that these parameters bring in: their versions belong to the stage's key too."""
        return ()


@dataclass(frozen=True)
class Accepts:
    """Marks a field of StageParams as an input: `Annotated[str, Accepts("ensemble")]`.

    An optional input is `Annotated[str | None, Accepts(...)] = None`, several are `Annotated[tuple[str, ...], ...]`.

    Args:
        kinds: the kinds of artifact that may be handed over.
    """

    kinds: tuple[str, ...]

    def __init__(self, *kinds: str) -> None:
        object.__setattr__(self, "kinds", kinds)


@dataclass(frozen=True)
class ReadsFile:
    """Marks a field (a path, or a tuple of them, relative to pipeline.yaml) as a file that the stage reads.

    The field may stand in a nested model too. The engine hashes the file's content into the stage's key; the stage
    opens it as `context.file(path)`.
    """


@dataclass(frozen=True)
class ReadsFolder:
    """Marks a field, like ReadsFile, as a folder of files that the stage reads.

    Every file in it, at any depth, belongs to the stage's key with its path and content; links are refused. The
    stage opens it as `context.file(path)` too.
    """


@dataclass(frozen=True)
class Artifact:
    """One output of a finished stage: a read-only directory of files of one kind."""

    kind: str
    path: Path


class StageContext(Protocol):
    """What the engine hands a running stage beside its parameters and inputs."""

    @property
    def seed(self) -> int:
        """The one source of randomness, in [0, 2**31)."""
        ...

    @property
    def accelerator(self) -> str:
        """Where to train: `auto`, `cpu`, `cuda` or `mps`."""
        ...

    @property
    def threads(self) -> int | None:
        """How many threads of the CPU train, or None for as many as torch likes."""
        ...

    def output(self, name: str) -> Path:
        """Return the empty directory that the output `name` is to be written into."""
        ...

    def file(self, path: str) -> Path:
        """Return a ReadsFile or ReadsFolder path as an absolute one."""
        ...

    def scratch(self) -> Path:
        """Return the directory that keeps what a stage needs to go on after it was killed.

        It belongs to the stage's key: a stage with other parameters, inputs or code never sees it. It is empty at
        first, and removed when the stage's outputs are published.
        """
        ...

    def progress(self, done: int, total: int, unit: str = "epoch", **metrics: float) -> None:
        """Say that `done` of `total` units are finished, with the latest metrics."""
        ...

    def log(self, message: str) -> None:
        """Write one line into the run's log."""
        ...


Rows = list[dict[str, float]]


@dataclass(frozen=True)
class Grid:
    """Figures by two things, such as a loss by layer and width: a heat map of the report.

    Args:
        rows: what each row is.
        columns: what each column is.
        values: for each row one value a column; None where there is none.
        notes: a short text for each row, or nothing.
        marked: (row, column) of the cells that were chosen, by index.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    notes: tuple[str, ...] = ()
    marked: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if len(self.values) != len(self.rows) or any(len(row) != len(self.columns) for row in self.values):
            raise ValueError("a grid has a value, or None, for each row and column")
        if self.notes and len(self.notes) != len(self.rows):
            raise ValueError("a grid has a note for each row or none")
        if any(not (0 <= row < len(self.rows) and 0 <= at < len(self.columns)) for row, at in self.marked):
            raise ValueError("a marked cell lies outside the grid")


@dataclass(frozen=True)
class TargetRecord:
    """What validating one artifact on one device found: an entry of `targets` in report.json (see docs/report.md).

    Args:
        format: torch, integer-graph, onnx, openvino, tflite or c.
        device: a name of `kdpipe ls devices`.
        files: the deployable files as (path relative to the artifact, bytes).
        accuracy: top-1 on the samples, in [0, 1].
        samples: how many images were run.
        baseline_accuracy: top-1 of the `baseline` input on the same images, in [0, 1].
        latency_ms: {"median", "p95"}: on a wall clock, or, where there is a `clock`, estimated from cycles; None on
            emulators without one.
        clock: {"mhz", "wait_state_factor"} that latency_ms was estimated with, or None.
        layers: what each layer takes, in the order of execution: {"name", "instructions", "cycles", "constant_bytes",
            "live_bytes"}, as kdpipe.targets.devices.base.LayerCost; or None.
        arena: how a C program uses its working memory, as kdpipe.targets.devices.c_artifact.Arena; or None.
        board: a name of `kdpipe ls boards`, if one was named.
        limits: of the board, as gates by their names.
        parity: {"max_step_difference", "top1_agreement", "first_divergent_layer", "layers"} against the integer
            reference.
        weight_bytes: {"values", "scales_and_biases"}: what the weights alone need at their width, or None for networks
            in floating point.
    """

    format: str
    device: str
    files: tuple[tuple[str, int], ...]
    accuracy: float
    samples: int
    baseline_accuracy: float | None = None
    latency_ms: Mapping[str, float] | None = None
    instructions: int | None = None
    cycles: int | None = None
    flash_bytes: int | None = None
    ram_bytes: int | None = None
    parity: Mapping[str, Any] | None = None
    clock: Mapping[str, float] | None = None
    layers: tuple[Mapping[str, Any], ...] | None = None
    arena: Mapping[str, Any] | None = None
    board: str | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    weight_bytes: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a stage returns beside the files it wrote.

    Args:
        metrics: figures of the finished stage by name, JSON scalars.
        history: training curves: by series ("teacher-0"), a list of rows such as {"epoch": 1, "loss": 0.7}.
        target: of a validation, what it found.
        figures: pictures for the report by caption: paths of PNG files inside the stage's outputs, as
            "OUTPUT/file.png".
        grids: heat maps for the report by caption.
    """

    metrics: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    history: Mapping[str, Rows] = field(default_factory=dict)
    target: TargetRecord | None = None
    figures: Mapping[str, str] = field(default_factory=dict)
    grids: Mapping[str, Grid] = field(default_factory=dict)


Inputs = Mapping[str, Any]
RunFunction = Callable[[Any, Inputs, StageContext], Outcome]


Complaint = tuple[str, str, str | None]
"""A mistake in a stage's parameters: the field at fault, the message, and the remedy or None."""


def no_complaints(params: Any, kinds: Mapping[str, tuple[str, ...]]) -> Iterable[Complaint]:
    """Find nothing wrong: the check of a stage all of whose inputs go with all of its parameters."""
    return ()


@dataclass(frozen=True)
class Stage:
    """A kind of stage that pipeline.yaml can name under `uses`.

    Args:
        name: as in YAML: "teacher-ensemble".
        summary: one line for `kdpipe ls stages`.
        params: what YAML may set.
        outputs: given the parameters, the outputs' kinds by name.
        run: does the work. `inputs` has an Artifact for each input field that was set (a tuple of them for a tuple
            field). A pure function of parameters, inputs and seed; it writes under `context.output(name)` only.
        data_free: whether it must never be handed real data (an artifact of kind `split`), even indirectly named.
        libraries: distributions whose version belongs to the stage's key.
        validates: whether it returns a TargetRecord, so that gates may be declared on it.
        complaints: given the parameters and the kinds of what each input field is handed, what doesn't go together;
            asked before anything runs.
    """

    name: str
    summary: str
    params: type[StageParams]
    outputs: Callable[[Any], Mapping[str, str]]
    run: RunFunction
    data_free: bool = False
    libraries: tuple[str, ...] = ("torch",)
    validates: bool = False
    complaints: Callable[[Any, Mapping[str, tuple[str, ...]]], Iterable[Complaint]] = no_complaints
