"""MNIST, and other sets of grey images in its four IDX files (Fashion-MNIST, KMNIST), from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from kdpipe.stages.base import Inputs, Outcome, ReadsFolder, Stage, StageContext, StageParams
from kdpipe.targets.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

FILES = {"train": "train", "test": "t10k"}


class MnistParams(StageParams):
    """Parameters of `mnist`."""

    folder: Annotated[str, ReadsFolder()] = Field(description="with the four files, gzipped or not")
    classes: tuple[str, ...] = Field(
        default=tuple("0123456789"), min_length=2, description="names of the labels 0, 1, ..."
    )
    validation: int = Field(default=5000, ge=1, description="images held out of the training set, stratified")
    train_images: int | None = Field(
        default=None, ge=1, description="to train on only so many of the others, stratified; all if not given"
    )
    padding: int = Field(default=0, ge=0, le=64, description="black pixels on each side; 2 makes 28x28 into 32x32")


def outputs(params: Any) -> Mapping[str, str]:
    """Return the three splits."""
    return {"train": "split", "validation": "split", "test": "split"}


def run(params: MnistParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Write train, validation and test; the choice of images depends on no seed."""
    from kdpipe.stages.data.splits import hold_out, reduce_to, write_splits

    folder = context.file(params.folder)
    (images, labels), held = hold_out(*_read(folder, "train", params), params.validation)
    if params.train_images is not None:
        images, labels = reduce_to(images, labels, params.train_images)
    test = _read(folder, "test", params)
    if test[0].shape[1:] != images.shape[1:]:
        raise DataError("the images for training and for testing differ in size", where=str(folder))
    return write_splits(context, {"train": (images, labels), "validation": held, "test": test}, params.classes)


def _read(folder: Path, split: str, params: MnistParams) -> tuple[Tensor, Tensor]:
    """Return uint8 [N, 1, H, W] and int64 [N]."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from kdpipe.stages.data.idx import find_idx, read_idx

    paths = [find_idx(folder, f"{FILES[split]}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    if len(images) != len(labels):
        raise DataError(f"{len(labels)} labels for {len(images)} images", where=str(paths[1]))
    if len(labels) == 0:
        raise DataError("no image", where=str(paths[0]))
    if labels.max() >= len(params.classes):
        raise DataError(
            f"a label is {labels.max()}, but there are {len(params.classes)} classes",
            where=str(paths[1]),
            remedy="Name all of them in `classes`",
        )
    pixels = F.pad(torch.from_numpy(images.copy()), [params.padding] * 4)[:, None]
    return pixels, torch.from_numpy(labels.astype(np.int64))


SOURCE = Stage(
    name="mnist",
    summary="MNIST or another set in its four IDX files, from a folder",
    params=MnistParams,
    outputs=outputs,
    run=run,
    libraries=("torch",),
)
