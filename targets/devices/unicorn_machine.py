"""A Cortex-M in unicorn: loads a firmware image once and runs it many times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.devices.cycle_model import BlockCost, BlockCosts, CycleModel
from kdpipe.targets.devices.execution_count import Block, Cost, ExecutionCount
from kdpipe.targets.devices.firmware import Firmware
from kdpipe.targets.errors import DeviceError, MissingDependencyError

_SYSTEM_CONTROL = range(0xE000E000, 0xE000F000)
"""Where start-up code switches the FPU on. Unicorn has it on from the start: plain memory does."""
_PAINT = 0xA5
TraceFunction = Callable[[int, NDArray[np.int8]], None]


class MachineFaultError(Exception):
    """The program faulted, or did not return.

    Args:
        reason: what happened, as a clause.
        address: of the instruction.
    """

    def __init__(self, reason: str, address: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.address = address


class UnicornMachine:
    """An emulated core with a firmware in its memory, reset and idle.

    Args:
        firmware: the image.
        model: unicorn's name of the core: "M4".
        cycle_model: for estimates, or None.
        instruction_limit: how many instructions a counted run may take.
        seconds_limit: how long any run may take on the wall clock.

    Raises:
        MissingDependencyError: unicorn is not installed.
        DeviceError: the firmware does not reach its idle loop.
    """

    def __init__(
        self,
        firmware: Firmware,
        model: str,
        cycle_model: CycleModel | None,
        *,
        instruction_limit: int,
        seconds_limit: float,
    ) -> None:
        try:
            import unicorn
            from unicorn import arm_const
        except ImportError:
            raise MissingDependencyError(
                "the emulator unicorn is not installed", remedy='Install it with: pip install "kdpipe[mcu]"'
            ) from None
        self._unicorn, self._registers = unicorn, arm_const
        self._firmware = firmware
        self._costs = BlockCosts(cycle_model)
        self._cycle_model = cycle_model
        self._known_blocks: dict[Block, BlockCost] = {}
        self._instruction_limit = instruction_limit
        self._microseconds = int(seconds_limit * 1e6)
        self._invalid_access: int | None = None
        self._machine = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
        self._machine.ctl_set_cpu_model(getattr(arm_const, f"UC_CPU_ARM_CORTEX_{model}"))
        for memory in (*firmware.memories, _SYSTEM_CONTROL):
            self._machine.mem_map(memory.start, len(memory))
        for address, content in firmware.segments:
            self._machine.mem_write(address, content)
        self._machine.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._on_invalid_access)
        self._reset()

    def run(self, values: bytes, output_size: int) -> bytes:
        """Run the network once on `values` and return its output.

        Raises:
            MachineFaultError: it faulted, reported an error or did not return in time.
        """
        machine, symbols, registers = self._machine, self._firmware.symbols, self._registers
        machine.mem_write(symbols["firmware_input"], values)
        machine.reg_write(registers.UC_ARM_REG_SP, self._firmware.stack[1])
        machine.reg_write(registers.UC_ARM_REG_LR, symbols["firmware_idle"] | 1)
        self._start(symbols["firmware_infer"])
        status = machine.reg_read(registers.UC_ARM_REG_R0)
        if status != 0:
            raise MachineFaultError(f"the network returned error {status}", symbols["firmware_infer"])
        return bytes(machine.mem_read(symbols["firmware_output"], output_size))

    def run_counted(self, values: bytes, output_size: int, program: Sequence[str] = ()) -> tuple[bytes, Cost]:
        """As `run`, with what it cost; slower by a callback for each basic block.

        Args:
            values: as in `run`.
            output_size: as in `run`.
            program: names of the functions whose calls are told apart in `Cost.calls`.
        """
        taken_branch = None if self._cycle_model is None else self._cycle_model.taken_branch
        ranges = [self._firmware.function_range(name) for name in program]
        count = ExecutionCount(self._block_cost, taken_branch, ranges)

        def on_block(machine: object, address: int, size: int, user_data: object) -> None:
            count.enter((address, size))
            if count.instructions > self._instruction_limit:
                self._machine.emu_stop()

        try:
            with self._hooked(self._unicorn.UC_HOOK_BLOCK, on_block):
                output = self.run(values, output_size)
        except MachineFaultError as fault:
            if count.instructions > self._instruction_limit:
                reason = f"did not return within {self._instruction_limit} instructions"
                raise MachineFaultError(reason, fault.address) from None
            raise
        return output, count.cost()

    def run_traced(self, values: bytes, output_size: int, trace_function: str, trace: TraceFunction) -> bytes:
        """As `run`, calling `trace(layer, output)` whenever the firmware calls its function `trace_function`."""
        machine, registers = self._machine, self._registers
        address = self._firmware.symbols[trace_function]

        def on_trace(machine_: object, address_: int, size_: int, user_data: object) -> None:
            layer, data, size = (
                machine.reg_read(register)
                for register in (registers.UC_ARM_REG_R0, registers.UC_ARM_REG_R1, registers.UC_ARM_REG_R2)
            )
            trace(layer, np.frombuffer(bytes(machine.mem_read(data, size)), dtype=np.int8))

        with self._hooked(self._unicorn.UC_HOOK_CODE, on_trace, begin=address, end=address):
            return self.run(values, output_size)

    def stack_bytes(self) -> int:
        """Return how much of the stack has been used so far, at most."""
        bottom, top = self._firmware.stack
        content = np.frombuffer(bytes(self._machine.mem_read(bottom, top - bottom)), dtype=np.uint8)
        used = np.flatnonzero(content != _PAINT)
        return int(top - bottom - used[0]) if used.size else 0

    @contextmanager
    def _hooked(self, kind: int, callback: Callable[..., None], **limits: int) -> Iterator[None]:
        """Call `callback` for every event of `kind` meanwhile."""
        hook = self._machine.hook_add(kind, callback, **limits)
        # Code that was translated before would run without the hook, or with it.
        self._machine.ctl_flush_tb()
        try:
            yield
        finally:
            self._machine.hook_del(hook)
            self._machine.ctl_flush_tb()

    def _reset(self) -> None:
        bottom, top = self._firmware.stack
        self._machine.mem_write(bottom, bytes([_PAINT]) * (top - bottom))
        self._machine.reg_write(self._registers.UC_ARM_REG_SP, top)
        try:
            self._start(self._firmware.symbols["firmware_reset"])
        except MachineFaultError as fault:
            raise DeviceError(f"the firmware does not start: {fault.reason}", where=f"{fault.address:#010x}") from None

    def _start(self, address: int) -> None:
        """Run from `address` to the idle loop."""
        idle = self._firmware.symbols["firmware_idle"]
        self._invalid_access = None
        try:
            self._machine.emu_start(address | 1, idle, timeout=self._microseconds)
        except self._unicorn.UcError as error:
            accessed = "" if self._invalid_access is None else f" at {self._invalid_access:#010x}"
            raise MachineFaultError(f"{str(error).lower()}{accessed}", self._program_counter()) from None
        if self._program_counter() != idle:
            reason = f"did not return within {self._microseconds / 1e6:g} s"
            raise MachineFaultError(reason, self._program_counter())

    def _program_counter(self) -> int:
        return int(self._machine.reg_read(self._registers.UC_ARM_REG_PC)) & ~1

    def _on_invalid_access(
        self, machine: object, access: int, address: int, size: int, value: int, user_data: object
    ) -> bool:
        self._invalid_access = address
        return False

    def _block_cost(self, block: Block) -> BlockCost:
        cost = self._known_blocks.get(block)
        if cost is None:
            address, size = block
            cost = self._known_blocks[block] = self._costs.cost(bytes(self._machine.mem_read(address, size)))
        return cost
