"""A memory bank of synthesized images (Fang et al. 2021, arXiv:2105.08584): the newest ones, up to a capacity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class ImageBank:
    """A ring of normalized images on the CPU; the oldest make place for new ones.

    Args:
        capacity: images, at least 1. Memory is taken for all of them at once.
        shape: [C, H, W].
    """

    def __init__(self, capacity: int, shape: tuple[int, int, int]) -> None:
        self._images = torch.zeros(capacity, *shape)
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, len(self._images))

    def add(self, images: Tensor) -> None:
        """Add images [N, C, H, W]; of more than the capacity, the last."""
        images = images[-len(self._images) :]
        places = (self._added + torch.arange(len(images))) % len(self._images)
        self._images[places] = images.detach().cpu()
        self._added += len(images)

    def all(self) -> Tensor:
        """Return all images, [len, C, H, W]."""
        return self._images[: len(self)]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return `count` images at random: different ones as long as there are enough.

        Raises:
            ValueError: the bank is empty.
        """
        if len(self) == 0:
            raise ValueError("the bank is empty")
        if count <= len(self):
            rows = torch.randperm(len(self), generator=generator)[:count]
        else:
            rows = torch.randint(len(self), (count,), generator=generator)
        return self._images[rows]

    def state_dict(self) -> dict[str, Any]:
        """Return the images and how many were ever added."""
        return {"images": self._images[: len(self)], "added": self._added}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state of a bank of the same capacity."""
        self._images[: len(state["images"])] = state["images"]
        self._added = state["added"]
