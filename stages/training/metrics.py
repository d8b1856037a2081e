"""Figures of merit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdpipe.stages.data.stored_images import StoredImages


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share, in [0, 1], of rows of [N, K] whose largest logit is at the label [N]."""
    return int((logits.argmax(dim=1) == labels).sum()) / len(labels)


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
