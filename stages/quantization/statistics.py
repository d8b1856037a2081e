"""Batch-norm statistics of the finished network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdpipe.stages.data.stored_images import StoredImages
from kdpipe.stages.quantization.weights import WeightQuantizer


@torch.no_grad()
def estimate_statistics(network: nn.Module, images: Tensor | StoredImages, *, batch_size: int = 256) -> None:
    """Replace the running statistics by the mean over batches of `images`, the weights as they are now.

    With weights of few levels the moving average lags behind: each flipped weight moves its channel's statistics.

    Args:
        network: its batch norms are changed in place; its mode is put back afterwards.
        images: [N, C, H, W], those that it was trained on.
        batch_size: the last batch is left out if it is smaller and not the only one.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.track_running_stats]
    if not norms:
        return
    weights = [m for m in network.modules() if isinstance(m, WeightQuantizer)]
    momenta = [norm.momentum for norm in norms]
    training = network.training
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    for weight in weights:
        weight.follow = False
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch: the plain mean over all batches
    network.train()
    try:
        for index, batch in enumerate(images.split(batch_size)):
            if index == 0 or len(batch) == batch_size:
                network(batch.to(device))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for weight in weights:
            weight.follow = True
        network.train(training)
