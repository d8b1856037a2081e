"""LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition"), with ReLU and max pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdpipe.targets.errors import NetworkError


class LeNet(nn.Module):
    """Three 5x5 convolutions without padding, the first two with 2x2 max pooling behind them, and two linear layers.

    Args:
        input_shape: [C, H, W]; of 32x32 pixels the third convolution sees all at once.
        classes: number of logits.
        channels: of the three convolutions.
        hidden: units of the first linear layer.
        batch_norm: behind each convolution, which then has no bias.

    Raises:
        NetworkError: the image is smaller than 32x32.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        channels: tuple[int, int, int] = (6, 16, 120),
        hidden: int = 84,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if min(input_shape[1:]) < 32:
            raise NetworkError(
                f"an image of {input_shape[1]}x{input_shape[2]} is too small for lenet, which takes 32x32 or more",
                remedy="Pad the images, MNIST's by 2 pixels on each side (`padding: 2`)",
            )
        layers: list[nn.Module] = []
        inputs = input_shape[0]
        for index, outputs in enumerate(channels):
            layers.append(nn.Conv2d(inputs, outputs, 5, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU())
            if index < 2:
                layers.append(nn.MaxPool2d(2))
            inputs = outputs
        self.features = nn.Sequential(*layers)
        pixels = [((size - 4) // 2 - 4) // 2 - 4 for size in input_shape[1:]]
        self.hidden = nn.Linear(inputs * pixels[0] * pixels[1], hidden)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, classes]."""
        return self.fc(self.relu(self.hidden(torch.flatten(self.features(x), 1))))
