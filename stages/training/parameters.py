"""What YAML may say about optimization, alike for every stage that trains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from kdpipe.stages.base import StageParams

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class OptimizationParams(StageParams):
    """Base of the parameters of stages that train a network; a stage overrides the defaults."""

    epochs: int = Field(default=30, ge=1, le=100_000, description="passes over the images")
    batch_size: int = Field(default=64, ge=2, le=65_536, description="images a step")
    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="sgd has Nesterov momentum 0.9")
    lr: float = Field(default=0.1, gt=0, le=100, description="initial learning rate")
    weight_decay: float = Field(default=5e-4, ge=0, le=1, description="of weights; none on biases and batch norms")
    schedule: Literal["cosine", "step", "constant"] = Field(default="cosine", description="of the learning rate")
    warmup: float = Field(default=0.0, ge=0, lt=1, description="share of training over which the rate rises from 0")


class SharedParams(OptimizationParams):
    """Base of the parameters of stages whose training several processes can share."""

    processes: int = Field(
        default=1,
        ge=1,
        le=256,
        description="on this machine, each computing a part of every batch; several need kdpipe[distributed]",
    )

    @model_validator(mode="after")
    def _check_processes(self) -> Self:
        if self.batch_size < self.processes:
            raise ValueError(f"a batch of {self.batch_size} images can't be shared by {self.processes} processes")
        return self

    def further_libraries(self) -> tuple[str, ...]:
        """Return what several processes talk through."""
        return (*super().further_libraries(), *(["lightning-fabric"] if self.processes > 1 else []))


class PreciseParams(OptimizationParams):
    """Base of the parameters of stages that can train in bfloat16."""

    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of convolutions and products; auto: bfloat16 on CPUs with AMX, for images of at least 256 pixels "
        "and networks without grouped convolutions",
    )


class TrainingParams(SharedParams, PreciseParams):
    """Base of the parameters of stages that can do both."""


def make_optimizer(params: OptimizationParams, modules: Iterable[nn.Module]) -> Optimizer:
    """Return the optimizer of all parameters that require a gradient; those of one dimension are not decayed."""
    import torch

    weights = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.dim() > 1], "weight_decay": params.weight_decay},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if params.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=params.lr)
    return torch.optim.SGD(groups, lr=params.lr, momentum=0.9, nesterov=True)
