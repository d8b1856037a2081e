"""The format of report.json as types: the definition, documented in docs/report.md, that every run is checked by."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA: Literal[1] = 1
Fraction = Field(ge=0, le=1)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OutputReport(_Strict):
    """One output of a stage: where it lies in the store, relative to the report's folder where that is possible."""

    path: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class StageErrorReport(_Strict):
    """Why a stage failed or was skipped."""

    message: str


Metrics = dict[str, float | int | str | bool | None]
History = Annotated[dict[str, list[dict[str, float | int | None]]], Field(description="training curves by series")]
Figures = Annotated[
    dict[str, str], Field(description="pictures by caption: paths, in the report relative to its folder")
]


class GridReport(_Strict):
    """Figures by two things: `values` has a row for each of `rows`, in it a number or null for each of `columns`."""

    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]
    notes: list[str] = Field(description="a text for each row, or empty")
    marked: list[tuple[int, int]] = Field(description="cells that were chosen: indices of row and column")


Grids = Annotated[dict[str, GridReport], Field(description="heat maps by caption")]


class StageFindings(_Strict):
    """What a stage returns beside its files: kdpipe.stages.base.Outcome as JSON."""

    metrics: Metrics
    history: History
    figures: Figures
    grids: Grids


class VariantReport(_Strict):
    """Of a stage that a matrix has several times: its name in pipeline.yaml, and its values on the axes."""

    of: str
    at: dict[str, str]


class StageReport(_Strict):
    """One stage or data source (`data.NAME`), in the order of execution."""

    name: str
    uses: str
    status: Literal["ran", "cached", "failed", "skipped"]
    key: str | None
    seconds: float = Field(ge=0, description="how long it ran; of a cached stage, how long it took when it did")
    metrics: Metrics
    outputs: dict[str, OutputReport]
    needs: list[str] = Field(description="the stages that it takes inputs from")
    history: History
    figures: Figures
    grids: Grids
    reasons: list[str] = Field(description="why it ran, in words")
    error: StageErrorReport | None
    variant: VariantReport | None = None


class FileReport(_Strict):
    """A deployable file; its path is relative to the artifact."""

    path: str
    bytes: int = Field(ge=0)


class WeightReport(_Strict):
    """What the weights alone need: their values at the width they are stored at, and their scales and biases."""

    values: int = Field(ge=0)
    scales_and_biases: int = Field(ge=0)


class LatencyReport(_Strict):
    """Milliseconds for one image: on a wall clock, or estimated with a clock."""

    median: float = Field(ge=0)
    p95: float = Field(ge=0)


class LayerDifferenceReport(_Strict):
    """One layer compared with the integer reference: kdpipe.targets.layer_differences.LayerDifference as JSON."""

    name: str
    steps: float | None
    exact: float = Fraction
    snr_db: float | None
    own_steps: int | None
    misrounded: int | None
    constants: list[str] | None


class ParityReport(_Strict):
    """An artifact's outputs compared with those of the integer reference."""

    max_step_difference: int | None
    top1_agreement: float | None
    first_divergent_layer: str | None
    layers: list[LayerDifferenceReport] = Field(
        default=[], description="layer by layer, of a few images whose output differs; empty where none does"
    )


class ClockReport(_Strict):
    """What a latency was estimated with, from cycles."""

    mhz: float = Field(gt=0)
    wait_state_factor: float = Field(ge=1)


class LayerReport(_Strict):
    """What one layer of a firmware takes for one image."""

    name: str
    instructions: int = Field(ge=0)
    cycles: int | None
    constant_bytes: int = Field(ge=0, description="of flash: weights, scales, biases")
    live_bytes: int = Field(ge=0, description="of the arena, while it runs")


class BufferReport(_Strict):
    """A piece of an arena; `first` and `last` are numbers of layers."""

    name: str
    offset: int = Field(ge=0)
    bytes: int = Field(ge=0)
    first: int = Field(ge=0)
    last: int = Field(ge=0)


class ArenaReport(_Strict):
    """How a C program uses its working memory."""

    bytes: int = Field(ge=0)
    lower_bound: int = Field(ge=0, description="bytes that live at once in the fullest layer")
    buffers: list[BufferReport]
    layers: list[str] = Field(description="names of the layers, by number")


class GateReport(_Strict):
    """A limit, and the value that was found; `value` is null when there is none, and `reason` says why."""

    name: str
    limit: float
    value: float | None
    passed: bool
    reason: str | None = None


class TargetFindings(_Strict):
    """What one validation found: kdpipe.stages.base.TargetRecord as JSON."""

    format: str
    device: str
    files: list[FileReport]
    weight_bytes: WeightReport | None
    accuracy: float = Fraction
    samples: int = Field(ge=0)
    baseline_accuracy: float | None = Field(ge=0, le=1)
    latency_ms: LatencyReport | None
    instructions: int | None
    cycles: int | None
    flash_bytes: int | None
    ram_bytes: int | None
    parity: ParityReport | None
    clock: ClockReport | None = Field(description="that latency_ms was estimated with; null where it was measured")
    layers: list[LayerReport] | None
    arena: ArenaReport | None
    board: str | None
    limits: dict[str, float] = Field(description="gates that the board sets")


class MeasuredLayerReport(_Strict):
    """What one layer took on a board for one image."""

    name: str
    cycles: int = Field(ge=0)


class MeasuredReport(_Strict):
    """What a board's own counter said: medians over the runs of a bench."""

    runs: int = Field(ge=1)
    cycles: int = Field(ge=0)
    layers: list[MeasuredLayerReport]


class TargetReport(TargetFindings):
    """A validation in the report; `name` is its stage's, `measured` what `kdpipe report --bench` added."""

    name: str
    measured: MeasuredReport | None = None
    gates: list[GateReport]


class AxisReport(_Strict):
    """What an axis of a matrix sets, and the names of its values."""

    name: str
    set: list[str]
    values: list[str]


class CellReport(_Strict):
    """One cell of a matrix: the indices of its values, its seed, and what went wrong in it.

    It is incomplete where `--only` left stages of it out.
    """

    at: list[int]
    seed: int | None
    status: Literal["passed", "failed", "incomplete"]
    problems: list[str]


class FigureCellReport(_Strict):
    """A figure at one place of the axes: a value or null for each seed, their mean and standard deviation."""

    at: list[int]
    values: list[float | None]
    mean: float | None
    deviation: float | None = Field(description="of a sample (n - 1); null with fewer than two values")
    reason: str | None = Field(description="why values are missing")


class FigureReport(_Strict):
    """One figure over the whole matrix: STAGE.METRIC."""

    name: str
    cells: list[FigureCellReport]


class MatrixReport(_Strict):
    """A run's matrix, and what it found."""

    axes: list[AxisReport]
    seeds: list[int]
    cells: list[CellReport]
    figures: list[FigureReport]


class Report(_Strict):
    """The whole of report.json."""

    schema_version: Literal[1] = Field(alias="schema")
    pipeline: str
    seed: int
    status: Literal["passed", "failed"]
    interrupted: bool
    started: str = Field(description="when the run began: ISO 8601, UTC")
    seconds: float = Field(ge=0, description="how long the run took")
    kdpipe_version: str
    stages: list[StageReport]
    targets: list[TargetReport]
    matrix: MatrixReport | None = None
