"""Emulated Cortex-M microcontrollers: the exported C sources, cross-compiled and run to the bit by unicorn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.devices.base import Measurement
from kdpipe.targets.devices.c_artifact import CArtifact, load_c_artifact
from kdpipe.targets.devices.cycle_model import CYCLE_MODELS
from kdpipe.targets.devices.firmware import STACK_BYTES, Firmware, build_firmware
from kdpipe.targets.devices.unicorn_machine import Cost, MachineFaultError, UnicornMachine
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


def create(core: str) -> CortexM:
    """Return the emulated `core`, one of `CORES`.

    Raises:
        UsageError: there is no such core.
    """
    if core not in CORES:
        raise UsageError(f"unknown core {core!r}", remedy=did_you_mean(core, CORES))
    return CortexM(core)


@dataclass(frozen=True)
class CortexM:
    """An emulated microcontroller.

    Args:
        core: one of `CORES`.
        counted_samples: on how many of the inputs, spread evenly, instructions and cycles are counted (their mean is
            reported). Counting slows the emulator down, and runs differ by a few branches only.
        instruction_limit: how many instructions a counted inference may take before it is given up as not returning.
        seconds_limit: how long any inference may take on the wall clock.
    """

    core: str
    counted_samples: int = 8
    instruction_limit: int = 2_000_000_000
    seconds_limit: float = 120.0

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
        sources = load_c_artifact(artifact, self.core)
        packed = sources.pack_inputs(inputs)
        count = len(packed)
        counted = {int(index) for index in np.linspace(0, count - 1, min(count, self.counted_samples))}
        outputs = np.empty((count, sources.output_size), dtype=np.int8)
        costs: list[Cost] = []
        with tempfile.TemporaryDirectory(prefix="kdpipe-", ignore_cleanup_errors=True) as directory:
            firmware = build_firmware(sources, CORES[self.core][0], Path(directory))
        machine = self._machine(firmware, self.seconds_limit)
        for index in range(count):
            values = packed[index].tobytes()
            try:
                if index in counted:
                    output, cost = machine.run_counted(values, sources.output_size)
                    costs.append(cost)
                else:
                    output = machine.run(values, sources.output_size)
            except MachineFaultError as fault:
                layer = self._find_layer(sources, values)
                raise _device_error(fault, firmware, f"sample {index}", layer) from None
            outputs[index] = np.frombuffer(output, dtype=np.int8)
            if progress is not None:
                progress(index + 1, count)
        cycles = [cost.cycles for cost in costs if cost.cycles is not None]
        return Measurement(
            outputs=sources.unpack_outputs(outputs),
            instructions=round(np.mean([cost.instructions for cost in costs])) if costs else None,
            cycles=round(np.mean(cycles)) if cycles else None,
            flash_bytes=firmware.flash_bytes,
            ram_bytes=firmware.static_ram_bytes + machine.stack_bytes(),
        )

    def trace(self, artifact: Path, inputs: NDArray[np.int8]) -> dict[str, NDArray[np.int8]]:
        """Run a firmware that shows each layer's output; see `Device.trace`. Every tensor but the input is there."""
        sources = load_c_artifact(artifact, self.core)
        packed = sources.pack_inputs(inputs)
        firmware, machine = self._traced(sources, self.seconds_limit)
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
                layer = sources.layers[len(layers)].name if len(layers) < len(sources.layers) else None
                raise _device_error(fault, firmware, f"sample {index}", layer) from None
            recorded.append(layers)
        return sources.unpack_trace(recorded)

    def _machine(self, firmware: Firmware, seconds_limit: float) -> UnicornMachine:
        return UnicornMachine(
            firmware,
            CORES[self.core][1],
            CYCLE_MODELS.get(self.core),
            instruction_limit=self.instruction_limit,
            seconds_limit=seconds_limit,
        )

    def _traced(self, sources: CArtifact, seconds_limit: float) -> tuple[Firmware, UnicornMachine]:
        with tempfile.TemporaryDirectory(prefix="kdpipe-", ignore_cleanup_errors=True) as directory:
            firmware = build_firmware(sources, CORES[self.core][0], Path(directory), traced=True)
        return firmware, self._machine(firmware, seconds_limit)

    def _find_layer(self, sources: CArtifact, values: bytes) -> str | None:
        """Return the name of the layer in which the program stops on the input `values`, where it can be told."""
        finished: list[int] = []
        try:
            _, machine = self._traced(sources, min(self.seconds_limit, _SECONDS_TO_FIND_LAYER))
            machine.run_traced(
                values, sources.output_size, f"{sources.name}_trace", lambda layer, _: finished.append(layer)
            )
        except MachineFaultError:
            if len(finished) < len(sources.layers):
                return sources.layers[len(finished)].name
        except DeviceError:
            pass
        return None


def _device_error(fault: MachineFaultError, firmware: Firmware, sample: str, layer: str | None) -> DeviceError:
    function = firmware.function_at(fault.address)
    inside = f" in {function}" if function else ""
    return DeviceError(
        f"the firmware stopped at {fault.address:#010x}{inside}: {fault.reason}",
        where=f"{sample}, layer {layer}" if layer else sample,
        remedy=f"The exported C sources are damaged, or need more than the {STACK_BYTES // 1024} KiB of stack",
    )
