"""The distillation losses that YAML can name. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from kdpipe.stages.knowledge import loss_parameters as types
from kdpipe.stages.knowledge.loss_parameters import LossParameters
from kdpipe.targets.registry import Registry

if TYPE_CHECKING:
    from kdpipe.stages.knowledge.base import DistillationLoss, FeatureShapes

__all__ = ["LOSSES", "Category", "LossEntry", "LossParameters", "Sight", "check_shareable"]

Category = Literal["response", "feature", "relation", "multi-teacher", "self", "adversarial", "lifelong"]
Sight = Literal["feature", "layers", "embedding"]


@dataclass(frozen=True)
class LossEntry:
    """A distillation loss that can be named.

    Args:
        summary: one line for `kdpipe ls losses`.
        category: the kind of knowledge or the scheme, as in Gou et al. 2021 (arXiv:2006.05525).
        reference: the paper.
        parameters: what YAML may set.
        constructor: "module:class".
        sees: what it looks at beside logits and labels: the last feature map, several layers' maps, the penultimate
            embedding. What none of a student's losses sees is not tapped.
        needs_teachers: whether it looks at what the teachers say at all.
        equal_classes: whether the teachers must know every class of the student.
        compares_images: whether it sets images beside others of the batch or of earlier batches, so that it is not the
            mean of what it is on the batch's parts.
    """

    summary: str
    category: Category
    reference: str
    parameters: type[LossParameters]
    constructor: str
    sees: frozenset[Sight] = frozenset()
    needs_teachers: bool = True
    equal_classes: bool = False
    compares_images: bool = False

    def build(self, parameters: Any, shapes: FeatureShapes | None, seed: int) -> DistillationLoss:
        """Build the loss.

        Args:
            parameters: an instance of `self.parameters`.
            shapes: of what is tapped; None is enough for a loss that sees only logits and labels.
            seed: of the weights of modules that the loss trains.
        """
        module, _, name = self.constructor.partition(":")
        loss: DistillationLoss = getattr(import_module(module), name)(parameters, shapes, seed)
        return loss


LOSSES: Registry[LossEntry] = Registry("loss")


def check_shareable(losses: Iterable[str], processes: int) -> None:
    """See that losses can be computed by processes of which each has a part of every batch.

    Raises:
        ValueError: there are several processes, and a loss sets images of a batch beside each other.
    """
    compared = [name for name in losses if name in LOSSES and LOSSES[name].compares_images]
    if compared and processes > 1:
        raise ValueError(
            f"{compared[0]} compares images of a batch, of which each process sees a part; set `processes` to 1"
        )


def _add(
    name: str,
    category: Category,
    summary: str,
    reference: str,
    parameters: type[LossParameters],
    constructor: str,
    sees: tuple[Sight, ...] = (),
    needs_teachers: bool = True,
    equal_classes: bool = False,
    compares_images: bool = False,
) -> None:
    entry = LossEntry(
        summary,
        category,
        reference,
        parameters,
        f"kdpipe.stages.knowledge.{constructor}",
        frozenset(sees),
        needs_teachers,
        equal_classes,
        compares_images,
    )
    LOSSES.register(name)(entry)


_add(
    "kd",
    "response",
    "KL divergence to the teachers' averaged, softened prediction",
    "Hinton et al. 2015 (arXiv:1503.02531)",
    types.KdParameters,
    "response:KnowledgeDistillation",
    equal_classes=True,
)
_add(
    "ce",
    "response",
    "cross entropy with the labels; on synthetic images, with the teachers' choice",
    "standard",
    types.CrossEntropyParameters,
    "response:CrossEntropy",
    needs_teachers=False,
)
_add(
    "dkd",
    "response",
    "kd with the target class and the others weighted apart",
    "Zhao et al. 2022, DKD (arXiv:2203.08679)",
    types.DkdParameters,
    "decoupled:DecoupledDistillation",
    equal_classes=True,
)
_add(
    "dist",
    "response",
    "correlation with the teachers' prediction over classes and over images",
    "Huang et al. 2022, DIST (arXiv:2205.10536)",
    types.DistParameters,
    "correlation:Dist",
    equal_classes=True,
    compares_images=True,
)
_add(
    "fitnets",
    "feature",
    "squared difference from a teacher's middle layer, through a 1x1 convolution",
    "Romero et al. 2015, FitNets (arXiv:1412.6550)",
    types.FitNetsParameters,
    "hints:FitNets",
    ("layers",),
)
_add(
    "attention",
    "feature",
    "difference of where the layers look: activations averaged over channels",
    "Zagoruyko and Komodakis 2017, attention transfer (arXiv:1612.03928)",
    types.AttentionParameters,
    "attention:AttentionTransfer",
    ("layers",),
)
_add(
    "factor-transfer",
    "feature",
    "translates the student's map to factors that a paraphraser found in the teacher's",
    "Kim et al. 2018, factor transfer (arXiv:1802.04977)",
    types.FactorTransferParameters,
    "feature:FactorTransfer",
    ("feature",),
)
_add(
    "vid",
    "feature",
    "likelihood of the teacher's layers under Gaussians around the student's",
    "Ahn et al. 2019, variational information distillation (arXiv:1904.05835)",
    types.VidParameters,
    "variational:VariationalInformation",
    ("layers",),
)
_add(
    "review",
    "feature",
    "the student's deep layers fused into its shallow ones, compared at several resolutions",
    "Chen et al. 2021, knowledge review (arXiv:2104.09044)",
    types.ReviewParameters,
    "review:KnowledgeReview",
    ("layers",),
)
_add(
    "simkd",
    "feature",
    "squared difference from the one teacher's map, whose classifier the student takes over",
    "Chen et al. 2022, SimKD (arXiv:2203.14001)",
    types.SimKdParameters,
    "reused_classifier:ReusedClassifier",
    ("feature",),
    equal_classes=True,
)
_add(
    "rkd",
    "relation",
    "distances and angles between the images' embeddings",
    "Park et al. 2019, RKD (arXiv:1904.05068)",
    types.RkdParameters,
    "relational:RelationalDistillation",
    ("embedding",),
    compares_images=True,
)
_add(
    "similarity",
    "relation",
    "inner products of the images' feature maps",
    "Tung and Mori 2019, similarity-preserving distillation (arXiv:1907.09682)",
    types.SimilarityParameters,
    "similarity:SimilarityPreserving",
    ("feature",),
    compares_images=True,
)
_add(
    "pkt",
    "relation",
    "divergence of the probabilities that images are neighbours",
    "Passalis and Tefas 2018, PKT (arXiv:1803.10837)",
    types.PktParameters,
    "similarity:ProbabilisticTransfer",
    ("embedding",),
    compares_images=True,
)
_add(
    "fsp",
    "relation",
    "inner products of consecutive layers; needs equal channels",
    "Yim et al. 2017, flow of the solution procedure (CVPR)",
    types.FspParameters,
    "flow:Flow",
    ("layers",),
)
_add(
    "crd",
    "relation",
    "contrast of each image with images of other classes, across student and teacher",
    "Tian et al. 2020, CRD (arXiv:1910.10699)",
    types.CrdParameters,
    "contrastive:Contrastive",
    ("embedding",),
    compares_images=True,
)
_add(
    "feed",
    "multi-teacher",
    "parallel feature-level ensemble: for each teacher a translator of the student's feature map",
    "Park and Kwak 2019, FEED (arXiv:1909.10754)",
    types.FeedParameters,
    "feature:Feed",
    ("feature",),
)
_add(
    "entropy-weighted",
    "multi-teacher",
    "kd, for each image more from teachers that are sure",
    "Kwon et al. 2020, knowledge distillation based on entropy (ICASSP)",
    types.EntropyWeightedParameters,
    "multi_teacher:EntropyWeighted",
    equal_classes=True,
)
_add(
    "ca-mkd",
    "multi-teacher",
    "kd, for each image more from teachers that are right",
    "Zhang et al. 2022, CA-MKD, its loss on predictions (arXiv:2201.00007)",
    types.CaMkdParameters,
    "multi_teacher:ConfidenceAware",
    equal_classes=True,
)
_add(
    "ca-mkd-features",
    "multi-teacher",
    "squared difference of the last maps, for each image more from teachers that understand the student's",
    "Zhang et al. 2022, CA-MKD, its loss on features (arXiv:2201.00007)",
    types.CaMkdFeaturesParameters,
    "confident_features:ConfidentFeatures",
    ("feature",),
    equal_classes=True,
)
_add(
    "random-teacher",
    "multi-teacher",
    "kd with one teacher drawn for each batch",
    "Fukuda et al. 2017, distillation from an ensemble of teachers (Interspeech)",
    types.RandomTeacherParameters,
    "multi_teacher:RandomTeacher",
    equal_classes=True,
)
_add(
    "cs-kd",
    "self",
    "divergence from the student's own prediction for another image of the class",
    "Yun et al. 2020, CS-KD (arXiv:2003.13964)",
    types.CsKdParameters,
    "class_wise:ClassWise",
    needs_teachers=False,
    compares_images=True,
)
_add(
    "adversarial",
    "adversarial",
    "a discriminator can't tell the student's embedding from the teacher's",
    "Gou et al. 2021, section 5.1 (arXiv:2006.05525); Goodfellow et al. 2014 (arXiv:1406.2661)",
    types.AdversarialParameters,
    "adversarial:Adversarial",
    ("embedding",),
)
_add(
    "lwf",
    "lifelong",
    "the student keeps the classes of its teacher while it learns further ones from a split",
    "Li and Hoiem 2016, LwF (arXiv:1606.09282)",
    types.LwfParameters,
    "without_forgetting:LearningWithoutForgetting",
)
