"""Frozen teachers as one: each with its own normalization, their logits averaged."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from kdpipe.stages.artifacts import ImageSpace, NetworkDescription, load_ensemble, load_network
from kdpipe.stages.base import Artifact


class Renormalized(nn.Module):
    """A network that takes images normalized for another one: x of `given` becomes (x * std + mean) of `own`."""

    def __init__(self, network: nn.Module, given: ImageSpace, own: ImageSpace) -> None:
        super().__init__()
        self.network = network
        ratio = [a / b for a, b in zip(given.std, own.std, strict=True)]
        shift = [(a - b) / s for a, b, s in zip(given.mean, own.mean, own.std, strict=True)]
        self.register_buffer("ratio", torch.tensor(ratio).view(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor(shift).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, K]."""
        return self.network(x * self.ratio + self.shift)


class TeacherEnsemble(nn.Module):
    """Teachers in evaluation mode whose weights and statistics never change; gradients still reach their input.

    Args:
        members: networks and their descriptions. Images are normalized as for the first; for a member with other
            statistics they are converted.
    """

    def __init__(self, members: list[tuple[nn.Module, NetworkDescription]]) -> None:
        super().__init__()
        self.descriptions = [description for _, description in members]
        self.space = self.descriptions[0].space
        self.networks = nn.ModuleList([network for network, _ in members])
        self._callables = nn.ModuleList(
            [
                network
                if (description.space.mean, description.space.std) == (self.space.mean, self.space.std)
                else Renormalized(network, self.space, description.space)
                for network, description in members
            ]
        )
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def load(cls, directory: Path) -> TeacherEnsemble:
        """Read an artifact of kind ensemble."""
        return cls(load_ensemble(directory))

    def __len__(self) -> int:
        return len(self.networks)

    def train(self, mode: bool = True) -> TeacherEnsemble:
        """Stay in evaluation mode: a batch must never change the teachers' statistics."""
        return super().train(False)

    def each(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> every member's logits, [members, B, K]."""
        return torch.stack([network(x) for network in self._callables])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the mean of the members' logits, [B, K]."""
        return self.each(x).mean(dim=0)


def load_teachers(artifact: Artifact) -> TeacherEnsemble:
    """Read an ensemble, or one network as an ensemble of one."""
    if artifact.kind == "network":
        return TeacherEnsemble([load_network(artifact.path)])
    return TeacherEnsemble.load(artifact.path)
