"""`distill`: a small student from an ensemble of teachers, on synthesized or on real images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from kdpipe.models.choice import ModelChoice, check_named
from kdpipe.stages.base import Accepts, Inputs, Outcome, Stage, StageContext
from kdpipe.stages.knowledge.registry import LOSSES, LossParameters, check_shareable
from kdpipe.stages.training.parameters import TrainingParams
from kdpipe.targets.errors import UsageError

LossChoice = dict[str, dict[str, Any] | None]


class DistillParams(TrainingParams):
    """Parameters of `distill`."""

    teachers: Annotated[str, Accepts("ensemble", "network")] = Field(
        description="the ensemble, or the one network, to learn from"
    )
    samples: Annotated[str, Accepts("samples", "split")] = Field(description="the images to learn on")
    model: ModelChoice | None = Field(default=None, description="the student, with new weights")
    initial: Annotated[str | None, Accepts("network", "ensemble")] = Field(
        default=None,
        description="instead of `model`: the network, or ensemble of one, that the student starts as; with lwf its "
        "last layer is extended by the further classes of `samples`",
    )
    losses: LossChoice = Field(
        default={"kd": {}}, min_length=1, description="by name of `kdpipe ls losses`, the loss's parameters"
    )
    student_tap: str | tuple[str, ...] | None = Field(
        default=None,
        description="modules whose outputs feature losses see, from shallow to deep, `*` for several; "
        "default: the last map at each resolution",
    )
    teacher_taps: tuple[str | tuple[str, ...], ...] | None = Field(
        default=None, description="likewise, one entry for each teacher"
    )
    generations: int = Field(
        default=1,
        ge=1,
        le=100,
        description="students trained one after the other, each after the first by the one before it alone",
    )
    checkpoint: Literal["last", "ema"] = Field(
        default="last", description="the student of the last step, or its exponential moving average"
    )
    ema_decay: float = Field(default=0.99, ge=0, lt=1, description="share of the average that a step keeps")
    shift: int = Field(default=0, ge=0, le=16, description="augmentation: random moves of up to so many pixels")
    flip: bool = Field(default=False, description="augmentation: mirror each image with probability 1/2")
    cache_mib: int = Field(
        default=512,
        ge=0,
        description="teachers' outputs are computed once, and kept in memory-mapped files, if they need no more than "
        "this and nothing is augmented",
    )

    @field_validator("losses", mode="after")
    @classmethod
    def _check_losses(cls, losses: LossChoice) -> LossChoice:
        return check_losses(losses)

    @model_validator(mode="after")
    def _check_student(self) -> DistillParams:
        if (self.model is None) == (self.initial is None):
            raise ValueError("give the student as `model`, or the network that it starts as as `initial`")
        return self

    @model_validator(mode="after")
    def _check_shared_losses(self) -> DistillParams:
        check_shareable(self.losses, self.processes)
        return self

    def further_libraries(self) -> tuple[str, ...]:
        """Return where the student comes from, too."""
        return (*super().further_libraries(), *(self.model.libraries if self.model is not None else ()))

    def loss_parameters(self) -> dict[str, LossParameters]:
        """Return the losses' parameters with their defaults, by name."""
        return {name: LOSSES[name].parameters.model_validate(values or {}) for name, values in self.losses.items()}


def check_losses(losses: LossChoice) -> LossChoice:
    """Return losses as YAML names them, each known and each parameter checked at its place.

    Raises:
        ValueError: a name is unknown.
        ValidationError: a parameter is.
    """
    for name, values in losses.items():
        try:
            entry = LOSSES[name]
        except UsageError as error:
            raise ValueError(str(error)) from None
        check_named(entry.parameters, values or {}, f"parameter of {name}", path=(name,))
    return losses


def outputs(params: Any) -> Mapping[str, str]:
    """Return the student, and, where there are several generations, all of them as an ensemble."""
    return {"network": "network", **({"ensemble": "ensemble"} if params.generations > 1 else {})}


def run(params: DistillParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Train the student and write it."""
    from kdpipe.stages.knowledge.distillation import distill
    from kdpipe.stages.training.processes import train_in_processes

    return train_in_processes(distill, params, inputs, context)


STAGE = Stage(
    name="distill",
    summary="trains a small student on what the teachers say about synthesized or real images",
    params=DistillParams,
    outputs=outputs,
    run=run,
    libraries=("torch", "safetensors"),
)
