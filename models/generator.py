"""The image generator of DAFL (Chen et al. 2019, arXiv:1904.01186), for any image size."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Generator(nn.Module):
    """Noise to normalized images.

    Linear to `channels` maps of a quarter of the image's size (rounded up) and batch norm; twice: nearest
    upsampling (to a half, then to the whole), 3x3 convolution, batch norm, LeakyReLU 0.2; a last 3x3 convolution
    to the image's channels, tanh and a batch norm without weights, so that pixels have mean 0 and variance 1 over
    a batch, as the normalized images that the teachers know.

    Args:
        output_shape: [C, H, W].
        channels: maps after the first layer; half of them after the second convolution.
        latent: length of a noise vector.
    """

    def __init__(self, output_shape: tuple[int, int, int], *, channels: int = 128, latent: int = 100) -> None:
        super().__init__()
        image_channels, height, width = output_shape
        half = ((height + 1) // 2, (width + 1) // 2)
        self.latent = latent
        self._start = (channels, (half[0] + 1) // 2, (half[1] + 1) // 2)
        self.linear = nn.Linear(latent, channels * self._start[1] * self._start[2])
        narrow = max(channels // 2, 1)
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Upsample(size=half),
            nn.Conv2d(channels, channels, 3, 1, 1),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Upsample(size=(height, width)),
            nn.Conv2d(channels, narrow, 3, 1, 1),
            nn.BatchNorm2d(narrow),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(narrow, image_channels, 3, 1, 1),
            nn.Tanh(),
            nn.BatchNorm2d(image_channels, affine=False),
        )

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Return `count` standard normal vectors [count, latent] from a CPU generator, on the network's device."""
        return torch.randn(count, self.latent, generator=generator).to(self.linear.weight.device)

    def forward(self, noise: Tensor) -> Tensor:
        """[B, latent] -> [B, C, H, W]."""
        return self.layers(self.linear(noise).view(-1, *self._start))
