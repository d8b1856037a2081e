"""Validation: one artifact run on one device with real images, and compared with the integer reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from kdpipe.stages.base import Accepts, Complaint, Inputs, Outcome, Stage, StageContext, StageParams, TargetRecord
from kdpipe.targets.devices.formats import format_of_kind
from kdpipe.targets.devices.registry import DEVICES
from kdpipe.targets.errors import did_you_mean


class ValidateParams(StageParams):
    """Parameters of `validate`."""

    artifact: Annotated[
        str,
        Accepts("ensemble", "network", "integer-graph", "onnx", "openvino", "tflite", "c"),
        Field(description="What to run."),
    ]
    data: Annotated[str, Accepts("split"), Field(description="The images to run it on.")]
    reference: Annotated[
        str | None, Accepts("integer-graph"), Field(description="The integer graph to compare every output with.")
    ] = None
    baseline: Annotated[
        str | None,
        Accepts("network", "ensemble", "integer-graph"),
        Field(description="The network whose accuracy on the same images accuracy_drop is measured from."),
    ] = None
    device: str = Field("host", description="Where to run it: a name of `kdpipe ls devices`.")
    samples: int | None = Field(None, ge=1, description="How many images to run, from the first; all if not given.")

    @field_validator("device")
    @classmethod
    def _is_known(cls, device: str) -> str:
        if device not in DEVICES:
            raise ValueError(f"unknown device {device!r}. {did_you_mean(device, DEVICES)}")
        return device


def complaints(params: ValidateParams, kinds: Mapping[str, tuple[str, ...]]) -> Iterator[Complaint]:
    """Complain of a device that can't run the artifact."""
    for kind in kinds.get("artifact", ()):
        artifact_format = format_of_kind(kind)
        formats = DEVICES[params.device].formats
        if artifact_format not in formats:
            yield "device", f"the device {params.device} can't run {kind}", f"It runs {', '.join(formats)}"


def run(params: ValidateParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Run the artifact and return what was found, as a TargetRecord."""
    reference, baseline = inputs.get("reference"), inputs.get("baseline")
    record = validate_artifact(
        inputs["artifact"].path,
        device=params.device,
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
    return Outcome(metrics=metrics, target=record)


def validate_artifact(
    artifact: Path,
    *,
    device: str,
    split: Path,
    reference: Path | None = None,
    baseline: Path | None = None,
    samples: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TargetRecord:
    """Run one artifact on one device.

    Args:
        artifact: the directory of an export, an integer graph, or a float network or ensemble.
        device: a name of `kdpipe ls devices`.
        split: the directory of labelled images.
        reference: the integer graph that `artifact` was exported from, a directory or a QDQ ONNX file; parity is
            None without it.
        baseline: the directory of a network, an ensemble or an integer graph.
        samples: how many images to run; all if None.
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
