from __future__ import annotations

import pytest
import torch

from kdpipe.stages.data.batches import TensorBatches, augmentation, flip, shift


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_an_epoch_is_a_shuffle_with_rows_kept_together():
    rows = torch.arange(12)
    batches = TensorBatches((rows, rows * 10), 4, generator())
    first = list(batches)
    assert [len(batch[0]) for batch in first] == [4, 4, 4]
    assert len(batches) == 3
    assert all(torch.equal(a * 10, b) for a, b in first)
    values = torch.cat([a for a, _ in first])
    assert values.sort().values.tolist() == list(range(12))
    assert values.tolist() != list(range(12))
    assert torch.cat([a for a, _ in batches]).tolist() != values.tolist()


def test_the_last_smaller_batch_is_left_out_and_few_rows_are_one_batch():
    assert [len(b) for (b,) in TensorBatches((torch.arange(11),), 4, generator())] == [4, 4]
    assert [len(b) for (b,) in TensorBatches((torch.arange(3),), 4, generator())] == [3]
    assert len(TensorBatches((torch.empty(0),), 4, generator())) == 0


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="different lengths"):
        TensorBatches((torch.arange(3), torch.arange(4)), 2, generator())


def test_shift_moves_each_image_and_fills():
    images = torch.arange(1, 10).view(1, 1, 3, 3).repeat(400, 1, 1, 1)
    moved = shift(1, fill=(-5,))(images, generator())
    padded = torch.nn.functional.pad(images[:1], (1, 1, 1, 1), value=-5)[0, 0]
    allowed = {tuple(padded[y : y + 3, x : x + 3].flatten().tolist()) for y in range(3) for x in range(3)}
    seen = {tuple(image.flatten().tolist()) for image in moved}
    assert seen == allowed
    assert moved.dtype == images.dtype


def test_shift_by_nothing_changes_nothing():
    images = torch.randint(0, 255, (5, 3, 4, 6), dtype=torch.uint8)
    assert torch.equal(shift(0)(images, generator()), images)


def test_each_channel_is_filled_with_its_own_value():
    moved = shift(1, fill=(10, 20))(torch.zeros(200, 2, 1, 1), generator())
    assert {tuple(image.flatten().tolist()) for image in moved} == {(0, 0), (10, 20)}


def test_flip_mirrors_about_half_and_leaves_the_rest():
    images = torch.arange(6).view(1, 1, 2, 3).repeat(400, 1, 1, 1)
    flipped = flip()(images, generator())
    mirrored = (flipped == images.flip(3)).flatten(1).all(dim=1)
    assert torch.equal(flipped[~mirrored], images[~mirrored])
    assert 150 < int(mirrored.sum()) < 250


def test_augmentations_in_a_row():
    images = torch.randint(0, 255, (50, 3, 4, 6), dtype=torch.uint8)
    assert augmentation(0, False) is None
    both, order = augmentation(2, True)(images, generator()), generator()
    assert torch.equal(both, flip()(shift(2)(images, order), order))
