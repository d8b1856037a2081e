"""`mutual`: several networks that learn together, each from the labels and from the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from kdpipe.models.choice import ModelChoice
from kdpipe.stages.base import Accepts, Inputs, Outcome, Stage, StageContext
from kdpipe.stages.training.parameters import TrainingParams


class MutualParams(TrainingParams):
    """Parameters of `mutual`."""

    samples: Annotated[str, Accepts("samples", "split")] = Field(description="the images to learn on")
    members: tuple[ModelChoice, ...] = Field(
        min_length=2, description="the networks; the first one is the output `network`"
    )
    weight: float = Field(default=1.0, ge=0, description="factor of what each learns from the others")
    temperature: float = Field(default=1.0, gt=0, le=1000, description="T: softens the predictions that are compared")
    shift: int = Field(default=0, ge=0, le=16, description="augmentation: random moves of up to so many pixels")

    def further_libraries(self) -> tuple[str, ...]:
        """Return where the members come from, too."""
        members = dict.fromkeys(library for member in self.members for library in member.libraries)
        return (*super().further_libraries(), *members)


def outputs(params: Any) -> Mapping[str, str]:
    """Return the first network, and all of them as an ensemble."""
    return {"network": "network", "ensemble": "ensemble"}


def run(params: MutualParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Train all members and write them."""
    from kdpipe.stages.knowledge.mutual import learn_mutually
    from kdpipe.stages.training.processes import train_in_processes

    return train_in_processes(learn_mutually, params, inputs, context)


STAGE = Stage(
    name="mutual",
    summary="trains several networks together, each from the labels and from the others (online distillation)",
    params=MutualParams,
    outputs=outputs,
    run=run,
    libraries=("torch", "safetensors"),
)
