"""A plain convolutional network, for the smallest devices and as a teacher unlike a ResNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdpipe.models.initialization import initialize_convolutions
from kdpipe.targets.errors import NetworkError


class Cnn(nn.Module):
    """3x3 convolutions, each with batch norm and ReLU, then global mean and one linear layer.

    Args:
        input_shape: [C, H, W].
        classes: number of logits.
        channels: output channels of each convolution. Every one but the first halves the map.
        reduce: how it is halved: `stride` (stride 2) or `max` (2x2 max pooling after the ReLU).

    Raises:
        NetworkError: the map would have no pixel left.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        channels: tuple[int, ...] = (16, 32, 64),
        reduce: str = "stride",
    ) -> None:
        super().__init__()
        if min(input_shape[1:]) < 2 ** (len(channels) - 1):
            raise NetworkError(
                f"an image of {input_shape[1]}x{input_shape[2]} can't be halved {len(channels) - 1} times",
                remedy="Give fewer channels",
            )
        layers: list[nn.Module] = []
        inputs = input_shape[0]
        for index, outputs in enumerate(channels):
            stride = 2 if index and reduce == "stride" else 1
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            if index and reduce == "max":
                layers.append(nn.MaxPool2d(2))
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, classes]."""
        return self.fc(torch.flatten(self.pool(self.features(x)), 1))
