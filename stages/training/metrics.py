"""Figures of merit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdpipe.stages.data.stored_images import StoredImages


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share, in [0, 1], of rows of [N, K] whose largest logit is at the label [N]."""
    return int((logits.argmax(dim=1) == labels).sum()) / len(labels)


class MeanAgreement:
    """How often a network chooses given classes: the mean over the batches of an epoch."""

    def __init__(self) -> None:
        self._shares: list[Tensor] = []

    def add(self, logits: Tensor, classes: Tensor) -> None:
        """Take a batch into the mean: logits [B, K] and classes [B]. It does not wait for the device."""
        self._shares.append((logits.detach().argmax(dim=1) == classes).float().mean())

    def take(self) -> float:
        """Return the mean, in [0, 1], over the batches since it was last taken; there must be one."""
        mean = float(torch.stack(self._shares).mean())
        self._shares.clear()
        return mean


@torch.no_grad()
def predict(network: nn.Module, images: Tensor | StoredImages, *, batch_size: int = 512) -> Tensor:
    """Return the logits [N, K], on the CPU, of images [N, C, H, W], a tensor's normalized, in evaluation mode.

    The network's mode is put back afterwards.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    training = network.training
    network.eval()
    try:
        return torch.cat([network(chunk.to(device)).cpu() for chunk in images.split(batch_size)])
    finally:
        network.train(training)
