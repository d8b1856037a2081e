"""What is written needs no heap, no floating point, of the C library only memcpy and memset, and keeps no state."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from kdpipe.targets.c.generator import export
from kdpipe.targets.devices import firmware
from kdpipe.targets.devices.c_compiler import compile_c, zig_compiler

pytest.importorskip("ziglang")
pytest.importorskip("elftools")

CPUS = {
    "cortex-m0plus": "cortex_m0plus",
    "cortex-m3": "cortex_m3",
    "cortex-m4": "cortex_m4",
    "generic": "cortex_m0plus",
}
C_LIBRARY = Path(firmware.__file__).parent / "firmware_sources" / "include"
ALLOWED = re.compile(
    r"memcpy|memset|__aeabi_mem(cpy|set|clr)[48]?"
    # multiplications, divisions and shifts of integers that the core has no instruction for
    r"|__aeabi_(lmul|idiv|uidiv|idivmod|uidivmod|ldivmod|uldivmod|llsl|llsr|lasr)"
)


def symbols(path: Path) -> tuple[set[str], set[str], set[str]]:
    """Return the names that an object file defines, those it asks for, and those of its variables."""
    from elftools.elf.constants import SH_FLAGS
    from elftools.elf.elffile import ELFFile

    defined, wanted, variables = set(), set(), set()
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        for symbol in elf.get_section_by_name(".symtab").iter_symbols():
            section = symbol["st_shndx"]
            if not symbol.name or section == "SHN_ABS":
                continue
            (wanted if section == "SHN_UNDEF" else defined).add(symbol.name)
            is_object = isinstance(section, int) and symbol["st_info"]["type"] == "STT_OBJECT"
            if is_object and elf.get_section(section)["sh_flags"] & SH_FLAGS.SHF_WRITE:
                variables.add(symbol.name)
    return defined, wanted, variables


def build(directory: Path, cpu: str) -> tuple[set[str], set[str]]:
    """Return what an export asks of others, and its variables."""
    sources = ["model.c", "model_weights.c", *(f"kernels/{path.name}" for path in directory.glob("kernels/*.[cS]"))]
    command = [*zig_compiler(), "-target", "thumb-freestanding-eabi", f"-mcpu={cpu}", "-O2", "-fno-sanitize=all"]
    # as for any firmware: no tables for exceptions, which C has none of
    command += ["-fno-unwind-tables", "-fno-asynchronous-unwind-tables"]
    options = ["-DKEYWORD_NO_STATIC_ARENA", "-I.", "-I", str(C_LIBRARY), "-r", "-nostdlib", "-o", "all.o"]
    compile_c([*command, *options, *sources], directory)
    defined, wanted, variables = symbols(directory / "all.o")
    assert "keyword_run_in" in defined
    return wanted - defined, variables


@pytest.mark.parametrize(
    ("core", "seed"), [("generic", 3), ("cortex-m0plus", 12), ("cortex-m3", 52), ("cortex-m4", 41)]
)
def test_nothing_else_is_needed_and_no_state_is_kept(core: str, seed: int, random_graph, tmp_path: Path) -> None:
    export(replace(random_graph(seed), name="keyword"), tmp_path, core)
    wanted, variables = build(tmp_path, CPUS[core])
    assert [name for name in sorted(wanted) if not ALLOWED.fullmatch(name)] == []
    assert variables == set()


def test_floating_point_and_variables_would_be_found(random_graph, tmp_path: Path) -> None:
    export(replace(random_graph(3), name="keyword"), tmp_path)
    planted = "static int calls;\nfloat planted(float x);\nfloat planted(float x) { return x * (float)++calls; }\n"
    (tmp_path / "model.c").write_text((tmp_path / "model.c").read_text() + planted)
    wanted, variables = build(tmp_path, "cortex_m0plus")
    assert "__aeabi_fmul" in wanted
    assert variables == {"calls"}
