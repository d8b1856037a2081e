"""Pictures of images, as PNG files (W3C, Portable Network Graphics, 3rd edition)."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from kdpipe.stages.artifacts import ImageSpace

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB = 0, 2


def write_grid(path: Path, images: Tensor, space: ImageSpace, *, side: int = 32, gap: int = 2) -> None:
    """Write images as a square grid, enlarged by a whole factor to about `side` pixels each.

    Args:
        path: the PNG file.
        images: normalized float [N, C, H, W], N >= 1. Of other than 1 or 3 channels, the first is shown.
        space: how they are normalized; values outside [0, 1] are clipped.
        side: pixels of an enlarged image, at least.
        gap: white pixels between images.
    """
    std = torch.tensor(space.std).view(1, -1, 1, 1)
    mean = torch.tensor(space.mean).view(1, -1, 1, 1)
    pixels = ((images * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    if pixels.shape[1] not in (1, 3):
        pixels = pixels[:, :1]
    factor = max(1, side // pixels.shape[2])
    pixels = pixels.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    count, channels, height, width = pixels.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for index in range(count):
        top = gap + (index // columns) * (height + gap)
        left = gap + (index % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = pixels[index]
    path.write_bytes(encode_png(sheet))


def encode_png(image: Tensor) -> bytes:
    """Return a uint8 image [C, H, W], C of 1 (grey) or 3 (RGB), as the bytes of a PNG file."""
    channels, height, width = image.shape
    header = struct.pack(">IIBBBBB", width, height, 8, GRAY if channels == 1 else RGB, 0, 0, 0)
    lines = image.permute(1, 2, 0).reshape(height, width * channels).contiguous().numpy()
    # filter type 0 before each line
    data = b"".join(b"\0" + line.tobytes() for line in lines)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(data, 9)) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
