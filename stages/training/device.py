"""Where to train."""

from __future__ import annotations

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
