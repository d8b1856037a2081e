"""report.json as types, as its readers (the HTML page and junit.xml) see it.

Only what they show is named here; the format itself is documented in docs/report.md. Unknown keys are left alone, so
that a later version may add some.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kdpipe.targets.errors import ArtifactError

# What neither XML 1.0 nor HTML may contain: control characters, lone surrogates, the two non-characters.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    r"""Return `text` with every character that XML and HTML forbid replaced by U+FFFD.

    >>> printable("a\x1b[31mb")
    'a\ufffd[31mb'
    """
    return _FORBIDDEN.sub("\ufffd", text)


def _clean(value: Any) -> Any:
    """Make all text inside a JSON value printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value


def _message(value: Any) -> Any:
    """Accept an error as text or as an object with a `message`."""
    if isinstance(value, Mapping):
        return value.get("message")
    return value


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Output(_Entry):
    """One output of a stage."""

    path: str
    bytes: int
    sha256: str = ""


class Grid(_Entry):
    """Figures by two things."""

    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]
    notes: list[str] = Field(default_factory=list)
    marked: list[tuple[int, int]] = Field(default_factory=list)


class Variant(_Entry):
    """Where a stage of a matrix comes from."""

    of: str
    at: dict[str, str] = Field(default_factory=dict)


class StageEntry(_Entry):
    """One stage of the run."""

    name: str
    uses: str = ""
    status: str
    key: str | None = None
    seconds: float | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    outputs: dict[str, Output] = Field(default_factory=dict)
    needs: list[str] = Field(default_factory=list)
    history: dict[str, list[dict[str, Any]]] = Field(default_factory=dict)
    figures: dict[str, str] = Field(default_factory=dict)
    grids: dict[str, Grid] = Field(default_factory=dict)
    error: Annotated[str | None, BeforeValidator(_message)] = None
    reasons: list[str] = Field(default_factory=list)
    variant: Variant | None = None


class File(_Entry):
    """One deployable file."""

    path: str
    bytes: int


class Weights(_Entry):
    """What the weights alone need."""

    values: int
    scales_and_biases: int


class Latency(_Entry):
    """Milliseconds an inference of one image."""

    median: float
    p95: float | None = None


class LayerDifference(_Entry):
    """One layer against the integer reference."""

    name: str
    steps: float | None = None
    exact: float
    snr_db: float | None = None
    own_steps: int | None = None
    misrounded: int | None = None
    constants: list[str] | None = None


class Parity(_Entry):
    """An artifact against the integer reference."""

    max_step_difference: int | None = None
    top1_agreement: float | None = None
    first_divergent_layer: str | None = None
    layers: list[LayerDifference] = Field(default_factory=list)


class Clock(_Entry):
    """What a latency was estimated with."""

    mhz: float
    wait_state_factor: float = 1.0


class Layer(_Entry):
    """What one layer of a firmware takes for one image."""

    name: str
    instructions: float
    cycles: float | None = None
    constant_bytes: float
    live_bytes: float


class ArenaBuffer(_Entry):
    """A piece of an arena, and the layers in whose time it is needed."""

    name: str
    offset: int
    bytes: int
    first: int
    last: int


class Arena(_Entry):
    """How a C program uses its working memory."""

    bytes: int
    lower_bound: int
    buffers: list[ArenaBuffer]
    layers: list[str]


class MeasuredLayer(_Entry):
    """What one layer took on a board."""

    name: str
    cycles: float


class Measured(_Entry):
    """What a board's own counter said."""

    runs: int
    cycles: float
    layers: list[MeasuredLayer]


class Gate(_Entry):
    """A limit that a validation must keep."""

    name: str
    limit: float
    value: float | None = None
    passed: bool
    reason: str | None = None


class Target(_Entry):
    """What one validation found."""

    name: str
    format: str = ""
    device: str = ""
    files: list[File] = Field(default_factory=list)
    weight_bytes: Weights | None = None
    accuracy: float | None = None
    baseline_accuracy: float | None = None
    samples: int | None = None
    latency_ms: Latency | None = None
    instructions: float | None = None
    cycles: float | None = None
    flash_bytes: float | None = None
    ram_bytes: float | None = None
    parity: Parity | None = None
    clock: Clock | None = None
    layers: list[Layer] | None = None
    arena: Arena | None = None
    board: str | None = None
    measured: Measured | None = None
    gates: list[Gate] = Field(default_factory=list)

    @property
    def size_bytes(self) -> int | None:
        """The deployable files together, or None where none is listed."""
        return sum(file.bytes for file in self.files) if self.files else None


class Axis(_Entry):
    """What a matrix varies."""

    name: str
    values: list[str]


class MatrixCell(_Entry):
    """One cell of a matrix."""

    at: list[int]
    seed: int | None = None
    status: str
    problems: list[str] = Field(default_factory=list)


class FigureCell(_Entry):
    """A figure at one place of the axes."""

    at: list[int]
    values: list[float | None]
    mean: float | None = None
    deviation: float | None = None
    reason: str | None = None


class MatrixFigure(_Entry):
    """One figure over the whole matrix."""

    name: str
    cells: list[FigureCell]


class Matrix(_Entry):
    """A run's matrix."""

    axes: list[Axis] = Field(min_length=1)
    seeds: list[int] = Field(default_factory=list)
    cells: list[MatrixCell] = Field(default_factory=list)
    figures: list[MatrixFigure] = Field(default_factory=list)


class Report(_Entry):
    """report.json, schema 1."""

    schema_version: int = Field(alias="schema", default=1)
    pipeline: str
    seed: int | None = None
    status: str
    interrupted: bool = False
    seconds: float | None = None
    kdpipe_version: str | None = None
    started: str | None = None
    stages: list[StageEntry] = Field(default_factory=list)
    targets: list[Target] = Field(default_factory=list)
    matrix: Matrix | None = None


def parse_report(report: Mapping[str, Any]) -> Report:
    """Return the content of a report.json, with all text made printable.

    Raises:
        ArtifactError: it is not a report, or one of a later schema.
    """
    try:
        parsed = Report.model_validate(_clean(report))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"this is not a report of kdpipe: {place}: {first['msg']}",
            where="report.json",
            remedy="Run the pipeline again to write a new one",
        ) from None
    if parsed.schema_version != 1:
        raise ArtifactError(
            f"the report has schema {parsed.schema_version}, this kdpipe reads schema 1",
            where="report.json",
            remedy="Use the version of kdpipe that wrote it, or a newer one",
        )
    return parsed
