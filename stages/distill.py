"""`distill`: a small student from an ensemble of teachers, on synthesized or on real images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator

from kdpipe.models.choice import ModelChoice, check_named
from kdpipe.stages.base import Accepts, Inputs, Outcome, Stage, StageContext
from kdpipe.stages.knowledge.registry import LOSSES, LossParameters
from kdpipe.stages.training.parameters import OptimizationParams
from kdpipe.targets.errors import UsageError


class DistillParams(OptimizationParams):
    """Parameters of `distill`."""

    teachers: Annotated[str, Accepts("ensemble")] = Field(description="the ensemble to learn from")
    samples: Annotated[str, Accepts("samples", "split")] = Field(description="the images to learn on")
    model: ModelChoice = Field(description="the student")
    losses: dict[str, dict[str, Any] | None] = Field(
        default={"kd": {}}, min_length=1, description="by name of `kdpipe ls losses`, the loss's parameters"
    )
    student_tap: str | None = Field(
        default=None, description="module whose output feature losses see; default: the last convolutional map"
    )
    teacher_taps: tuple[str, ...] | None = Field(default=None, description="likewise, one for each teacher")
    shift: int = Field(default=0, ge=0, le=16, description="augmentation: random moves of up to so many pixels")
    cache_mib: int = Field(
        default=512, ge=0, description="teachers' outputs are computed once if they need no more than this and shift=0"
    )

    @field_validator("losses", mode="after")
    @classmethod
    def _check_losses(cls, losses: dict[str, dict[str, Any] | None]) -> dict[str, dict[str, Any] | None]:
        for name, values in losses.items():
            try:
                entry = LOSSES[name]
            except UsageError as error:
                raise ValueError(str(error)) from None
            check_named(entry.parameters, values or {}, f"parameter of {name}", path=(name,))
        return losses

    def loss_parameters(self) -> dict[str, LossParameters]:
        """Return the losses' parameters with their defaults, by name."""
        return {name: LOSSES[name].parameters.model_validate(values or {}) for name, values in self.losses.items()}


def outputs(params: Any) -> Mapping[str, str]:
    """Return the one output."""
    return {"network": "network"}


def run(params: DistillParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Train the student and write it."""
    from kdpipe.stages.knowledge.distillation import distill
    from kdpipe.stages.training.device import limited_threads

    with limited_threads(context.threads):
        return distill(params, inputs, context)


STAGE = Stage(
    name="distill",
    summary="trains a small student on what the teachers say about synthesized or real images",
    params=DistillParams,
    outputs=outputs,
    run=run,
    libraries=("torch", "safetensors"),
)
