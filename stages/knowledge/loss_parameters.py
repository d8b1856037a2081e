"""What YAML may set of each distillation loss. Importing this imports no torch.

A default `weight` is that of the uniform rerun of ResNet-32x4 to ResNet-8x4 on CIFAR-100 in Tian et al. 2020
(arXiv:1910.10699), beside a cross entropy of weight 1, unless its description says otherwise. There `kd` has 0.9 beside
a cross entropy of 0.1; here it has 1, as it needs no other loss. What is younger than that has its authors' weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from kdpipe.stages.knowledge.coefficients import coefficient, epoch_progress, warmed_up

PUBLISHED_WARMUP = 20 / 240
"""Of DKD's and knowledge review's weights on CIFAR-100: 20 of 240 epochs."""


class LossParameters(BaseModel):
    """Base of a loss's parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(default=1.0, ge=0, description="factor of the loss in the sum")
    weight_end: float | None = Field(
        default=None, ge=0, description="the weight in the last epoch; not given: it stays what it is"
    )
    weight_schedule: Literal["linear", "cosine", "step"] = Field(
        default="linear", description="how the weight goes to weight_end, by epoch"
    )
    weight_warmup: float = Field(
        default=0.0, ge=0, le=1, description="share of the epochs over which the weight rises from near 0 first"
    )

    def weight_at(self, epoch: int, epochs: int) -> float:
        """Return the weight in an epoch, counted from 0, of so many."""
        weight = coefficient(self.weight, self.weight_end, self.weight_schedule, epoch_progress(epoch, epochs))
        return weight * warmed_up(epoch, epochs, self.weight_warmup)


class SoftenedParameters(LossParameters):
    """Base of the parameters of losses on softened predictions."""

    temperature: float = Field(default=4.0, gt=0, le=1000, description="T: softens both distributions")
    temperature_end: float | None = Field(
        default=None, gt=0, le=1000, description="T in the last epoch; not given: it stays what it is"
    )

    def temperature_at(self, progress: float) -> float:
        """Return the temperature, which goes linearly to its end, when a share of the epochs in [0, 1] is done."""
        return coefficient(self.temperature, self.temperature_end, "linear", progress)


class KdParameters(SoftenedParameters):
    """Parameters of `kd`."""

    average: Literal["probabilities", "logits"] = Field(
        default="probabilities", description="what is averaged over the teachers"
    )
    scale: bool = Field(default=True, description="multiply by T squared, so that the gradient keeps its size")


class CrossEntropyParameters(LossParameters):
    """Parameters of `ce`."""

    further_only: bool = Field(
        default=False,
        description="beside lwf: among the classes that the teachers don't know, on the images of these, as in LwF's "
        "paper; otherwise the old classes, of which there are no images, are unlearned",
    )


class DkdParameters(SoftenedParameters):
    """Parameters of `dkd`; the paper's for ResNet-32x4 to ResNet-8x4 on CIFAR-100, beside `ce` at a rate of 0.05."""

    weight_warmup: float = Field(
        default=PUBLISHED_WARMUP, ge=0, le=1, description="as elsewhere; the authors' 20 of 240 epochs"
    )
    alpha: float = Field(default=1.0, ge=0, description="factor of the target class's part")
    beta: float = Field(
        default=8.0,
        ge=0,
        description="factor of the other classes' part; the authors have 2 for ResNet-56 to ResNet-20",
    )


class DistParameters(SoftenedParameters):
    """Parameters of `dist`; the paper's defaults for CIFAR-100."""

    inter: float = Field(default=2.0, ge=0, description="factor of the correlation over an image's classes")
    intra: float = Field(default=2.0, ge=0, description="factor of the correlation over a class's images")


class FitNetsParameters(LossParameters):
    """Parameters of `fitnets`."""

    weight: float = Field(default=100.0, ge=0, description="factor of the loss in the sum")
    layer: int | None = Field(default=None, description="which of the tapped layers, from 0; default: the middle one")


class AttentionParameters(LossParameters):
    """Parameters of `attention`."""

    weight: float = Field(default=1000.0, ge=0, description="factor of the loss in the sum")
    power: float = Field(default=2.0, ge=1, le=8, description="p: of the activations that are averaged over channels")


