"""Coefficients that change while a student is trained, as gradual soft loss reducing does with the soft loss's.

Kim, Shin, Boo and Sung 2019 ("Knowledge distillation for optimization of quantized deep neural networks",
arXiv:1909.01688): L_t = (1 - lambda_t) CE + lambda_t T^2 KL. With `kd: {weight: 1, weight_end: 0}` and
`ce: {weight: 0, weight_end: 1}` this is lambda_t falling from 1 to 0. Plain numbers; no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

STEPS = 4

Shape = Callable[[float], float]


def linear(progress: float) -> float:
    """The progress itself."""
    return progress


def cosine(progress: float) -> float:
    """(1 - cos(pi progress)) / 2: slow at both ends."""
    return 0.5 * (1.0 - math.cos(math.pi * progress))


def step(progress: float) -> float:
    """0, 1/3, 2/3 and 1, each for a quarter of the training.

    >>> [round(step(p), 3) for p in (0.0, 0.24, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 0.0, 0.333, 0.667, 1.0, 1.0]
    """
    return min(math.floor(progress * STEPS), STEPS - 1) / (STEPS - 1)


SHAPES: dict[str, Shape] = {"linear": linear, "cosine": cosine, "step": step}


def coefficient(start: float, end: float | None, shape: str, progress: float) -> float:
    """Return a coefficient on its way from `start` to `end`.

    Args:
        start: at progress 0.
        end: at progress 1; None: `start` throughout.
        shape: linear, cosine or step.
        progress: in [0, 1].

    >>> coefficient(1.0, 0.0, "linear", 0.0), coefficient(1.0, 0.0, "linear", 1.0), coefficient(0.9, None, "step", 0.7)
    (1.0, 0.0, 0.9)
    """
    if end is None:
        return start
    share = SHAPES[shape](progress)
    return start * (1.0 - share) + end * share


def warmed_up(epoch: int, epochs: int, share: float) -> float:
    """Return the factor of a coefficient that rises linearly over the first epochs, and is 1 from then on.

    min(e / warm-up, 1), e from 1, as the authors of DKD and of knowledge review have it. The first epoch's is never 0,
    and that of a warm-up shorter than an epoch is 1.

    Args:
        epoch: from 0.
        epochs: of the whole training.
        share: of the epochs that are the warm-up, in [0, 1].

    >>> [round(warmed_up(epoch, 8, 0.5), 2) for epoch in range(6)], warmed_up(0, 1, 0.5), warmed_up(0, 9, 0.0)
    ([0.25, 0.5, 0.75, 1.0, 1.0, 1.0], 1.0, 1.0)
    """
    return min((epoch + 1) / (share * epochs), 1.0) if share else 1.0


def epoch_progress(epoch: int, epochs: int) -> float:
    """Return how far the training is in an epoch (from 0): 0 in the first and exactly 1 in the last.

    >>> epoch_progress(0, 5), epoch_progress(2, 5), epoch_progress(4, 5), epoch_progress(0, 1)
    (0.0, 0.5, 1.0, 0.0)
    """
    return epoch / (epochs - 1) if epochs > 1 else 0.0
