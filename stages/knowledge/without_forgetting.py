"""Learning without forgetting, LwF (Li and Hoiem 2016, arXiv:1606.09282): lifelong knowledge."""

from __future__ import annotations

from torch import Tensor

from kdpipe.stages.knowledge.base import DistillationLoss, FeatureShapes, Knowledge
from kdpipe.stages.knowledge.loss_parameters import LwfParameters
from kdpipe.stages.knowledge.response import average_distribution, distillation_loss


class LearningWithoutForgetting(DistillationLoss):
    """`lwf`: of the classes that the old network knows, the student says of new images what it says.

    KL(softmax(z_T / T) || softmax(z_S[:, :K_T] / T)), mean over B; the student's first K_T logits are the old
    classes. This is the paper's L_old (equations 2 to 4) less the entropy of its targets, so that it has the same
    gradient and is 0 where nothing was forgotten. As there, it is not multiplied by T^2.
    """

    def __init__(self, parameters: LwfParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        self.parameters_ = parameters

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the loss on the old classes."""
        temperature = self.parameters_.temperature_at(knowledge.progress)
        target = average_distribution(knowledge.teacher_logits, temperature, "probabilities")
        known = knowledge.student_logits[:, : target.shape[1]]
        return distillation_loss(known, target, temperature, scale=False)
