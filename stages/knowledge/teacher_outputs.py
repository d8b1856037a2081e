"""What teachers say about images: computed once, or anew for each batch where the images change."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from kdpipe.stages.knowledge.taps import capture
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.targets.errors import NetworkError

MIB = 2**20


@dataclass(frozen=True)
class TeacherOutputs:
    """Logits [teachers, B, K], and feature maps [B, C_i, H_i, W_i] by teacher (none without taps)."""

    logits: Tensor
    features: tuple[Tensor, ...]


@torch.no_grad()
def teacher_outputs(teachers: TeacherEnsemble, taps: Sequence[str], images: Tensor) -> TeacherOutputs:
    """Ask every teacher about a batch of normalized images [B, C, H, W].

    Args:
        teachers: the ensemble.
        taps: a module's path for each teacher, or none.
        images: on the teachers' device.

    Raises:
        NetworkError: a tap does not exist, or its output is not a feature map.
    """
    with ExitStack() as stack:
        outputs = [
            stack.enter_context(capture(network, [tap]))
            for network, tap in zip(teachers.networks, taps, strict=bool(taps))
        ]
        logits = teachers.each(images)
    features = tuple(output[tap] for output, tap in zip(outputs, taps, strict=True))
    for tap, feature in zip(taps, features, strict=True):
        check_feature_map(tap, feature)
    return TeacherOutputs(logits, features)


@torch.no_grad()
def cache_outputs(
    teachers: TeacherEnsemble, taps: Sequence[str], images: Tensor, *, limit_mib: int, batch_size: int = 512
) -> list[Tensor] | None:
    """Compute the teachers' outputs for all images, on the CPU.

    Args:
        teachers: the ensemble.
        taps: a module's path for each teacher, or none.
        images: normalized, [N, C, H, W].
        limit_mib: what the outputs may take.
        batch_size: images at a time.

    Returns:
        Logits [N, teachers, K], then the feature maps by teacher; None if they would take more than the limit.
    """
    device = next(teachers.parameters()).device
    parts: list[list[Tensor]] = []
    for chunk in images.split(batch_size):
        outputs = teacher_outputs(teachers, taps, chunk.to(device))
        part = [outputs.logits.transpose(0, 1).cpu(), *[feature.cpu() for feature in outputs.features]]
        if not parts:
            size = sum(tensor[0].nbytes for tensor in part) * len(images)
            if size > limit_mib * MIB:
                return None
        parts.append(part)
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]


def check_feature_map(tap: str, feature: Tensor) -> None:
    """Raise NetworkError unless a tap's output is [B, C, H, W]."""
    if not isinstance(feature, Tensor) or feature.dim() != 4:
        shape = list(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
        raise NetworkError(
            f"the module {tap!r} returns {shape}, not a feature map [B, C, H, W]", remedy="Tap a convolutional module"
        )
