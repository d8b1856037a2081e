"""The options of the commands, and the words that they take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer


class Target(StrEnum):
    """The formats of `kdpipe export`."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    TFLITE = "tflite"
    C = "c"


class Core(StrEnum):
    """What C sources can be written for."""

    GENERIC = "generic"
    CORTEX_M0PLUS = "cortex-m0plus"
    CORTEX_M3 = "cortex-m3"
    CORTEX_M4 = "cortex-m4"
    CORTEX_M7 = "cortex-m7"
    CORTEX_M33 = "cortex-m33"
    CORTEX_M55 = "cortex-m55"


class Weights(StrEnum):
    """How exported files store weights of fewer than 8 bits."""

    PACKED = "packed"
    INT8 = "int8"


class Optimize(StrEnum):
    """What exported C sources are optimized for."""

    SPEED = "speed"
    SIZE = "size"


class Layout(StrEnum):
    """How exported C sources are arranged."""

    SOURCES = "sources"
    ARDUINO = "arduino"
    ZEPHYR = "zephyr"


class Elements(StrEnum):
    """What an exported file's input and output can be of."""

    INT8 = "int8"
    FLOAT32 = "float32"


class Listing(StrEnum):
    """What `kdpipe ls` lists."""

    STAGES = "stages"
    MODELS = "models"
    TARGETS = "targets"
    OPS = "ops"
    DEVICES = "devices"
    BOARDS = "boards"
    LOSSES = "losses"
    DATA = "data"


PipelineFile = Annotated[Path, typer.Argument(metavar="FILE", help="The pipeline file, such as pipeline.yaml.")]
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer before 0.16 reads no other form
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value, such as stages.student.epochs=3. Repeatable."),
]
OutOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--out", metavar="DIR", help="Where the report and the exports go. [default: runs/NAME]"),
]
OnlyOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--only", metavar="STAGE...", help="Only these stages and what they need."),
]
ForceOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--force", metavar="STAGE...", help="Run these stages whatever the store holds."),
]
StoreOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--store", metavar="DIR", help="Where artifacts are kept. [default: $KDPIPE_STORE or .kdpipe/store]"),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

CoreOption = Annotated[
    Optional[Core],  # noqa: UP045
    typer.Option("--core", help="c: what the sources are for. [default: generic]"),
]
WeightsOption = Annotated[
    Optional[Weights],  # noqa: UP045
    typer.Option("--weights", help="onnx, tflite: how weights of 2 to 4 bits are stored. [default: packed]"),
]
IoOption = Annotated[
    Optional[Elements],  # noqa: UP045
    typer.Option("--io", help="tflite: the elements of the file's input and output. [default: int8]"),
]
LayoutOption = Annotated[
    Optional[Layout],  # noqa: UP045
    typer.Option("--layout", help="c: how the files are arranged. [default: sources]"),
]
OptimizeOption = Annotated[
    Optional[Optimize],  # noqa: UP045
    typer.Option("--optimize", help="c: for size, ternary weights take 2 bits and fewer. [default: speed]"),
]
BenchOption = Annotated[
    bool, typer.Option("--bench", help="c: write a program too that prints each layer's cycles on a board.")
]
DataOption = Annotated[str, typer.Option("--data", help="A data source such as digits or digits.test, or a directory.")]
DeviceOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--device", help="Where to run it: see `kdpipe ls devices`. [default: the board's core, or host]"),
]
BoardOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--board", help="The board to estimate for: see `kdpipe ls boards`. Its memories are limits."),
]
BoardsOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--boards", metavar="FILE", help="Further boards, in the form of boards.toml."),
]
ClockOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--clock-mhz", min=1e-3, help="The core's clock, by which cycles become a latency."),
]
WaitStateOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--wait-state-factor", min=1.0, help="How many times as long as the cycle model says."),
]
ReferenceOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--reference", metavar="MODEL", help="The quantized model or QDQ ONNX file to compare with."),
]
BaselineOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--baseline", metavar="NETWORK", help="The network whose accuracy to compare with."),
]
SamplesOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--samples", min=1, help="How many images to run. [default: all; diff: 32]"),
]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Processes that share an emulator's images.")]
FlashLimit = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--flash-kib", min=0, help="The most flash, in KiB: exit code 1 beyond, as for all limits."),
]
RamLimit = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--ram-kib", min=0, help="The most RAM, stack included, in KiB."),
]
LatencyLimit = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--latency-ms", min=0, help="The longest median latency, in ms."),
]
AccuracyLimit = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--accuracy", min=0, max=1, help="The least accuracy, a fraction."),
]
MaxStepsOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--max-steps", min=0, help="By how many steps a layer may differ. [default: as the formats' rounding may]"
    ),
]
BenchLogsOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--bench", metavar="VALIDATION=LOG", help="What a bench printed on a board; repeatable."),
]
