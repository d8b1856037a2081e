"""Cortex-M microcontrollers emulated by QEMU, compiled for by arm-none-eabi-gcc: a second opinion on `cortex_m`.

Neither comes with pip. The firmware reads its inputs and writes its outputs itself, by semihosting. Instructions are
SysTick's ticks: with `-icount shift=0` QEMU's clock goes on by a nanosecond an instruction.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.devices.base import Measurement
from kdpipe.targets.devices.c_artifact import CArtifact, load_c_artifact
from kdpipe.targets.devices.firmware import STACK_BYTES, Firmware, link_firmware
from kdpipe.targets.errors import DeviceError, MissingDependencyError, UsageError, did_you_mean

COMPILER, EMULATOR = "arm-none-eabi-gcc", "qemu-system-arm"
_PACKAGES = {COMPILER: "gcc-arm-none-eabi", EMULATOR: "qemu-system-arm"}


@dataclass(frozen=True)
class Board:
    """A machine of QEMU's.

    Args:
        core: of `targets/c/cores.py`.
        machine: QEMU's name of it.
        compiler_options: that choose the core.
        memories: addresses of what serves as flash and as RAM.
        clock_mhz: of SysTick.
    """

    core: str
    machine: str
    compiler_options: tuple[str, ...]
    memories: tuple[range, range]
    clock_mhz: float


# Static RAM of 4 MiB each; memories tightly coupled to the core of 512 KiB each.
_MPS2 = (range(0, 4 << 20), range(0x20000000, 0x20000000 + (4 << 20)))
_MPS3 = (range(0, 512 << 10), range(0x20000000, 0x20000000 + (512 << 10)))
_SOFT = "-mfloat-abi=soft"
BOARDS = {
    "qemu-cortex-m3": Board("cortex-m3", "mps2-an385", ("-mcpu=cortex-m3", _SOFT), _MPS2, 25),
    "qemu-cortex-m4": Board("cortex-m4", "mps2-an386", ("-mcpu=cortex-m4", _SOFT), _MPS2, 25),
    "qemu-cortex-m7": Board("cortex-m7", "mps2-an500", ("-mcpu=cortex-m7", _SOFT), _MPS2, 25),
    "qemu-cortex-m55": Board("cortex-m55", "mps3-an547", ("-mcpu=cortex-m55", "-mfloat-abi=hard"), _MPS3, 32),
}
"""By the device's name."""


def create(name: str, workers: int = 1) -> QemuCortexM:
    """Return the emulated board `name`, one of `BOARDS`, whose inputs `workers` processes share.

    Raises:
        UsageError: there is no such board.
    """
    if name not in BOARDS:
        raise UsageError(f"unknown device {name!r}", remedy=did_you_mean(name, BOARDS))
    return QemuCortexM(BOARDS[name], workers=workers)


