"""Images a second of knowledge distillation, ResNet-56 to ResNet-20, as a ratio to torchdistill's in the same run.

    pip install torchdistill   # in an environment of its own, beside kdpipe; without it, kdpipe alone is measured
    python benchmarks/kd_step.py [--repetitions 3] [--images 1280] [--batch 128] [--threads 1]

Both read the same 32x32 images and do the whole of an epoch: loading, random crops of padded images and flips,
normalization, teacher, student, the losses (cross entropy 0.9, softened divergence 0.1 * T^2 at T = 4), SGD, figures.
torchdistill does it as its own CIFAR-10 example is configured, with the batch size given here, and without worker
processes, so that both have as many threads; its networks are its own ResNet-56 and ResNet-20. kdpipe runs its stage
`distill` with defaults, and once more with every default that makes it faster taken back. Without augmentation, the
teacher's outputs come from the cache; that is counted apart. First epochs are not counted: they allocate, and fill the
cache. All take turns in one process and are timed by its CPU time, so that other load disturbs the ratios little.

A second table has the loaders alone: kdpipe's batches beside torchvision's transforms in torch's DataLoader.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdpipe.models.external import import_library
from kdpipe.stages.artifacts import ImageSpace, NetworkDescription, Split, build_network, save_ensemble, save_split
from kdpipe.stages.base import Artifact
from kdpipe.stages.data.batches import TensorBatches, augmentation
from kdpipe.stages.data.stored_images import StoredImages
from kdpipe.stages.distill import STAGE, DistillParams
from kdpipe.targets.errors import MissingDependencyError

SPACE = ImageSpace((3, 32, 32), tuple("0123456789"), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
EPOCHS = 3
TORCHDISTILL = "torchdistill"
Epochs = Callable[[], list[float]]


class Clock:
    """A stage's context that notes the process's CPU time when epochs end."""

    accelerator = "cpu"
    seed = 0

    def __init__(self, folder: Path, threads: int) -> None:
        self.threads = threads
        self.ends: list[float] = []
        self._folder = folder

    def output(self, name: str) -> Path:
        """Return a directory."""
        (self._folder / name).mkdir()
        return self._folder / name

    def file(self, path: str) -> Path:
        """Return a path."""
        return Path(path)

    def scratch(self) -> Path:
        """Return a directory."""
        (self._folder / "scratch").mkdir(exist_ok=True)
        return self._folder / "scratch"

    def progress(self, done: int, total: int, unit: str = "epoch", **metrics: float) -> None:
        """Note the time."""
        self.ends.append(time.process_time())

    def log(self, message: str) -> None:
        """Say nothing."""


def make_images(count: int) -> Split:
    """Return random pixels, on which training costs what it costs on any."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *SPACE.shape), generator=generator).to(torch.uint8)
    return Split("random", images, torch.randint(0, 10, (count,), generator=generator), SPACE)


def kdpipe_epochs(inputs: Mapping[str, Artifact], batch: int, threads: int, **further: object) -> Epochs:
    """Return what runs `distill` and returns the CPU seconds of its epochs but the first."""
    params = DistillParams(
        teachers="teacher",
        samples="images",
        model={"model": "resnet", "depth": 20},
        losses={"ce": {"weight": 0.9}, "kd": {"weight": 0.1, "temperature": 4}},
        epochs=EPOCHS,
        batch_size=batch,
        weight_decay=1e-4,
        **{"shift": 4, "flip": True, **further},
    )

    def run() -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            clock = Clock(Path(folder), threads)
            STAGE.run(params, inputs, clock)
        return list(np.diff(clock.ends))

    return run


class PillowImages(torch.utils.data.Dataset):
    """Images as torchvision's CIFAR10 hands them to its transforms."""

    def __init__(self, split: Split, transform: Callable[[Any], Tensor]) -> None:
        self._pixels = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = split.labels.tolist()
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self._transform(Image.fromarray(self._pixels[index])), self._labels[index]


def torchvision_images(split: Split) -> PillowImages:
    """Return the images with the transforms of torchdistill's example."""
    transforms = import_library("torchvision.transforms")
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    return PillowImages(split, transforms.Compose([*steps, transforms.Normalize(SPACE.mean, SPACE.std)]))


