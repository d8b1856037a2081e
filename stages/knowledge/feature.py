"""Feature knowledge: losses on feature maps."""

from __future__ import annotations

from torch import Tensor, nn

from kdpipe.stages.knowledge.base import DistillationLoss, FeatureShapes, Knowledge
from kdpipe.stages.knowledge.factor_transfer import factor_loss, match_size, seeded_translator
from kdpipe.stages.knowledge.registry import FeedParameters
from kdpipe.stages.training.seeding import derive_seed


class Feed(DistillationLoss):
    """`feed`, the parallel form: sum_i || v(N_i(F_S)) - v(F_Ti) ||_1 / sqrt(D_i) over the teachers.

    Each teacher has a translator N_i of its own, with its own seed, because the teachers' feature spaces have
    nothing in common; averaging them would be meaningless. N_i is Factor Transfer's translator from the student's
    channels to the teacher's; the teacher's map itself is the target (the paraphraser is the identity). With one
    teacher this is Factor Transfer.
    """

    def __init__(self, parameters: FeedParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        if shapes is None:
            raise ValueError("feed needs the shapes of the feature maps")
        self.translators = nn.ModuleList(
            [
                seeded_translator(shapes.student[0], teacher[0], derive_seed(seed, "translator", index))
                for index, teacher in enumerate(shapes.teachers)
            ]
        )

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the sum over the teachers."""
        assert knowledge.student_feature is not None  # noqa: S101  # its entry's uses_features promises it
        total = knowledge.student_feature.new_zeros(())
        for translate, target in zip(self.translators, knowledge.teacher_features, strict=True):
            student, teacher = match_size(knowledge.student_feature, target)
            total = total + factor_loss(translate(student), teacher)
        return total
