"""scikit-learn's bundled digits: 1,797 real scans of 8x8 pixels (Alpaydin and Kaynak 1998, UCI)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdpipe.stages.base import Inputs, Outcome, Stage, StageContext, StageParams

SIZES = {"train": 1197, "validation": 240, "test": 360}
SPLIT_SEED = 0


class DigitsParams(StageParams):
    """The split is fixed, so that figures of different runs and seeds can be compared: nothing can be set."""


def outputs(params: Any) -> Mapping[str, str]:
    """Return the three splits."""
    return dict.fromkeys(SIZES, "split")


def run(params: DigitsParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Write train, validation and test: stratified by class with seed 0, whatever the stage's seed is.

    A scan's 0..16 becomes round(p * 255 / 16); mean and std are those of the training split.
    """
    import numpy as np
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from kdpipe.stages.artifacts import ImageSpace, Split, save_split

    data = load_digits()
    pixels = np.rint(data.images * 255 / 16).astype(np.uint8)[:, None]
    labels = data.target.astype(np.int64)
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=SIZES["test"], stratify=labels, random_state=SPLIT_SEED
    )
    train, validation = train_test_split(
        rest, test_size=SIZES["validation"], stratify=labels[rest], random_state=SPLIT_SEED
    )
    unit = pixels[train].astype(np.float64) / 255
    space = ImageSpace(
        shape=(1, 8, 8),
        classes=tuple(str(name) for name in data.target_names),
        mean=(float(unit.mean()),),
        std=(float(unit.std()),),
    )
    for name, rows in (("train", train), ("validation", validation), ("test", test)):
        split = Split(name, torch.from_numpy(pixels[rows]), torch.from_numpy(labels[rows]), space)
        save_split(context.output(name), split)
    return Outcome(metrics={f"{name}_images": size for name, size in SIZES.items()})


SOURCE = Stage(
    name="digits",
    summary="scikit-learn's 1,797 handwritten digits, 8x8 pixels, 10 classes",
    params=DigitsParams,
    outputs=outputs,
    run=run,
    libraries=("scikit-learn",),
)
