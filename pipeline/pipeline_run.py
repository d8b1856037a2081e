"""A run from the checked file to the finished report: what `kdpipe run` does, for programs too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdpipe.pipeline.events import Event, RunFinished, RunLogged, RunStarted, Sink
from kdpipe.pipeline.log import LogFile
from kdpipe.pipeline.matrix_result import CellWatch
from kdpipe.pipeline.output import write_run
from kdpipe.pipeline.plan import make_plan
from kdpipe.pipeline.runner import RunResult, run_stages
from kdpipe.pipeline.source_fingerprint import SourceFingerprints
from kdpipe.pipeline.spec import Spec
from kdpipe.pipeline.store import Store, check_writable


def run_pipeline(
    spec: Spec,
    store: Store,
    out: Path,
    sinks: Sequence[Sink] = (),
    *,
    only: Sequence[str] = (),
    force: Sequence[str] = (),
) -> RunResult:
    """Run what the store does not hold, and write the report, also of a run that failed or was interrupted.

    Args:
        spec: the pipeline.
        store: where finished stages lie and new ones go.
        out: the folder of report.json, report.html, junit.xml, log.jsonl and the exports; made if need be.
        sinks: take every event, beside log.jsonl.
        only: the stages to run, with all they need; empty for all.
        force: stages to run whatever the store holds.

    Raises:
        UsageError: a name in `only` or `force` is unknown.
        StorageError: the folder or the store can't be written, or the disk is full.
    """
    fingerprints = SourceFingerprints()
    steps = make_plan(spec, store, only, force, fingerprints)
    check_writable(store.root)
    with LogFile(out / "log.jsonl") as log:
        all_sinks: list[Sink] = [log, *sinks]

        def emit(event: Event) -> None:
            for sink in all_sinks:
                sink(event)

        emit(
            RunStarted(
                pipeline=spec.name,
                out=str(out),
                stages=tuple(step.planned() for step in steps),
                matrix=spec.matrix.size() if spec.matrix else None,
            )
        )
        watch = CellWatch(spec.matrix, [step.stage.name for step in steps], emit) if spec.matrix else None
        result = run_stages(spec, store, all_sinks, only=only, force=force, fingerprints=fingerprints, on_result=watch)
        write_run(result, out)
        if log.failure is not None:
            emit(RunLogged(message=f"log.jsonl is incomplete: {log.failure.strerror}", level="warning"))
        emit(RunFinished(status=result.status, seconds=result.seconds, out=str(out), counts=result.counts))
    return result
