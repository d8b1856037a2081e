"""Learning-rate schedules: factors of the initial rate as functions of the share of training that is done."""

from __future__ import annotations

import math
from collections.abc import Callable

from kdpipe.targets.errors import UsageError, did_you_mean

Schedule = Callable[[float], float]


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts).

    >>> cosine(0.0), round(cosine(0.5), 12), cosine(1.0)
    (1.0, 0.5, 0.0)
    """
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def step(progress: float) -> float:
    """1, from half of the training 0.1, from three quarters 0.01: He et al. 2016 for CIFAR-10."""
    return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01


SCHEDULES: dict[str, Schedule] = {"constant": constant, "cosine": cosine, "step": step}


def make_schedule(name: str, warmup: float = 0.0) -> Schedule:
    """Return a named schedule, its factor raised linearly from near 0 over the first share `warmup` of training.

    Args:
        name: constant, cosine or step.
        warmup: in [0, 1): the share of training. The schedule itself runs over the rest.

    Raises:
        UsageError: the name is unknown.
    """
    if name not in SCHEDULES:
        raise UsageError(f"unknown schedule {name!r}", remedy=did_you_mean(name, SCHEDULES))
    schedule = SCHEDULES[name]

    def factor(progress: float) -> float:
        if progress < warmup:
            # never exactly 0: the first step would be lost
            return max(progress / warmup, 1e-3)
        return schedule((progress - warmup) / (1.0 - warmup))

    return factor
