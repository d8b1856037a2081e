"""Instruction counts and cycles of hand-written instruction sequences (encodings checked with an assembler)."""

import pytest

from kdpipe.targets.devices.cycle_model import CYCLE_MODELS, BlockCosts

pytest.importorskip("capstone")

# Little-endian half-words, Armv7-M Thumb.
LDR_R0_R1 = "0868"  # ldr r0, [r1]
LDR_R2_R1 = "4a68"  # ldr r2, [r1, #4]
LDR_R3_R0 = "0368"  # ldr r3, [r0]
STR_R2_R1 = "0a60"  # str r2, [r1]
ADD = "4018"  # adds r0, r0, r1
PUSH_4 = "70b5"  # push {r4, r5, r6, lr}
POP_4 = "70bd"  # pop {r4, r5, r6, pc}
MUL = "4843"  # muls r0, r1
MLA = "01fb0230"  # mla r0, r1, r2, r3
UMLAL = "e2fb0301"  # umlal r0, r1, r2, r3
SDIV = "91fbf2f0"  # sdiv r0, r1, r2
LDRD = "d1e90023"  # ldrd r2, r3, [r1]
LDM = "0ec9"  # ldm r1!, {r1, r2, r3} without r1: {r1, r2, r3}
ITT = "04bf"  # itt eq
TBB = "d0e801f0"  # tbb [r0, r1]
BX_LR = "7047"  # bx lr
VMOV_R1_S8 = "14ee101a"  # vmov r1, s8
VMOV_S8_R1 = "04ee101a"  # vmov s8, r1
VMOV_F32 = "b0ee604a"  # vmov.f32 s8, s1
VMOV_TWO = "5cec141a"  # vmov r1, r12, s8, s9
VMOV_DOUBLE = "4cec141b"  # vmov d4, r1, r12


def _cost(core: str, *words: str) -> tuple[int, int | None]:
    cost = BlockCosts(CYCLE_MODELS.get(core)).cost(bytes.fromhex("".join(words)))
    return cost.instructions, cost.cycles


@pytest.mark.parametrize(
    ("words", "instructions", "cycles"),
    [
        ((ADD, ADD, ADD), 3, 3),
        ((LDR_R0_R1,), 1, 2),
        ((LDR_R0_R1, LDR_R2_R1), 2, 3),  # the second follows in the pipeline
        ((LDR_R0_R1, LDR_R3_R0), 2, 4),  # its address was just loaded
        ((LDR_R0_R1, ADD, LDR_R2_R1), 3, 5),
        ((STR_R2_R1, LDR_R0_R1), 2, 2),
        ((STR_R2_R1, STR_R2_R1), 2, 2),
        ((PUSH_4,), 1, 5),
        ((POP_4,), 1, 5),
        ((LDM,), 1, 4),
        ((LDRD,), 1, 3),
        ((MUL, MLA, UMLAL), 3, 3),
        ((SDIV,), 1, 7),
        ((ITT, ADD, ADD), 3, 3),
        ((TBB,), 1, 2),
        ((BX_LR,), 1, 1),
        ((VMOV_R1_S8, VMOV_S8_R1, VMOV_F32), 3, 3),
        ((VMOV_TWO, VMOV_DOUBLE), 2, 4),
    ],
)
def test_cortex_m4(words: tuple[str, ...], instructions: int, cycles: int) -> None:
    assert _cost("cortex-m4", *words) == (instructions, cycles)


def test_other_cores() -> None:
    assert _cost("cortex-m3", MLA, UMLAL) == (2, 6)
    assert _cost("cortex-m0plus", LDR_R0_R1, LDR_R2_R1, STR_R2_R1, MUL) == (4, 7)
    assert _cost("cortex-m7", LDR_R0_R1, UMLAL) == (2, None)
