"""Factor Transfer and FEED: losses on the last feature map, through translators and paraphrasers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kdpipe.stages.knowledge.base import (
    DistillationLoss,
    FeatureShapes,
    Knowledge,
    Survey,
    one_a_teacher,
    required_shapes,
)
from kdpipe.stages.knowledge.factor_transfer import factor_loss, make_translator, match_size
from kdpipe.stages.knowledge.loss_parameters import FactorTransferParameters, FeedParameters
from kdpipe.stages.knowledge.paraphraser import Paraphrasers
from kdpipe.stages.training.seeding import derive_seed


def translated_losses(translators: nn.ModuleList, student: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """Return factor_loss(N_i(student), target_i) of each teacher, [teachers].

    Args:
        translators: N_i, by teacher.
        student: [B, C, H, W].
        targets: by teacher, maps or factors [B, C_i, H_i, W_i]; sizes are matched by pooling the larger.
    """
    terms = []
    for translate, target in zip(translators, targets, strict=True):
        ours, theirs = match_size(student, target)
        terms.append(factor_loss(translate(ours), theirs))
    return torch.stack(terms)


class _Translated(DistillationLoss):
    """Translators from the student's map to each teacher's, or to what its paraphraser makes of it."""

    def __init__(
        self, parameters: FeedParameters | FactorTransferParameters, shapes: FeatureShapes, paraphrased: bool, seed: int
    ) -> None:
        super().__init__()
        channels = [shape[0] for shape in shapes.teachers]
        self.paraphrasers = (
            Paraphrasers(channels, parameters, derive_seed(seed, "paraphrasers")) if paraphrased else None
        )
        targets = self.paraphrasers.factors if self.paraphrasers is not None else channels
        self.translators = one_a_teacher(
            lambda count: make_translator(shapes.student[0], count), targets, seed, "translator"
        )

    def prepare(self, survey: Survey) -> Mapping[str, float]:
        """Train the paraphrasers, if there are any."""
        return self.paraphrasers.fit(survey) if self.paraphrasers is not None else {}

    def terms(self, knowledge: Knowledge) -> Tensor:
        """Return the loss of each teacher, [teachers]."""
        assert knowledge.student_feature is not None  # noqa: S101  # its entry's `sees` promises it
        targets = knowledge.teacher_features
        if self.paraphrasers is not None:
            targets = self.paraphrasers.encode(targets)
        return translated_losses(self.translators, knowledge.student_feature, targets)


class Feed(_Translated):
    """`feed`, the parallel form: sum_i || v(N_i(F_S)) - v(G_i(F_Ti)) ||_1 / sqrt(D_i) over the teachers.

    Each teacher has a translator N_i of its own, with its own seed, because the teachers' feature spaces have
    nothing in common; averaging them would be meaningless. N_i is Factor Transfer's translator from the student's
    channels to the teacher's. G_i is the identity, or the encoder of a paraphraser. With one teacher and the
    identity this is Factor Transfer without its paraphraser.
    """

    def __init__(self, parameters: FeedParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__(parameters, required_shapes(shapes, "feed"), parameters.paraphraser, seed)

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the sum over the teachers."""
        return self.terms(knowledge).sum()


class FactorTransfer(_Translated):
    """`factor-transfer`: || v(N(F_S)) - v(G(F_T)) ||_1 / sqrt(D), equation 3; the mean over several teachers.

    G is the encoder of a paraphraser that is trained, without labels, before the student.
    """

    def __init__(self, parameters: FactorTransferParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__(parameters, required_shapes(shapes, "factor-transfer"), True, seed)

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the mean over the teachers."""
        return self.terms(knowledge).mean()
