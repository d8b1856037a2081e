from __future__ import annotations

import torch

from kdpipe.stages.artifacts import load_split
from kdpipe.stages.data.digits import SOURCE, DigitsParams


def test_the_split_is_fixed_stratified_and_disjoint(context):
    splits = {}
    for seed in (0, 7):
        folder = context(f"seed{seed}", seed)
        SOURCE.run(DigitsParams(), {}, folder)
        splits[seed] = {name: load_split(folder.root / name) for name in SOURCE.outputs(DigitsParams())}
    sizes = {name: len(split) for name, split in splits[0].items()}
    assert sizes == {"train": 1197, "validation": 240, "test": 360}
    for name, split in splits[0].items():
        assert torch.equal(split.images, splits[7][name].images)
        assert split.space == splits[0]["train"].space
        counts = torch.bincount(split.labels, minlength=10)
        assert int(counts.max() - counts.min()) <= 0.02 * len(split) + 1
        assert int(split.images.max()) == 255
    everything = torch.cat([split.images.flatten(1) for split in splits[0].values()])
    # 1,797 scans, all different: no scan is in two splits
    assert len(torch.unique(everything, dim=0)) == 1797


def test_mean_and_std_are_those_of_the_training_images(context):
    folder = context()
    SOURCE.run(DigitsParams(), {}, folder)
    x = load_split(folder.root / "train").normalized()
    assert abs(float(x.mean())) < 1e-5
    assert abs(float(x.std(unbiased=False)) - 1) < 1e-5
