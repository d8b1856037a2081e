"""The distillation losses that YAML can name. Importing this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdpipe.targets.registry import Registry

if TYPE_CHECKING:
    from kdpipe.stages.knowledge.base import DistillationLoss, FeatureShapes

Category = Literal["response", "feature", "relation"]


class LossParameters(BaseModel):
    """Base of a loss's parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(default=1.0, ge=0, description="factor of the loss in the sum")


class KdParameters(LossParameters):
    """Parameters of `kd`."""

    temperature: float = Field(default=4.0, gt=0, le=1000, description="T: softens both distributions")
    average: Literal["probabilities", "logits"] = Field(
        default="probabilities", description="what is averaged over the teachers"
    )
    scale: bool = Field(default=True, description="multiply by T squared, so that the gradient keeps its size")


class CrossEntropyParameters(LossParameters):
    """Parameters of `ce`."""


class FeedParameters(LossParameters):
    """Parameters of `feed`."""

    weight: float = Field(default=10.0, ge=0, description="beta; 11 here is Factor Transfer's 500 (see the loss)")


@dataclass(frozen=True)
class LossEntry:
    """A distillation loss that can be named.

    Args:
        summary: one line for `kdpipe ls losses`.
        category: the kind of knowledge, as in Gou et al. 2021 (arXiv:2006.05525).
        reference: the paper.
        parameters: what YAML may set.
        constructor: "module:class".
        uses_features: whether it looks at feature maps; if none of a student's losses does, nothing is tapped.
    """

    summary: str
    category: Category
    reference: str
    parameters: type[LossParameters]
    constructor: str
    uses_features: bool = False

    def build(self, parameters: Any, shapes: FeatureShapes | None, seed: int) -> DistillationLoss:
        """Build the loss.

        Args:
            parameters: an instance of `self.parameters`.
            shapes: of the tapped feature maps; None is enough for a loss that does not use them.
            seed: of the weights of modules that the loss trains.
        """
        module, _, name = self.constructor.partition(":")
        loss: DistillationLoss = getattr(import_module(module), name)(parameters, shapes, seed)
        return loss


LOSSES: Registry[LossEntry] = Registry("loss")

LOSSES.register("kd")(
    LossEntry(
        "KL divergence to the teachers' averaged, softened prediction",
        "response",
        "Hinton et al. 2015 (arXiv:1503.02531)",
        KdParameters,
        "kdpipe.stages.knowledge.response:KnowledgeDistillation",
    )
)
LOSSES.register("ce")(
    LossEntry(
        "cross entropy with the labels; on synthetic images, with the teachers' choice",
        "response",
        "standard",
        CrossEntropyParameters,
        "kdpipe.stages.knowledge.response:CrossEntropy",
    )
)
LOSSES.register("feed")(
    LossEntry(
        "parallel feature-level ensemble: for each teacher a translator of the student's feature map",
        "feature",
        "Park and Kwak 2019, FEED (arXiv:1909.10754)",
        FeedParameters,
        "kdpipe.stages.knowledge.feature:Feed",
        uses_features=True,
    )
)
