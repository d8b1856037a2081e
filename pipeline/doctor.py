"""What is installed here: runtimes, compilers and emulators with their versions, and how to get the missing ones."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class Finding:
    """One thing that kdpipe can use.

    Args:
        name: of the distribution or program.
        purpose: what it is used for.
        version: as it says itself, or None when it is missing.
        needed: whether kdpipe can't do without it.
        remedy: how to get it.
    """

    name: str
    purpose: str
    version: str | None
    needed: bool
    remedy: str


@dataclass(frozen=True)
class _Package:
    name: str
    purpose: str
    extra: str | None = None


_PACKAGES = (
    _Package("numpy", "the integer reference"),
    _Package("torch", "training"),
    _Package("scikit-learn", "the digits data"),
    _Package("pillow", "reads image files", "images"),
    _Package("onnx", "writes ONNX", "onnx"),
    _Package("onnxruntime", "runs ONNX", "onnx"),
    _Package("openvino", "writes and runs OpenVINO IR", "openvino"),
    _Package("ai-edge-litert", "writes and runs TFLite", "tflite"),
    _Package("lightning-fabric", "training in several processes", "distributed"),
    _Package("torchvision", "more networks", "vision"),
    _Package("timm", "more networks", "vision"),
    _Package("ziglang", "compiles C for microcontrollers and for this machine", "mcu"),
    _Package("unicorn", "emulates Cortex-M", "mcu"),
    _Package("pyelftools", "reads firmware", "mcu"),
    _Package("capstone", "disassembles firmware for cycle estimates", "mcu"),
)

_PROGRAMS = (
    ("gcc", "compiles the exported C for this machine", "Install GCC or Clang; kdpipe[mcu] brings zig instead"),
    ("clang", "compiles the exported C for this machine", "Install GCC or Clang; kdpipe[mcu] brings zig instead"),
    ("arm-none-eabi-gcc", "a second compiler for Cortex-M", "Debian: apt install gcc-arm-none-eabi"),
    ("qemu-system-arm", "a second emulator of Cortex-M", "Debian: apt install qemu-system-arm"),
    ("cmake", "builds the exported C project and its tests", "pip install cmake"),
)


def examine() -> Iterator[Finding]:
    """Yield what is here and what is missing. Nothing is imported; each program is asked for its version."""
    for package in _PACKAGES:
        remedy = f'pip install "kdpipe[{package.extra}]"' if package.extra else "pip install kdpipe"
        yield Finding(package.name, package.purpose, _installed(package.name), package.extra is None, remedy)
    for program, purpose, remedy in _PROGRAMS:
        yield Finding(program, purpose, _program_version(program), False, remedy)


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _program_version(program: str) -> str | None:
    """Return the first line that a program prints about its version, or None when it is missing or broken."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - a program of a fixed name, found on the user's PATH
            [path, "--version"], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None
