from __future__ import annotations

import struct
import sys
import zlib

import pytest
import torch

from kdpipe.stages.artifacts import load_split
from kdpipe.stages.data.image_folder import SOURCE, ImageFolderParams, read_image
from kdpipe.stages.synthesis.picture import encode_png
from kdpipe.targets.errors import DataError, MissingDependencyError


def picture(seed, channels=3, height=4, width=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, height, width), generator=generator, dtype=torch.uint8)


@pytest.fixture
def folder(tmp_path):
    """Ten images of `cat` and five of `dog` to train on, two of each to test on."""
    for split, name, count, base in (("train", "cat", 10, 0), ("train", "dog", 5, 20), ("test", "cat", 2, 40)):
        (tmp_path / split / name).mkdir(parents=True)
        for index in range(count):
            (tmp_path / split / name / f"{index:03}.png").write_bytes(encode_png(picture(base + index)))
    (tmp_path / "test" / "dog").mkdir()
    (tmp_path / "test" / "dog" / "grey.PNG").write_bytes(encode_png(picture(60, channels=1)))
    (tmp_path / "test" / "dog" / "notes.txt").write_text("not an image")
    return tmp_path


def run(folder, context, **change):
    return SOURCE.run(ImageFolderParams(**{"folder": str(folder), "validation": 3, **change}), {}, context)


@pytest.fixture
def pillow():
    return pytest.importorskip("PIL.Image")


def test_three_splits_with_the_pixels_of_the_files(pillow, folder, context):
    made = context()
    outcome = run(folder, made)
    splits = {name: load_split(made.root / name) for name in ("train", "validation", "test")}
    assert outcome.metrics == {"train_images": 12, "validation_images": 3, "test_images": 3}
    assert splits["train"].space.classes == ("cat", "dog")
    assert splits["train"].space.shape == (3, 4, 5)
    assert torch.bincount(splits["validation"].labels).tolist() == [2, 1]
    test = dict(zip(splits["test"].labels.tolist(), splits["test"].images, strict=True))
    assert sorted(splits["test"].labels.tolist()) == [0, 0, 1]
    assert any(torch.equal(test[0], picture(value)) for value in (40, 41))
    assert torch.equal(test[1], picture(60, channels=1).expand(3, 4, 5))
    assert made.reports[-1][:3] == (18, 18, "image")


def test_the_first_images_are_of_all_classes_and_always_the_same(pillow, folder, context):
    labels = []
    for seed in (0, 1):
        run(folder, made := context(f"s{seed}", seed))
        labels.append(load_split(made.root / "train").labels)
    assert torch.equal(labels[0], labels[1])
    assert set(labels[0][:6].tolist()) == {0, 1}
    assert labels[0].tolist() != sorted(labels[0].tolist())


def test_a_part_of_the_images_can_be_trained_on(pillow, folder, context):
    outcome = run(folder, context("part"), train_images=6)
    assert outcome.metrics == {"train_images": 6, "validation_images": 3, "test_images": 3}
    labels = load_split(context("part").root / "train").labels
    assert torch.bincount(labels).tolist() == [4, 2]
    with pytest.raises(DataError, match="train_images is 13, but 12 are left"):
        run(folder, context("more"), train_images=13)


def test_a_folder_for_validation_is_taken(pillow, folder, context):
    (folder / "validation" / "dog").mkdir(parents=True)
    (folder / "validation" / "cat").mkdir()
    (folder / "validation" / "dog" / "a.png").write_bytes(encode_png(picture(80)))
    made = context()
    assert run(folder, made).metrics["train_images"] == 15
    split = load_split(made.root / "validation")
    assert split.labels.tolist() == [1]
    assert torch.equal(split.images[0], picture(80))


def test_resized_and_grey(pillow, folder, context):
    (folder / "train" / "cat" / "large.png").write_bytes(encode_png(torch.full((3, 64, 64), 77, dtype=torch.uint8)))
    with pytest.raises(DataError, match=r"64x64 pixels, where others have 4x5.*Give `size"):
        run(folder, context("a"))
    made = context("b")
    run(folder, made, size=[8, 8], channels=1, validation=1)
    splits = [load_split(made.root / name) for name in ("train", "validation")]
    assert splits[0].space.shape == (1, 8, 8)
    assert sum(int((split.images == 77).flatten(1).all(dim=1).sum()) for split in splits) == 1


def test_jpeg(pillow, tmp_path):
    pillow.new("RGB", (7, 6), (200, 30, 40)).save(tmp_path / "a.jpg", quality=95)
    pixels = torch.from_numpy(read_image(tmp_path / "a.jpg", 3).copy()).float()
    assert pixels.shape == (3, 6, 7)
    assert (pixels.mean(dim=(1, 2)) - torch.tensor([200.0, 30, 40])).abs().max() < 4


def bomb():
    """A PNG file of a hundred bytes that says it has 100,000 x 100,000 pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a" + bytes(40), encode_png(picture(0))[:60], bomb()], ids=["empty", "gif", "cut", "bomb"]
)
def test_hostile_files_are_refused_by_name(pillow, folder, context, content):
    (folder / "train" / "dog" / "evil.png").write_bytes(content)
    with pytest.raises(DataError, match=r"evil\.png"):
        run(folder, context())


def test_folders_that_do_not_fit(pillow, folder, context):
    (folder / "test" / "bird").mkdir()
    with pytest.raises(DataError, match="the class 'bird' is not among those of train"):
        run(folder, context("a"))
    (folder / "test" / "bird").rmdir()
    for path in (folder / "test").glob("*/*"):
        path.unlink()
    with pytest.raises(DataError, match="no PNG or JPEG file"):
        run(folder, context("b"))
    with pytest.raises(DataError, match="no such folder"):
        run(folder / "train", context("c"))


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_refused(pillow, folder, context):
    (folder / "train" / "dog" / "link.png").symlink_to(folder / "train" / "cat" / "000.png")
    with pytest.raises(DataError, match="isn't an ordinary file"):
        run(folder, context())


def test_without_pillow_the_extra_is_named(folder, context, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingDependencyError, match=r"kdpipe\[images\]"):
        run(folder, context())
