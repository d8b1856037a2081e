"""Decoupled knowledge distillation (Zhao et al. 2022, arXiv:2203.08679): the target class apart from the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.stages.knowledge.base import DistillationLoss, FeatureShapes, Knowledge
from kdpipe.stages.knowledge.loss_parameters import DkdParameters
from kdpipe.stages.knowledge.response import log_average_distribution


def decoupled_parts(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two parts of KL(p_T || p_S) for each image (equations 4 to 7).

    With t the label, b = [p_t, 1 - p_t] and p^ = p without t, made to sum to 1:
    TCKD = KL(b_T || b_S), NCKD = KL(p^_T || p^_S), and KL(p_T || p_S) = TCKD + (1 - p_T,t) NCKD.

    Args:
        student: log-probabilities [B, K], K >= 2.
        teacher: likewise.
        labels: int64 [B].

    Returns:
        TCKD and NCKD, each [B] and >= 0.
    """
    others = torch.ones_like(student, dtype=torch.bool).scatter_(1, labels[:, None], False)
    count, classes = student.shape
    # the target's column is left out rather than masked by -inf, whose gradient is not a number
    s_rest, t_rest = (x[others].view(count, classes - 1) for x in (student, teacher))
    s_sum, t_sum = s_rest.logsumexp(dim=1), t_rest.logsumexp(dim=1)
    s_target, t_target = (x.gather(1, labels[:, None]).squeeze(1) for x in (student, teacher))
    target = t_target.exp() * (t_target - s_target) + t_sum.exp() * (t_sum - s_sum)
    s_shares, t_shares = s_rest - s_sum[:, None], t_rest - t_sum[:, None]
    return target, (t_shares.exp() * (t_shares - s_shares)).sum(dim=1)


def decoupled_loss(
    student_logits: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float, beta: float
) -> Tensor:
    """T^2 (alpha TCKD + beta NCKD), mean over B (equation 8).

    Args:
        student_logits: [B, K].
        teacher: the teachers' log-probabilities at the same temperature, [B, K].
        labels: int64 [B].
        temperature: T > 0.
        alpha: factor of TCKD.
        beta: factor of NCKD, which KL would give the weight 1 - p_T,t.

    Returns:
        A scalar >= 0.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    target, others = decoupled_parts(student, teacher, labels)
    return temperature**2 * (alpha * target + beta * others).mean()


class DecoupledDistillation(DistillationLoss):
    """`dkd`; several teachers' probabilities are averaged."""

    def __init__(self, parameters: DkdParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        self.parameters_ = parameters

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the loss."""
        p = self.parameters_
        temperature = p.temperature_at(knowledge.progress)
        teacher = log_average_distribution(knowledge.teacher_logits, temperature)
        return decoupled_loss(knowledge.student_logits, teacher, knowledge.labels, temperature, p.alpha, p.beta)
