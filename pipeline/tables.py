"""What the commands print: tables on a terminal, JSON for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdpipe.pipeline.clean_command import Cleaning
from kdpipe.pipeline.doctor import Finding
from kdpipe.pipeline.listing import Row, shown
from kdpipe.pipeline.matrix import Matrix
from kdpipe.pipeline.plan import Step
from kdpipe.pipeline.report.difference_view import COLUMNS, difference_cells
from kdpipe.pipeline.report.document import LayerDifference, parse_report
from kdpipe.pipeline.report.formatting import plural, steps
from kdpipe.pipeline.report.gates import sentence
from kdpipe.stages.diff import ArtifactDifference


def print_json(value: Any) -> None:
    """Print a value as JSON, in colour on no terminal, so that it can be piped anywhere."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_plan(steps: Sequence[Step], matrix: Matrix | None = None) -> None:
    """Print what would run and why, and the size of the matrix if there is one."""
    table = _table("stage", "uses", "", "why")
    for step in steps:
        what = Text("cached", style="blue") if step.entry else Text("run", style="bold green")
        table.add_row(Text(step.stage.name), Text(step.stage.uses), what, Text("\n".join(step.reasons)))
    _print(table)
    to_run = sum(step.entry is None for step in steps)
    if matrix is not None:
        _print(Text(matrix.size()))
    _print(Text(f"{to_run} of {len(steps)} stages to run" if to_run else "Nothing to run: every stage is cached"))


def print_cleaning(cleaning: Cleaning, *, done: bool) -> None:
    """Print what a cleaning of the store removes, or has removed."""
    size = f"{plural(len(cleaning.removed), 'execution')}, {cleaning.bytes / 2**20:.1f} MiB"
    if not cleaning.removed:
        told = "Nothing to remove"
    else:
        told = f"Removed {size}" if done else f"{size} can go: add --delete"
    _print(Text(f"{told}. {plural(cleaning.kept, 'execution')} needed"))


def print_rows(rows: Sequence[Row]) -> None:
    """Print a listing, one row an entry."""
    if not rows:
        _print(Text("none"))
        return
    columns = list(rows[0])
    table = _table(*(column.replace("_", " ") for column in columns))
    for row in rows:
        table.add_row(*(Text(shown(row[column])) for column in columns))
    _print(table)


def print_findings(findings: Sequence[Finding]) -> None:
    """Print what is installed and how to get the rest."""
    table = _table("", "name", "version", "for", "to get it")
    for finding in findings:
        is_here = finding.version is not None
        sign = (
            Text("ok", style="green") if is_here else Text("missing", style="bold red" if finding.needed else "yellow")
        )
        remedy = "" if is_here else finding.remedy
        table.add_row(sign, Text(finding.name), Text(finding.version or "-"), Text(finding.purpose), Text(remedy))
    _print(table)


def print_figures(rows: Sequence[tuple[str, str]]) -> None:
    """Print the `figures` of a validation."""
    table = _table("", "")
    table.show_header = False
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    _print(table)


def print_layers(layers: Sequence[Mapping[str, Any]] | None) -> None:
    """Print what each layer of a firmware takes, if it is known."""
    if not layers:
        return
    table = _table("layer", "instructions", "cycles", "constants", "arena")
    for column in table.columns[1:]:
        column.justify = "right"
    for layer in layers:
        table.add_row(
            Text(layer["name"]),
            Text(f"{layer['instructions']:,}"),
            Text("-" if layer["cycles"] is None else f"{layer['cycles']:,}"),
            Text(f"{layer['constant_bytes'] / 1024:.1f} KiB"),
            Text(f"{layer['live_bytes'] / 1024:.1f} KiB"),
        )
    _print(table)


def print_failures(sentences: Sequence[str]) -> None:
    """Print the gates that are broken, one sentence each."""
    for told in sentences:
        _print(Text(told, style="bold red"))


def print_difference(found: ArtifactDifference) -> None:
    """Print a comparison layer by layer, and what it comes to."""
    rows = [(layer.name, difference_cells(LayerDifference.model_validate(asdict(layer)))) for layer in found.layers]
    # Columns that nothing is known for are left out.
    shown = [index for index in range(len(COLUMNS)) if any(not cells[index].missing for _, cells in rows)]
    table = _table("layer", *(COLUMNS[index] for index in shown))
    for name, cells in rows:
        style = "bold red" if name == found.first_divergent_layer else ""
        table.add_row(Text(name, style=style), *(Text(cells[index].text, style=style) for index in shown))
    _print(table)
    if found.fused:
        told = f"The runtime does not compute {', '.join(found.fused)} apart from what reads"
        _print(
            Text(f"{told} {'it' if len(found.fused) == 1 else 'them'}: shown as in a run that keeps the layers apart")
        )
    limits: dict[int | str | None, str] = {None: "none", "rounding": "another rounding of the exact value"}
    limit = limits.get(found.limit) or steps(float(found.limit or 0))
    _print(Text(f"A: {found.a}; B: {found.b}; {plural(found.samples, 'image')}; limit of a layer: {limit}"))
    if found.first_divergent_layer is not None:
        _print(Text(f"First layer that diverges: {found.first_divergent_layer}", style="bold red"))
    elif found.limit is not None:
        _print(Text("No layer diverges", style="green"))


