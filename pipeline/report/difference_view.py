"""Two runs compared layer by layer, as the page and the terminal show them."""

from __future__ import annotations

from collections.abc import Sequence

from kdpipe.pipeline.report.document import LayerDifference, Target
from kdpipe.pipeline.report.formatting import DASH, count, share, steps
from kdpipe.pipeline.report.target_view import Cell, Table, TableRow, make_table

COLUMNS = ("Largest difference", "Exact", "SNR", "By itself", "Misrounded", "Constants")
NOTHING_DIFFERS = "nothing differs, or there is no signal"
NOT_QUANTIZED = "neither of the two is quantized"
NO_GRAPH = "neither of the two is the integer graph"
NO_CONSTANTS = "the files of the two do not both say them"


def difference_cells(layer: LayerDifference) -> tuple[Cell, ...]:
    """Return a layer's cells, in the order of `COLUMNS`."""
    return (
        _cell(None if layer.steps is None else steps(layer.steps), NOT_QUANTIZED),
        Cell(share(layer.exact)),
        _cell(None if layer.snr_db is None else f"{layer.snr_db:.1f} dB", NOTHING_DIFFERS),
        _cell(None if layer.own_steps is None else steps(layer.own_steps), NO_GRAPH),
        _cell(None if layer.misrounded is None else count(layer.misrounded), NO_GRAPH),
        _cell(None if layer.constants is None else "; ".join(layer.constants) or "equal", NO_CONSTANTS),
    )


def difference_tables(targets: Sequence[Target]) -> tuple[tuple[str, Table], ...]:
    """Return, for each target that was compared layer by layer, its name and its table."""
    found = []
    for target in targets:
        layers = target.parity.layers if target.parity else []
        table = make_table(COLUMNS, [TableRow(layer.name, "", None, difference_cells(layer)) for layer in layers])
        if table is not None:
            found.append((target.name, table))
    return tuple(found)


def _cell(text: str | None, missing: str) -> Cell:
    return Cell(DASH, missing=missing) if text is None else Cell(text)
