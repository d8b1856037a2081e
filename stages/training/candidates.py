"""Choosing a checkpoint without data: among a student's last epochs, by agreement on images that it never saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.stages.training.metrics import predict


class Candidates:
    """The states of a network after its last epochs, and which of them agrees most with its teachers.

    The states are compared at the end, all on the same images: judged epoch by epoch on what a generator makes
    then, a state could win because the images of its time were easy.

    Args:
        network: the one that is trained.
        keep: states to keep, at least 1.
    """

    def __init__(self, network: nn.Module, keep: int) -> None:
        self._network = network
        self._keep = keep
        self._states: dict[int, dict[str, Tensor]] = {}

    @property
    def latest(self) -> int:
        """The epoch of the newest state, or 0."""
        return max(self._states, default=0)

    def add(self, epoch: int) -> None:
        """Keep the network's present state as that after `epoch` epochs; the oldest one may go."""
        self._states[epoch] = {name: value.detach().clone() for name, value in self._network.state_dict().items()}
        for old in sorted(self._states)[: -self._keep]:
            del self._states[old]

    def choose(self, images: Tensor, said: Tensor) -> tuple[int, float]:
        """Put the best state into the network; of equal ones the latest.

        Args:
            images: normalized [N, C, H, W], which the network was not trained on.
            said: the teachers' logits for them, [N, K].

        Returns:
            The number of its epochs, and the share of images, in [0, 1], on which it chooses the teachers' class.
        """
        best = (-1.0, 0)
        for epoch, state in self._states.items():
            self._network.load_state_dict(state)
            agreed = int((predict(self._network, images).argmax(dim=1) == said.argmax(dim=1)).sum())
            best = max(best, (agreed / len(images), epoch))
        self._network.load_state_dict(self._states[best[1]])
        return best[1], best[0]

    def state_dict(self) -> dict[str, Any]:
        """Return the states by epoch."""
        return {"states": self._states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self._states = {
            epoch: {name: value.clone() for name, value in kept.items()} for epoch, kept in state["states"].items()
        }


def agreement(network: nn.Module, images: Tensor, said: Tensor) -> float:
    """Return the share, in [0, 1], of images [N, C, H, W] of which a network chooses the class of logits [N, K]."""
    with torch.no_grad():
        return float((predict(network, images).argmax(dim=1) == said.argmax(dim=1)).float().mean())
