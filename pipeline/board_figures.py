"""Figures that were measured on a board, added to the report of the run that wrote the firmware."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdpipe.targets.devices.bench_log import read_bench_log
from kdpipe.targets.errors import UsageError, did_you_mean


def split_bench_option(option: str) -> tuple[str, Path]:
    """Return the validation and the file of `VALIDATION=LOG`.

    Raises:
        UsageError: it has another form.
    """
    name, separator, path = option.partition("=")
    if not (name and separator and path):
        raise UsageError(
            f"{option!r} is not of the form VALIDATION=LOG", where="--bench", remedy="For example --bench mcu=log.txt"
        )
    return name, Path(path)


def add_bench(report: Mapping[str, Any], validation: str, path: Path) -> dict[str, Any]:
    """Return `report` with the cycles that a board took, under `measured` of the validation's target.

    Args:
        report: the content of a report.json.
        validation: the stage that validated the same C sources on an emulated core.
        path: what the bench printed.

    Raises:
        UsageError: there is no such validation, or the log is not of its firmware.
    """
    targets = report.get("targets", [])
    known = [target["name"] for target in targets if target.get("layers")]
    if validation not in known:
        raise UsageError(
            f"no validation {validation!r} with layers in the report",
            where="--bench",
            remedy=did_you_mean(validation, known) if known else "Validate the C sources on an emulated core",
        )
    log = read_bench_log(path)
    measured = {
        "runs": log.runs,
        "cycles": sum(cycles for _, cycles in log.cycles),
        "layers": [{"name": name, "cycles": cycles} for name, cycles in log.cycles],
    }
    chosen = next(target for target in targets if target["name"] == validation)
    there = {name for name, _ in log.cycles}
    missing = next((layer["name"] for layer in chosen["layers"] if layer["name"] not in there), None)
    if missing is not None:
        raise UsageError(
            f"the log is of another network: it lacks the layer {missing!r}",
            where=str(path),
            remedy="Build the bench from the export that the validation ran",
        )
    return {
        **report,
        "targets": [{**target, "measured": measured} if target is chosen else target for target in targets],
    }
