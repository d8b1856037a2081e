"""The blocks of Factor Transfer (Kim et al. 2018, arXiv:1802.04977), which FEED uses too."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.stages.knowledge.base import seeded_module

SLOPE = 0.1


def make_translator(inputs: int, outputs: int) -> nn.Sequential:
    """Return three 3x3 convolutions (inputs -> inputs -> outputs -> outputs), LeakyReLU 0.1 after each, no BN."""
    channels = [inputs, inputs, outputs, outputs]
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, 1, 1), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)


def normalize_factor(factor: Tensor) -> Tensor:
    """v(x) = vec(x) / ||vec(x)||_2 of each sample: [B, ...] -> [B, D]."""
    return F.normalize(factor.flatten(1), dim=1)


def factor_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over B of ||v(student) - v(teacher)||_1 / sqrt(D).

    The L1 distance of unit vectors grows as sqrt(D), so dividing by it makes the weight independent of the size of
    the feature map. The authors' code takes the mean over D with beta 500 at D = 2048: a weight of
    500 / sqrt(2048) = 11 here.

    Args:
        student: translated feature map, [B, C, H, W].
        teacher: the teacher's, of the same shape.

    Returns:
        A scalar in [0, 2].
    """
    difference = normalize_factor(student) - normalize_factor(teacher)
    return difference.abs().sum(dim=1).mean() / difference.shape[1] ** 0.5


def match_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Pool both maps [B, C, H, W] adaptively to the smaller height and width of the two."""
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return _pool(student, size), _pool(teacher, size)


def _pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if tuple(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, size)


def seeded_translator(inputs: int, outputs: int, seed: int) -> nn.Sequential:
    """Return a translator whose weights are a function of `seed` alone."""
    return seeded_module(lambda: make_translator(inputs, outputs), seed)
