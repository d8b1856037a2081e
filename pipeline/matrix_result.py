"""What a run with a matrix found: each cell's status, and each figure's mean and deviation over the seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Literal

from kdpipe.pipeline.events import CellFinished, Sink
from kdpipe.pipeline.gates import GATES
from kdpipe.pipeline.matrix import Cell, Matrix, Metric
from kdpipe.pipeline.report_schema import AxisReport, CellReport, FigureCellReport, FigureReport, MatrixReport
from kdpipe.pipeline.runner import StageResult


def matrix_report(matrix: Matrix, stages: Sequence[StageResult]) -> MatrixReport:
    """Return the matrix of a run whose stages came to `stages`."""
    results = {result.stage.name: result for result in stages}
    return MatrixReport(
        axes=[AxisReport(name=axis.name, set=list(axis.paths), values=list(axis.labels)) for axis in matrix.axes],
        seeds=list(matrix.seeds),
        cells=[_cell(cell, results) for cell in matrix.cells],
        figures=[_figure(metric, matrix.cells, results) for metric in matrix.metrics],
    )


def cell_problems(cell: Cell, results: Mapping[str, StageResult]) -> list[str]:
    """Return what went wrong in a cell: its stages that failed, and its gates that are broken."""
    mine = [results[name] for name in cell.stages.values() if name in results]
    failed = [f"{result.stage.name} {result.status}" for result in mine if result.status in ("failed", "skipped")]
    broken = [f"gate {gate.name} of {result.stage.name}" for result in mine for gate in result.gates if not gate.passed]
    return failed + broken


def figure_of(metric: Metric, result: StageResult | None) -> float | str:
    """Return a figure of a finished stage, or the reason why there is none."""
    if result is None:
        return "no part of this run"
    if result.entry is None:
        return result.error or result.status
    manifest = result.entry.manifest
    if metric.name == "seconds":
        return float(manifest.seconds)
    if manifest.target is not None:
        known = GATES.get(metric.name)
        value = known.figure(manifest.target) if known else manifest.target.get(metric.name)
        missing = f"{manifest.target['device']} measures no {metric.name}"
    else:
        value = manifest.metrics.get(metric.name)
        missing = f"{metric.stage} has no metric {metric.name!r}; it has {', '.join(manifest.metrics) or 'none'}"
    if isinstance(value, str):
        return value if manifest.target is not None else f"{metric} is no number"
    if value is None:
        return missing if metric.name not in manifest.metrics else "not a finite number"
    return float(value) if math.isfinite(value) else "not a finite number"


def _cell(cell: Cell, results: Mapping[str, StageResult]) -> CellReport:
    problems = cell_problems(cell, results)
    is_whole = all(name in results for name in cell.stages.values())
    status: Literal["passed", "failed", "incomplete"] = "failed" if problems else "passed" if is_whole else "incomplete"
    return CellReport(at=list(cell.at), seed=cell.seed, status=status, problems=problems)


def _figure(metric: Metric, cells: Sequence[Cell], results: Mapping[str, StageResult]) -> FigureReport:
    """Return one figure at each place of the axes; cells of one place follow one another."""
    places = []
    for at, group in groupby(cells, key=lambda cell: cell.at):
        found = [figure_of(metric, results.get(cell.stages[metric.stage])) for cell in group]
        values = [value if isinstance(value, float) else None for value in found]
        there = [value for value in values if value is not None]
        reasons = list(dict.fromkeys(value for value in found if isinstance(value, str)))
        places.append(
            FigureCellReport(
                at=list(at),
                values=values,
                mean=statistics.fmean(there) if there else None,
                deviation=statistics.stdev(there) if len(there) > 1 else None,
                reason="; ".join(reasons) or None,
            )
        )
    return FigureReport(name=str(metric), cells=places)


class CellWatch:
    """Takes the results of stages and says of each cell when its last stage is over.

    Args:
        matrix: the matrix.
        selected: the stages of the run. Cells of which no figure is among them are left out.
        emit: takes a CellFinished for each cell.
    """

    def __init__(self, matrix: Matrix, selected: Collection[str], emit: Sink) -> None:
        self._matrix = matrix
        self._emit = emit
        self._results: dict[str, StageResult] = {}
        self._open = {
            index: {name for name in cell.stages.values() if name in selected}
            for index, cell in enumerate(matrix.cells)
            if any(cell.stages[metric.stage] in selected for metric in matrix.metrics)
        }
        self._total = len(self._open)

    def __call__(self, result: StageResult) -> None:
        """Take the result of one stage."""
        self._results[result.stage.name] = result
        for index, waiting in list(self._open.items()):
            waiting.discard(result.stage.name)
            if not waiting:
                del self._open[index]
                self._close(self._matrix.cells[index])

    def _close(self, cell: Cell) -> None:
        figures = {
            str(metric): figure_of(metric, self._results.get(cell.stages[metric.stage]))
            for metric in self._matrix.metrics
        }
        self._emit(
            CellFinished(
                coordinates=self._matrix.coordinates(cell),
                done=self._total - len(self._open),
                total=self._total,
                problems=tuple(cell_problems(cell, self._results)),
                figures={name: value for name, value in figures.items() if isinstance(value, float)},
            )
        )
