"""From a report to what the page shows: every number formatted, every drawing made, nothing left to the template."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from kdpipe.pipeline.report import bars, curves, dag, figures, gates, scatter
from kdpipe.pipeline.report.document import Parity, Report, StageEntry, Target
from kdpipe.pipeline.report.formatting import DASH, count, duration, figure, percent, points, size
from kdpipe.pipeline.report.svg import picture

EMULATED = "an emulator's clock says nothing about the device; see the cycles"
NOT_MEASURED = "not measured on this device"
ONLY_EMULATED = "counted only on an emulated microcontroller"
ONLY_FIRMWARE = "only a microcontroller's firmware has flash and RAM"
NO_BASELINE = "no baseline was given to compare with"
NO_REFERENCE = "no integer reference was given to compare with"
NO_FILES = "no deployable file is listed"
NO_DIVERGENCE = "every step agrees, so no layer diverges"
NOT_TRACED = "the layers were not compared one by one"


@dataclass(frozen=True)
class Cell:
    """A value in a table, or a dash with the reason for it."""

    text: str
    detail: str = ""
    missing: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows; `notes` are the reasons for its dashes, in order of appearance."""

    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TableRow:
    """A row: its name, the line under it, its mark's colour group (None for no mark) and its cells."""

    name: str
    detail: str
    group: int | None
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    label: str
    value: str
    note: str
    tone: str = ""


@dataclass(frozen=True)
class Picture:
    """A chart with its heading and, where several colours are in it, its legend of (group, name)."""

    heading: str
    drawing: Markup
    legend: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class StageView:
    """All that the page shows of a stage."""

    anchor: str
    entry: StageEntry
    css: str
    mark: Markup
    time: str
    share: float
    metrics: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str, str, str], ...]
    charts: tuple[Picture, ...]
    figures: tuple[figures.Figure, ...]


@dataclass(frozen=True)
class Page:
    """The whole page."""

    report: Report
    summary: str
    tiles: tuple[Tile, ...]
    problems: tuple[tuple[str, str], ...]
    drawing: Markup | None
    rail: Markup | None
    legend: tuple[tuple[str, Markup, int], ...]
    targets: Table | None
    charts: tuple[Picture, ...]
    gates: Table | None
    parity: Table | None
    stages: tuple[StageView, ...] = field(default_factory=tuple)

    @property
    def trained(self) -> tuple[StageView, ...]:
        """The stages that have curves or figures."""
        return tuple(stage for stage in self.stages if stage.charts or stage.figures)


def page(report: Report, folder: Path) -> Page:
    """Return the page of `report`, whose figures lie under `folder`."""
    nodes = nodes_of(report.stages)
    counts = Counter(stage.status for stage in report.stages)
    return Page(
        report=report,
        summary=summary(report, counts),
        tiles=tiles(report, counts),
        problems=problems(report),
        drawing=dag.layered(nodes),
        rail=dag.rail(nodes),
        legend=tuple((status, mark(status), number) for status, number in counts.items()),
        targets=targets_table(report.targets),
        charts=target_charts(report.targets),
        gates=gates_table(report.targets),
        parity=parity_table(report.targets),
        stages=stage_views(report.stages, folder),
    )


def nodes_of(stages: Sequence[StageEntry]) -> list[dag.Node]:
    """Return the stages as nodes of the drawing."""
    return [
        dag.Node(
            name=stage.name,
            note=stage.uses + (f" · {duration(stage.seconds)}" if stage.seconds and stage.status == "ran" else ""),
            status=stage.status,
            needs=tuple(stage.needs),
            link=f"#stage-{index}",
        )
        for index, stage in enumerate(stages, 1)
    ]


def mark(status: str) -> Markup:
    """Return the sign of a status as a picture of its own."""
    return picture(16, 16, status, dag.status_mark(status, 8, 8), class_="sign-only")


