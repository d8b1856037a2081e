"""A loaded model on a runtime of this machine, and how every such model is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.devices.base import Measurement
from kdpipe.targets.errors import DeviceError

THREADS = 1
"""Threads of each runtime: latencies are those of one core, as they would be beside an application's other work."""

BATCH = 64
WARM_UP_RUNS = 10
TIMED_RUNS = 100


class Session(Protocol):
    """A model that a runtime has loaded. What is around the inference is kept apart, so that only it is timed."""

    def prepare(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """Turn stored integers [N, C, H, W] into what the model's input takes."""
        ...

    def infer(self, prepared: NDArray[Any]) -> NDArray[Any]:
        """Run the model."""
        ...

    def store(self, raw: NDArray[Any]) -> NDArray[np.int8]:
        """Turn what the model's output gives into stored integers, channels first."""
        ...


def read_model_file(path: Path) -> bytes:
    """Return the bytes of a model's file.

    Raises:
        DeviceError: it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DeviceError(f"the model can't be read ({error.strerror})", where=str(path)) from None


def measure_session(
    session: Session, inputs: NDArray[Any], progress: Callable[[int, int], None] | None = None
) -> Measurement:
    """Run every input in batches, then time up to `TIMED_RUNS` of them one by one, after a warm-up.

    Args:
        session: the model.
        inputs: stored integers, int8 [N, C, H, W], N at least 1; for a float network, what its `prepare` takes.
        progress: called as progress(done, N).
    """
    outputs = []
    for start in range(0, len(inputs), BATCH):
        batch = inputs[start : start + BATCH]
        outputs.append(session.store(session.infer(session.prepare(batch))))
        if progress is not None:
            progress(min(start + BATCH, len(inputs)), len(inputs))
    singles = [session.prepare(inputs[index : index + 1]) for index in range(min(len(inputs), TIMED_RUNS))]
    for run in range(WARM_UP_RUNS):
        session.infer(singles[run % len(singles)])
    return Measurement(np.concatenate(outputs), tuple(_milliseconds(session, single) for single in singles))


def _milliseconds(session: Session, prepared: NDArray[Any]) -> float:
    start = time.perf_counter_ns()
    session.infer(prepared)
    return (time.perf_counter_ns() - start) / 1e6
