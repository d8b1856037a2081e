"""From a report to what the page shows: every number formatted, every drawing made, nothing left to the template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from markupsafe import Markup

from kdpipe.pipeline.report import curves, dag, figures, gates, heatmap, memory
from kdpipe.pipeline.report.difference_view import difference_tables
from kdpipe.pipeline.report.document import Arena, Report, StageEntry, Target
from kdpipe.pipeline.report.formatting import DASH, duration, figure, percent, plural, points, size
from kdpipe.pipeline.report.matrix_view import MatrixView, matrix_view
from kdpipe.pipeline.report.svg import picture
from kdpipe.pipeline.report.target_view import (
    Picture,
    Table,
    drop,
    gates_table,
    layers_table,
    parity_table,
    shipped,
    target_charts,
    targets_table,
)

CURVES_BUDGET = 700_000
"""Characters of the page that curves and heat maps may take; with figures.BUDGET it keeps the page under 3 MB."""


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    label: str
    value: str
    note: str
    tone: str = ""


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
    charts_left_out: int
    figures: tuple[figures.Figure, ...]


@dataclass(frozen=True)
class Page:
    """The whole page."""

    report: Report
    started: str
    summary: str
    tiles: tuple[Tile, ...]
    problems: tuple[tuple[str, str], ...]
    drawing: Markup | None
    rail: Markup | None
    legend: tuple[tuple[str, Markup, int], ...]
    matrix: MatrixView | None
    targets: Table | None
    charts: tuple[Picture, ...]
    gates: Table | None
    parity: Table | None
    differences: tuple[tuple[str, Table], ...]
    layers: tuple[tuple[str, Table], ...]
    memory: tuple[Picture, ...]
    stages: tuple[StageView, ...] = field(default_factory=tuple)

    @property
    def trained(self) -> tuple[StageView, ...]:
        """The stages that have curves or figures."""
        return tuple(stage for stage in self.stages if stage.charts or stage.charts_left_out or stage.figures)


def page(report: Report, folder: Path) -> Page:
    """Return the page of `report`, whose figures lie under `folder`."""
    nodes = nodes_of(report.stages)
    counts = Counter(stage.status for stage in report.stages)
    return Page(
        report=report,
        started=moment(report.started),
        summary=summary(report, counts),
        tiles=tiles(report, counts),
        problems=problems(report),
        drawing=dag.layered(nodes),
        rail=dag.rail(nodes),
        legend=tuple((status, mark(status), number) for status, number in counts.items()),
        matrix=matrix_view(report.matrix),
        targets=targets_table(report.targets),
        charts=target_charts(report.targets),
        gates=gates_table(report.targets),
        parity=parity_table(report.targets),
        layers=tuple((target.name, table) for target in report.targets if (table := layers_table(target))),
        differences=difference_tables(report.targets),
        memory=memory_plans(report.targets),
        stages=stage_views(report.stages, folder),
    )


def moment(started: str | None) -> str:
    """Return an ISO 8601 time to the minute, or the text itself where it is none.

    >>> moment("2026-11-22T14:14:31+00:00")
    '2026-11-22 14:14 UTC'
    """
    try:
        return datetime.fromisoformat(started or "").strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return started or ""


def nodes_of(stages: Sequence[StageEntry]) -> list[dag.Node]:
    """Return the stages as nodes of the drawing: those that a matrix has several times as one."""
    groups: dict[str, list[tuple[int, StageEntry]]] = {}
    for index, stage in enumerate(stages, 1):
        groups.setdefault(_yaml_name(stage), []).append((index, stage))
    names = {stage.name: _yaml_name(stage) for stage in stages}
    return [_node(name, entries, names) for name, entries in groups.items()]


def _yaml_name(stage: StageEntry) -> str:
    return stage.variant.of if stage.variant else stage.name


def _node(name: str, entries: Sequence[tuple[int, StageEntry]], names: Mapping[str, str]) -> dag.Node:
    """Return the node of stages with one name in YAML; it leads to the first, or to the first that failed."""
    statuses = [stage.status for _, stage in entries]
    status = next((word for word in ("failed", "skipped", "ran") if word in statuses), statuses[0])
    seconds = sum(stage.seconds or 0.0 for _, stage in entries if stage.status == "ran")
    index, first = entries[statuses.index(status)]
    return dag.Node(
        name=name,
        note=first.uses if first.variant is None else f"{len(entries)} x {first.uses}",
        status=status,
        time=duration(seconds) if seconds and status == "ran" else "",
        needs=tuple(dict.fromkeys(names.get(need, need) for _, stage in entries for need in stage.needs)),
        link=f"#stage-{index}",
    )


def mark(status: str) -> Markup:
    """Return the sign of a status as a picture of its own."""
    return picture(16, 16, status, dag.status_mark(status, 8, 8), class_="sign-only")


def summary(report: Report, counts: Counter[str]) -> str:
    """Return the page's first sentence."""
    all_gates = [gate for target in report.targets for gate in target.gates]
    broken = sum(not gate.passed for gate in all_gates)
    parts = []
    if report.interrupted:
        parts.append("The run was interrupted")
    if counts["failed"]:
        parts.append(f"{plural(counts['failed'], 'stage')} failed")
    if counts["skipped"]:
        parts.append(f"{plural(counts['skipped'], 'stage')} skipped")
    if not parts:
        parts.append(f"All {plural(len(report.stages), 'stage')} finished" if len(report.stages) > 1 else "Finished")
    if all_gates:
        held = "every gate holds" if not broken else f"{broken} of {plural(len(all_gates), 'gate')} broken"
        parts.append(held)
    return "; ".join(parts) + "."


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
    sizes = [(shipped(target), target) for target in report.targets]
    sized = [(number, target) for number, target in sizes if number]
    if sized:
        least, target = min(sized, key=lambda item: item[0])
        found.append(Tile("Smallest to ship", size(least), f"{target.name} ({target.format})"))
    return tuple(found)


