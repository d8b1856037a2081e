"""Linear layers one after the other: classifiers of features, and autoencoders."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn


class Mlp(nn.Module):
    """All pixels at once through linear layers, each hidden one with batch norm, or none, and ReLU.

    Args:
        input_shape: [C, H, W].
        classes: number of outputs. An autoencoder has as many as it has features.
        hidden: units of each hidden layer. MLPerf Tiny's anomaly detection, an autoencoder of 640 features (Koizumi et
            al. 2020, arXiv:2006.05822), has (128, 128, 128, 128, 8, 128, 128, 128, 128).
        batch_norm: behind each hidden layer.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        hidden: tuple[int, ...] = (64, 64),
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = math.prod(input_shape)
        for index, outputs in enumerate(hidden, start=1):
            layers[f"linear{index}"] = nn.Linear(inputs, outputs, bias=not batch_norm)
            if batch_norm:
                layers[f"bn{index}"] = nn.BatchNorm1d(outputs)
            layers[f"relu{index}"] = nn.ReLU()
            inputs = outputs
        self.hidden = nn.Sequential(layers)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, classes]."""
        return self.fc(self.hidden(torch.flatten(x, 1)))
