"""The folder of a run: report.json, report.html, junit.xml, log.jsonl, the exports and the integer model.

Each file and each directory is written beside its old version and renamed into place.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from kdpipe.pipeline.report_json import build_report
from kdpipe.pipeline.runner import RunResult
from kdpipe.pipeline.storage import copy_tree, remove_tree, replace_directory, write_atomically

EXPORT_KINDS = ("onnx", "openvino", "tflite", "c")
MODEL_KIND = "integer-graph"


def write_run(result: RunResult, out: Path) -> dict[str, Any]:
    """Write everything that a run hands over, and return the report.

    Args:
        result: the run.
        out: its folder, which must exist.

    Raises:
        StorageError: the disk is full, or the folder can't be written.
    """
    _copy_outputs(result, out / "export", EXPORT_KINDS, lambda stage, kind: PurePosixPath(kind))
    _copy_outputs(result, out / "model", (MODEL_KIND,), lambda stage, kind: PurePosixPath())
    report = build_report(result, out, _copy_figures(result, out))
    write_report(report, out)
    return report


def write_report(report: Mapping[str, Any], out: Path) -> None:
    """Write report.json, and report.html and junit.xml made from it."""
    write_atomically(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_pages(report, out)


def write_pages(report: Mapping[str, Any], out: Path) -> None:
    """Write report.html and junit.xml for a report.

    Raises:
        ArtifactError: it is not a report.
        StorageError: the disk is full, or the folder can't be written.
    """
    from kdpipe.pipeline.report.html import write_html
    from kdpipe.pipeline.report.junit import write_junit

    write_html(report, out / "report.html")
    write_junit(report, out / "junit.xml")


def _copy_outputs(
    result: RunResult, directory: Path, kinds: tuple[str, ...], place: Callable[[str, str], PurePosixPath]
) -> None:
    """Replace a directory by copies of the run's outputs of certain kinds; where two claim a place, by their stage.

    A run that does not deal with such outputs at all, because of --only, leaves the directory as it is.
    """
    promised = [
        (stage, name, kind) for stage in result.stages for name, kind in stage.stage.outputs.items() if kind in kinds
    ]
    if not promised:
        return
    claims = Counter(kind for _, _, kind in promised)

    def fill(fresh: Path) -> None:
        for stage, name, kind in promised:
            if stage.entry is not None:
                where = place(stage.stage.name, kind)
                copy_tree(
                    stage.entry.output(name),
                    fresh / (where if claims[kind] == 1 else PurePosixPath(stage.stage.name) / where),
                )

    replace_directory(directory, fill)
    if not any(stage.entry is not None for stage, _, _ in promised):
        remove_tree(directory)


def _copy_figures(result: RunResult, out: Path) -> dict[str, dict[str, str]]:
    """Copy the stages' pictures into the folder; return their paths in it by stage and caption."""
    chosen: dict[str, dict[str, str]] = {}
    sources: dict[str, Path] = {}
    for stage in result.stages:
        entry = stage.entry
        for index, (caption, figure) in enumerate(entry.manifest.figures.items() if entry else ()):
            output, _, path = figure.partition("/")
            name = f"{stage.stage.name}-{index}{PurePosixPath(path).suffix}"
            chosen.setdefault(stage.stage.name, {})[caption] = f"figures/{name}"
            if entry:
                sources[name] = entry.output(output) / path

    def fill(fresh: Path) -> None:
        for name, source in sources.items():
            (fresh / name).write_bytes(source.read_bytes())

    if sources:
        replace_directory(out / "figures", fill)
    else:
        remove_tree(out / "figures")
    return chosen
