"""An exported network as a firmware image: built for a Cortex-M core, and read back from its ELF file."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdpipe.targets.c.cores import FPU
from kdpipe.targets.devices.c_artifact import CArtifact
from kdpipe.targets.devices.c_compiler import compile_c, zig_compiler
from kdpipe.targets.errors import DeviceError, MissingDependencyError

_FIRMWARE = Path(__file__).parent / "firmware_sources"
_FLAGS = [
    *("-std=gnu99", "-O2", "-g0"),
    *("-fomit-frame-pointer", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables", "-fno-stack-protector"),
    *("-ffunction-sections", "-fdata-sections", "-fno-sanitize=all"),
]
STACK_BYTES = 0x4000


@dataclass(frozen=True, eq=False)
class Firmware:
    """A linked image.

    Args:
        segments: bytes to load, by physical address.
        symbols: addresses by name; those of functions without the Thumb bit.
        functions: (address, name) of each function, sorted.
        function_sizes: bytes of each function by name.
        stack: first address of the stack, and the first one beyond it.
        memories: flash and RAM of the machine that it was linked for, as addresses.
        flash_bytes: code, constants and the initial values of data.
        static_ram_bytes: initialized and zeroed data, without the stack.
    """

    segments: tuple[tuple[int, bytes], ...]
    symbols: Mapping[str, int]
    functions: tuple[tuple[int, str], ...]
    function_sizes: Mapping[str, int]
    stack: tuple[int, int]
    memories: tuple[range, range]
    flash_bytes: int
    static_ram_bytes: int

    def function_at(self, address: int) -> str | None:
        """Return the name of the function that `address` lies in or behind, or None before the first."""
        index = bisect_right(self.functions, (address, "\U0010ffff")) - 1
        return self.functions[index][1] if index >= 0 else None

    def function_range(self, name: str) -> range:
        """Return the addresses of the function `name`, none if it is not in the image."""
        start = self.symbols.get(name, 0)
        return range(start, start + self.function_sizes.get(name, 0))


def build_firmware(
    artifact: CArtifact, cpu: str, directory: Path, *, traced: bool = False, stack_bytes: int = STACK_BYTES
) -> Firmware:
    """Compile and link `artifact` with start-up code.

    Args:
        artifact: the exported sources.
        cpu: as the compiler names it: "cortex_m4".
        directory: an empty directory for the build.
        traced: whether to call a function after each layer, with its number, output and size.
        stack_bytes: size of the stack, a multiple of 8.

    Raises:
        DeviceError: the sources do not compile or do not fit.
        MissingDependencyError: ziglang or pyelftools is not installed.
    """
    compiler = [*zig_compiler(), "-target", "thumb-freestanding-eabi", f"-mcpu={cpu}"]
    return link_firmware(artifact, compiler, directory, traced=traced, stack_bytes=stack_bytes)


def link_firmware(
    artifact: CArtifact,
    compiler: Sequence[str],
    directory: Path,
    *,
    traced: bool = False,
    memories: tuple[range, range] | None = None,
    semihosting: bool = False,
    stack_bytes: int = STACK_BYTES,
) -> Firmware:
    """As `build_firmware`, with any compiler and for any machine; leaves firmware.elf in `directory`.

    Args:
        artifact: the exported sources.
        compiler: the command of the compiler, with the options that choose the core.
        directory: an empty directory for the build.
        traced: whether to call a function after each layer, with its number, output and size.
        memories: addresses of the machine's flash and RAM, or None for roomy ones.
        semihosting: whether the firmware reads its inputs and writes its outputs by itself.
        stack_bytes: size of the stack, a multiple of 8.
    """
    upper = artifact.name.upper()
    definitions = {
        "FIRMWARE_STACK_BYTES": str(stack_bytes),
        "FIRMWARE_RUN": f"{artifact.name}_run",
        "FIRMWARE_INPUT_SIZE": f"{upper}_INPUT_SIZE",
        "FIRMWARE_OUTPUT_SIZE": f"{upper}_OUTPUT_SIZE",
        **({"FIRMWARE_TRACE": f"{artifact.name}_trace"} if traced else {}),
        **({"FIRMWARE_FPU": "1"} if FPU in artifact.needs else {}),
        **({"FIRMWARE_SEMIHOSTING": "1"} if semihosting else {}),
        **artifact.definitions(traced=traced),
    }
    command = [*compiler, *_FLAGS, *(f"-D{name}={value}" for name, value in definitions.items())]
    command += ["-I", str(artifact.include.resolve()), "-I", str(_FIRMWARE / "include")]
    # string.c alone must not have its loops recognized as the functions they define.
    compile_c([*command, "-fno-builtin", "-Os", "-c", str(_FIRMWARE / "string.c"), "-o", "string.o"], directory)
    sources = [*artifact.sources, _FIRMWARE / "main.c", *([_FIRMWARE / "semihosting.c"] if semihosting else [])]
    script = (_FIRMWARE / "memory.ld").read_text(encoding="utf-8")
    (directory / "memory.ld").write_text(_with_memories(script, memories), encoding="utf-8")
    linker = ["-Wl,--gc-sections", "-T", "memory.ld", "-o", "firmware.elf"]
    compile_c([*command, *(str(path.resolve()) for path in sources), "string.o", *linker], directory)
    return read_firmware(directory / "firmware.elf")


def _with_memories(script: str, memories: tuple[range, range] | None) -> str:
    if memories is None:
        return script
    named = zip(("FLASH (rx)", "RAM (rwx)"), memories, strict=True)
    lines = [f"    {name} : ORIGIN = {memory.start:#x}, LENGTH = {len(memory):#x}\n" for name, memory in named]
    return re.sub(r"(?<=^MEMORY\n\{\n).*?(?=^\})", "".join(lines), script, count=1, flags=re.DOTALL | re.MULTILINE)


def read_firmware(path: Path) -> Firmware:
    """Read a linked image.

    Raises:
        DeviceError: the file is not one of this project's firmware images.
        MissingDependencyError: pyelftools is not installed.
    """
    try:
        from elftools.common.exceptions import ELFError
        from elftools.elf.constants import SH_FLAGS
        from elftools.elf.elffile import ELFFile
    except ImportError:
        raise MissingDependencyError(
            "pyelftools, which reads firmware images, is not installed",
            remedy='Install it with: pip install "kdpipe[mcu]"',
        ) from None
    try:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            segments = tuple(
                (int(segment["p_paddr"]), bytes(segment.data()))
                for segment in elf.iter_segments("PT_LOAD")
                if segment["p_filesz"] > 0
            )
            flash, ram = 0, 0
            for section in elf.iter_sections():
                if not section["sh_flags"] & SH_FLAGS.SHF_ALLOC or section.name == ".stack":
                    continue
                if section["sh_type"] != "SHT_NOBITS":
                    flash += int(section["sh_size"])
                if section["sh_flags"] & SH_FLAGS.SHF_WRITE:
                    ram += int(section["sh_size"])
            table = elf.get_section_by_name(".symtab")
            entries = [
                (symbol.name, int(symbol["st_value"]), int(symbol["st_size"]), symbol["st_info"]["type"] == "STT_FUNC")
                for symbol in table.iter_symbols()
                if symbol.name and symbol["st_shndx"] != "SHN_UNDEF"
            ]
    except (ELFError, OSError, AttributeError) as error:
        raise DeviceError(f"not a readable firmware image ({error})", where=str(path)) from None
    symbols = {name: value & ~1 if function else value for name, value, _, function in entries}
    functions = tuple(sorted((value & ~1, name) for name, value, _, function in entries if function))
    function_sizes = {name: size for name, _, size, function in entries if function}
    stack = (symbols["firmware_stack_bottom"], symbols["firmware_stack_top"])
    memories = (
        range(symbols["firmware_flash_start"], symbols["firmware_flash_end"]),
        range(symbols["firmware_ram_start"], symbols["firmware_ram_end"]),
    )
    return Firmware(segments, symbols, functions, function_sizes, stack, memories, flash, ram)
