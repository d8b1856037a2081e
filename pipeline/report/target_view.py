"""The targets of a run as tables and charts: accuracy, size, latency, memory, gates and parity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdpipe.pipeline.report import bars, gates, scatter
from kdpipe.pipeline.report.document import Parity, Target
from kdpipe.pipeline.report.formatting import DASH, count, percent, plural, points, size, steps

EMULATED = "an emulator's clock says nothing about the device; see the cycles, or give the validation a board"
NOT_MEASURED = "not measured on this device"
ONLY_EMULATED = "counted only on an emulated microcontroller"
ONLY_FIRMWARE = "only a microcontroller's firmware has flash and RAM"
NO_BASELINE = "no baseline was given to compare with"
NO_REFERENCE = "no integer reference was given to compare with"
NO_FILES = "no deployable file is listed"
NO_WEIGHTS = "its weights were not counted apart"
NO_DIVERGENCE = "every step agrees, so no layer diverges"
NOT_IN_LOG = "the bench did not print it"
NO_CYCLES = "there is no cycle model of this core"
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
class Picture:
    """A chart with its heading and, where several colours are in it, its legend of (group, name)."""

    heading: str
    drawing: Markup
    legend: tuple[tuple[int, str], ...] = ()


def drop(target: Target) -> float | None:
    """Return the baseline's accuracy less the target's, or None where one of them is missing."""
    if target.accuracy is None or target.baseline_accuracy is None:
        return None
    return target.baseline_accuracy - target.accuracy


def shipped(target: Target) -> float | None:
    """Return the bytes that go to the device: the flash image where there is one, the files otherwise."""
    return target.flash_bytes if target.flash_bytes is not None else target.size_bytes


def _cell(value: float | None, write: Callable[[float], str], missing: str, detail: str = "") -> Cell:
    return Cell(DASH, missing=missing) if value is None else Cell(write(value), detail)


def make_table(columns: Sequence[str], rows: Sequence[TableRow]) -> Table | None:
    """Return a table with its notes, or None where it has no row."""
    notes = dict.fromkeys(cell.missing for row in rows for cell in row.cells if cell.missing)
    return Table(tuple(columns), tuple(rows), tuple(notes)) if rows else None


def targets_table(targets: Sequence[Target]) -> Table | None:
    """Return the table of targets: accuracy, size, latency and what a microcontroller needs."""
    columns = ("Accuracy", "Drop", "Files", "Weights", "Latency", "Instructions", "Cycles", "Flash", "RAM", "Gates")
    return make_table(
        columns, [TableRow(t.name, f"{t.format} on {_place(t)}", i, _target_cells(t)) for i, t in enumerate(targets)]
    )


def _place(target: Target) -> str:
    return f"{target.device} ({target.board})" if target.board else target.device


def _target_cells(target: Target) -> tuple[Cell, ...]:
    latency, emulated = target.latency_ms, target.cycles is not None or target.instructions is not None
    tail = f"p95 {latency.p95:.3g} ms" if latency and latency.p95 is not None else ""
    if target.clock is not None:
        tail = f"estimated at {target.clock.mhz:g} MHz"
    weights = target.weight_bytes
    images = f"{count(target.samples)} images" if target.samples is not None else ""
    return (
        _cell(target.accuracy, lambda value: percent(value, 2), NOT_MEASURED, images),
        _cell(drop(target), points, NO_BASELINE),
        _cell(target.size_bytes, size, NO_FILES, plural(len(target.files), "file") if target.files else ""),
        _cell(
            weights.values if weights else None,
            size,
            NO_WEIGHTS,
            f"{size(weights.scales_and_biases)} scales and biases" if weights else "",
        ),
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
    return make_table(("Limit", "Value", "Result"), rows)


def parity_table(targets: Sequence[Target]) -> Table | None:
    """Return the table of parity, of the targets that were compared with a reference; None where none was."""
    rows = [
        TableRow(target.name, f"{target.format} on {target.device}", index, _parity_cells(target.parity))
        for index, target in enumerate(targets)
        if target.parity is not None
    ]
    return make_table(("Top-1 agreement", "Largest difference", "First layer that diverges"), rows)


def _parity_cells(parity: Parity) -> tuple[Cell, ...]:
    exact = parity.max_step_difference == 0
    layer = Cell(parity.first_divergent_layer or DASH, missing="" if parity.first_divergent_layer else NOT_TRACED)
    if exact and not parity.first_divergent_layer:
        layer = Cell(DASH, missing=NO_DIVERGENCE)

    def largest(value: float) -> str:
        return "0, equal to the bit" if value == 0 else steps(value)

    difference = _cell(parity.max_step_difference, largest, NO_REFERENCE)
    agreement = _cell(parity.top1_agreement, lambda value: percent(value, 2), NO_REFERENCE)
    return agreement, Cell(difference.text, missing=difference.missing, tone="good" if exact else ""), layer


def layers_table(target: Target) -> Table | None:
    """Return what each layer of a target's firmware takes, its share of all instructions beside it; None if unknown.

    Where a board was measured, its cycles too, as a multiple of the estimate.
    """
    layers = target.layers or []
    total = sum(layer.instructions for layer in layers) or 1.0
    measured = {layer.name: layer.cycles for layer in target.measured.layers} if target.measured else {}
    rows = []
    for layer in layers:
        cells = [
            Cell(count(layer.instructions), percent(layer.instructions / total)),
            _cell(layer.cycles, count, NO_CYCLES, "estimated"),
            Cell(size(layer.constant_bytes)),
            Cell(size(layer.live_bytes)),
        ]
        if measured:
            found = measured.get(layer.name)
            factor = f"{found / layer.cycles:.2f} times the estimate" if found is not None and layer.cycles else ""
            cells.insert(2, _cell(found, count, NOT_IN_LOG, factor))
        rows.append(TableRow(layer.name, "", None, tuple(cells)))
    columns = ["Instructions", "Cycles", *(["On the board"] if measured else []), "Constants", "Arena"]
    return make_table(columns, rows)


def target_charts(targets: Sequence[Target]) -> tuple[Picture, ...]:
    """Return the charts of the targets: accuracy against size, latency, and what a microcontroller needs."""
    charts = []
    marks = [
        scatter.Mark(target.name, number, target.accuracy, index)
        for index, target in enumerate(targets)
        if (number := shipped(target)) and target.accuracy is not None and math.isfinite(target.accuracy)
    ]
    if marks:
        baselines = {target.baseline_accuracy for target in targets if target.baseline_accuracy is not None}
        charts.append(
            Picture("Accuracy against size", scatter.chart(marks, baselines.pop() if len(baselines) == 1 else None))
        )
    for heading, quantities in _CHARTS.items():
        rows = [
            _bar(target, index, quantity, len(quantities) > 1)
            for index, target in enumerate(targets)
            for quantity in quantities
            if (value := quantity.read(target)) is not None and math.isfinite(value) and value >= 0
        ]
        if rows:
            charts.append(Picture(heading, bars.chart(heading, rows[:24])))
    return tuple(charts)


def _bar(target: Target, group: int, quantity: _Quantity, named: bool) -> bars.Bar:
    """Return the row of one figure of one target."""
    value, limit = quantity.read(target), gates.limit_of(target, quantity.gate)
    return bars.Bar(
        label=f"{target.name}: {quantity.name}" if named else target.name,
        value=value or 0.0,
        text=quantity.write(value or 0.0),
        group=group,
        limit=None if limit is None else limit * quantity.scale,
        limit_text="" if limit is None else gates.amount(quantity.gate, limit),
    )


@dataclass(frozen=True)
class _Quantity:
    """A figure of a target with its gate, whose limit is in units of `scale`."""

    name: str
    gate: str
    scale: float
    read: Callable[[Target], float | None]
    write: Callable[[float], str]


def _latency(target: Target) -> float | None:
    return target.latency_ms.median if target.latency_ms else None


_CHARTS = {
    "Latency of one image, median": (
        _Quantity("latency", "latency_ms", 1.0, _latency, lambda value: f"{value:.3g} ms"),
    ),
    "Flash and RAM": (
        _Quantity("flash", "flash_kib", 1024.0, lambda target: target.flash_bytes, size),
        _Quantity("RAM", "ram_kib", 1024.0, lambda target: target.ram_bytes, size),
    ),
    "Instructions and estimated cycles of one image": (
        _Quantity("instructions", "instructions", 1.0, lambda target: target.instructions, count),
        _Quantity("cycles", "cycles", 1.0, lambda target: target.cycles, count),
    ),
}
