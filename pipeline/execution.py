"""Running one stage: its inputs, its outputs and its result, from an empty directory to an entry in the store."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdpipe.pipeline.events import Sink, StageLogged, StageProgress
from kdpipe.pipeline.parameters import read_files, read_folders
from kdpipe.pipeline.plan import Step
from kdpipe.pipeline.report_schema import StageFindings, TargetFindings
from kdpipe.pipeline.spec import Spec, StageSpec
from kdpipe.pipeline.store import OUTPUTS, Entry, Manifest, Store, StoredOutput, describe_outputs
from kdpipe.stages.base import Artifact, Inputs, Outcome, TargetRecord


def execute(spec: Spec, step: Step, finished: Mapping[str, Entry], store: Store, emit: Sink) -> tuple[Entry, float]:
    """Run a stage and publish what it wrote.

    Args:
        spec: the pipeline.
        step: the stage, with its key.
        finished: the outputs of the stages before it.
        store: where the outputs go.
        emit: takes the stage's progress and log lines.

    Returns:
        The entry, and how many seconds the stage ran: the entry may be an earlier one of the same content.

    Raises:
        Exception: whatever the stage raises; then nothing is published.
    """
    stage = step.stage
    if step.key is None:
        raise ValueError(f"stage {stage.name!r} has no key: its inputs are not known yet")
    with store.workplace() as workplace:
        context = RunContext(spec, stage, workplace / OUTPUTS, store.scratch(step.key), emit)
        began = time.monotonic()
        outcome = stage.stage.run(stage.params, _inputs(stage, finished), context)
        seconds = round(time.monotonic() - began, 3)
        if not isinstance(outcome, Outcome):
            raise TypeError(f"the stage returned {type(outcome).__name__} instead of an Outcome")
        if stage.stage.validates != (outcome.target is not None):
            raise TypeError("a stage returns a TargetRecord if and only if it validates")
        outputs = describe_outputs(workplace / OUTPUTS, stage.outputs)
        findings = StageFindings.model_validate(
            {name: _plain(getattr(outcome, name)) for name in ("metrics", "history", "figures")}
            | {"grids": {caption: _plain(asdict(grid)) for caption, grid in outcome.grids.items()}}
        )
        _check_figures(findings.figures, outputs)
        manifest = Manifest(
            key=step.key,
            parts=_plain(step.parts),
            outputs=outputs,
            **findings.model_dump(),
            target=target_to_json(outcome.target) if outcome.target is not None else None,
            seconds=seconds,
            finished_at=time.time(),
        )
        entry = store.publish(workplace, manifest)
        store.discard_scratch(step.key)
        return entry, seconds


class RunContext:
    """What a running stage is handed beside its parameters and inputs: a kdpipe.stages.base.StageContext.

    Args:
        spec: the pipeline.
        stage: the stage that runs.
        outputs: the directory that its outputs are made in.
        scratch: the directory that survives a kill.
        emit: takes its progress and log lines.
    """

    def __init__(self, spec: Spec, stage: StageSpec, outputs: Path, scratch: Path, emit: Sink) -> None:
        self._spec = spec
        self._stage = stage
        self._outputs = outputs
        self._scratch = scratch
        self._emit = emit
        self._files = {path for read in (read_files, read_folders) for _, path in read(stage.params)}

    @property
    def seed(self) -> int:
        """The one source of randomness, in [0, 2**31)."""
        return self._stage.seed

    @property
    def accelerator(self) -> str:
        """Where to train: `auto`, `cpu`, `cuda` or `mps`."""
        return self._spec.accelerator

    @property
    def threads(self) -> int | None:
        """How many threads of the CPU train, or None for as many as torch likes."""
        return self._spec.threads

    def output(self, name: str) -> Path:
        """Return the directory that the output `name` is written into: empty at the first call.

        Raises:
            ValueError: the stage has no such output (a defect of the stage).
        """
        if name not in self._stage.outputs:
            raise ValueError(f"stage {self._stage.uses!r} has no output {name!r}")
        directory = self._outputs / name
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def file(self, path: str) -> Path:
        """Return a ReadsFile or ReadsFolder path as an absolute one.

        Raises:
            ValueError: the parameters name no such file, so that its content is no part of the key (a defect of the
                stage).
        """
        if str(path) not in self._files:
            raise ValueError(f"{path!r} is not a file that the parameters of stage {self._stage.uses!r} name")
        return self._spec.folder / path

    def scratch(self) -> Path:
        """Return the directory that keeps what a stage needs to go on after it was killed."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch

    def progress(self, done: int, total: int, unit: str = "epoch", **metrics: float) -> None:
        """Say that `done` of `total` units are finished, with the latest metrics."""
        plain = {name: float(value) for name, value in metrics.items()}
        self._emit(StageProgress(stage=self._stage.name, done=done, total=total, unit=unit, metrics=plain))

    def log(self, message: str) -> None:
        """Write one line into the run's log."""
        self._emit(StageLogged(stage=self._stage.name, message=message))


def _inputs(stage: StageSpec, finished: Mapping[str, Entry]) -> Inputs:
    """Return the artifacts by input field: a tuple of them where the field takes several."""
    inputs: dict[str, Any] = {}
    for field, references in stage.inputs.items():
        artifacts = []
        for reference in references:
            entry = finished[reference.stage]
            name = reference.output or ""
            artifacts.append(Artifact(entry.manifest.outputs[name].kind, entry.output(name)))
        inputs[field] = tuple(artifacts) if field in stage.is_list else artifacts[0]
    return inputs


def _check_figures(figures: Mapping[str, str], outputs: Mapping[str, StoredOutput]) -> None:
    for figure in figures.values():
        output, _, path = figure.partition("/")
        if output not in outputs or path not in {file.path for file in outputs[output].files}:
            raise ValueError(f"the stage names a figure that it did not write: {figure!r}")


def target_to_json(target: TargetRecord) -> dict[str, Any]:
    """Return what a validation found as JSON, checked."""
    record: dict[str, Any] = _plain(asdict(target))
    record["files"] = [{"path": path, "bytes": size} for path, size in target.files]
    return TargetFindings.model_validate(record).model_dump()


def _plain(value: Any) -> Any:
    """Return a value as JSON: numbers of NumPy and torch as Python's, numbers that aren't finite as null."""
    return json.loads(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Path):
        return value.as_posix()
    if hasattr(value, "item") and not isinstance(value, float):
        return _finite(value.item())
    number = float(value)
    return number if math.isfinite(number) else None
