"""For tests of learning stages: a stage context on a directory, and images that a network can learn in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdpipe.stages.artifacts import ImageSpace, Split


class FolderContext:
    """What the engine hands a stage, on a directory."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        self.root = root
        self.seed = seed
        self.accelerator = "cpu"
        self.threads = 1
        self.reports: list[tuple[int, int, str, dict[str, float]]] = []
        self.lines: list[str] = []

    def output(self, name: str) -> Path:
        path = self.root / name
        path.mkdir(parents=True)
        return path

    def file(self, path: str) -> Path:
        return Path(path).resolve()

    def progress(self, done: int, total: int, unit: str = "epoch", **metrics: float) -> None:
        self.reports.append((done, total, unit, metrics))

    def log(self, message: str) -> None:
        self.lines.append(message)


SPACE = ImageSpace((1, 8, 8), ("left", "right", "top"), (0.25,), (0.3,))


def bars(count: int, seed: int) -> Split:
    """Images with a bright half (left, right or top), in noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    images = torch.randint(0, 90, (count, 1, 8, 8), generator=generator)
    images[labels == 0, :, :, :4] += 80
    images[labels == 1, :, :, 4:] += 80
    images[labels == 2, :, :4, :] += 80
    return Split("bars", images.to(torch.uint8), labels, SPACE)


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., FolderContext]:
    """A maker of contexts, each on a directory of its own: context("name", seed=1)."""
    return lambda name="stage", seed=0: FolderContext(tmp_path / name, seed)


@pytest.fixture
def space() -> ImageSpace:
    return SPACE


@pytest.fixture
def make_bars() -> Callable[[int, int], Split]:
    return bars
