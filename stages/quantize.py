"""`quantize`: quantization-aware training, and the integer graph of what it trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kdpipe.models.choice import check_named
from kdpipe.stages.base import Accepts, Complaint, Inputs, Outcome, Stage, StageContext
from kdpipe.stages.knowledge.registry import LOSSES, LossParameters, check_shareable
from kdpipe.stages.quantization.configuration import AUTO, QuantizationConfig
from kdpipe.stages.training.parameters import SharedParams
from kdpipe.targets.errors import UsageError, did_you_mean

SPEQ = "speq"


class SpeqParameters(LossParameters):
    """Parameters of `speq`: see kdpipe.stages.quantization.speq."""

    weight: float = Field(default=1.0, ge=0, description="lambda")
    temperature: float = Field(default=4.0, gt=0, le=1000, description="T: softens both distributions")
    probability: float = Field(default=0.5, ge=0, le=1, description="u: that a layer of the teacher is finer")
    teacher_bits: int | None = Field(
        default=None,
        ge=3,
        le=32,
        description="precision of the teacher's finer layers; 32: not rounded. Default: 8, or 32 for activation_bits 8",
    )

    @field_validator("teacher_bits", mode="after")
    @classmethod
    def _check_bits(cls, bits: int | None) -> int | None:
        if bits is not None and 8 < bits < 32:
            raise ValueError("must be 3 to 8, or 32 for activations that are not rounded")
        return bits


WeightBits = Literal[2, 3, 4, 8]
WeightWidth = Literal[2, 3, 4, 8, "auto"]


class LayerBits(BaseModel):
    """Widths of the layers that a pattern matches; what is not given stays the stage's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: WeightWidth | None = Field(default=None, description="width of the weights, or auto")
    activations: int | None = Field(default=None, ge=2, le=8, description="width of what the layers read")


