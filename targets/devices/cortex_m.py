"""Emulated Cortex-M microcontrollers: the exported C sources, cross-compiled and run to the bit by unicorn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.devices.base import LayerCost, Measurement
from kdpipe.targets.devices.c_artifact import CArtifact, load_c_artifact
from kdpipe.targets.devices.execution_count import Cost, mean_cost, total_cost
from kdpipe.targets.devices.firmware import STACK_BYTES, Firmware, build_firmware
from kdpipe.targets.devices.sample_runs import Emulation, Fault, run_samples
from kdpipe.targets.devices.unicorn_machine import MachineFaultError
from kdpipe.targets.errors import DeviceError, UsageError, did_you_mean

CORES = {
    "cortex-m0plus": ("cortex_m0plus", "M0"),
    "cortex-m3": ("cortex_m3", "M3"),
    "cortex-m4": ("cortex_m4", "M4"),
    "cortex-m7": ("cortex_m7", "M7"),
    "cortex-m33": ("cortex_m33+dsp", "M33"),
}
"""By core, what the compiler and the emulator call it. (Unicorn has no M0+; an M0 runs the same instructions.)"""

_SECONDS_TO_FIND_LAYER = 10.0


def create(core: str, workers: int = 1) -> CortexM:
    """Return the emulated `core`, one of `CORES`, whose inputs `workers` processes share.

    Raises:
        UsageError: there is no such core.
    """
    if core not in CORES:
        raise UsageError(f"unknown core {core!r}", remedy=did_you_mean(core, CORES))
    return CortexM(core, workers=workers)


@dataclass(frozen=True)
class CortexM:
    """An emulated microcontroller.

    Args:
        core: one of `CORES`.
        counted_samples: on how many of the inputs, spread evenly, instructions and cycles are counted (their mean is
            reported). Counting slows the emulator down, and runs differ by a few branches only.
        instruction_limit: how many instructions a counted inference may take before it is given up as not returning.
        seconds_limit: how long any inference may take on the wall clock.
        workers: processes that share the inputs.
        stack_bytes: size of the stack, a multiple of 8.
    """

    core: str
    counted_samples: int = 8
    instruction_limit: int = 2_000_000_000
    seconds_limit: float = 120.0
    workers: int = 1
    stack_bytes: int = STACK_BYTES

    @property
    def formats(self) -> tuple[str, ...]:
        """C sources."""
        return ("c",)

    def measure(
        self, artifact: Path, inputs: NDArray[np.int8], progress: Callable[[int, int], None] | None = None
    ) -> Measurement:
        """Build the firmware and run it on each of `inputs`; see `Device.measure`.

        Flash is code, constants and initial data of the whole firmware, RAM its static data (the arena, the input and
        the output among it) and the stack's high-water mark.
        """
        return self.measure_sources(load_c_artifact(artifact, self.core), inputs, progress)

    def measure_sources(
        self, sources: CArtifact, inputs: NDArray[np.int8], progress: Callable[[int, int], None] | None = None
    ) -> Measurement:
        """Do what `measure` does with sources that need not be an export of this project."""
        packed = sources.pack_inputs(inputs)
        count = len(packed)
        counted = {int(index) for index in np.linspace(0, count - 1, min(count, self.counted_samples))}
        emulation = self._emulation(sources, self.seconds_limit)
        runs = run_samples(emulation, packed, counted=counted, workers=self.workers, progress=progress)
        if isinstance(runs, Fault):
            layer = self._find_layer(sources, packed[runs.sample].tobytes())
            raise self._error(runs.reason, runs.address, emulation.firmware, f"sample {runs.sample}", layer)
        firmware = emulation.firmware
        mean = mean_cost(runs.costs)
        return Measurement(
            outputs=sources.unpack_outputs(runs.outputs),
            instructions=mean.instructions,
            cycles=mean.cycles,
            sample_cycles=tuple(cost.cycles for cost in runs.costs if cost.cycles is not None),
            layers=_layer_costs(sources, mean),
            flash_bytes=firmware.flash_bytes,
            ram_bytes=firmware.static_ram_bytes + runs.stack_bytes,
        )

    def trace(self, artifact: Path, inputs: NDArray[np.int8], *, fused: bool = True) -> dict[str, NDArray[np.int8]]:
        """Run a firmware that shows each layer's output; see `Device.trace`. Every tensor but the input is there."""
        sources = load_c_artifact(artifact, self.core)
        packed = sources.pack_inputs(inputs)
        emulation = self._emulation(sources, self.seconds_limit, traced=True)
        machine = emulation.machine()
        recorded: list[list[NDArray[np.int8]]] = []
        for index, row in enumerate(packed):
            layers: list[NDArray[np.int8]] = []
            try:
                machine.run_traced(
                    row.tobytes(),
                    sources.output_size,
                    f"{sources.name}_trace",
                    lambda _, data, layers=layers: layers.append(data),  # type: ignore[misc]
                )
            except MachineFaultError as fault:
                layer = sources.layer_after(len(layers))
                where = f"sample {index}"
                raise self._error(fault.reason, fault.address, emulation.firmware, where, layer) from None
            recorded.append(layers)
        return sources.unpack_trace(recorded)

    def _emulation(self, sources: CArtifact, seconds_limit: float, *, traced: bool = False) -> Emulation:
        compiler_name, emulator_name = CORES[self.core]
        with tempfile.TemporaryDirectory(prefix="kdpipe-", ignore_cleanup_errors=True) as directory:
            firmware = build_firmware(
                sources, compiler_name, Path(directory), traced=traced, stack_bytes=self.stack_bytes
            )
        return Emulation(
            firmware,
            self.core,
            emulator_name,
            sources.output_size,
            sources.program_functions,
            self.instruction_limit,
            seconds_limit,
        )

    def _find_layer(self, sources: CArtifact, values: bytes) -> str | None:
        """Return the name of the layer in which the program stops on the input `values`, where it can be told."""
        finished: list[int] = []
        if not sources.layers:
            return None
        try:
            seconds = min(self.seconds_limit, _SECONDS_TO_FIND_LAYER)
            self._emulation(sources, seconds, traced=True).machine().run_traced(
                values, sources.output_size, f"{sources.name}_trace", lambda layer, _: finished.append(layer)
            )
        except MachineFaultError:
            return sources.layer_after(len(finished))
        except DeviceError:
            pass
        return None

    def _error(self, reason: str, address: int, firmware: Firmware, sample: str, layer: str | None) -> DeviceError:
        function = firmware.function_at(address)
        inside = f" in {function}" if function else ""
        return DeviceError(
            f"the firmware stopped at {address:#010x}{inside}: {reason}",
            where=f"{sample}, layer {layer}" if layer else sample,
            remedy=f"The exported C sources are damaged, or need more than the {self.stack_bytes // 1024} KiB of stack",
        )


def _layer_costs(sources: CArtifact, mean: Cost) -> tuple[LayerCost, ...] | None:
    """Return what each layer that calls a kernel takes, or None where the compiler left another number of calls."""
    if len(sources.calls) != len(mean.calls):
        return None
    costs: dict[int, list[Cost]] = {number: [] for number, layer in enumerate(sources.layers) if layer.call}
    for number, cost in zip(sources.calls, mean.calls, strict=True):
        costs[number].append(cost)
    totals = [(sources.layers[number], total_cost(parts)) for number, parts in costs.items()]
    return tuple(
        LayerCost(layer.name, total.instructions, total.cycles, layer.constant_bytes, layer.live_bytes)
        for layer, total in totals
    )
