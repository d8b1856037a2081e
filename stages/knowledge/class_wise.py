"""Class-wise self-knowledge distillation, CS-KD (Yun et al. 2020, arXiv:2003.13964). It needs no teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.stages.knowledge.base import DistillationLoss, FeatureShapes, Knowledge
from kdpipe.stages.knowledge.loss_parameters import CsKdParameters


def next_of_class(labels: Tensor) -> Tensor:
    """Return for each image the place of the next one of its class in the batch, in a ring; itself if it is alone.

    >>> next_of_class(torch.tensor([0, 1, 0, 2, 0])).tolist()
    [2, 1, 4, 3, 0]
    """
    count = len(labels)
    places = torch.arange(count, device=labels.device)
    ahead = (places[None, :] - places[:, None]) % count
    ahead = torch.where(ahead == 0, count, ahead)
    other = labels[None, :] != labels[:, None]
    return ahead.masked_fill(other, count + 1).argmin(dim=1)


def class_wise_loss(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T^2 KL(stopgrad softmax(z(x') / T) || softmax(z(x) / T)), mean over B; x' is of the class of x (equation 2).

    x' is the next image of the class in the batch, so that one forward pass is enough. An image that is alone with
    its class has x' = x, and adds neither loss nor gradient.

    Args:
        logits: [B, K].
        labels: int64 [B].
        temperature: T > 0.
    """
    softened = F.log_softmax(logits / temperature, dim=1)
    target = softened.detach()[next_of_class(labels)]
    return temperature**2 * F.kl_div(softened, target, reduction="batchmean", log_target=True)


class ClassWise(DistillationLoss):
    """`cs-kd`."""

    def __init__(self, parameters: CsKdParameters, shapes: FeatureShapes | None, seed: int) -> None:
        super().__init__()
        self.parameters_ = parameters

    def forward(self, knowledge: Knowledge) -> Tensor:
        """Return the loss."""
        temperature = self.parameters_.temperature_at(knowledge.progress)
        return class_wise_loss(knowledge.student_logits, knowledge.labels, temperature)
