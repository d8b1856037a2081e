"""The bench of an export, run on emulated cores whose counters count instructions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdpipe.targets.c.generator import export
from kdpipe.targets.devices import cortex_m
from kdpipe.targets.devices.bench_log import read_bench_log
from kdpipe.targets.devices.c_artifact import load_c_artifact
from kdpipe.targets.devices.c_compiler import compile_c, zig_compiler
from kdpipe.targets.devices.firmware import _FIRMWARE, _FLAGS, read_firmware
from kdpipe.targets.devices.unicorn_machine import UnicornMachine

unicorn = pytest.importorskip("unicorn")
pytest.importorskip("ziglang")

START = """
#include <string.h>
extern char firmware_bss_start[], firmware_bss_end[], firmware_stack_top[];
int main(void);
__attribute__((used, aligned(8), section(".bss.firmware_stack"))) char firmware_stack[16384];
__attribute__((used, retain)) char firmware_input[4], firmware_output[4];
__attribute__((used)) int firmware_infer(void) { return main(); }
__attribute__((used, noinline)) void firmware_idle(void) { for (;;) { __asm__ volatile("nop"); } }
__attribute__((used)) void firmware_reset(void)
{
    memset(firmware_bss_start, 0, (size_t)(firmware_bss_end - firmware_bss_start));
    firmware_idle();
}
__attribute__((used, section(".vectors"))) const void *const vectors[] = {firmware_stack_top, (void *)firmware_reset};
"""
COUNTERS = {"cortex-m4": 0xE0001000, "cortex-m0plus": 0xE000E000}


def run_bench(directory: Path, core: str, build: Path) -> str:
    """Return what the bench in `directory` prints by semihosting; a cycle is an instruction."""
    compiler_name, emulator_name = cortex_m.CORES[core]
    artifact = load_c_artifact(directory, core)
    (build / "start.c").write_text(START)
    compiler = [*zig_compiler(), "-target", "thumb-freestanding-eabi", f"-mcpu={compiler_name}", *_FLAGS]
    compiler += ["-DKEYWORD_TRACE", "-I", str(artifact.include), "-I", str(_FIRMWARE / "include")]
    compile_c([*compiler, "-fno-builtin", "-c", str(_FIRMWARE / "string.c"), "-o", "string.o"], build)
    sources = [*map(str, artifact.sources), str(directory / "bench" / "bench.c"), "start.c", "string.o"]
    warnings = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
    linker = ["-Wl,--gc-sections", "-T", str(_FIRMWARE / "memory.ld"), "-o", "bench.elf"]
    compile_c([*compiler, *warnings, *sources, *linker], build)
    machine = UnicornMachine(
        read_firmware(build / "bench.elf"), emulator_name, None, instruction_limit=10**9, seconds_limit=60
    )
    core_, registers = machine._machine, machine._registers
    printed, executed = bytearray(), 0

    def on_block(_: object, address: int, size: int, __: object) -> None:
        nonlocal executed
        executed += machine._block_cost((address, size)).instructions

    def on_interrupt(_: object, number: int, __: object) -> None:
        assert number == 7
        assert core_.reg_read(registers.UC_ARM_REG_R0) == 4
        printed.extend(core_.mem_read(core_.reg_read(registers.UC_ARM_REG_R1), 1))
        core_.reg_write(registers.UC_ARM_REG_PC, core_.reg_read(registers.UC_ARM_REG_PC) + 2 | 1)

    def read(_: object, offset: int, size: int, __: object) -> int:
        return {0x4: executed & 0xFFFFFFFF, 0x18: 0xFFFFFF - executed % 0x1000000}.get(offset, 0)

    def ignore(*_: Any) -> None:
        pass

    core_.mem_unmap(0xE000E000, 0x1000)
    core_.mmio_map(COUNTERS[core], 0x1000, read, None, ignore, None)
    if core == "cortex-m4":
        core_.mmio_map(0xE000E000, 0x1000, lambda *_: 0, None, ignore, None)
    core_.hook_add(unicorn.UC_HOOK_INTR, on_interrupt)
    with machine._hooked(unicorn.UC_HOOK_BLOCK, on_block):
        machine.run(b"", 1)
    return printed.decode()


@pytest.mark.parametrize("core", COUNTERS)
def test_what_it_prints_is_what_the_device_counts(core: str, random_graph, random_inputs, tmp_path: Path) -> None:
    graph = replace(random_graph(5, rounding="single"), name="keyword")
    directory, build = tmp_path / "c", tmp_path / "build"
    build.mkdir()
    export(graph, directory, "cortex-m4" if core == "cortex-m4" else "generic", bench="cycles")
    log = tmp_path / "log.txt"
    log.write_text("Open On-Chip Debugger\n" + run_bench(directory, core, build) + "halted\n")
    measured = read_bench_log(log)
    assert (measured.name, measured.runs) == ("keyword", 5)
    assert [name for name, _ in measured.cycles] == [node.name for node in graph.nodes]
    counted = cortex_m.create(core).measure(directory, random_inputs(graph, 2)).layers
    assert counted is not None
    cycles = dict(measured.cycles)
    for layer in counted:
        # a call of the trace, and what a few branches on other data make
        assert abs(cycles[layer.name] - layer.instructions) <= 60 + layer.instructions // 10, layer.name


def test_an_export_without_it_has_none(random_graph, tmp_path: Path) -> None:
    export(random_graph(5), tmp_path)
    assert not (tmp_path / "bench").exists()
