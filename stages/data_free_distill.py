"""`data-free-distill`: generator and student trained together, from the teachers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from kdpipe.models.choice import ModelChoice
from kdpipe.stages.base import Accepts, Inputs, Outcome, Stage, StageContext
from kdpipe.stages.synthesis.registry import MethodChoice
from kdpipe.stages.training.parameters import PreciseParams


class DataFreeDistillParams(PreciseParams):
    """Parameters of `data-free-distill`. The teachers are its only input: it has no way to real data."""

    teachers: Annotated[str, Accepts("ensemble")] = Field(description="the fixed discriminator, and what is learned")
    model: ModelChoice = Field(description="the student")
    synthesis: MethodChoice = Field(
        default=MethodChoice(method="dafl-batch-norm"), description="how images are made: a method and its parameters"
    )
    iterations: int = Field(default=120, ge=1, le=1_000_000, description="steps of the method in an epoch")
    batch_size: int = Field(default=128, ge=2, le=65_536, description="images in a step of the student")
    temperature: float = Field(default=4.0, gt=0, le=1000, description="softens both distributions")
    shift: int = Field(default=0, ge=0, le=16, description="augmentation: random moves of up to so many pixels")
    flip: bool = Field(default=False, description="augmentation: mirror each image with probability 1/2")
    checkpoint: Literal["last", "ema", "agreement"] = Field(
        default="last",
        description="the student of the last step, its exponential moving average, or of the last epochs the one that "
        "agrees most with the teachers on held-out images",
    )
    candidates: int = Field(default=5, ge=1, le=1000, description="epochs that `agreement` chooses among")
    ema_decay: float = Field(default=0.99, ge=0, lt=1, description="share of the average that a step keeps")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32", description="of convolutions and products, the generator's included; auto as in distill"
    )
    count: int = Field(default=2000, ge=10, le=10_000_000, description="images in the output `samples`")
    collapse_below: float = Field(
        default=0.5, ge=0, le=1, description="H(mean prediction) / log K under which the stage stops as collapsed"
    )


def outputs(params: Any) -> Mapping[str, str]:
    """Return the student, and images of the trained method for what comes after (quantization)."""
    return {"network": "network", "samples": "samples"}


def run(params: DataFreeDistillParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Train method and student in turn, and write the student and samples."""
    from kdpipe.stages.synthesis.online import distill_online
    from kdpipe.stages.training.device import limited_threads

    with limited_threads(context.threads):
        return distill_online(params, inputs, context)


STAGE = Stage(
    name="data-free-distill",
    summary="trains a student and a generator in turn, from the teachers alone (DAFL, DFQ, Fast)",
    params=DataFreeDistillParams,
    outputs=outputs,
    run=run,
    data_free=True,
    libraries=("torch", "safetensors"),
)