class Budget(BaseModel):
    """What the weights of all layers may take, where some widths are auto."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size_kib: float = Field(gt=0, le=1 << 30, description="of weights, scales and biases, in KiB")
    target: Literal["onnx", "openvino", "tflite", "integer-graph"] = Field(
        default="onnx",
        description="whose files are counted: onnx and openvino store 3-bit weights in 4, tflite 2-bit ones too; "
        "integer-graph: each at its own width",
    )


class QuantizeParams(SharedParams):
    """Parameters of `quantize`."""

    network: Annotated[str, Accepts("network", "ensemble")] = Field(
        description="the trained float network to start from, or an ensemble of one"
    )
    samples: Annotated[str, Accepts("samples", "split")] = Field(description="the images to train and calibrate on")
    teachers: Annotated[str | None, Accepts("ensemble", "network")] = Field(
        default=None,
        description="needed by losses such as kd on a split, or with shift or flip; samples carry the teachers' logits "
        "with them",
    )
    sensitivity: Annotated[str | None, Accepts("sensitivity")] = Field(
        default=None, description="what each layer's width costs, of the same network; where a width is auto"
    )
    budget: Budget | None = Field(default=None, description="where a width is auto")
    weight_bits: WeightWidth = Field(
        default=2, description="width of the weights; 2 is ternary; auto: chosen for each layer by sensitivity"
    )
    activation_bits: int = Field(default=8, ge=2, le=8, description="width of what layers read")
    first_last_bits: WeightWidth = Field(default=8, description="width of the first and last layers' weights, or auto")
    bits: dict[str, WeightWidth | LayerBits] = Field(
        default={},
        description="by pattern of layer paths (`layer1.*`), the weights' width, or {weights, activations}; of several "
        "patterns that match a layer the longest counts, also for the first and last layers",
    )
    weight_scales: Literal["channel", "layer"] = Field(
        default="channel", description="a step for each output channel of the weights, or one for the layer"
    )
    weight_gradient: Literal["straight-through", "lsq", "ewgs"] = Field(
        default="straight-through", description="lsq learns the steps, otherwise they follow the weights"
    )
    activation_gradient: Literal["pact", "lsq", "ewgs"] = Field(
        default="pact", description="what a learned clip receives: from what it cuts off, or (lsq) from rounding too"
    )
    ewgs_delta: float = Field(default=1e-3, ge=0, le=1, description="EWGS's delta")
    rounding: Literal["single", "tflite"] = Field(
        default="single",
        description="of the fixed point: single, which is cheaper and nearest to float runtimes; "
        "or tflite, to equal TFLite's reference kernels to the bit",
    )
    losses: dict[str, dict[str, Any] | None] = Field(
        default={"kd": {}, SPEQ: {}},
        min_length=1,
        description="losses on predictions such as kd and ce, and speq, each with its parameters; speq only beside one",
    )
    epochs: int = Field(default=30, ge=1, le=100_000, description="passes over the images")
    progressive: tuple[WeightBits, ...] = Field(
        default=(),
        description="widths to train at first, from wide to narrow, such as [8, 4, 3]; nothing is narrower meanwhile",
    )
    progressive_epochs: int | None = Field(
        default=None, ge=1, le=100_000, description="passes at each of these widths; default: epochs"
    )
    optimizer: Literal["sgd", "adamw"] = Field(default="adamw", description="sgd has Nesterov momentum 0.9")
    lr: float = Field(default=2e-3, gt=0, le=100, description="initial learning rate")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="of weights; none on biases, norms and clips")
    shift: int = Field(default=0, ge=0, le=16, description="augmentation: random moves of up to so many pixels")
    flip: bool = Field(default=False, description="augmentation: mirror each image with probability 1/2")
    calibration_images: int = Field(default=512, ge=1, description="images on which the clips are calibrated")
    verified_images: int = Field(
        default=256, ge=1, description="images on which the integer graph is compared with the trained network"
    )

    @field_validator("progressive", mode="after")
    @classmethod
    def _check_progressive(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if list(widths) != sorted(set(widths), reverse=True):
            raise ValueError("widths must become narrower, as in [8, 4, 3]")
        return widths

    @field_validator("losses", mode="after")
    @classmethod
    def _check_losses(cls, losses: dict[str, dict[str, Any] | None]) -> dict[str, dict[str, Any] | None]:
        for name, values in losses.items():
            check_named(_loss_type(name), values or {}, f"parameter of {name}", path=(name,))
        if set(losses) == {SPEQ}:
            raise ValueError("speq teaches only what the network knows already: give kd or ce beside it")
        return losses

    @model_validator(mode="after")
    def _check_shared_losses(self) -> QuantizeParams:
        check_shareable(self.losses, self.processes)
        return self

    def configuration(self) -> QuantizationConfig:
        """Return how the network is quantized, with `AUTO` where widths are to be assigned."""
        bits = {
            pattern: given.model_dump(exclude_none=True) if isinstance(given, LayerBits) else {"weights": given}
            for pattern, given in self.bits.items()
        }
        names = [
            *("weight_bits", "activation_bits", "first_last_bits", "rounding"),
            *("ewgs_delta", "weight_scales", "weight_gradient", "activation_gradient"),
        ]
        return QuantizationConfig(bits=bits, **{name: getattr(self, name) for name in names})

    def has_auto(self) -> bool:
        """Return whether a width is to be chosen."""
        config = self.configuration()
        return AUTO in (
            config.weight_bits,
            config.first_last_bits,
            *(given.get("weights") for given in config.bits.values()),
        )

    def loss_parameters(self) -> dict[str, LossParameters]:
        """Return the losses' parameters with their defaults, by name."""
        return {name: _loss_type(name).model_validate(values or {}) for name, values in self.losses.items()}


def _loss_type(name: str) -> type[LossParameters]:
    known = [loss for loss in LOSSES if LOSSES[loss].category == "response"]
    if name == SPEQ:
        return SpeqParameters
    if name not in known:
        raise ValueError(str(UsageError(f"no loss {name!r} for quantize", remedy=did_you_mean(name, [*known, SPEQ]))))
    return LOSSES[name].parameters


def outputs(params: Any) -> Mapping[str, str]:
    """Return the two outputs."""
    return {"graph": "integer-graph", "network": "quantized-network"}


def complaints(params: QuantizeParams, kinds: Mapping[str, tuple[str, ...]]) -> Iterator[Complaint]:
    """Complain where widths are to be chosen without knowing by what, or the other way round."""
    given = {"sensitivity": params.sensitivity, "budget": params.budget}
    if params.has_auto():
        remedies = {"sensitivity": "Add a stage of kind sensitivity and its output", "budget": "Add {size_kib: ...}"}
        for field, value in given.items():
            if value is None:
                yield field, "a width is auto, which needs this", remedies[field]
    else:
        for field, value in given.items():
            if value is not None:
                yield field, "no width is auto, so this would change nothing", "Set weight_bits to auto, or remove this"


def run(params: QuantizeParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Train the quantized network, lower it, and write both."""
    from kdpipe.stages.quantization.training import quantize
    from kdpipe.stages.training.processes import train_in_processes

    return train_in_processes(quantize, params, inputs, context)


STAGE = Stage(
    name="quantize",
    summary="trains the network at a few bits and lowers it to the integer graph that every target is written from",
    params=QuantizeParams,
    outputs=outputs,
    run=run,
    libraries=("torch", "numpy", "safetensors"),
    complaints=complaints,
)