def figures(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the figures of a validation as (name, value in words); what was not measured is left out."""
    rows = [
        ("format", str(record["format"])),
        *([("board", str(record["board"]))] if record.get("board") else []),
        ("device", str(record["device"])),
    ]
    if record["accuracy"] is not None:
        rows.append(("accuracy", f"{100 * record['accuracy']:.2f} % of {record['samples']} images"))
    if record.get("baseline_accuracy") is not None:
        rows.append(("baseline", f"{100 * record['baseline_accuracy']:.2f} %"))
    if parity := record.get("parity"):
        if parity.get("top1_agreement") is not None:
            rows.append(("top-1 agreement with the reference", f"{100 * parity['top1_agreement']:.2f} %"))
        rows.append(("largest difference", f"{parity.get('max_step_difference')} steps"))
        if parity.get("first_divergent_layer"):
            rows.append(("first layer that differs", str(parity["first_divergent_layer"])))
    if record["files"]:
        size = sum(file["bytes"] for file in record["files"])
        rows.append(("size", f"{size / 1024:.1f} KiB in {len(record['files'])} files"))
    if weights := record.get("weight_bytes"):
        rows.append(("weights alone", weights_in_words(weights)))
    if latency := record.get("latency_ms"):
        told = f"{latency['median']:.3f} ms median"
        if latency["p95"] is not None:
            told += f", {latency['p95']:.3f} ms p95"
        if clock := record.get("clock"):
            told += f", estimated at {clock['mhz']:g} MHz"
            told += f" with a wait-state factor of {clock['wait_state_factor']:g}"
        rows.append(("latency", told))
    for name in ("instructions", "cycles"):
        if record.get(name) is not None:
            rows.append((name, f"{record[name]:,}"))
    for name in ("flash_bytes", "ram_bytes"):
        if record.get(name) is not None:
            rows.append((name.removesuffix("_bytes"), f"{record[name] / 1024:.1f} KiB"))
    return rows


def weights_in_words(weight_bytes: Mapping[str, int]) -> str:
    """Return what the weights alone need, and their scales and biases.

    >>> weights_in_words({"values": 68_608, "scales_and_biases": 5_632})
    '67.0 KiB, and 5.5 KiB of scales and biases'
    """
    values, constants = weight_bytes["values"] / 1024, weight_bytes["scales_and_biases"] / 1024
    return f"{values:.1f} KiB, and {constants:.1f} KiB of scales and biases"


def print_export(directory: Path, files: Sequence[Path]) -> None:
    """Print the files of an export, and below them what they and the weights alone take."""
    from kdpipe.targets.artifact import read_artifact

    for path in files:
        print(path)
    artifact = read_artifact(directory)
    sizes = artifact.sizes(directory)
    total = sum(size for _, size in sizes) / 1024
    layers = Counter(artifact.stored_bits.values())
    widths = ", ".join(f"{bits} bits in {layers[bits]} layer{'s' * (layers[bits] > 1)}" for bits in sorted(layers))
    table = _table("", "")
    table.show_header = False
    table.add_row(Text("size"), Text(f"{total:.1f} KiB in {len(sizes)} file{'s' * (len(sizes) > 1)}"))
    table.add_row(Text("weights alone"), Text(weights_in_words(artifact.weight_bytes)))
    table.add_row(Text("stored at"), Text(widths or "-"))
    if artifact.target == "c":
        from kdpipe.targets.devices.c_artifact import load_arena

        arena = load_arena(directory)
        table.add_row(Text("arena"), Text(f"{arena.bytes:,} bytes; {arena.lower_bound:,} live at once"))
    _print(table)


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show how much of something is done, on a terminal's stderr only; the value takes (done, total)."""
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(unit, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_report(report: Mapping[str, Any], folder: Path) -> None:
    """Print the summary of a report.

    Raises:
        ArtifactError: it is not a report.
    """
    report = parse_report(report).model_dump()
    table = _table("stage", "uses", "status", "seconds")
    for stage in report["stages"]:
        table.add_row(
            Text(stage["name"]), Text(stage["uses"]), Text(stage["status"]), Text(f"{stage.get('seconds') or 0:.1f}")
        )
    _print(table)
    if report["targets"]:
        targets = _table("validation", "format", "device", "accuracy", "agreement", "size", "weights", "gates")
        for target in report["targets"]:
            rows = dict(figures(target))
            gates = target["gates"]
            passed = sum(gate["passed"] for gate in gates)
            targets.add_row(
                Text(target["name"]),
                Text(target["format"]),
                Text(target["device"]),
                Text(rows.get("accuracy", "-").split(" of ")[0]),
                Text(rows.get("top-1 agreement with the reference", "-")),
                Text(rows.get("size", "-").split(" in ")[0]),
                Text(rows.get("weights alone", "-").split(",")[0]),
                Text(f"{passed} of {len(gates)}" if gates else "-", style="" if passed == len(gates) else "bold red"),
            )
        _print(targets)
    print_failures(
        [
            sentence(target["name"], gate["name"], gate["limit"], gate["value"], gate.get("reason"))
            for target in report["targets"]
            for gate in target["gates"]
            if not gate["passed"]
        ]
    )
    _print(Text(f"{report['status']}: {folder / 'report.html'}"))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(content: Table | Text) -> None:
    console = Console()
    # Without a terminal nothing needs to be cut to its width.
    if not console.is_terminal:
        console = Console(width=200)
    console.print(content, highlight=False)
