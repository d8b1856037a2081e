"""The matrix of a run as heat maps and tables: each figure's mean and standard deviation over the seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from kdpipe.pipeline.report import heatmap
from kdpipe.pipeline.report.document import FigureCell, Matrix, MatrixFigure
from kdpipe.pipeline.report.formatting import DASH, plural
from kdpipe.pipeline.report.target_view import Cell, Picture, Table, TableRow, make_table

MOST_MAPS = 24
"""Heat maps of one figure; the table has every cell."""


@dataclass(frozen=True)
class FigureView:
    """One figure: its heat maps, one for each combination of the axes beyond the second, and its table."""

    name: str
    maps: tuple[Picture, ...]
    maps_left_out: int
    table: Table | None


@dataclass(frozen=True)
class MatrixView:
    """The whole matrix."""

    summary: str
    figures: tuple[FigureView, ...]


def matrix_view(matrix: Matrix | None) -> MatrixView | None:
    """Return what the page shows of a matrix, or None where the run has none."""
    if matrix is None:
        return None
    return MatrixView(_summary(matrix), tuple(_figure(matrix, figure) for figure in matrix.figures))


def mean_and_deviation(name: str, mean: float | None, deviation: float | None) -> str:
    """Return a figure as in a cell: accuracies in percent.

    >>> mean_and_deviation("mcu.accuracy", 0.9417, 0.00312), mean_and_deviation("student.loss", 0.5, None)
    ('94.17 ± 0.31 %', '0.5')
    """
    if mean is None:
        return DASH
    if name.endswith(("accuracy", "agreement")):
        return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}") + " %"
    return heatmap.short(mean) + ("" if deviation is None else f" ± {heatmap.short(deviation)}")


def _summary(matrix: Matrix) -> str:
    factors = [f"{axis.name} ({', '.join(axis.values)})" for axis in matrix.axes]
    if matrix.seeds:
        factors.append(plural(len(matrix.seeds), "seed"))
    failed = sum(cell.status == "failed" for cell in matrix.cells)
    told = f"{' x '.join(factors)}: {plural(len(matrix.cells), 'cell')}"
    return f"{told}, {failed} with a failed stage or a broken gate." if failed else f"{told}."


def _figure(matrix: Matrix, figure: MatrixFigure) -> FigureView:
    pictures = list(itertools.islice(_maps(matrix, figure), MOST_MAPS))
    every = 1
    for axis in matrix.axes[2:]:
        every *= len(axis.values)
    return FigureView(figure.name, tuple(pictures), every - len(pictures), _table(matrix, figure))


def _maps(matrix: Matrix, figure: MatrixFigure) -> Iterator[Picture]:
    """Yield the heat maps: the first axis down, the second across; a single axis across."""
    found = {tuple(cell.at): cell for cell in figure.cells}
    means = [cell.mean for cell in figure.cells if cell.mean is not None]
    first, *others = matrix.axes
    down, across = (first, others[0]) if others else (None, first)
    for rest in itertools.product(*(range(len(axis.values)) for axis in others[1:])):
        rows = [f"{down.name} {label}" for label in down.values] if down else [figure.name]
        cells = [
            [found.get((row, column, *rest) if down else (column,)) for column in range(len(across.values))]
            for row in range(len(rows))
        ]
        where = ", ".join(f"{axis.name} {axis.values[index]}" for axis, index in zip(others[1:], rest, strict=True))
        drawing = heatmap.chart(
            f"{figure.name} by {f'{down.name} and ' if down else ''}{across.name}",
            rows,
            [f"{across.name} {label}" for label in across.values],
            [[cell.mean if cell else None for cell in row] for row in cells],
            texts=[[_texts(figure.name, cell, matrix) for cell in row] for row in cells],
            among=means,
        )
        yield Picture(f"{figure.name}: {where}" if where else figure.name, drawing)


def _texts(name: str, cell: FigureCell | None, matrix: Matrix) -> tuple[str, str]:
    """Return what stands in a cell, and below it over how many seeds."""
    if cell is None:
        return DASH, ""
    there = sum(value is not None for value in cell.values)
    expected = len(matrix.seeds)
    below = "" if not expected else plural(there, "seed") if there == expected else f"{there} of {expected} seeds"
    return mean_and_deviation(name, cell.mean, cell.deviation), below


def _table(matrix: Matrix, figure: MatrixFigure) -> Table | None:
    columns = ["Mean ± deviation" if len(matrix.seeds) > 1 else "Value"]
    if len(matrix.seeds) > 1:
        columns += [f"Seed {seed}" for seed in matrix.seeds]
    rows = []
    for cell in figure.cells:
        name = ", ".join(f"{axis.name} {axis.values[index]}" for axis, index in zip(matrix.axes, cell.at, strict=False))
        values = [(cell.mean, cell.deviation)]
        if len(matrix.seeds) > 1:
            values += [(value, None) for value in cell.values]
        rows.append(TableRow(name, "", None, tuple(_cell(figure.name, value, cell.reason) for value in values)))
    return make_table(columns, rows)


def _cell(name: str, value: tuple[float | None, float | None], reason: str | None) -> Cell:
    if value[0] is None:
        return Cell(DASH, missing=reason or "not measured")
    return Cell(mean_and_deviation(name, *value))