class ParaphrasedParameters(LossParameters):
    """Base of the parameters of losses that may look at the teachers' maps through paraphrasers."""

    paraphraser_epochs: int = Field(default=30, ge=1, le=1000, description="passes in which paraphrasers are trained")
    paraphraser_channels: float = Field(default=0.5, gt=0, le=4, description="m / C: factors for each of C channels")
    paraphraser_lr: float = Field(default=2e-3, gt=0, le=1, description="learning rate of Adam; at SGD's 0.1 they die")
    reconstruction: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="the stage stops if a paraphraser's L1 error on images that it was not trained on is above this "
        "share of the map's mean magnitude; 1 is what an output of zero reaches",
    )


class FactorTransferParameters(ParaphrasedParameters):
    """Parameters of `factor-transfer`."""

    weight: float = Field(default=10.0, ge=0, description="beta; 11 here is the paper's 500 (see the loss)")


class FeedParameters(ParaphrasedParameters):
    """Parameters of `feed`."""

    weight: float = Field(default=10.0, ge=0, description="beta; 11 here is Factor Transfer's 500 (see the loss)")
    paraphraser: bool = Field(default=False, description="translate to the teachers' factors, not to their maps")


class VidParameters(LossParameters):
    """Parameters of `vid`."""

    initial_variance: float = Field(default=5.0, gt=0, description="of the Gaussian, before it is learned")


class ReviewParameters(LossParameters):
    """Parameters of `review`; the paper's weight depends on the pair, from 0.6 to 8."""

    weight_warmup: float = Field(
        default=PUBLISHED_WARMUP, ge=0, le=1, description="as elsewhere; the authors' 20 of 240 epochs"
    )
    channels: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="of the maps inside the fusion; default: the student's deepest layer's, at most 512",
    )


class SimKdParameters(LossParameters):
    """Parameters of `simkd`; the paper's weight, beside no other loss."""


class RkdParameters(LossParameters):
    """Parameters of `rkd`."""

    distance: float = Field(default=25.0, ge=0, description="factor of the distances")
    angle: float = Field(default=50.0, ge=0, description="factor of the angles")


class SimilarityParameters(LossParameters):
    """Parameters of `similarity`."""

    weight: float = Field(default=3000.0, ge=0, description="factor of the loss in the sum")


class PktParameters(LossParameters):
    """Parameters of `pkt`."""

    weight: float = Field(default=30000.0, ge=0, description="factor of the loss in the sum")


class FspParameters(LossParameters):
    """Parameters of `fsp`."""

    weight: float = Field(default=50.0, ge=0, description="factor of the loss in the sum")


class CrdParameters(LossParameters):
    """Parameters of `crd`."""

    weight: float = Field(default=0.8, ge=0, description="factor of the loss in the sum")
    dimensions: int = Field(default=128, ge=2, le=4096, description="of the space in which both are compared")
    negatives: int = Field(default=16384, ge=1, description="images of other classes an image is told apart from")
    temperature: float = Field(default=0.07, gt=0, le=10, description="tau: of the contrast")
    momentum: float = Field(default=0.5, ge=0, lt=1, description="of the memory's rows")


class EntropyWeightedParameters(SoftenedParameters):
    """Parameters of `entropy-weighted`."""


class CaMkdParameters(SoftenedParameters):
    """Parameters of `ca-mkd`."""


class CaMkdFeaturesParameters(LossParameters):
    """Parameters of `ca-mkd-features`."""

    weight: float = Field(
        default=17.0, ge=0, description="beta; the authors have 50, and divide by the number of teachers, which is 3"
    )


class RandomTeacherParameters(SoftenedParameters):
    """Parameters of `random-teacher`."""


class CsKdParameters(SoftenedParameters):
    """Parameters of `cs-kd`; the paper's defaults."""


class LwfParameters(SoftenedParameters):
    """Parameters of `lwf`; the paper's defaults."""

    temperature: float = Field(default=2.0, gt=0, le=1000, description="T: softens both distributions")


class AdversarialParameters(LossParameters):
    """Parameters of `adversarial`."""

    weight: float = Field(default=0.1, ge=0, description="factor of the loss in the sum")
    hidden: int = Field(default=128, ge=1, le=8192, description="units of the discriminator's hidden layers")


class EpochWeights:
    """What changes by epoch: the losses' weights by name, and the share of the epochs that are done.

    Args:
        parameters: of the losses, by name.
        epochs: of the training.
    """

    def __init__(self, parameters: Mapping[str, LossParameters], epochs: int) -> None:
        self._parameters = parameters
        self._epochs = epochs
        self.start(0)

    def start(self, epoch: int) -> None:
        """Go to an epoch, counted from 0."""
        self.progress = epoch_progress(epoch, self._epochs)
        self.now = {name: values.weight_at(epoch, self._epochs) for name, values in self._parameters.items()}
