"""Many inferences of one firmware on an emulated core, in this process or side by side in several."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.devices.cycle_model import CYCLE_MODELS
from kdpipe.targets.devices.execution_count import Cost
from kdpipe.targets.devices.firmware import Firmware
from kdpipe.targets.devices.unicorn_machine import MachineFaultError, UnicornMachine

_CHUNKS_A_WORKER = 8
"""Shares of the work for each process: enough to see progress and to end together."""


@dataclass(frozen=True)
class Emulation:
    """A firmware and the core it runs on, as it can be handed to another process.

    Args:
        firmware: the image.
        core: its name in `CYCLE_MODELS`, where it has a model.
        model: unicorn's name of it.
        output_size: bytes of the network's output.
        program: the functions whose calls are told apart.
        instruction_limit: how many instructions a counted inference may take.
        seconds_limit: how long any inference may take on the wall clock.
    """

    firmware: Firmware
    core: str
    model: str
    output_size: int
    program: tuple[str, ...]
    instruction_limit: int
    seconds_limit: float

    def machine(self) -> UnicornMachine:
        """Return the core with the firmware in its memory.

        Raises:
            MissingDependencyError: unicorn is not installed.
            DeviceError: the firmware does not start.
        """
        return UnicornMachine(
            self.firmware,
            self.model,
            CYCLE_MODELS.get(self.core),
            instruction_limit=self.instruction_limit,
            seconds_limit=self.seconds_limit,
        )


@dataclass(frozen=True)
class Fault:
    """Where and why an inference stopped.

    Args:
        sample: the input's index.
        address: of the instruction.
        reason: what happened, as a clause.
    """

    sample: int
    address: int
    reason: str


@dataclass(frozen=True, eq=False)
class SampleRuns:
    """What the inferences gave.

    Args:
        outputs: as they lie in memory, int8 [N, size].
        costs: of the counted inferences, in their order.
        stack_bytes: the stack's high-water mark over all of them.
    """

    outputs: NDArray[np.int8]
    costs: tuple[Cost, ...]
    stack_bytes: int


def run_samples(
    emulation: Emulation,
    inputs: NDArray[np.int8],
    *,
    counted: Collection[int],
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> SampleRuns | Fault:
    """Run the network on each of `inputs`.

    Args:
        emulation: what runs.
        inputs: as they lie in memory, int8 [N, size].
        counted: indices of those whose instructions are counted.
        workers: processes to run them in; 1 runs them in this one.
        progress: called as progress(done, N).

    Returns:
        What they gave, or the first fault.
    """
    count = len(inputs)
    runs: list[SampleRuns] = []
    for index, found in enumerate(_run_chunks(emulation, inputs, counted, min(workers, count))):
        if isinstance(found, Fault):
            return found
        runs.append(found)
        if progress is not None:
            progress(index + 1 if workers == 1 else sum(len(run.outputs) for run in runs), count)
    return SampleRuns(
        np.concatenate([run.outputs for run in runs]),
        tuple(cost for run in runs for cost in run.costs),
        max(run.stack_bytes for run in runs),
    )


def _run_chunks(
    emulation: Emulation, inputs: NDArray[np.int8], counted: Collection[int], workers: int
) -> Iterator[SampleRuns | Fault]:
    if workers == 1:
        machine = emulation.machine()
        for index in range(len(inputs)):
            yield _run_on(machine, emulation, inputs[index : index + 1], index, index in counted)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    size = -(-len(inputs) // (workers * _CHUNKS_A_WORKER))
    # spawned, not forked: torch's and the runtimes' threads do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        tasks = [
            pool.submit(_run_chunk, emulation, inputs[start : start + size], start, frozenset(counted))
            for start in range(0, len(inputs), size)
        ]
        try:
            for task in tasks:
                yield task.result()
        finally:
            for task in tasks:
                task.cancel()


def _run_chunk(
    emulation: Emulation, inputs: NDArray[np.int8], start: int, counted: frozenset[int]
) -> SampleRuns | Fault:
    machine = emulation.machine()
    runs = []
    for index in range(len(inputs)):
        found = _run_on(machine, emulation, inputs[index : index + 1], start + index, start + index in counted)
        if isinstance(found, Fault):
            return found
        runs.append(found)
    costs = tuple(cost for run in runs for cost in run.costs)
    return SampleRuns(np.concatenate([run.outputs for run in runs]), costs, machine.stack_bytes())


def _run_on(
    machine: UnicornMachine, emulation: Emulation, sample: NDArray[np.int8], index: int, counted: bool
) -> SampleRuns | Fault:
    costs: tuple[Cost, ...] = ()
    try:
        if counted:
            output, cost = machine.run_counted(sample.tobytes(), emulation.output_size, emulation.program)
            costs = (cost,)
        else:
            output = machine.run(sample.tobytes(), emulation.output_size)
    except MachineFaultError as fault:
        return Fault(index, fault.address, fault.reason)
    return SampleRuns(np.frombuffer(output, dtype=np.int8)[None], costs, machine.stack_bytes())
