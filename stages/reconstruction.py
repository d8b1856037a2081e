"""`reconstruction`: how much of the teachers' features can be found in a student's, whatever it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from kdpipe.stages.base import Accepts, Inputs, Outcome, Stage, StageContext
from kdpipe.stages.training.parameters import OptimizationParams


class ReconstructionParams(OptimizationParams):
    """Parameters of `reconstruction`."""

    network: Annotated[str, Accepts("network")] = Field(description="the student, which is not changed")
    teachers: Annotated[str, Accepts("ensemble", "network")] = Field(
        description="whose features are to be found in the student's; they need not have taught it"
    )
    samples: Annotated[str, Accepts("samples", "split")] = Field(description="the images to look at")
    student_tap: str | None = Field(
        default=None, description="module whose output is translated; default: the last convolutional map"
    )
    teacher_taps: tuple[str, ...] | None = Field(default=None, description="likewise, one for each teacher")
    held_out: float = Field(
        default=0.2, gt=0, lt=1, description="share of the images that translators are judged on, and not trained on"
    )
    epochs: int = Field(default=20, ge=1, le=100_000, description="passes over the other images")
    optimizer: Literal["sgd", "adamw"] = Field(default="adamw", description="sgd has Nesterov momentum 0.9")
    lr: float = Field(default=2e-3, gt=0, le=100, description="initial learning rate")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="of weights; none on biases")


def outputs(params: Any) -> Mapping[str, str]:
    """Return no output: what is found are metrics and curves."""
    return {}


def run(params: ReconstructionParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Fit the translators and measure them."""
    from kdpipe.stages.knowledge.reconstruction import measure_reconstruction

    return measure_reconstruction(params, inputs, context)


STAGE = Stage(
    name="reconstruction",
    summary="measures how well fresh translators find the teachers' features in a student's",
    params=ReconstructionParams,
    outputs=outputs,
    run=run,
    libraries=("torch", "safetensors"),
)
