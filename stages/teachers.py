"""`teacher-ensemble`: several large networks, trained here or brought as checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from kdpipe.models.choice import ModelChoice
from kdpipe.stages.base import Accepts, Inputs, Outcome, ReadsFile, Stage, StageContext
from kdpipe.stages.training.parameters import TrainingParams


class Member(ModelChoice):
    """One teacher: a model with its arguments, trained from scratch unless it has a checkpoint."""

    checkpoint: Annotated[str | None, ReadsFile()] = Field(
        default=None, description="its trained weights: .safetensors, or a torch file without code"
    )
    rename: dict[str, str] = Field(
        default={}, description="of the checkpoint's modules: by the path in the file, the path in the model"
    )
    fine_tune: bool = Field(default=False, description="train on from the checkpoint, on `train`")
    mean: tuple[float, ...] | None = Field(
        default=None, description="by channel, of the pixels in [0, 1] that the checkpoint was trained on"
    )
    std: tuple[float, ...] | None = Field(default=None, description="by channel, beside mean")

    @property
    def trained_here(self) -> bool:
        """Whether it learns from `train`."""
        return self.checkpoint is None or self.fine_tune

    @model_validator(mode="after")
    def _check_checkpoint(self) -> Member:
        if self.checkpoint is None and (self.rename or self.fine_tune):
            raise ValueError("rename and fine_tune go with a checkpoint")
        return self


class TeachersParams(TrainingParams):
    """Parameters of `teacher-ensemble`.

    The engine finds `checkpoint` by walking into `members`: its files' contents belong to the stage's key.
    """

    train: Annotated[str | None, Accepts("split")] = Field(
        default=None, description="the images to train on; not needed when every member has a checkpoint"
    )
    validation: Annotated[str | None, Accepts("split")] = Field(
        default=None, description="the images that the reported accuracy is measured on"
    )
    members: tuple[Member, ...] = Field(min_length=1, description="the teachers")
    shift: int = Field(default=1, ge=0, le=16, description="augmentation: random moves of up to so many pixels")
    flip: bool = Field(default=False, description="augmentation: mirror each image with probability 1/2")
    input_shape: tuple[int, int, int] | None = Field(default=None, description="[C, H, W], where `train` is not given")
    classes: tuple[str, ...] | None = Field(default=None, description="names, where `train` is not given")

    def further_libraries(self) -> tuple[str, ...]:
        """Return where the members come from, too."""
        members = dict.fromkeys(library for member in self.members for library in member.libraries)
        return (*super().further_libraries(), *members)

    @model_validator(mode="after")
    def _check_data(self) -> TeachersParams:
        if self.train is not None:
            if self.input_shape is not None or self.classes is not None:
                raise ValueError("input_shape and classes come from `train`; give them only without it")
            return self
        for index, member in enumerate(self.members):
            if member.trained_here:
                raise ValueError(f"member {index} is to be trained, which needs `train`; or give it a checkpoint")
            if member.mean is None or member.std is None:
                raise ValueError(f"member {index} needs mean and std, because `train` is not given")
        if self.input_shape is None or self.classes is None:
            raise ValueError("without `train`, input_shape and classes must be given")
        return self


def outputs(params: Any) -> Mapping[str, str]:
    """Return the one output."""
    return {"ensemble": "ensemble"}


def run(params: TeachersParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Train or load every member, write the ensemble, and measure it on `validation`."""
    from kdpipe.stages.training.processes import train_in_processes
    from kdpipe.stages.training.teachers import make_ensemble

    return train_in_processes(make_ensemble, params, inputs, context)


STAGE = Stage(
    name="teacher-ensemble",
    summary="trains several teachers on labelled images, or loads given checkpoints",
    params=TeachersParams,
    outputs=outputs,
    run=run,
    libraries=("torch", "safetensors"),
)
