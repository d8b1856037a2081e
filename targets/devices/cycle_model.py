"""Estimated cycles of Cortex-M cores: a static model of straight-line code, without flash wait states.

Source: the instruction timings in Arm's technical reference manuals (Cortex-M4, r0p1, section 3.3.1; Cortex-M3, r2p1,
section 18.2; Cortex-M0+, r0p1, section 3.3). A VMOV between core registers and those of the Cortex-M4's floating-point
unit takes two cycles for two registers (the manual's table of FPU instructions, as in TI SWCU192, table 3-27). For one
register it is counted as one, as others state who time code for this core (compendium.i-0.nl, "FPU registers"); that
table, as TI prints it, and GCC's model of the pipeline say two.

Boards that wait for their flash take longer: an STM32L4R5 at 120 MHz about 1.29 times as long as the Cortex-M4 model
says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdpipe.targets.errors import MissingDependencyError


@dataclass(frozen=True)
class CycleModel:
    """Cycles by kind of instruction; everything else takes one.

    Args:
        load: a load by itself.
        following_load: a load straight after another load or store that does not give it its address.
        store: a store.
        multiply_accumulate: MLA, MLS.
        long_multiply: multiplications with a result of 64 bits.
        divide: SDIV, UDIV.
        taken_branch: what a branch that is taken takes beside its one cycle (also a return or a call).
    """

    load: int
    following_load: int
    store: int
    multiply_accumulate: int
    long_multiply: int
    divide: int
    taken_branch: int


CYCLE_MODELS = {
    "cortex-m0plus": CycleModel(2, 2, 2, 1, 1, 1, 1),
    "cortex-m3": CycleModel(2, 1, 1, 2, 4, 7, 2),
    "cortex-m4": CycleModel(2, 1, 1, 1, 1, 7, 2),
}
"""By core. The others (caches, dual issue) have none: their cycles can't be told from the instructions alone."""


@dataclass(frozen=True)
class BlockCost:
    """What running once through a basic block costs, without leaving it by a taken branch."""

    instructions: int
    cycles: int | None


class BlockCosts:
    """Costs of basic blocks, from their code.

    Args:
        model: the core's, or None to count instructions only.

    Raises:
        MissingDependencyError: capstone is not installed.
    """

    def __init__(self, model: CycleModel | None) -> None:
        try:
            import capstone
        except ImportError:
            raise MissingDependencyError(
                "capstone, which counts instructions, is not installed",
                remedy='Install it with: pip install "kdpipe[mcu]"',
            ) from None
        self._model = model
        self._disassembler = capstone.Cs(capstone.CS_ARCH_ARM, capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS)
        self._disassembler.detail = model is not None

    def cost(self, code: bytes) -> BlockCost:
        """Return the cost of the instructions in `code` (Thumb)."""
        if self._model is None:
            return BlockCost(_count_instructions(code), None)
        instructions = list(self._disassembler.disasm(code, 0))
        return BlockCost(_count_instructions(code), _straight_line_cycles(instructions, self._model))


def _count_instructions(code: bytes) -> int:
    """Count Thumb instructions: a half-word that starts with 11101, 11110 or 11111 has a second one (Armv7-M, A5.1)."""
    position = count = 0
    while position < len(code):
        position += 4 if code[position + 1] >> 3 in (0b11101, 0b11110, 0b11111) else 2
        count += 1
    return count


_LOADS = {"ldr", "ldrb", "ldrh", "ldrsb", "ldrsh", "ldrt", "ldrex", "vldr"}
_STORES = {"str", "strb", "strh", "strt", "strex", "vstr"}
_PAIRS = {"ldrd", "strd"}
_MULTIPLE = {"ldm", "ldmdb", "stm", "stmdb", "push", "pop", "vldmia", "vldmdb", "vstmia", "vstmdb", "vpush", "vpop"}
_MULTIPLY_ACCUMULATE = {"mla", "mls"}
_LONG_MULTIPLY = {"umull", "umlal", "smull", "smlal", "umaal"}
_DIVIDE = {"sdiv", "udiv"}
_TABLE_BRANCH = {"tbb", "tbh"}
_ONE_MOVED = 2
"""Operands of a VMOV of one register; of two, it has three (a double and two of the core's) or four."""


def _straight_line_cycles(instructions: Sequence[Any], model: CycleModel) -> int:
    cycles = 0
    # Registers that the instruction before loaded, or None if it was not a load or store.
    loaded: set[int] | None = None
    for instruction in instructions:
        name = instruction.insn_name()
        if name in _LOADS:
            follows = loaded is not None and not (loaded & _address_registers(instruction))
            cycles += model.following_load if follows else model.load
            loaded = {instruction.operands[0].reg}
            continue
        if name in _STORES:
            cycles += model.store
            loaded = set()
            continue
        loaded = None
        if name in _PAIRS:
            cycles += 3
        elif name in _MULTIPLE:
            cycles += 1 + _transferred(name, instruction)
        elif name in _TABLE_BRANCH:
            cycles += model.load
        elif name in _MULTIPLY_ACCUMULATE:
            cycles += model.multiply_accumulate
        elif name in _LONG_MULTIPLY:
            cycles += model.long_multiply
        elif name in _DIVIDE:
            cycles += model.divide
        elif name == "vmov" and len(instruction.operands) > _ONE_MOVED:
            cycles += 2
        else:
            cycles += 1
    return cycles


def _address_registers(instruction: Any) -> set[int]:
    from capstone.arm import ARM_OP_MEM

    return {
        register
        for operand in instruction.operands
        if operand.type == ARM_OP_MEM
        for register in (operand.mem.base, operand.mem.index)
    }


def _transferred(name: str, instruction: Any) -> int:
    """Return how many registers a multiple load or store moves."""
    return len(instruction.operands) - (0 if name in ("push", "pop", "vpush", "vpop") else 1)
