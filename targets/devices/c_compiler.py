"""C compilers: ziglang's clang for microcontrollers, the machine's own one for itself."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kdpipe.targets.errors import DeviceError, MissingDependencyError

_TIMEOUT_SECONDS = 600
"""Of a machine that is not overloaded."""
_NATIVE_COMPILERS = ("cc", "gcc", "clang")


def zig_compiler() -> list[str]:
    """Return the command of ziglang's C compiler.

    Raises:
        MissingDependencyError: ziglang is not installed.
    """
    if importlib.util.find_spec("ziglang") is None:
        raise MissingDependencyError(
            "the cross-compiler ziglang is not installed", remedy='Install it with: pip install "kdpipe[mcu]"'
        )
    return [sys.executable, "-m", "ziglang", "cc"]


def native_compiler() -> list[str]:
    """Return the command of a C compiler for this machine: the first of cc, gcc and clang on the PATH, else ziglang's.

    Raises:
        MissingDependencyError: there is none.
    """
    for name in _NATIVE_COMPILERS:
        path = shutil.which(name)
        if path is not None:
            return [path]
    try:
        return zig_compiler()
    except MissingDependencyError:
        raise MissingDependencyError(
            f"no C compiler: none of {', '.join(_NATIVE_COMPILERS)} is on the PATH and ziglang is not installed",
            remedy='Install one, or: pip install "kdpipe[mcu]"',
        ) from None


def _timeout_seconds() -> float:
    """Return how long a compiler may take: longer where more programs want the processors than there are."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return _TIMEOUT_SECONDS * max(1.0, load / (os.cpu_count() or 1))


def compile_c(command: Sequence[str], directory: Path) -> None:
    """Run a compiler; its own caches go to `directory`.

    Raises:
        DeviceError: it failed; the message has what it said.
    """
    name = "ziglang" if "ziglang" in command[:3] else Path(command[0]).name
    environment = {**os.environ, "ZIG_LOCAL_CACHE_DIR": str(directory / "zig-cache")}
    if not os.access(Path.home(), os.W_OK):
        environment.setdefault("ZIG_GLOBAL_CACHE_DIR", str(directory / "zig-global-cache"))
    timeout = _timeout_seconds()
    try:
        result = subprocess.run(  # noqa: S603
            list(command),
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"the C compiler {name} did not finish in {timeout:.0f} s") from None
    except OSError as error:
        raise DeviceError(f"the C compiler {name} can't be run ({error})") from None
    if result.returncode != 0:
        said = result.stderr.strip() or result.stdout.strip() or f"exit code {result.returncode}"
        raise DeviceError(f"the C compiler {name} failed:\n{said[-4000:]}")
