"""One of the processes that `kdpipe.stages.training.processes` starts. Importing this imports no torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import MutableSequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from kdpipe.stages.base import Inputs, Outcome
from kdpipe.targets.errors import KdpipeError


@dataclass(frozen=True)
class Place:
    """What a process knows of the stage's context without asking."""

    rank: int
    count: int
    seed: int
    accelerator: str
    threads: int | None
    folder: Path


@dataclass(frozen=True)
class Failure:
    """Why a process did not finish: an error that users can read, or a traceback; `lost` if it only missed another."""

    error: KdpipeError | OSError | MemoryError | ImportError | None
    traceback: str = ""
    lost: bool = False


class RemoteContext:
    """The stage's context in another process: a kdpipe.stages.base.StageContext. Only the first process is heard."""

    def __init__(self, place: Place, pipe: Connection) -> None:
        self._place = place
        self._pipe = pipe
        self.seed = place.seed
        self.accelerator = place.accelerator
        self.threads = place.threads

    def output(self, name: str) -> Path:
        """Return the directory that the output is written into: of all but the first process one to throw away."""
        if not self._place.rank:
            return self._ask("output", name)
        path = self._place.folder / str(self._place.rank) / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def file(self, path: str) -> Path:
        """Return a file that the parameters name as an absolute path."""
        return self._ask("file", path)

    def scratch(self) -> Path:
        """Return the directory that survives a kill; only the first process may write there."""
        return self._ask("scratch")

    def progress(self, done: int, total: int, unit: str = "epoch", **metrics: float) -> None:
        """Say how far the first process is."""
        if not self._place.rank:
            self._pipe.send(("progress", (done, total, unit), metrics))

    def log(self, message: str) -> None:
        """Write a line of the first process."""
        if not self._place.rank:
            self._pipe.send(("log", (message,), {}))

    def _ask(self, name: str, *arguments: str) -> Path:
        self._pipe.send((name, arguments, {}))
        answer: Path = self._pipe.recv()
        return answer


def run(
    pipe: Connection,
    place: Place,
    work: str,
    params: Any,
    inputs: Inputs,
    timeout: float,
    beats: MutableSequence[int],
) -> None:
    """Be one of the processes: do the work, and send what came of it.

    Args:
        pipe: to the process that started this one.
        place: what this process is.
        work: "module:function".
        params: of the stage.
        inputs: of the stage.
        timeout: seconds that a process waits for another.
        beats: by rank, see Replica.
    """
    # a loss may leave parameters out, so that DistributedDataParallel looks for them, and warns where there are none
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # it wants a 1x1 kernel's gradient in the one of two equal orders that the kernel is in
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted parent ends its processes itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from kdpipe.stages.training.device import limited_threads
    from kdpipe.stages.training.replica import join

    module, _, name = work.partition(":")
    threads = place.threads or max(1, (os.cpu_count() or 1) // place.count)
    try:
        meeting = place.folder / "meeting"
        parallel = join(place.rank, place.count, place.accelerator, meeting, timedelta(seconds=timeout), beats)
        with limited_threads(threads):
            result: Outcome | Failure = getattr(import_module(module), name)(
                params, inputs, RemoteContext(place, pipe), parallel
            )
    except (KdpipeError, OSError, MemoryError, ImportError) as error:
        result = Failure(error)
    except Exception as error:
        result = Failure(None, traceback.format_exc(), lost=_is_lost(error))
    pipe.send(result)


def _is_lost(error: Exception) -> bool:
    """Return whether an error comes from an operation that another process took no part in."""
    import torch

    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()


def _end_with_parent() -> None:
    """Leave when the process that started this one is gone, even by a kill: nobody would end the training."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        sys.stderr.flush()
        os._exit(1)
