"""What networks compute in while they are trained: float32, or bfloat16 with weights and sums that stay float32."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

LEAST_PIXELS = 256
"""`auto` leaves networks for smaller images in float32: they gain little, and so compute alike on every machine."""


@dataclass(frozen=True)
class Precision:
    """What convolutions and products are computed in (torch.autocast).

    Args:
        name: as in YAML, but not auto.
        device: where.
    """

    name: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"

    def computing(self) -> AbstractContextManager[object]:
        """Let networks compute so inside the context; the backward pass follows the forward one."""
        if self.name == "float32":
            return nullcontext()
        return torch.autocast(self.device, torch.bfloat16)

    def compute(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return what a network says, as float32: losses are never computed in less."""
        with self.computing():
            outputs: Tensor = network(images)
        return outputs.float()


FLOAT32 = Precision()


def choose_precision(
    wanted: Literal["auto", "float32", "bfloat16"],
    device: torch.device,
    shape: tuple[int, int, int],
    trained: Iterable[nn.Module],
) -> Precision:
    """Return the precision to train in.

    `auto` is bfloat16 where that was measured to be faster: on CPUs with AMX, for images of `LEAST_PIXELS` pixels or
    more, unless a network has grouped convolutions, whose backward pass is slow in it (benchmarks/kd_step.py). On
    CPUs that only have AVX-512's bfloat16 instructions it is slower than float32; on GPUs it was not measured.

    Args:
        wanted: as in YAML.
        device: where.
        shape: [C, H, W] of the images.
        trained: the networks that are trained.
    """
    if wanted != "auto":
        return Precision(wanted, device.type)
    is_small = shape[1] * shape[2] < LEAST_PIXELS
    is_grouped = any(isinstance(m, nn.Conv2d) and m.groups > 1 for network in trained for m in network.modules())
    is_fast = device.type == "cpu" and has_amx()
    return Precision("bfloat16" if is_fast and not is_small and not is_grouped else "float32", device.type)


def has_amx() -> bool:
    """Return whether this CPU multiplies matrices of bfloat16 (Intel's Advanced Matrix Extensions)."""
    try:
        return bool(torch.cpu.get_capabilities()["amx_bf16"])
    except (AttributeError, KeyError):  # an older torch, or another architecture
        return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
