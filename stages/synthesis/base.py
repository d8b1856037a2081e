"""What a data-free method is: the one interface of all generators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.targets.errors import TrainingError


@dataclass(frozen=True)
class SynthesisStep:
    """What one step of a method made.

    Args:
        images: normalized, [B, C, H, W], without gradient, on the teachers' device.
        logits: the teachers' mean for them, [B, K].
        terms: the generator's weighted loss terms, scalars without gradient.
    """

    images: Tensor
    logits: Tensor
    terms: Mapping[str, Tensor]


class Synthesizer(ABC):
    """A source of images that is trained on nothing but networks.

    `state_dict` holds everything that a later step depends on: after `load_state_dict` the method goes on as if it
    had not been interrupted.
    """

    @abstractmethod
    def step(self, student: nn.Module | None) -> SynthesisStep:
        """Train the generator by one step, and return the images that were made on the way.

        Args:
            student: what adversarial methods work against; without one they leave that term out. It is not changed.

        Raises:
            TrainingError: a loss term is not finite.
        """

    @abstractmethod
    def images(self, count: int) -> Tensor:
        """Return `count` images [count, C, H, W] to train the student on, normalized and without gradient."""

    @abstractmethod
    def held_out(self) -> Tensor:
        """Return a batch [B, C, H, W] that `images` never returns: for judging the student, not for training it."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the method's state: tensors, numbers and containers of them."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Let gradients pass through a network without changing it.

    It is in evaluation mode, because a generator's batches must not reach the running statistics of its batch
    norms, and its parameters gather no gradient. Both are put back afterwards.
    """
    training = network.training
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        network.train(training)


def checked_sum(terms: Mapping[str, Tensor], iteration: int) -> Tensor:
    """Return the sum of the loss terms of an iteration (from 1).

    Raises:
        TrainingError: one is not finite; it is named.
    """
    for name, value in terms.items():
        if not torch.isfinite(value):
            raise TrainingError(
                f"the generator's loss term {name!r} is not finite at iteration {iteration}",
                remedy="Lower lr or that term's weight",
            )
    return torch.stack(list(terms.values())).sum()
