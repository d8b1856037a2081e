"""What a generator is trained on: the three losses of DAFL, and the teachers' batch-norm statistics.

Chen et al. 2019, "Data-Free Learning of Student Networks" (arXiv:1904.01186), section 3.2; Yin et al. 2020,
"Dreaming to Distill" (arXiv:1912.08795), section 3.2. B images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot_loss(logits: Tensor) -> Tensor:
    """Mean over B of CE(y, argmax y): low where the teacher is sure of each image (DAFL, eq. 2).

    Args:
        logits: [B, K].

    Returns:
        A scalar >= 0.
    """
    return F.cross_entropy(logits, logits.detach().argmax(dim=1))


def activation_loss(features: Tensor) -> Tensor:
    """-mean |f|: low where images excite the teacher's features as real ones do (DAFL, eq. 3).

    The features must come from behind a ReLU: otherwise large negative values would count as excitement. The
    mean is taken over features too, as in the authors' code, which keeps the weight independent of their number.

    Args:
        features: [B, D], the input of the classifier.

    Returns:
        A scalar <= 0.
    """
    return -features.abs().mean()


def information_entropy_loss(logits: Tensor) -> Tensor:
    """sum_k p_k log p_k of the mean softmax p over the batch, in nats: low where classes are balanced (DAFL, eq. 4).

    The authors' code uses log10; a weight of theirs is 2.303 times smaller here.

    Args:
        logits: [B, K].

    Returns:
        A scalar in [-log K, 0].
    """
    mean = logits.softmax(dim=1).mean(dim=0)
    return torch.xlogy(mean, mean).sum()


def class_entropy(logits: Tensor) -> float:
    """Return H(p) / log K in [0, 1] of the mean softmax p over the batch [B, K]: near 0 where all images are alike."""
    return min(1.0, max(0.0, float(-information_entropy_loss(logits.detach())) / math.log(logits.shape[1])))


def batch_norm_loss(inputs: Sequence[Tensor], means: Sequence[Tensor], variances: Sequence[Tensor]) -> Tensor:
    """sum_l ||mu_l - mean_l||_2 + ||var_l - variance_l||_2 over the batch-norm layers (DeepInversion, eq. 4).

    Args:
        inputs: by layer, what the layer was given, [B, C, ...].
        means: by layer, its running mean [C].
        variances: by layer, its running variance [C], which torch tracks unbiased; the batch's is unbiased too.

    Returns:
        A scalar >= 0, zero where the batch has exactly the statistics of the data that the teacher was trained on.
    """
    norm = torch.linalg.vector_norm  # its gradient at 0 is 0
    total = torch.zeros((), device=inputs[0].device)
    for x, mean, variance in zip(inputs, means, variances, strict=True):
        batch_variance, batch_mean = torch.var_mean(x, dim=[0, *range(2, x.dim())])
        total = total + norm(batch_mean - mean) + norm(batch_variance - variance)
    return total


def disagreement_loss(student_logits: Tensor, teacher_logits: Tensor, *, only_agreed: bool = False) -> Tensor:
    """-mean KL(teacher || student): low where they disagree, which is where the student can learn.

    The generator's part of the game max_G min_S KL(T(G(z)) || S(G(z))) of DFQ (Choi et al. 2020, arXiv:2005.04136,
    section 3.2). With `only_agreed`, images on which they choose different classes count as 0, as in Fang et al.
    2022: those are hard enough already, and chasing them leads away from what the teachers know.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        only_agreed: see above.

    Returns:
        A scalar <= 0.
    """
    divergence = F.kl_div(
        F.log_softmax(student_logits, dim=1), F.log_softmax(teacher_logits, dim=1), reduction="none", log_target=True
    ).sum(dim=1)
    if only_agreed:
        divergence = divergence * (student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1))
    return -divergence.mean()
