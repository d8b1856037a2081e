"""The targets that an integer graph can be written for, by name, with the options that each has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe.targets.c import layouts
from kdpipe.targets.c.cores import NAMES
from kdpipe.targets.c.optimization import NAMES as OPTIMIZATIONS
from kdpipe.targets.errors import UnsupportedError, UsageError, did_you_mean
from kdpipe.targets.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from kdpipe.targets.graph import IntegerGraph

    ExportFunction = Callable[..., list[Path]]


@dataclass(frozen=True)
class Option:
    """A choice that a target offers.

    Args:
        summary: one line on what it chooses.
        choices: the values; the first is what is taken if nothing is said.
    """

    summary: str
    choices: tuple[str, ...]


CORE = Option("what the sources are for", NAMES)
LAYOUT = Option("plain sources, an Arduino library or a Zephyr module", layouts.NAMES)
BENCH = Option("whether a program that prints each layer's cycles on a board is written too", layouts.BENCHES)
OPTIMIZE = Option("whether ternary weights lie as is fastest, or in 2 bits and fewer", OPTIMIZATIONS)
WEIGHTS = Option(
    "weights of 2 to 4 bits packed, or all as int8 for readers that know nothing narrower", ("packed", "int8")
)
IO = Option("the elements of the file's input and output", ("int8", "float32"))


@dataclass(frozen=True)
class Exporter:
    """One target.

    Args:
        name: of the target.
        summary: one line for `kdpipe ls targets`.
        function: where it is written, as "module:function"; imported when it is used.
        options: what can be chosen, by the name of the function's parameter.
    """

    name: str
    summary: str
    function: str
    options: Mapping[str, Option] = field(default_factory=dict)

    def export(self, graph: IntegerGraph, directory: Path, **options: str) -> list[Path]:
        """Write `graph` and artifact.json into an existing, empty directory, and return the files.

        Args:
            graph: the network.
            directory: where to write.
            options: choices by option; the defaults for those not given.

        Raises:
            UsageError: the target has no such option or choice.
            UnsupportedError: a layer can't be expressed; nothing has been written.
            MissingDependencyError: the target's package is not installed.
            StorageError: the directory can't be written.
        """
        self.check(options)
        module, name = self.function.split(":")
        function: ExportFunction = getattr(import_module(module), name)
        return function(graph, directory, **options)

    def check(self, options: Mapping[str, str]) -> None:
        """Raise unless the target has these options and choices.

        Raises:
            UsageError: naming the first that it hasn't.
        """
        for name, choice in options.items():
            if name not in self.options:
                having = [target for target in EXPORTERS if name in EXPORTERS[target].options]
                raise UsageError(
                    f"{self.name} has no option {name}",
                    remedy=f"Leave it out; {' and '.join(having)} can take it" if having else "Leave it out",
                )
            if choice not in self.options[name].choices:
                raise UsageError(
                    f"{self.name} has no {name} {choice!r}", remedy=did_you_mean(choice, self.options[name].choices)
                )

    def stored_bits(self) -> tuple[Mapping[int, int], Mapping[int, int]]:
        """Return the widths at which it packs convolutions' weights and linear layers', by the widths they have.

        Raises:
            UnsupportedError: the width depends on the layer, as in C sources.
        """
        module = import_module(self.function.split(":")[0])
        if "core" in self.options:
            raise UnsupportedError("the width at which C sources store weights depends on the core and the layer")
        convolutions: Mapping[int, int] = module.STORED_BITS["packed"]
        return convolutions, getattr(module, "LINEAR_STORED_BITS", convolutions)

    def operators(self) -> frozenset[type]:
        """Return the operators of the integer graph that it can write: `OPERATORS` of the function's module."""
        operators: frozenset[type] = import_module(self.function.split(":")[0]).OPERATORS
        return operators


EXPORTERS: Registry[Exporter] = Registry("target")
for _exporter in (
    Exporter("onnx", "ONNX, QDQ form, weights at 2, 4 or 8 bits", "kdpipe.targets.onnx:export", {"weights": WEIGHTS}),
    Exporter("openvino", "OpenVINO IR, weights at 2, 4 or 8 bits", "kdpipe.targets.openvino:export"),
    Exporter(
        "tflite",
        "TensorFlow Lite, int8, weights at 4 or 8 bits",
        "kdpipe.targets.tflite:export",
        {"weights": WEIGHTS, "io": IO},
    ),
    Exporter(
        "c",
        "C99 sources for microcontrollers, weights at 2, 4 or 8 bits",
        "kdpipe.targets.c.generator:export",
        {"core": CORE, "layout": LAYOUT, "bench": BENCH, "optimize": OPTIMIZE},
    ),
):
    EXPORTERS.register(_exporter.name)(_exporter)
