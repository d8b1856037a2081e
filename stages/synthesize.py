"""`synthesize`: images from the teachers alone, for distillation without data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from kdpipe.stages.base import Accepts, Inputs, Outcome, Stage, StageContext, StageParams
from kdpipe.stages.synthesis.registry import SynthesisWeights


class SynthesizeParams(StageParams):
    """Parameters of `synthesize`. The teachers are its only input: it has no way to real data."""

    teachers: Annotated[str, Accepts("ensemble")] = Field(description="the frozen discriminator")
    count: int = Field(default=6000, ge=10, le=10_000_000, description="images to keep")
    iterations: int = Field(default=400, ge=1, le=1_000_000, description="steps of the generator")
    batch_size: int = Field(default=128, ge=8, le=65_536, description="images a step")
    lr: float = Field(default=1e-3, gt=0, le=1, description="of the generator's Adam")
    latent: int = Field(default=64, ge=1, le=100_000, description="length of the generator's noise")
    channels: int = Field(default=64, ge=2, le=4096, description="maps in the generator")
    keep_from: float = Field(
        default=0.25, ge=0, lt=1, description="share of the iterations after which batches are kept for the output"
    )
    collapse_below: float = Field(
        default=0.5, ge=0, le=1, description="H(mean prediction) / log K under which the stage stops as collapsed"
    )
    weights: SynthesisWeights = Field(default=SynthesisWeights(), description="of the generator's loss terms")


def outputs(params: Any) -> Mapping[str, str]:
    """Return the one output."""
    return {"samples": "samples"}


def run(params: SynthesizeParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Train a generator against the teachers and keep images from along its way."""
    from kdpipe.stages.synthesis.dafl import synthesize
    from kdpipe.stages.training.device import limited_threads

    with limited_threads(context.threads):
        return synthesize(params, inputs, context)


STAGE = Stage(
    name="synthesize",
    summary="makes images from the teachers alone (DAFL's losses and batch-norm statistics)",
    params=SynthesizeParams,
    outputs=outputs,
    run=run,
    data_free=True,
    libraries=("torch", "safetensors"),
)
