"""Where to train, and with how many threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kdpipe.targets.errors import DeviceError, UsageError, did_you_mean

if TYPE_CHECKING:
    import torch

ACCELERATORS = ("auto", "cpu", "cuda", "mps")


def choose_device(accelerator: str) -> torch.device:
    """Return the torch device for an accelerator's name; `auto` takes cuda, then mps, then the CPU.

    Raises:
        UsageError: the name is unknown.
        DeviceError: this machine, or this build of torch, has no such accelerator.
    """
    import torch

    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        return torch.device(next(name for name, available in here.items() if available))
    if accelerator not in here:
        raise UsageError(f"unknown accelerator {accelerator!r}", remedy=did_you_mean(accelerator, ACCELERATORS))
    if not here[accelerator]:
        raise DeviceError(
            f"torch {torch.__version__} finds no {accelerator} device here", remedy="Choose `auto` or `cpu`"
        )
    return torch.device(accelerator)


@contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Let torch compute on `count` threads of the CPU; None leaves that to torch.

    More threads are not always faster: on networks of kilobytes they wait for one another, on a busy machine ten
    times longer than one thread computes. And sums in another order differ in their last bits, so that a fixed
    number makes a run repeatable on machines of different sizes.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
