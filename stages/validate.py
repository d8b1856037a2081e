"""Validation: one artifact run on one device with real images, and compared with the integer reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from kdpipe.stages.base import (
    Accepts,
    Complaint,
    Inputs,
    Outcome,
    ReadsFile,
    Stage,
    StageContext,
    StageParams,
    TargetRecord,
)
from kdpipe.stages.device_choice import DEFAULT_DEVICE, Clock, DeviceChoice, choose_device
from kdpipe.targets.devices.formats import format_of_kind
from kdpipe.targets.devices.registry import DEVICES
from kdpipe.targets.errors import UsageError, did_you_mean


class ValidateParams(StageParams):
    """Parameters of `validate`."""

    artifact: Annotated[
        str,
        Accepts("ensemble", "network", "quantized-network", "integer-graph", "onnx", "openvino", "tflite", "c"),
        Field(description="What to run."),
    ]
    data: Annotated[str, Accepts("split"), Field(description="The images to run it on.")]
    reference: Annotated[
        str | None, Accepts("integer-graph"), Field(description="The integer graph to compare every output with.")
    ] = None
    baseline: Annotated[
        str | None,
        Accepts("network", "ensemble", "quantized-network", "integer-graph"),
        Field(description="The network whose accuracy on the same images accuracy_drop is measured from."),
    ] = None
    device: str | None = Field(
        None, description="Where to run it: a name of `kdpipe ls devices`. The board's core, without a board host."
    )
    board: str | None = Field(
        None, description="The board to estimate for, a name of `kdpipe ls boards`; its flash and RAM become gates."
    )
    boards: Annotated[str | None, ReadsFile()] = Field(
        None, description="A file of further boards, in the form of boards.toml."
    )
    clock_mhz: float | None = Field(
        None, gt=0, description="The core's clock, by which cycles become an estimated latency; else the board's."
    )
    wait_state_factor: float | None = Field(
        None, ge=1, description="How many times as long as the cycle model says; 1, or the board's, if not given."
    )
    samples: int | None = Field(None, ge=1, description="How many images to run, from the first; all if not given.")
    workers: int = Field(1, ge=1, description="Processes that share the images of an emulated device.")

    @field_validator("device")
    @classmethod
    def _is_known(cls, device: str | None) -> str | None:
        if device is not None and device not in DEVICES:
            raise ValueError(f"unknown device {device!r}. {did_you_mean(device, DEVICES)}")
        return device

    def choice(self, boards: Path | None) -> DeviceChoice:
        """Return where to run; `boards` is the file of that name, if it is set.

        Raises:
            UsageError: see `choose_device`.
        """
        return choose_device(
            self.device,
            board=self.board,
            boards=boards,
            clock_mhz=self.clock_mhz,
            wait_state_factor=self.wait_state_factor,
        )


def complaints(params: ValidateParams, kinds: Mapping[str, tuple[str, ...]]) -> Iterator[Complaint]:
    """Complain of a device that can't run the artifact, or that the board does not have."""
    device = params.device or DEFAULT_DEVICE
    # boards of a file of their own are known when it is read, at the run
    if params.boards is None or params.board is None:
        try:
            device = params.choice(None).device
        except UsageError as error:
            yield "board" if params.board else "clock_mhz", error.message, error.remedy
            return
        for kind in kinds.get("artifact", ()):
            artifact_format = format_of_kind(kind)
            formats = DEVICES[device].formats
            if artifact_format not in formats:
                field = "device" if params.device else "board"
                yield field, f"the device {device} can't run {kind}", f"It runs {', '.join(formats)}"


def run(params: ValidateParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Run the artifact and return what was found, as a TargetRecord."""
    reference, baseline = inputs.get("reference"), inputs.get("baseline")
    choice = params.choice(context.file(params.boards) if params.boards else None)
    record = validate_artifact(
        inputs["artifact"].path,
        device=choice.device,
        clock=choice.clock,
        workers=params.workers,
        split=inputs["data"].path,
        reference=reference.path if reference else None,
        baseline=baseline.path if baseline else None,
        samples=params.samples,
        progress=lambda done, total: context.progress(done, total, unit="image"),
    )
    metrics: dict[str, float | int | str | bool] = {"accuracy": record.accuracy, "samples": record.samples}
    if record.parity is not None:
        metrics["max_step_difference"] = record.parity["max_step_difference"]
        metrics["top1_agreement"] = record.parity["top1_agreement"]
    return Outcome(metrics=metrics, target=choice.complete(record))


def validate_artifact(
    artifact: Path,
    *,
    device: str,
    split: Path,
    reference: Path | None = None,
    baseline: Path | None = None,
    samples: int | None = None,
    clock: Clock | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> TargetRecord:
    """Run one artifact on one device.

    Args:
        artifact: the directory of an export, an integer graph, a float or quantized network, or an ensemble.
        device: a name of `kdpipe ls devices`.
        split: the directory of labelled images.
        reference: the integer graph that `artifact` was exported from, a directory or a QDQ ONNX file; parity is
            None without it.
        baseline: the directory of a network, an ensemble or an integer graph.
        samples: how many images to run; all if None.
        clock: that an emulated device's latency is estimated with.
        workers: processes that share the images of an emulated device.
        progress: called as progress(done, total), images both.

    Raises:
        UsageError: the device is unknown or can't run this format, or the reference is another network's.
        ArtifactError: a directory does not hold what it must.
        DataError: the images or classes don't fit the artifact.
        DeviceError: a compiler, runtime or emulator failed.
        MissingDependencyError: one is not installed.
    """
    from kdpipe.stages.artifact_validation import validate_on_device

    return validate_on_device(
        artifact,
        device_name=device,
        split=split,
        reference=reference,
        baseline=baseline,
        samples=samples,
        clock=clock,
        workers=workers,
        progress=progress,
    )


def outputs(params: ValidateParams) -> Mapping[str, str]:
    """Return no outputs: a validation's result is its record."""
    return {}


STAGE = Stage(
    name="validate",
    summary="runs an artifact on a device: accuracy, size, speed, memory, and parity with the integer reference",
    params=ValidateParams,
    outputs=outputs,
    run=run,
    libraries=("ai-edge-litert", "numpy", "onnxruntime", "openvino", "torch", "unicorn", "ziglang"),
    validates=True,
    complaints=complaints,
)