def plural(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> plural(1, "stage"), plural(3, "stage")
    ('1 stage', '3 stages')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


def summary(report: Report, counts: Counter[str]) -> str:
    """Return the page's first sentence."""
    all_gates = [gate for target in report.targets for gate in target.gates]
    broken = sum(not gate.passed for gate in all_gates)
    parts = []
    if counts["failed"]:
        parts.append(f"{plural(counts['failed'], 'stage')} failed" + _skipped(counts))
    elif report.status == "interrupted":
        parts.append("The run was interrupted" + _skipped(counts))
    else:
        parts.append(f"All {plural(len(report.stages), 'stage')} finished" if len(report.stages) > 1 else "Finished")
    if all_gates:
        held = "every gate holds" if not broken else f"{broken} of {plural(len(all_gates), 'gate')} broken"
        parts.append(held)
    return "; ".join(parts) + "."


def _skipped(counts: Counter[str]) -> str:
    return f", {counts['skipped']} skipped" if counts["skipped"] else ""


def tiles(report: Report, counts: Counter[str]) -> tuple[Tile, ...]:
    """Return the headline figures, only those that the report has."""
    found = []
    all_gates = [gate for target in report.targets for gate in target.gates]
    if all_gates:
        passed = sum(gate.passed for gate in all_gates)
        tone = "good" if passed == len(all_gates) else "bad"
        found.append(Tile("Gates", f"{passed} of {len(all_gates)}", "hold", tone))
    seconds = report.seconds
    if seconds is None:
        seconds = sum(stage.seconds or 0.0 for stage in report.stages if stage.status in {"ran", "failed"})
    words = ", ".join(f"{number} {status}" for status, number in counts.items()) or "none"
    found.append(Tile("Stages", str(len(report.stages)), words, "bad" if counts["failed"] else ""))
    found.append(Tile("Time", duration(seconds), "in this run"))
    drops = [(lost, target) for target in report.targets if (lost := drop(target)) is not None]
    if drops:
        worst, target = max(drops, key=lambda item: item[0])
        found.append(Tile("Largest accuracy drop", points(worst), f"{target.name}, against its baseline"))
    agreements = [
        (t.parity.top1_agreement, t) for t in report.targets if t.parity and t.parity.top1_agreement is not None
    ]
    if agreements:
        lowest = min(share for share, _ in agreements)
        tone = "good" if lowest == 1 else ""
        found.append(
            Tile(
                "Lowest agreement",
                percent(lowest, 2),
                f"top-1 of {plural(len(agreements), 'target')} with the integer reference",
                tone,
            )
        )
    sizes = [(_shipped(target), target) for target in report.targets]
    sized = [(number, target) for number, target in sizes if number]
    if sized:
        least, target = min(sized, key=lambda item: item[0])
        found.append(Tile("Smallest to ship", size(least), f"{target.name} ({target.format})"))
    return tuple(found)


def problems(report: Report) -> tuple[tuple[str, str], ...]:
    """Return what went wrong as (anchor, sentence): failed stages first, then broken gates."""
    failed = [
        (f"#stage-{index}", f"{stage.name}: {stage.error or 'the stage failed without a message'}")
        for index, stage in enumerate(report.stages, 1)
        if stage.status == "failed"
    ]
    broken = [
        ("#gates", gates.sentence(target, gate))
        for target in report.targets
        for gate in target.gates
        if not gate.passed
    ]
    return tuple(failed + broken)


def drop(target: Target) -> float | None:
    """Return the baseline's accuracy less the target's, or None where one of them is missing."""
    if target.accuracy is None or target.baseline_accuracy is None:
        return None
    return target.baseline_accuracy - target.accuracy


def _shipped(target: Target) -> float | None:
    """Return the bytes that go to the device: the flash image where there is one, the files otherwise."""
    return target.flash_bytes if target.flash_bytes is not None else target.size_bytes


def _cell(value: float | None, write: Callable[[float], str], missing: str, detail: str = "") -> Cell:
    return Cell(DASH, missing=missing) if value is None else Cell(write(value), detail)


def _table(columns: Sequence[str], rows: Sequence[TableRow]) -> Table | None:
    """Return a table with its notes, or None where it has no row."""
    notes = dict.fromkeys(cell.missing for row in rows for cell in row.cells if cell.missing)
    return Table(tuple(columns), tuple(rows), tuple(notes)) if rows else None


def targets_table(targets: Sequence[Target]) -> Table | None:
    """Return the table of targets: accuracy, size, latency and what a microcontroller needs."""
    columns = ("Accuracy", "Drop", "Files", "Latency", "Instructions", "Cycles", "Flash", "RAM", "Gates")
    return _table(
        columns, [TableRow(t.name, f"{t.format} on {t.device}", i, _target_cells(t)) for i, t in enumerate(targets)]
    )


def _target_cells(target: Target) -> tuple[Cell, ...]:
    latency, emulated = target.latency_ms, target.cycles is not None or target.instructions is not None
    tail = f"p95 {latency.p95:.3g} ms" if latency and latency.p95 is not None else ""
    images = f"{count(target.samples)} images" if target.samples is not None else ""
    return (
        _cell(target.accuracy, lambda value: percent(value, 2), NOT_MEASURED, images),
        _cell(drop(target), points, NO_BASELINE),
        _cell(target.size_bytes, size, NO_FILES, plural(len(target.files), "file") if target.files else ""),
        _cell(
            latency.median if latency else None,
            lambda value: f"{value:.3g} ms",
            EMULATED if emulated else NOT_MEASURED,
            tail,
        ),
        _cell(target.instructions, count, ONLY_EMULATED),
        _cell(target.cycles, count, ONLY_EMULATED, "estimated" if target.cycles is not None else ""),
        _cell(target.flash_bytes, size, ONLY_FIRMWARE),
        _cell(target.ram_bytes, size, ONLY_FIRMWARE),
        _gates_cell(target),
    )


def _gates_cell(target: Target) -> Cell:
    if not target.gates:
        return Cell(DASH, missing="no gate is declared for it")
    passed = sum(gate.passed for gate in target.gates)
    return Cell(f"{passed} of {len(target.gates)}", tone="good" if passed == len(target.gates) else "bad")


def gates_table(targets: Sequence[Target]) -> Table | None:
    """Return the table of gates: limit, value, whether it holds."""
    rows = []
    for index, target in enumerate(targets):
        for gate in target.gates:
            value = gates.amount(gate.name, gate.value)
            rows.append(
                TableRow(
                    gate.name,
                    target.name,
                    index,
                    (
                        Cell(f"{gates.direction(gate.name)} {gates.amount(gate.name, gate.limit)}"),
                        Cell(value, missing="" if gate.value is not None else gate.reason or "it was not measured"),
                        Cell("holds", tone="good") if gate.passed else Cell("broken", tone="bad"),
                    ),
                )
            )
    return _table(("Limit", "Value", "Result"), rows)


def parity_table(targets: Sequence[Target]) -> Table | None:
    """Return the table of parity, of the targets that were compared with a reference; None where none was."""
    rows = [
        TableRow(target.name, f"{target.format} on {target.device}", index, _parity_cells(target.parity))
        for index, target in enumerate(targets)
        if target.parity is not None
    ]
    return _table(("Top-1 agreement", "Largest difference", "First layer that diverges"), rows)


def _parity_cells(parity: Parity) -> tuple[Cell, ...]:
    exact = parity.max_step_difference == 0
    layer = Cell(parity.first_divergent_layer or DASH, missing="" if parity.first_divergent_layer else NOT_TRACED)
    if exact and not parity.first_divergent_layer:
        layer = Cell(DASH, missing=NO_DIVERGENCE)

    def steps(value: float) -> str:
        return "0, equal to the bit" if value == 0 else f"{value:g} step" + ("" if value == 1 else "s")

    difference = _cell(parity.max_step_difference, steps, NO_REFERENCE)
    agreement = _cell(parity.top1_agreement, lambda value: percent(value, 2), NO_REFERENCE)
    return agreement, Cell(difference.text, missing=difference.missing, tone="good" if exact else ""), layer


def target_charts(targets: Sequence[Target]) -> tuple[Picture, ...]:
    """Return the charts of the targets: accuracy against size, latency, and what a microcontroller needs."""
    charts = []
    marks = [
        scatter.Mark(target.name, number, target.accuracy, index)
        for index, target in enumerate(targets)
        if (number := _shipped(target)) and target.accuracy is not None and math.isfinite(target.accuracy)
    ]
    if marks:
        baselines = {target.baseline_accuracy for target in targets if target.baseline_accuracy is not None}
        charts.append(
            Picture("Accuracy against size", scatter.chart(marks, baselines.pop() if len(baselines) == 1 else None))
        )
    for heading, gate, scale, read, write in _FIGURES:
        rows = [
            bars.Bar(
                target.name,
                value,
                write(value),
                index,
                None if (limit := gates.limit_of(target, gate)) is None else limit * scale,
                "" if limit is None else gates.amount(gate, limit) if scale > 1 else write(limit),
            )
            for index, target in enumerate(targets)
            if (value := read(target)) is not None and math.isfinite(value) and value >= 0
        ]
        if rows:
            charts.append(Picture(heading, bars.chart(heading, rows[:24])))
    return tuple(charts)


def _latency(target: Target) -> float | None:
    return target.latency_ms.median if target.latency_ms else None


_FIGURES: tuple[tuple[str, str, float, Callable[[Target], float | None], Callable[[float], str]], ...] = (
    ("Latency of one image, median", "latency_ms", 1.0, _latency, lambda value: f"{value:.3g} ms"),
    ("Flash", "flash_kib", 1024.0, lambda target: target.flash_bytes, size),
    ("RAM", "ram_kib", 1024.0, lambda target: target.ram_bytes, size),
    ("Instructions of one image", "instructions", 1.0, lambda target: target.instructions, count),
    ("Cycles of one image, estimated", "cycles", 1.0, lambda target: target.cycles, count),
)


def stage_views(stages: Sequence[StageEntry], folder: Path) -> tuple[StageView, ...]:
    """Return the stages with their charts and as many of their figures as the page's budget takes."""
    longest = max([stage.seconds or 0.0 for stage in stages], default=0.0) or 1.0
    left = figures.BUDGET
    views = []
    for index, stage in enumerate(stages, 1):
        shown, left = figures.inline(stage.figures, folder, left)
        seconds = stage.seconds
        views.append(
            StageView(
                anchor=f"stage-{index}",
                entry=stage,
                css=dag.css_status(stage.status),
                mark=mark(stage.status),
                time=DASH if seconds is None else duration(seconds),
                share=0.0 if seconds is None else max(0.0, min(1.0, seconds / longest)),
                metrics=tuple((name, figure(value)) for name, value in stage.metrics.items()),
                outputs=tuple(
                    (name, output.path, size(output.bytes), output.sha256) for name, output in stage.outputs.items()
                ),
                charts=stage_charts(stage),
                figures=tuple(shown),
            )
        )
    return tuple(views)


def stage_charts(stage: StageEntry) -> tuple[Picture, ...]:
    """Return the training curves of a stage, at most a dozen metrics."""
    found = curves.curves_by_metric(stage.history)
    step = next((name for rows in stage.history.values() if (name := curves.step_name(rows))), "row")
    charts = []
    for metric, lines in list(found.items())[:12]:
        legend = tuple((index % curves.COLOURS, line.name) for index, line in enumerate(lines[:16]))
        charts.append(Picture(metric, curves.chart(metric, lines[:16], step), legend if len(lines) > 1 else ()))
    return tuple(charts)
