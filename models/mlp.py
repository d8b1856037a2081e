"""Linear layers one after the other: classifiers of features, and autoencoders."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear layers, each but the last with batch norm and ReLU.

    Args:
        input_shape: [C, H, W], taken as C * H * W features.
        classes: number of outputs. An autoencoder has as many as it has features.
        hidden: outputs of every layer but the last. MLPerf Tiny's anomaly detection, an autoencoder of 640 features
            (Koizumi et al. 2020, arXiv:2006.05822), has (128, 128, 128, 128, 8, 128, 128, 128, 128).
    """

    def __init__(
        self, *, input_shape: tuple[int, int, int], classes: int, hidden: tuple[int, ...] = (128, 128)
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = math.prod(input_shape)
        for outputs in hidden:
            layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, classes]."""
        return self.fc(self.layers(torch.flatten(x, 1)))
