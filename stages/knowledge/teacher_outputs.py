"""What teachers say about a batch of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from kdpipe.stages.knowledge.taps import Seen, Taps, observing
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.stages.training.precision import FLOAT32, Precision


@dataclass(frozen=True)
class TeacherOutputs:
    """Logits [teachers, B, K], and what the taps of each teacher saw (nothing without taps)."""

    logits: Tensor
    seen: tuple[Seen, ...]

    @property
    def features(self) -> tuple[Tensor, ...]:
        """The tapped maps by teacher."""
        return tuple(seen.feature for seen in self.seen if seen.feature is not None)

    @property
    def layers(self) -> tuple[tuple[Tensor, ...], ...]:
        """The maps from shallow to deep, by teacher."""
        return tuple(seen.layers for seen in self.seen)

    @property
    def embeddings(self) -> tuple[Tensor, ...]:
        """What the classifiers are given, by teacher."""
        return tuple(seen.embedding for seen in self.seen if seen.embedding is not None)


@torch.no_grad()
def teacher_outputs(
    teachers: TeacherEnsemble, taps: Sequence[Taps], images: Tensor, precision: Precision = FLOAT32
) -> TeacherOutputs:
    """Ask every teacher about a batch of normalized images [B, C, H, W].

    Args:
        teachers: the ensemble.
        taps: of each teacher.
        images: on the teachers' device.
        precision: what the teachers compute in; their outputs are float32.

    Raises:
        NetworkError: a tap does not exist, or its output is not a feature map.
    """
    with ExitStack() as stack:
        observers = [
            stack.enter_context(observing(network, tap)) for network, tap in zip(teachers.networks, taps, strict=True)
        ]
        with precision.computing():
            logits = teachers.each(images)
        return TeacherOutputs(logits.float(), tuple(observer.seen().float() for observer in observers))


def flatten(outputs: TeacherOutputs, taps: Sequence[Taps]) -> list[Tensor]:
    """Return outputs as tensors [B, ...]; a map that is both the feature and a layer stands there once."""
    tensors = [outputs.logits.transpose(0, 1)]
    for seen, tap in zip(outputs.seen, taps, strict=True):
        tensors += list(seen.layers)
        if seen.feature is not None and tap.feature not in tap.layers:
            tensors.append(seen.feature)
        if seen.embedding is not None:
            tensors.append(seen.embedding)
    return tensors


def unflatten(tensors: Sequence[Tensor], taps: Sequence[Taps]) -> TeacherOutputs:
    """Undo `flatten`."""
    logits, *rest = tensors
    remaining: Iterator[Tensor] = iter(rest)
    seen = []
    for tap in taps:
        layers = tuple(next(remaining) for _ in tap.layers)
        feature = None
        if tap.feature is not None:
            feature = layers[tap.layers.index(tap.feature)] if tap.feature in tap.layers else next(remaining)
        seen.append(Seen(feature, layers, next(remaining) if tap.embedding else None))
    return TeacherOutputs(logits.transpose(0, 1), tuple(seen))
