"""The targets that an integer graph can be written for, by name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe.targets.c.cores import GENERIC
from kdpipe.targets.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from kdpipe.targets.graph import IntegerGraph

    ExportFunction = Callable[..., list[Path]]


@dataclass(frozen=True)
class Exporter:
    """One target.

    Args:
        summary: one line for `kdpipe ls targets`.
        function: where it is written, as "module:function"; imported when it is used.
        has_cores: whether the function takes the name of a core.
    """

    summary: str
    function: str
    has_cores: bool = False

    def export(self, graph: IntegerGraph, directory: Path, core: str = GENERIC) -> list[Path]:
        """Write `graph` and artifact.json into an existing, empty directory, and return the files.

        Args:
            graph: the network.
            directory: where to write.
            core: what C sources are for, a name of `targets/c/cores.py`; other targets take no notice.

        Raises:
            UsageError: there is no such core.
            UnsupportedError: a layer can't be expressed; nothing has been written.
            MissingDependencyError: the target's package is not installed.
            StorageError: the directory can't be written.
        """
        module, name = self.function.split(":")
        function: ExportFunction = getattr(import_module(module), name)
        return function(graph, directory, core) if self.has_cores else function(graph, directory)

    def operators(self) -> frozenset[type]:
        """Return the operators of the integer graph that it can write: `OPERATORS` of the function's module."""
        operators: frozenset[type] = import_module(self.function.split(":")[0]).OPERATORS
        return operators


EXPORTERS: Registry[Exporter] = Registry("target")
for _name, _exporter in {
    "onnx": Exporter("ONNX, QDQ form, weights at 2, 4 or 8 bits", "kdpipe.targets.onnx:export"),
    "openvino": Exporter("OpenVINO IR, weights at 2, 4 or 8 bits", "kdpipe.targets.openvino:export"),
    "tflite": Exporter("TensorFlow Lite, int8, weights at 4 or 8 bits", "kdpipe.targets.tflite:export"),
    "c": Exporter(
        "C99 sources for microcontrollers, weights at 2, 4 or 8 bits", "kdpipe.targets.c.generator:export", True
    ),
}.items():
    EXPORTERS.register(_name)(_exporter)
