"""Training in several processes on this machine: started, listened to, and ended, whatever happens to one of them.

Each process does the whole work of the stage on its part of every batch. What the first one writes are the stage's
outputs; the others write into a directory that is thrown away. The process that calls this trains nothing: it answers
the others' calls to the stage's context, and turns the failure of one into an error that says what happened.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import time
from collections.abc import Callable, MutableSequence, Sequence
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from kdpipe.stages.base import Inputs, Outcome, StageContext
from kdpipe.stages.training.device import choose_device, limited_threads
from kdpipe.stages.training.parallel import ALONE, Parallel
from kdpipe.stages.training.parameters import SharedParams
from kdpipe.stages.training.worker import Failure, Place, run
from kdpipe.targets.errors import DeviceError, MissingDependencyError, TrainingError

Work = Callable[[Any, Inputs, StageContext, Parallel], Outcome]

TIMEOUT_SECONDS = 600.0
"""How long a process waits for another in one operation. They do the same work, so that it is far more than enough."""

GRACE_SECONDS = 3.0
"""How long after a failure is listened to the other processes: the first to complain is seldom the one at fault."""


def train_in_processes(
    work: Work,
    params: SharedParams,
    inputs: Inputs,
    context: StageContext,
    *,
    timeout: float = TIMEOUT_SECONDS,
) -> Outcome:
    """Do the work of a stage in `params.processes` processes, or, if that is 1, here.

    Args:
        work: a function of a module, such as `distill`.
        params: of the stage.
        inputs: of the stage.
        context: of the stage; `threads` is what each process has.
        timeout: seconds that a process waits for another.

    Raises:
        KdpipeError: as `work` raises it; so are OSError, MemoryError and ImportError.
        MissingDependencyError: Lightning Fabric is not installed.
        DeviceError: there are not as many devices.
        TrainingError: a process died, or hangs; names it.
    """
    if params.processes == 1:
        with limited_threads(context.threads):
            return work(params, inputs, context, ALONE)
    _check_devices(context.accelerator, params.processes)
    # never forked: a copy of a process with threads, such as the engine's, may hang
    spawning = multiprocessing.get_context("spawn")
    beats = spawning.Array("q", params.processes, lock=False)
    with tempfile.TemporaryDirectory(prefix="kdpipe-", ignore_cleanup_errors=True) as folder:
        workers: list[_Worker] = []
        try:
            for rank in range(params.processes):
                ours, theirs = spawning.Pipe()
                place = Place(rank, params.processes, context.seed, context.accelerator, context.threads, Path(folder))
                process = spawning.Process(
                    target=run,
                    args=(theirs, place, f"{work.__module__}:{work.__name__}", params, inputs, timeout, beats),
                    name=f"kdpipe-{rank}",
                    daemon=True,
                )
                process.start()
                theirs.close()
                workers.append(_Worker(rank, process, ours))
            return _listen(workers, context, beats, timeout)
        finally:
            for worker in workers:
                worker.end()


class _Worker:
    """A process as seen from outside."""

    def __init__(self, rank: int, process: Any, pipe: Connection) -> None:
        self.rank = rank
        self.process = process
        self.pipe = pipe
        self.outcome: Outcome | None = None
        self.failure: Failure | None = None
        self.is_over = False

    def end(self) -> None:
        self.process.terminate()
        self.process.join(GRACE_SECONDS)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.pipe.close()


def _listen(workers: Sequence[_Worker], context: StageContext, beats: MutableSequence[int], timeout: float) -> Outcome:
    deadline: float | None = None
    while listened := [worker for worker in workers if not worker.is_over]:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            break
        ready = wait([worker.pipe for worker in listened], left)
        for worker in listened:
            if worker.pipe in ready:
                _hear(worker, context)
            if worker.is_over and worker.outcome is None and deadline is None:
                deadline = time.monotonic() + GRACE_SECONDS
    if deadline is not None:
        _fail(workers, beats, timeout)
    outcome = workers[0].outcome
    assert outcome is not None  # noqa: S101  # otherwise it failed
    return outcome


def _hear(worker: _Worker, context: StageContext) -> None:
    """Take one message of a process; its end is one, too."""
    try:
        message = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(GRACE_SECONDS)
        worker.is_over = True
        return
    if isinstance(message, Outcome):
        worker.outcome, worker.is_over = message, True
    elif isinstance(message, Failure):
        worker.failure, worker.is_over = message, True
    else:
        name, arguments, named = message
        answer = getattr(context, name)(*arguments, **named)
        if answer is not None:
            with suppress(OSError):  # it is gone, which the next message will be
                worker.pipe.send(answer)


def _fail(workers: Sequence[_Worker], beats: Sequence[int], timeout: float) -> None:
    """Raise what is nearest to the cause of all that was heard."""
    count = len(workers)
    failures = [worker.failure for worker in workers if worker.failure is not None]
    for failure in failures:
        if failure.error is not None:
            raise failure.error
    again = "Run it again: it goes on from the last epoch that was finished"
    for worker in workers:
        if worker.is_over and worker.outcome is None and worker.failure is None:
            raise TrainingError(
                f"process {worker.rank} of {count} {_how_it_ended(worker.process.exitcode)}",
                remedy=f"{again}. If the memory was short, use fewer processes",
            )
    for failure in failures:
        if not failure.lost:
            raise RuntimeError(f"in a process of the training:\n{failure.traceback}")
    behind = [rank for rank in range(count) if beats[rank] == min(beats)]
    named = " and ".join(map(str, behind)) if len(behind) < count else "one"
    raise TrainingError(
        f"process {named} of {count} (from 0) did not answer the others for {timeout:g} s, or they lost it",
        remedy=again,
    )


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _check_devices(accelerator: str, count: int) -> None:
    if find_spec("lightning_fabric") is None:
        raise MissingDependencyError(
            "several processes need Lightning Fabric", remedy='pip install "kdpipe[distributed]"'
        )
    device = choose_device(accelerator)
    if device.type == "mps":
        raise DeviceError("an mps device can't be shared by several processes", remedy="Set `accelerator: cpu`")
    if device.type == "cuda":
        import torch

        if torch.cuda.device_count() < count:
            raise DeviceError(
                f"{count} processes for {torch.cuda.device_count()} GPUs", remedy="Give each a GPU, or fewer processes"
            )
