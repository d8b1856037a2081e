"""Export: a quantized network written for each target, from one integer graph."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from kdpipe.stages.base import Accepts, Inputs, Outcome, Stage, StageContext, StageParams
from kdpipe.targets.c.cores import GENERIC, CoreName
from kdpipe.targets.c.layouts import Bench, Layout
from kdpipe.targets.c.optimization import SPEED, Optimization
from kdpipe.targets.errors import StorageError, UsageError
from kdpipe.targets.exporters import EXPORTERS

TargetName = Literal["onnx", "openvino", "tflite", "c"]


class ExportParams(StageParams):
    """Parameters of `export`."""

    graph: Annotated[str, Accepts("integer-graph"), Field(description="The quantized network.")]
    targets: tuple[TargetName, ...] = Field(
        ("onnx", "openvino", "tflite", "c"), min_length=1, description="What to write: an output of the stage for each."
    )
    core: CoreName = Field(
        GENERIC, description="c: what the sources are for. cortex-m4, m7, m33 and m55 have kernels of their own."
    )
    layout: Layout = Field("sources", description="c: plain sources, an Arduino library or a Zephyr module.")
    bench: Bench = Field(
        "none", description="c: `cycles` writes a program too that prints each layer's cycles on a board."
    )
    optimize: Optimization = Field(
        SPEED, description="c: `size` stores ternary weights in 2 bits and fewer, at the cost of time."
    )
    weights: Literal["packed", "int8"] = Field(
        "packed",
        description="onnx, tflite: weights of 2 to 4 bits packed, or all as int8 for readers that know nothing "
        "narrower.",
    )
    io: Literal["int8", "float32"] = Field("int8", description="tflite: the elements of the file's input and output.")

    @field_validator("targets")
    @classmethod
    def _named_once(cls, targets: tuple[TargetName, ...]) -> tuple[TargetName, ...]:
        if repeated := sorted({target for target in targets if targets.count(target) > 1}):
            raise ValueError(f"{', '.join(repeated)} is named twice")
        return targets

    @model_validator(mode="after")
    def _options_have_a_target(self) -> Self:
        for option in sorted(OPTIONS & self.model_fields_set):
            having = [target for target in EXPORTERS if option in EXPORTERS[target].options]
            if not set(having) & set(self.targets):
                raise ValueError(f"{option} is an option of {' and '.join(having)}, which the targets do not name")
        return self

    def options(self, target: str) -> dict[str, str]:
        """Return the options that `target` has, by name."""
        return {name: getattr(self, name) for name in EXPORTERS[target].options}


OPTIONS = frozenset({"core", "layout", "bench", "optimize", "weights", "io"})
"""The parameters that are options of targets; each holds for the targets that have it."""


def run(params: ExportParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Write the graph for each target into the output of that name."""
    from kdpipe.targets.artifact import read_artifact
    from kdpipe.targets.model_files import load_model

    graph = load_model(inputs["graph"].path)
    metrics: dict[str, float | int | str | bool] = {}
    for done, target in enumerate(params.targets):
        context.progress(done, len(params.targets), unit="target")
        directory = context.output(target)
        EXPORTERS[target].export(graph, directory, **params.options(target))
        artifact = read_artifact(directory)
        metrics[f"{target}_bytes"] = sum(size for _, size in artifact.sizes(directory))
        metrics[f"{target}_weight_bytes"] = artifact.weight_bytes["values"]
    context.progress(len(params.targets), len(params.targets), unit="target")
    return Outcome(metrics=metrics)


def outputs(params: ExportParams) -> Mapping[str, str]:
    """Return an output for each target, of the kind of that name."""
    return {target: target for target in params.targets}


def export_graph(model: Path, target: str, directory: Path, options: Mapping[str, str] | None = None) -> list[Path]:
    """Write a quantized network for one target, all of it or nothing.

    Args:
        model: the directory of an integer graph, or a QDQ ONNX file.
        target: a name of `kdpipe ls targets`.
        directory: where to write. If it is there, it must be empty or hold an earlier export and nothing else,
            which is replaced.
        options: choices by option, such as {"core": "cortex-m4"}: see `kdpipe.targets.exporters`.

    Returns:
        The files that were written.

    Raises:
        UsageError: the target is unknown or has no such option, or the directory holds something else.
        ArtifactError: the model can't be read.
        UnsupportedError: the target can't express a layer, or the ONNX file has one without an integer form.
        GraphError: the model has scales or sums that integers can't hold.
        StorageError: the directory can't be written.
    """
    from kdpipe.targets.model_files import load_model

    exporter, chosen = EXPORTERS[target], dict(options or {})
    exporter.check(chosen)
    graph = load_model(model)
    try:
        directory = directory.resolve()
        _refuse_strangers(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Beside its destination, so that the rename stays within one file system.
        unfinished = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}.unfinished")
        unfinished.mkdir()
        try:
            written = [path.relative_to(unfinished) for path in exporter.export(graph, unfinished, **chosen)]
            _refuse_foreign_files(directory, {path.relative_to(unfinished) for path in _files(unfinished)})
            _replace(directory, unfinished)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"can't write the export ({error.strerror or error})", where=str(directory)) from None
    return [directory / path for path in written]


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if not path.is_dir())


def _refuse_strangers(directory: Path) -> None:
    from kdpipe.targets.artifact import FILE

    if directory.exists() and not directory.is_dir():
        raise UsageError("is a file, not a directory", where=str(directory))
    if directory.is_dir() and any(directory.iterdir()) and not (directory / FILE).is_file():
        raise UsageError(
            "the directory is not empty, and holds no export", where=str(directory), remedy="Choose another directory"
        )


def _refuse_foreign_files(directory: Path, written: Collection[Path]) -> None:
    """Refuse to replace a directory in which somebody has put files of their own."""
    from kdpipe.targets.artifact import FILE, read_artifact

    if not (directory / FILE).is_file():
        return
    ours = {Path(FILE), *map(Path, read_artifact(directory).files), *written}
    foreign = [path for path in _files(directory) if path.relative_to(directory) not in ours]
    if foreign:
        raise UsageError(
            f"beside an earlier export, the directory holds {foreign[0].relative_to(directory)}",
            where=str(directory),
            remedy="Move that away, or choose another directory",
        )


def _replace(directory: Path, finished: Path) -> None:
    """Put `finished` in the place of `directory`, which may be there already."""
    if not directory.exists():
        finished.rename(directory)
        return
    old = finished.with_suffix(".old")
    directory.rename(old)
    try:
        finished.rename(directory)
    except OSError:
        old.rename(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)


STAGE = Stage(
    name="export",
    summary="writes a quantized network as ONNX, OpenVINO IR, TFLite and C",
    params=ExportParams,
    outputs=outputs,
    run=run,
    libraries=("ai-edge-litert", "flatbuffers", "jinja2", "numpy", "onnx", "openvino"),
)
