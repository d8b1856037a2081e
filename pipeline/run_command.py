"""`kdpipe run`: a pipeline with a live display, and a closing word on what failed and what to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from rich.console import Console

from kdpipe.pipeline.events import Event, StageFailed
from kdpipe.pipeline.exit_codes import TERMINATED, Terminated
from kdpipe.pipeline.pipeline_run import run_pipeline
from kdpipe.pipeline.progress import falling_silent, progress_sink
from kdpipe.pipeline.runner import RunResult
from kdpipe.pipeline.spec_file import load_spec
from kdpipe.pipeline.storage import storage_errors
from kdpipe.pipeline.store import Store, default_root
from kdpipe.stages.registry import STAGES, StageRegistry
from kdpipe.targets.errors import StorageError, UsageError


def run_command(
    file: Path,
    overrides: Sequence[str],
    *,
    out: Path | None,
    only: Sequence[str],
    force: Sequence[str],
    store: Path | None,
    debug: bool,
    stages: StageRegistry = STAGES,
) -> int:
    """Run a pipeline and return the exit code.

    Args:
        file: the pipeline file.
        overrides: as after `--set`.
        out: the run's folder, by default runs/NAME.
        only: the stages to run, with all they need; empty for all.
        force: stages to run whatever the store holds.
        store: the store's directory, by default as `default_root` says.
        debug: show the traceback of a stage that raised.
        stages: the kinds of stage that the file may use.

    Raises:
        UsageError: the file or an option is wrong, or a directory that was asked for can't be written.
        StorageError: the disk is full.
    """
    spec = load_spec(file, overrides, stages)
    folder = out or Path("runs") / spec.name
    root = store or default_root()
    elsewhere, in_store = "Choose another folder with --out", "Choose another directory with --store or KDPIPE_STORE"
    _require_unicode(file, "FILE", "Rename the folder or the file")
    _require_unicode(folder, "--out", elsewhere)
    _require_unicode(root, "--store", in_store)
    _prepare(folder, "--out", elsewhere)
    _prepare(root, "--store", in_store)
    failures: list[StageFailed] = []

    def note_failure(event: Event) -> None:
        if isinstance(event, StageFailed):
            failures.append(event)

    console = Console(stderr=False)
    with progress_sink(console) as display:
        result = run_pipeline(spec, Store(root), folder, [display, note_failure], only=only, force=force)
    _close(result, failures, folder, debug, console)
    return TERMINATED if isinstance(result.interruption, Terminated) else result.exit_code


def _require_unicode(path: Path, where: str, remedy: str) -> None:
    # Reports, pages and the log name files, and are text.
    try:
        str(path.resolve()).encode()
    except UnicodeEncodeError:
        raise UsageError(f"a path that is not Unicode: {path.resolve()}", where=where, remedy=remedy) from None


def _prepare(directory: Path, option: str, remedy: str) -> None:
    try:
        with storage_errors(directory, "write"):
            directory.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=directory):
                pass
    except StorageError as error:
        raise UsageError(f"{error.message}: {error.where}", where=option, remedy=remedy) from error


def _close(result: RunResult, failures: Sequence[StageFailed], folder: Path, debug: bool, console: Console) -> None:
    """Print where to look, and on stderr what failed, so that scripts find it there."""
    errors = Console(stderr=True)

    def say(text: str) -> None:
        errors.print(text, markup=False, highlight=False, soft_wrap=True)

    for failure in failures:
        if debug:
            say(failure.traceback)
        say(f"kdpipe: stage {failure.stage}: {failure.message}")
    if failures:
        hint = "" if debug else ". --debug shows the traceback"
        say(f"kdpipe: the whole story is in {folder / 'log.jsonl'}{hint}")
    if result.interrupted:
        say("kdpipe: interrupted. What is finished is kept: the next run goes on from here")
    with falling_silent(console):
        console.print(f"report: {folder / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