def problems(report: Report) -> tuple[tuple[str, str], ...]:
    """Return what went wrong as (anchor, sentence): failed stages first, then broken gates."""
    failed = [
        (f"#stage-{index}", _failure(stage)) for index, stage in enumerate(report.stages, 1) if stage.status == "failed"
    ]
    broken = [
        ("#gates", gates.sentence(target.name, gate.name, gate.limit, gate.value, gate.reason))
        for target in report.targets
        for gate in target.gates
        if not gate.passed
    ]
    return tuple(failed + broken)


def _failure(stage: StageEntry) -> str:
    """Return a failed stage's message, which begins with its name."""
    message = stage.error or "the stage failed without a message"
    return message if message.startswith(stage.name) else f"{stage.name}: {message}"


def stage_views(stages: Sequence[StageEntry], folder: Path) -> tuple[StageView, ...]:
    """Return the stages with as many of their charts and figures as the page's budgets take."""
    longest = max([stage.seconds or 0.0 for stage in stages], default=0.0) or 1.0
    bytes_for_curves, bytes_for_figures = CURVES_BUDGET, figures.BUDGET
    views = []
    for index, stage in enumerate(stages, 1):
        shown, bytes_for_figures = figures.inline(stage.figures, folder, bytes_for_figures)
        charts = stage_heat_maps(stage) + stage_charts(stage)
        kept = []
        for chart in charts:
            bytes_for_curves -= len(chart.drawing)
            if bytes_for_curves >= 0:
                kept.append(chart)
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
                charts=tuple(kept),
                charts_left_out=len(charts) - len(kept),
                figures=tuple(shown),
            )
        )
    return tuple(views)


def memory_plans(targets: Sequence[Target]) -> tuple[Picture, ...]:
    """Return the arenas of the targets that have one, drawn once where several validations run the same program."""
    plans: dict[str, tuple[Arena, list[str]]] = {}
    for target in targets:
        if target.arena is not None:
            plans.setdefault(target.arena.model_dump_json(), (target.arena, []))[1].append(target.name)
    pictures = []
    for arena, names in plans.values():
        caption = f"{', '.join(names)}: {arena.bytes:,} bytes, {arena.lower_bound:,} live at once"
        if (drawing := memory.chart(caption, arena)) is not None:
            pictures.append(Picture(caption, drawing))
    return tuple(pictures)


def stage_heat_maps(stage: StageEntry) -> tuple[Picture, ...]:
    """Return the grids of a stage, drawn."""
    return tuple(
        Picture(caption, heatmap.chart(caption, grid.rows, grid.columns, grid.values, grid.notes, grid.marked))
        for caption, grid in stage.grids.items()
    )


def stage_charts(stage: StageEntry) -> tuple[Picture, ...]:
    """Return the training curves of a stage, at most a dozen metrics."""
    found = curves.curves_by_metric(stage.history)
    step = next((name for rows in stage.history.values() if (name := curves.step_name(rows))), "row")
    charts = []
    for metric, lines in list(found.items())[:12]:
        legend = tuple((index % curves.COLOURS, line.name) for index, line in enumerate(lines[:16]))
        charts.append(Picture(metric, curves.chart(metric, lines[:16], step), legend if len(lines) > 1 else ()))
    return tuple(charts)