def torchdistill_epochs(split: Split, batch: int) -> Epochs | None:
    """Return what trains by torchdistill and returns the CPU seconds of its epochs but the first; None without it."""
    import_library("torchvision")  # torchdistill imports it, which needs this help beside some builds of torch
    try:
        from torchdistill.core.distillation import get_distillation_box
        from torchdistill.models.registry import get_model
    except ImportError:
        return None
    loader = {"sampler": {"class_or_func": torch.utils.data.RandomSampler}, "kwargs": {"batch_size": batch}}
    paths = dict.fromkeys(("student_module_path", "teacher_module_path"), ".")
    kinds = dict.fromkeys(("student_module_io", "teacher_module_io"), "output")
    loss = {"key": "KDLoss", "kwargs": {**paths, **kinds, "temperature": 4.0, "alpha": 0.9, "reduction": "batchmean"}}

    def run() -> list[float]:
        config = {
            "num_epochs": EPOCHS,
            "train_data_loader": {"dataset_id": "train", **loader},
            "teacher": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": False},
            "student": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": True},
            "optimizer": {"key": "SGD", "kwargs": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}},
            "scheduler": {"key": "MultiStepLR", "kwargs": {"milestones": [91, 136], "gamma": 0.1}},
            "criterion": {
                "key": "WeightedSumLoss",
                "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}},
            },
        }
        teacher, student = (get_model(name, num_classes=10, pretrained=False) for name in ("resnet56", "resnet20"))
        data = {"train": torchvision_images(split)}
        box = get_distillation_box(teacher, student, data, config, torch.device("cpu"), None, False, 1)
        ends = []
        for epoch in range(EPOCHS):
            box.pre_epoch_process(epoch=epoch)
            for images, labels, further in box.train_data_loader:
                value = box.forward_process(images, labels, further)
                box.post_forward_process(loss=value)
                value.item()
            box.post_epoch_process()
            ends.append(time.process_time())
        box.clean_modules()
        return list(np.diff(ends))

    return run


def loader_epochs(split: Split, batch: int) -> dict[str, Callable[[], Iterator[Tensor]]]:
    """Return by name what yields an epoch of batches as networks see them."""
    stored = StoredImages(split.images, SPACE, SPACE)
    ours = TensorBatches(
        (split.images, split.labels), batch, torch.Generator().manual_seed(0), augment=augmentation(4, True)
    )
    loaders: dict[str, Callable[[], Iterator[Tensor]]] = {"kdpipe": lambda: (stored.seen(pixels) for pixels, _ in ours)}
    try:
        theirs = torch.utils.data.DataLoader(torchvision_images(split), batch, shuffle=True, drop_last=True)
        loaders["torchvision in DataLoader"] = lambda: (images for images, _ in theirs)
    except MissingDependencyError:
        print("torchvision is not installed")
    return loaders


def show(title: str, rates: Mapping[str, list[float]], base: str) -> None:
    """Print images a second by name, and their ratio to the base's."""
    print(f"\n{title:34}{'median images/s':>17}{'best':>9}{'ratio of medians':>19}")
    for name, values in rates.items():
        middle = statistics.median(values)
        ratio = f"{middle / statistics.median(rates[base]):19.2f}" if base in rates else ""
        print(f"{name:34}{middle:17.0f}{max(values):9.0f}{ratio}")


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--images", type=int, default=1280, help="in an epoch")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    count = given.images // given.batch * given.batch
    split = make_images(count)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("images", "teacher"):
            (folder / part).mkdir()
        save_split(folder / "images", split)
        torch.manual_seed(0)
        description = NetworkDescription("resnet", {"depth": 56}, SPACE)
        save_ensemble(folder / "teacher", [(build_network(description), description)])
        inputs = {"teachers": Artifact("ensemble", folder / "teacher"), "samples": Artifact("split", folder / "images")}
        plain = {"shift": 0, "flip": False}
        runs: dict[str, Epochs | None] = {
            TORCHDISTILL: torchdistill_epochs(split, given.batch),
            "kdpipe": kdpipe_epochs(inputs, given.batch, given.threads),
            "kdpipe, float32": kdpipe_epochs(inputs, given.batch, given.threads, precision="float32"),
            "kdpipe, teacher's outputs cached": kdpipe_epochs(inputs, given.batch, given.threads, **plain),
        }
        for _ in range(given.repetitions):
            for run_name, run in runs.items():
                if run is not None:
                    rates.setdefault(run_name, []).extend(count / seconds for seconds in run())
    show(f"distillation, {given.threads} threads", rates, TORCHDISTILL if runs[TORCHDISTILL] else "kdpipe, float32")
    if runs[TORCHDISTILL] is None:
        print("torchdistill is not installed: pip install torchdistill")

    loading: dict[str, list[float]] = {}
    for repetition in range(given.repetitions + 1):
        for loader, epoch in loader_epochs(split, given.batch).items():
            started = time.process_time()
            for _ in epoch():
                pass
            if repetition:  # the first one allocates
                loading.setdefault(loader, []).append(count / (time.process_time() - started))
    show("loading and augmenting", loading, "torchvision in DataLoader")


if __name__ == "__main__":
    main()
