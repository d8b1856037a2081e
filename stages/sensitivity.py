"""`sensitivity`: what a network loses when one of its layers alone is narrow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from kdpipe.stages.base import Accepts, Inputs, Outcome, Stage, StageContext, StageParams


class SensitivityParams(StageParams):
    """Parameters of `sensitivity`."""

    network: Annotated[str, Accepts("network")] = Field(description="the trained float network, which is not changed")
    samples: Annotated[str, Accepts("samples", "split")] = Field(
        description="the images to look at; a split's labels are used for the accuracy alone"
    )
    widths: tuple[Literal[2, 3, 4, 8], ...] = Field(
        default=(2, 3, 4, 8), min_length=1, description="of a layer's weights; 2 is ternary"
    )
    activation_bits: int = Field(default=8, ge=2, le=8, description="width of what layers read")
    weight_scales: Literal["channel", "layer"] = Field(
        default="channel", description="a step for each output channel of the weights, or one for the layer"
    )
    activations: bool = Field(default=False, description="measure each activation alone at these widths too")
    images: int = Field(default=512, ge=16, le=1_000_000, description="how many to look at, drawn at random")

    @field_validator("widths", mode="after")
    @classmethod
    def _check_widths(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if list(widths) != sorted(set(widths)):
            raise ValueError("widths must rise, as in [2, 4, 8]")
        return widths


def outputs(params: Any) -> Mapping[str, str]:
    """Return the one output."""
    return {"sensitivity": "sensitivity"}


def run(params: SensitivityParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Measure every layer and write what was found."""
    from kdpipe.stages.quantization.sensitivity import analyse
    from kdpipe.stages.training.device import limited_threads

    with limited_threads(context.threads):
        return analyse(params, inputs, context)


STAGE = Stage(
    name="sensitivity",
    summary="measures what each layer's weights alone at 2, 3, 4 and 8 bits cost, for automatic widths",
    params=SensitivityParams,
    outputs=outputs,
    run=run,
    libraries=("torch", "safetensors"),
)
