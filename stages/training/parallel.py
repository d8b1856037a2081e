"""What training asks of the processes that share it: one alone, or one of several (kdpipe.stages.training.replica)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from kdpipe.stages.training.device import choose_device

B = TypeVar("B")
T = TypeVar("T")
Step = Callable[[B], Mapping[str, Tensor]]


class Parallel(Protocol):
    """One of the processes that train together. Each does all that the others do, but sees a part of every batch.

    What is computed from a whole batch in one process (loss, gradients, batch norms' statistics) is, to rounding, the
    same in several. Methods that talk to the others must be called by all processes in the same order.
    """

    @property
    def rank(self) -> int:
        """Its number, from 0. What the first one writes is the result."""
        ...

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def device(self, accelerator: str) -> torch.device:
        """Return the device to train on; `accelerator` as in `choose_device`."""
        ...

    def rows(self, total: int) -> slice:
        """Return which rows of a batch of `total` are this process's: consecutive ones, as many as the others' +-1."""
        ...

    def start(self, step: Step[B], parameters: Iterable[nn.Parameter]) -> Step[B]:
        """Return a step whose gradients `backward` averages over the processes; called before the first one."""
        ...

    def backward(self, loss: Tensor, share: float) -> None:
        """Compute the gradients of the mean over a batch from that over the rows, a `share` of it, of this process."""
        ...

    def average(self, figures: Mapping[str, float], share: float) -> dict[str, float]:
        """Return the figures of whole batches, given those of this process's `share` of each."""
        ...

    def synchronized(self, modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
        """Let the modules' batch norms use the statistics of whole batches inside the context."""
        ...

    def first(self, work: Callable[[], T]) -> T:
        """Let the first process do `work`, and the others when it is done, so that they find what it left in files."""
        ...

    def gather(self, tensor: Tensor) -> Sequence[Tensor]:
        """Return every process's tensor, all being of one shape and type, by rank."""
        ...


class Alone:
    """The only process."""

    rank = 0
    count = 1

    def device(self, accelerator: str) -> torch.device:
        """Return the device to train on."""
        return choose_device(accelerator)

    def rows(self, total: int) -> slice:
        """Return all rows."""
        return slice(0, total)

    def start(self, step: Step[B], parameters: Iterable[nn.Parameter]) -> Step[B]:
        """Return the step."""
        return step

    def backward(self, loss: Tensor, share: float) -> None:
        """Compute gradients."""
        loss.backward()

    def average(self, figures: Mapping[str, float], share: float) -> dict[str, float]:
        """Return the figures."""
        return dict(figures)

    def synchronized(self, modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
        """Change nothing."""
        return nullcontext()

    def first(self, work: Callable[[], T]) -> T:
        """Do the work."""
        return work()

    def gather(self, tensor: Tensor) -> Sequence[Tensor]:
        """Return the tensor."""
        return [tensor]


ALONE: Parallel = Alone()


def shared_rows(total: int, rank: int, count: int) -> slice:
    """Return the rows of a batch of `total` that process `rank` of `count` sees.

    >>> [shared_rows(8, rank, 3) for rank in range(3)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None)]
    """
    each, more = divmod(total, count)
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))
