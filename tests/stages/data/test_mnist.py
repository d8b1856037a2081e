from __future__ import annotations

import gzip

import pytest
import torch
from pydantic import ValidationError

from kdpipe.stages.artifacts import load_split
from kdpipe.stages.data.mnist import SOURCE, MnistParams
from kdpipe.stages.data.splits import channel_statistics, hold_out, stratified_choice
from kdpipe.targets.errors import DataError

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(tensor):
    header = bytes([0, 0, 8, tensor.dim()]) + b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    return header + tensor.to(torch.uint8).numpy().tobytes()


@pytest.fixture
def folder(tmp_path):
    """60 images of 6x6 for training and 20 for testing, in two classes; the test labels are gzipped."""
    generator = torch.Generator().manual_seed(0)
    for prefix, count in (("train", 60), ("t10k", 20)):
        labels = (torch.arange(count) % 3 == 0).long()
        images = torch.randint(0, 256, (count, 6, 6), generator=generator)
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    labels = tmp_path / NAMES[3]
    labels.with_name(f"{NAMES[3]}.gz").write_bytes(gzip.compress(labels.read_bytes()))
    labels.unlink()
    return tmp_path


def run(folder, context, **change):
    params = MnistParams(**{"folder": str(folder), "classes": ["a", "b"], "validation": 12, **change})
    return SOURCE.run(params, {}, context)


def test_three_disjoint_stratified_splits(folder, context):
    made = context("splits")
    outcome = run(folder, made, padding=1)
    splits = {name: load_split(made.root / name) for name in ("train", "validation", "test")}
    assert outcome.metrics == {"train_images": 48, "validation_images": 12, "test_images": 20}
    assert {split.space for split in splits.values()} == {splits["train"].space}
    assert splits["train"].space.shape == (1, 8, 8)
    assert [int((splits[name].labels == 1).sum()) for name in ("train", "validation")] == [16, 4]
    border = splits["test"].images.clone()
    border[:, :, 1:-1, 1:-1] = 0
    assert int(border.max()) == 0

    def rows(name):
        return {bytes(image.flatten().tolist()) for image in splits[name].images}

    assert not rows("train") & rows("validation")
    original = (folder / NAMES[0]).read_bytes()[16:]
    inner = {bytes(i[0, 1:-1, 1:-1].flatten().tolist()) for n in ("train", "validation") for i in splits[n].images}
    assert inner == {original[k : k + 36] for k in range(0, len(original), 36)}


def test_no_seed_changes_the_splits_and_a_part_can_be_taken(folder, context):
    made = [context(f"s{seed}", seed) for seed in (0, 1)]
    for each in made:
        run(folder, each, train_images=9)
    a, b = (load_split(each.root / "train") for each in made)
    assert torch.equal(a.images, b.images)
    assert torch.bincount(a.labels).tolist() == [6, 3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (NAMES[0], b"\x89PNG\r\n\x1a\n", "isn't an IDX file"),
        (NAMES[0], b"", "isn't an IDX file"),
        (NAMES[0], b"\0\0\x0d\x03" + bytes(12), "type 13"),
        (NAMES[0], b"\0\0\x08\x01\0\0\0\x04abcd", "1 dimensions, not 3"),
        (NAMES[0], b"\0\0\x08\x03\0\0", "ends inside its header"),
        (NAMES[0], b"\0\0\x08\x03" + b"\xff" * 12, "more than 4 GiB"),
        (NAMES[1], b"\0\0\x08\x01\0\0\0\x3c" + bytes(10), "says 60 bytes of data, it has 10"),
        (NAMES[1], b"\0\0\x08\x01\0\0\0\x3c" + bytes(70), "says 60 bytes of data, it has more"),
        (NAMES[1], b"\0\0\x08\x01\0\0\0\x02" + bytes(2), "2 labels for 60 images"),
        (NAMES[1], b"\0\0\x08\x01\0\0\0\x3c" + bytes([7] * 60), "a label is 7, but there are 2 classes"),
        (f"{NAMES[3]}.gz", b"\x1f\x8b damaged", "can't be read"),
        (f"{NAMES[3]}.gz", gzip.compress(b"\0\0\x08\x01\0\0\0\x14" + bytes(20), mtime=0)[:-9], "can't be read"),
    ],
)
def test_hostile_files_are_refused_by_name(folder, context, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        run(folder, context())
    assert name in str(caught.value)


def test_what_cannot_be_split(folder, context):
    with pytest.raises(DataError, match=r"60 images can't be held out.*Lower `validation`"):
        run(folder, context("a"), validation=60)
    with pytest.raises(DataError, match="train_images is 49, but 48"):
        run(folder, context("b"), train_images=49)
    (folder / NAMES[2]).unlink()
    with pytest.raises(DataError, match=f"neither {NAMES[2]} nor {NAMES[2]}.gz"):
        run(folder, context("c"))
    with pytest.raises(ValidationError):
        MnistParams()


def test_a_stratified_choice_is_as_even_as_it_can_be():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 21)
    for count in (0, 1, 10, 33, 101):
        chosen = stratified_choice(labels, count)
        assert len(chosen.unique()) == count
        shares = torch.bincount(labels[chosen], minlength=3) - count * torch.bincount(labels) / 101
        assert shares.abs().max() < 1
    (left, _), (held, _) = hold_out(torch.arange(101), labels, 20)
    assert sorted([*left.tolist(), *held.tolist()]) == list(range(101))


def test_statistics_by_hand():
    images = torch.tensor([[0, 255], [0, 255]], dtype=torch.uint8).view(2, 1, 1, 2).repeat(1, 2, 1, 1)
    images[:, 1] = 51
    assert channel_statistics(images) == ((0.5, pytest.approx(0.2)), (0.5, pytest.approx(0, abs=1e-8)))
