"""This machine: the exported C sources, compiled natively and called in this process."""

from __future__ import annotations

import ctypes
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.c.cores import GENERIC
from kdpipe.targets.devices.base import Measurement
from kdpipe.targets.devices.c_artifact import CArtifact, load_c_artifact
from kdpipe.targets.devices.c_compiler import compile_c, native_compiler
from kdpipe.targets.errors import DeviceError

_LIBRARY = {"win32": "model.dll", "darwin": "model.dylib"}.get(sys.platform, "model.so")
_TRACE_SOURCE = """
#include "model.h"

typedef void (*trace_function)(int layer, const int8_t *data, int32_t size);
static trace_function traced;

{export} void kdpipe_set_trace(trace_function function)
{{
    traced = function;
}}

void {name}_trace(int layer, const int8_t *data, int32_t size)
{{
    traced(layer, data, size);
}}
"""
_EXPORTED = "__declspec(dllexport)" if sys.platform == "win32" else ""
_PointerToInt8 = ctypes.POINTER(ctypes.c_int8)
_TraceCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, _PointerToInt8, ctypes.c_int32)


def create() -> HostC:
    """Return this machine as a device for C sources."""
    return HostC()


@dataclass(frozen=True)
class HostC:
    """Compiles the C sources with the machine's own compiler and times each inference."""

    @property
    def formats(self) -> tuple[str, ...]:
        """C sources."""
        return ("c",)

    def measure(
        self, artifact: Path, inputs: NDArray[np.int8], progress: Callable[[int, int], None] | None = None
    ) -> Measurement:
        """Run the compiled sources on each of `inputs`; see `Device.measure`."""
        sources = load_c_artifact(artifact, GENERIC)
        packed = sources.pack_inputs(inputs)
        outputs = np.empty((len(packed), sources.output_size), dtype=np.int8)
        latencies = []
        with _library(sources, traced=False) as library:
            run = _run_function(library, sources)
            for index, row in enumerate(packed):
                start = time.perf_counter_ns()
                status = run(_pointer(row), _pointer(outputs[index]))
                latencies.append((time.perf_counter_ns() - start) / 1e6)
                _check_status(status, sources, index)
                if progress is not None:
                    progress(index + 1, len(packed))
        return Measurement(outputs=sources.unpack_outputs(outputs), latency_ms=tuple(latencies))

    def trace(self, artifact: Path, inputs: NDArray[np.int8], *, fused: bool = True) -> dict[str, NDArray[np.int8]]:
        """Run sources that show each layer's output; see `Device.trace`. Every tensor but the input is there."""
        sources = load_c_artifact(artifact, GENERIC)
        packed = sources.pack_inputs(inputs)
        output = np.empty(sources.output_size, dtype=np.int8)
        recorded: list[list[NDArray[np.int8]]] = []

        def record(layer: int, data: Any, size: int) -> None:
            recorded[-1].append(np.ctypeslib.as_array(data, shape=(size,)).copy())

        with _library(sources, traced=True) as library:
            run = _run_function(library, sources)
            callback = _TraceCallback(record)
            library.kdpipe_set_trace(callback)
            for index, row in enumerate(packed):
                recorded.append([])
                _check_status(run(_pointer(row), _pointer(output)), sources, index)
        return sources.unpack_trace(recorded)


@contextmanager
def _library(sources: CArtifact, *, traced: bool) -> Iterator[ctypes.CDLL]:
    """Compile and load a shared library; its file is removed afterwards (on Windows, where it can be)."""
    with tempfile.TemporaryDirectory(prefix="kdpipe-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        files = [str(path.resolve()) for path in sources.sources]
        if traced:
            text = _TRACE_SOURCE.format(name=sources.name, export=_EXPORTED)
            (directory / "trace.c").write_text(text, encoding="utf-8")
            files.append("trace.c")
        definitions = [f"-D{key}={value}" for key, value in sources.definitions(traced=traced).items()]
        exported = ["-Wl,--export-all-symbols"] if sys.platform == "win32" else ["-fPIC"]
        include = ["-I", str(sources.include.resolve())]
        command = [*native_compiler(), "-std=c99", "-O2", "-shared", *exported, *definitions, *include]
        compile_c([*command, *files, "-o", _LIBRARY], directory)
        try:
            library = ctypes.CDLL(str(directory / _LIBRARY))
        except OSError as error:
            raise DeviceError(f"the compiled sources can't be loaded ({error})", where=str(sources.directory)) from None
        yield library


def _run_function(library: ctypes.CDLL, sources: CArtifact) -> Callable[[Any, Any], int]:
    try:
        run = library[f"{sources.name}_run"]
    except AttributeError:
        raise DeviceError(f"the sources lack {sources.name}_run", where=str(sources.directory)) from None
    run.argtypes = [_PointerToInt8, _PointerToInt8]
    run.restype = ctypes.c_int
    function: Callable[[Any, Any], int] = run
    return function


def _pointer(values: NDArray[np.int8]) -> Any:
    return values.ctypes.data_as(_PointerToInt8)


def _check_status(status: int, sources: CArtifact, index: int) -> None:
    if status != 0:
        raise DeviceError(f"the network returned error {status}", where=f"{sources.directory}, sample {index}")
