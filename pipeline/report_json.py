"""report.json: what a run did and found, for other programs. Its format is kdpipe.pipeline.report_schema's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kdpipe.pipeline.matrix_result import matrix_report
from kdpipe.pipeline.report_schema import (
    SCHEMA,
    GateReport,
    OutputReport,
    Report,
    StageErrorReport,
    StageReport,
    TargetReport,
    VariantReport,
)
from kdpipe.pipeline.runner import RunResult, StageResult
from kdpipe.pipeline.store import Entry, StoredOutput
from kdpipe.targets.errors import ArtifactError
from kdpipe.targets.json_files import read_json


def build_report(result: RunResult, out: Path, figures: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return the content of report.json.

    Args:
        result: the run.
        out: the report's folder.
        figures: by stage, the pictures that were copied into the folder: by caption, their paths in it.
    """
    report = Report(
        schema=SCHEMA,
        pipeline=result.spec.name,
        seed=result.spec.seed,
        status="passed" if result.status == "passed" else "failed",
        interrupted=result.interrupted,
        started=datetime.fromtimestamp(result.started, UTC).isoformat(timespec="seconds"),
        seconds=round(result.seconds, 3),
        kdpipe_version=kdpipe_version(),
        stages=[_stage(stage, out, figures.get(stage.stage.name, {})) for stage in result.stages],
        targets=[
            _target(stage, stage.entry.manifest.target)
            for stage in result.stages
            if stage.entry is not None and stage.entry.manifest.target is not None
        ],
        matrix=matrix_report(result.spec.matrix, result.stages) if result.spec.matrix is not None else None,
    )
    content: dict[str, Any] = report.model_dump(mode="json", by_alias=True)
    content["targets"] = [{"name": target.pop("name"), **target} for target in content["targets"]]
    return content


def report_schema() -> dict[str, Any]:
    """Return the JSON schema of report.json."""
    return Report.model_json_schema(by_alias=True)


def read_report(folder: Path) -> dict[str, Any]:
    """Return the report of a finished run.

    Raises:
        ArtifactError: the folder has none, or it is unreadable.
    """
    path = folder / "report.json"
    try:
        report = read_json(path)
    except FileNotFoundError:
        raise ArtifactError(
            "no report.json here", where=str(folder), remedy="Give the folder of a run, such as runs/NAME"
        ) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"unreadable ({error})", where=str(path), remedy="Run the pipeline again") from None
    if not isinstance(report, dict):
        raise ArtifactError("not a report", where=str(path), remedy="Run the pipeline again")
    return report


def kdpipe_version() -> str:
    """Return the version of the installed distribution."""
    try:
        return version("kdpipe")
    except PackageNotFoundError:
        return "not installed"


def _stage(result: StageResult, out: Path, figures: Mapping[str, str]) -> StageReport:
    entry, variant = result.entry, result.stage.variant
    return StageReport(
        name=result.stage.name,
        uses=result.stage.uses,
        status=result.status,
        key=result.key,
        seconds=result.seconds,
        metrics=dict(entry.manifest.metrics) if entry else {},
        outputs={name: _output(entry, name, output, out) for name, output in entry.manifest.outputs.items()}
        if entry
        else {},
        needs=list(result.stage.needs),
        history=dict(entry.manifest.history) if entry else {},
        figures=dict(figures),
        grids=dict(entry.manifest.grids) if entry else {},
        reasons=list(result.reasons),
        error=StageErrorReport(message=result.error) if result.error else None,
        variant=VariantReport(of=variant.base, at=dict(variant.coordinates)) if variant else None,
    )


def _output(entry: Entry, name: str, output: StoredOutput, out: Path) -> OutputReport:
    directory = entry.output(name).resolve()
    try:
        path = Path(os.path.relpath(directory, out.resolve()))
    except ValueError:  # another drive
        path = directory
    return OutputReport(path=path.as_posix(), bytes=output.bytes, sha256=output.digest)


def _target(result: StageResult, record: Mapping[str, Any]) -> TargetReport:
    return TargetReport(name=result.stage.name, gates=[GateReport(**gate.to_json()) for gate in result.gates], **record)