@dataclass(frozen=True)
class QemuCortexM:
    """A microcontroller emulated by QEMU.

    Args:
        board: what is emulated.
        workers: processes that share the inputs.
        seconds_limit: how long an inference may take on the wall clock, on average.
        start_seconds: what all of them together may take beyond that.
    """

    board: Board
    workers: int = 1
    seconds_limit: float = 60.0
    start_seconds: float = 30.0

    @property
    def formats(self) -> tuple[str, ...]:
        """C sources."""
        return ("c",)

    def measure(
        self, artifact: Path, inputs: NDArray[np.int8], progress: Callable[[int, int], None] | None = None
    ) -> Measurement:
        """Build the firmware and run it on each of `inputs`; see `Device.measure`.

        Instructions are exact to a tick of SysTick for each input: 32 to 40. There is no model of cycles, and layers
        are not told apart.
        """
        sources = load_c_artifact(artifact, self.board.core)
        packed = sources.pack_inputs(inputs)
        shares = [share for share in np.array_split(packed, min(self.workers, len(packed))) if len(share)]
        done = 0
        with tempfile.TemporaryDirectory(prefix="kdpipe-", ignore_cleanup_errors=True) as directory:
            firmware = self.build(sources, Path(directory))
            places = [Path(directory) / str(index) for index in range(len(shares))]
            records = []
            with ThreadPoolExecutor(len(shares)) as pool:
                for record in pool.map(lambda place, share: self.run(sources, firmware, place, share), places, shares):
                    records.append(record)
                    done += len(record)
                    if progress is not None:
                        progress(done, len(packed))
        found = np.concatenate(records)
        instructions = found["ticks"].astype(np.int64).mean() * 1000 / self.board.clock_mhz
        return Measurement(
            outputs=sources.unpack_outputs(found["output"]),
            instructions=round(float(instructions)),
            flash_bytes=firmware.flash_bytes,
            ram_bytes=firmware.static_ram_bytes + int(found["stack"].max()),
        )

    def trace(self, artifact: Path, inputs: NDArray[np.int8]) -> dict[str, NDArray[np.int8]]:
        """Run a firmware that writes each layer's output; see `Device.trace`. Every tensor but the input is there."""
        sources = load_c_artifact(artifact, self.board.core)
        packed = sources.pack_inputs(inputs)
        with tempfile.TemporaryDirectory(prefix="kdpipe-", ignore_cleanup_errors=True) as directory:
            firmware = self.build(sources, Path(directory), traced=True)
            self.run(sources, firmware, Path(directory) / "run", packed)
            stream = (Path(directory) / "run" / "trace.bin").read_bytes()
        recorded: list[list[NDArray[np.int8]]] = []
        offset = 0
        while offset < len(stream):
            _, size = np.frombuffer(stream, "<i4", 2, offset)
            if not recorded or len(recorded[-1]) == len(sources.turns):
                recorded.append([])
            recorded[-1].append(np.frombuffer(stream, np.int8, size, offset + 8))
            offset += 8 + int(size)
        return sources.unpack_trace(recorded)

    def build(self, sources: CArtifact, directory: Path, *, traced: bool = False) -> Firmware:
        """Compile and link the firmware; leaves firmware.elf in `directory`.

        Raises:
            DeviceError: the sources do not compile or do not fit.
            MissingDependencyError: the compiler or pyelftools is not installed.
        """
        return link_firmware(
            sources, self.compiler(), directory, traced=traced, memories=self.board.memories, semihosting=True
        )

    def compiler(self) -> list[str]:
        """Return the command that compiles for the board's core.

        Raises:
            MissingDependencyError: the compiler is not installed.
        """
        # Freestanding, because there may be no C library; its functions are the builtins all the same.
        flags = ["-mthumb", "-ffreestanding", "-fbuiltin", "-nostdlib"]
        return [_program(COMPILER), *self.board.compiler_options, *flags]

    def run(
        self, sources: CArtifact, firmware: Firmware, directory: Path, packed: NDArray[np.int8]
    ) -> NDArray[np.void]:
        """Run a built firmware on inputs.

        Args:
            sources: what it was built of.
            firmware: what `build` returned.
            directory: a directory of its own below the build's; made here.
            packed: the inputs as they lie in its memory, int8 [N, input size].

        Returns:
            A record for each input: output, status, ticks (of SysTick) and stack (bytes).

        Raises:
            DeviceError: it faulted, reported an error or did not return in time.
            MissingDependencyError: the emulator is not installed.
        """
        directory.mkdir()
        (directory / "inputs.bin").write_bytes(packed.tobytes())
        command = [_program(EMULATOR), "-machine", self.board.machine, "-kernel", "../firmware.elf"]
        command += ["-semihosting-config", "enable=on,target=native", "-icount", "shift=0"]
        command += ["-nographic", "-monitor", "none", "-serial", "none"]
        limit = self.start_seconds + self.seconds_limit * len(packed)
        try:
            result = subprocess.run(  # noqa: S603 - a program of a fixed name, found on the user's PATH
                command,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DeviceError(f"the firmware did not return within {limit:g} s", where=self.board.machine) from None
        except OSError as error:
            raise DeviceError(f"{EMULATOR} can't be run ({error})") from None
        kind = np.dtype(
            [("output", np.int8, (sources.output_size,)), ("status", "<u4"), ("ticks", "<u4"), ("stack", "<u4")]
        )
        outputs = directory / "outputs.bin"
        stream = outputs.read_bytes() if outputs.exists() else b""
        records: NDArray[np.void] = np.frombuffer(stream, kind, len(stream) // kind.itemsize)
        sample = f"sample {len(records)} of {len(packed)}"
        fault = directory / "fault.bin"
        if fault.exists():
            address = int.from_bytes(fault.read_bytes(), "little")
            function = firmware.function_at(address)
            raise DeviceError(
                f"the firmware stopped at {address:#010x}{f' in {function}' if function else ''}: a fault of the core",
                where=sample,
                remedy=f"The exported C sources are damaged, or need more than the {STACK_BYTES // 1024} KiB of stack",
            )
        if result.returncode != 0 or len(records) != len(packed):
            said = (result.stderr.strip() or f"exit code {result.returncode}")[-2000:]
            raise DeviceError(f"{EMULATOR} stopped: {said}", where=sample)
        if failed := np.flatnonzero(records["status"]).tolist():
            status = int(records["status"][failed[0]])
            raise DeviceError(f"the network returned error {status}", where=f"sample {failed[0]}")
        return records


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise MissingDependencyError(
            f"{name} is not on the PATH", remedy=f"Install it; on Debian and Ubuntu: apt install {_PACKAGES[name]}"
        )
    return path
