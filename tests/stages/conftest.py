"""For tests of learning stages: a stage context on a directory, and images that a network can learn in a second."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdpipe.stages.artifacts import ImageSpace, NetworkDescription, Split, build_network, save_ensemble
from kdpipe.stages.base import Artifact
from kdpipe.stages.training.parameters import OptimizationParams
from kdpipe.stages.training.teachers import train_classifier


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

    def scratch(self) -> Path:
        path = self.root / "scratch"
        path.mkdir(parents=True, exist_ok=True)
        return path

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


@pytest.fixture(scope="session")
def trained_teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of two small teachers that know bars; not to be changed."""
    members = []
    for index, width in enumerate((4, 6)):
        description = NetworkDescription("cnn", {"channels": (width, 2 * width)}, SPACE)
        torch.manual_seed(index)
        network = build_network(description)
        params = OptimizationParams(epochs=4, batch_size=32)
        train_classifier(network, bars(300, index), params, seed=0, pixels=0, device=torch.device("cpu"))
        members.append((network, description))
    folder = tmp_path_factory.mktemp("ensemble")
    save_ensemble(folder, members)
    return folder


@pytest.fixture
def teachers(tmp_path: Path, trained_teachers: Path) -> Artifact:
    """A copy of the ensemble that a test may change."""
    shutil.copytree(trained_teachers, tmp_path / "ensemble")
    return Artifact("ensemble", tmp_path / "ensemble")
