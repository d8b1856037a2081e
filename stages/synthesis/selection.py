"""Which of the synthesized images to keep."""

from __future__ import annotations

import torch
from torch import Tensor


def balanced_choice(logits: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Choose images at random, with as many of each class as there are, up to an equal share.

    Args:
        logits: [N, K]; an image's class is the largest logit's.
        count: images to choose, at most N. Classes that lack images are made up for by the others.
        generator: CPU generator.

    Returns:
        `count` distinct indices into N, in random order.
    """
    order = torch.randperm(len(logits), generator=generator)
    labels = logits.argmax(dim=1)[order]
    # an image's rank among those of its class, in the random order
    one_hot = torch.nn.functional.one_hot(labels, logits.shape[1])
    rank = one_hot.cumsum(dim=0).gather(1, labels[:, None]).squeeze(1)
    # lowest ranks first: all classes fill up evenly, and a class that is used up leaves its place to the rest
    chosen = order[rank.argsort(stable=True)[:count]]
    return chosen[torch.randperm(len(chosen), generator=generator)]
