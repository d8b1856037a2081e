"""What each network may be told, as types that need no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

KernelSize = Annotated[int, Field(ge=1, le=15)]
Units = Annotated[int, Field(ge=1, le=8192)]


class ModelArguments(BaseModel):
    """Base of the arguments that a network takes beside its input's shape and its number of classes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ResNetArguments(ModelArguments):
    """Arguments of `resnet`, for inputs of 8 to 64 pixels (see `kdpipe.models.resnet`)."""

    depth: int = Field(default=20, ge=4, le=1202, description="layers: 2 + 2 * stages * blocks in a stage")
    width: int = Field(default=16, ge=1, le=1024, description="channels of the first stage; each next one doubles")
    stages: int = Field(default=3, ge=1, le=5, description="stages, each after the first at half the resolution")
    shortcut: Literal["projection", "pad"] = Field(
        default="projection", description="where the shape changes: 1x1 convolution and BN, or option A's zero channels"
    )

    @model_validator(mode="after")
    def _check_depth(self) -> ResNetArguments:
        blocks_in_a_stage(self.depth, self.stages)
        return self


def blocks_in_a_stage(depth: int, stages: int) -> int:
    """Return how many blocks of two convolutions each stage of a ResNet of that depth has.

    Raises:
        ValueError: no whole number of blocks makes that depth.
    """
    blocks, rest = divmod(depth - 2, 2 * stages)
    if rest or blocks < 1:
        fitting = ", ".join(str(2 + 2 * stages * count) for count in range(1, 5))
        raise ValueError(f"a resnet of {stages} stages can't have depth {depth}; depths that fit: {fitting}, ...")
    return blocks


class CnnArguments(ModelArguments):
    """Arguments of `cnn`, a plain stack of 3x3 convolutions (see `kdpipe.models.cnn`)."""

    channels: tuple[int, ...] = Field(
        default=(16, 32, 64), min_length=1, max_length=16, description="channels of each 3x3 convolution"
    )
    reduce: Literal["stride", "max"] = Field(
        default="stride", description="how every convolution but the first halves the map: stride 2 or max pooling"
    )


class DsCnnArguments(ModelArguments):
    """Arguments of `ds-cnn`, depthwise-separable convolutions (see `kdpipe.models.ds_cnn`)."""

    width: int = Field(default=64, ge=1, le=1024, description="channels of every layer")
    blocks: int = Field(default=4, ge=1, le=16, description="depthwise-separable blocks after the first convolution")
    kernel: tuple[KernelSize, KernelSize] = Field(
        default=(3, 3), description="height and width of the first convolution's kernel"
    )


class LeNetArguments(ModelArguments):
    """Arguments of `lenet`, for inputs of 32x32 pixels (see `kdpipe.models.lenet`)."""

    channels: tuple[Units, Units, Units] = Field(default=(6, 16, 120), description="channels of the 5x5 convolutions")
    hidden: Units = Field(default=84, description="units of the first linear layer")
    batch_norm: bool = Field(default=False, description="behind each convolution; LeNet-5 has none")


class MlpArguments(ModelArguments):
    """Arguments of `mlp` (see `kdpipe.models.mlp`)."""

    hidden: tuple[Units, ...] = Field(default=(64, 64), min_length=1, max_length=16, description="units of each layer")
    batch_norm: bool = Field(default=True, description="behind each hidden layer")


class MobileNetV1Arguments(ModelArguments):
    """Arguments of `mobilenet-v1` (see `kdpipe.models.mobilenet`)."""

    width: float = Field(
        default=0.25, gt=0, le=4, description="factor of the channels, which become multiples of 8", allow_inf_nan=False
    )


class MobileNetV2Arguments(ModelArguments):
    """Arguments of `mobilenet-v2` (see `kdpipe.models.mobilenet`)."""

    width: float = Field(
        default=0.35, gt=0, le=4, description="factor of the channels, which become multiples of 8", allow_inf_nan=False
    )


class ReusedClassifierArguments(ModelArguments):
    """Arguments of `reused-classifier` (see `kdpipe.models.reused_classifier`)."""

    backbone: dict[str, Any] = Field(
        default={"model": "resnet", "depth": 8}, description="a model of kdpipe's own with its arguments"
    )
    channels: int = Field(default=64, ge=1, le=8192, description="what the classifier takes: the teacher's channels")
    reduction: int = Field(default=2, ge=1, le=64, description="the projector's inner layers have channels / reduction")

    @field_validator("backbone", mode="after")
    @classmethod
    def _check_backbone(cls, backbone: dict[str, Any]) -> dict[str, Any]:
        from kdpipe.models.choice import ModelChoice  # it knows the models, which know their arguments

        choice = ModelChoice.model_validate(backbone)
        return {"model": choice.model, **choice.arguments}


class ExternalArguments(ModelArguments):
    """Arguments of a library's network: those of its own builder, except what kdpipe sets."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="after")
    def _check_names(self) -> ExternalArguments:
        for name in self.model_extra or {}:
            if name in {"weights", "weights_backbone", "pretrained", "pretrained_cfg", "checkpoint_path", "cache_dir"}:
                raise ValueError(
                    f"{name} is not taken, because nothing is downloaded; give a teacher-ensemble's member a checkpoint"
                )
            if name in {"name", "num_classes", "in_chans", "input_shape", "classes", "model_name"}:
                raise ValueError(f"{name} is not taken: the images and their classes decide it")
        return self
