from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from kdpipe.stages.artifacts import (
    ImageSpace,
    NetworkDescription,
    Samples,
    build_network,
    load_ensemble,
    load_network,
    load_samples,
    load_split,
    normalize,
    save_ensemble,
    save_network,
    save_samples,
    save_split,
)
from kdpipe.targets.errors import ArtifactError, DataError, NetworkError


def description(space, **arguments):
    return NetworkDescription("resnet", {"depth": 8, "width": 4, **arguments}, space)


def test_split_comes_back(tmp_path, make_bars):
    split = make_bars(20, 0)
    save_split(tmp_path, split)
    back = load_split(tmp_path)
    assert torch.equal(back.images, split.images)
    assert torch.equal(back.labels, split.labels)
    assert (back.name, back.space) == (split.name, split.space)


def test_normalization_by_hand():
    space = ImageSpace((2, 1, 1), ("a", "b"), (0.5, 0.25), (0.5, 0.1))
    images = torch.tensor([[[[255]], [[51]]]], dtype=torch.uint8)
    torch.testing.assert_close(normalize(images, space).flatten(), torch.tensor([1.0, -0.5]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": torch.full((20,), 3)}, r"labels lie in \[3, 3\]"),
        ({"labels": torch.full((20,), -1)}, "labels lie in"),
        ({"labels": torch.zeros(19, dtype=torch.int64)}, "labels must be"),
        ({"images": torch.zeros(20, 1, 8, 8)}, "must be uint8"),
        ({"images": torch.zeros(20, 1, 8, 9, dtype=torch.uint8)}, "must be uint8"),
        (
            {"images": torch.zeros(0, 1, 8, 8, dtype=torch.uint8), "labels": torch.zeros(0, dtype=torch.int64)},
            "empty",
        ),
    ],
)
def test_a_split_that_makes_no_sense_is_not_written(tmp_path, make_bars, change, words):
    with pytest.raises(DataError, match=words):
        save_split(tmp_path, replace(make_bars(20, 0), **change))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": (1, 8)},
        {"mean": (0.1, 0.2)},
        {"std": (0.0,)},
        {"classes": ("one",)},
    ],
)
def test_an_image_space_is_checked(space, fields):
    with pytest.raises(DataError):
        replace(space, **fields)


def test_samples_come_back_and_are_checked(tmp_path, space):
    samples = Samples(torch.randn(5, 1, 8, 8), torch.randn(5, 3), space)
    save_samples(tmp_path, samples)
    back = load_samples(tmp_path)
    assert torch.equal(back.images, samples.images)
    assert torch.equal(back.logits, samples.logits)
    assert back.space == space
    document = json.loads((tmp_path / "samples.json").read_text())
    (tmp_path / "samples.json").write_text(json.dumps(document | {"count": 6}))
    with pytest.raises(ArtifactError, match=r"not what samples\.json says"):
        load_samples(tmp_path)


def test_network_comes_back_in_evaluation_mode(tmp_path, space):
    network = build_network(description(space))
    network(torch.randn(16, 1, 8, 8))  # moves the batch norms' statistics
    save_network(tmp_path, network, description(space))
    back, found = load_network(tmp_path)
    assert not back.training
    assert found.arguments == {"depth": 8, "width": 4}
    assert found.feature == "layer3"
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(back(x), network.eval()(x))


def test_the_same_network_makes_the_same_bytes(tmp_path, space):
    network = build_network(description(space))
    for name in "ab":
        (tmp_path / name).mkdir()
        save_network(tmp_path / name, network, description(space))
    for file in ("network.json", "weights.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_quantized_network_is_not_loaded_as_a_float_one(tmp_path, space):
    network = build_network(description(space))
    save_network(tmp_path, network, replace(description(space), quantization={"weight_bits": 2}))
    with pytest.raises(ArtifactError, match="quantized network"):
        load_network(tmp_path)


def test_weights_that_do_not_fit_name_the_first_keys_and_shapes(tmp_path, space):
    save_network(tmp_path, build_network(description(space)), description(space, width=8))
    with pytest.raises(NetworkError, match=r"conv1\.weight: \[4, 1, 3, 3\] in the file, \[8, 1, 3, 3\]"):
        load_network(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "json", "format", "key", "tensors", "truncated"])
def test_a_damaged_artifact_is_named(tmp_path, make_bars, damage):
    save_split(tmp_path, make_bars(10, 0))
    json_file, tensor_file = tmp_path / "split.json", tmp_path / "split.safetensors"
    document = json.loads(json_file.read_text())
    if damage == "missing":
        json_file.unlink()
    elif damage == "json":
        json_file.write_text("{")
    elif damage == "format":
        json_file.write_text(json.dumps(document | {"format": 99}))
    elif damage == "key":
        json_file.write_text(json.dumps({key: value for key, value in document.items() if key != "mean"}))
    elif damage == "tensors":
        tensor_file.write_bytes(b"not tensors")
    else:
        tensor_file.write_bytes(tensor_file.read_bytes()[:-5])
    with pytest.raises(ArtifactError, match=r"split\."):
        load_split(tmp_path)


def test_ensemble_members_must_agree(tmp_path, space):
    other = replace(space, classes=("a", "b"))
    pairs = [(build_network(description(s)), description(s)) for s in (space, other)]
    save_ensemble(tmp_path, pairs)
    with pytest.raises(ArtifactError, match="member 1 has 2 classes, member 0 has 3"):
        load_ensemble(tmp_path)


@pytest.mark.parametrize("members", [[], ["../secret"], "0", None])
def test_ensemble_members_are_directories_inside(tmp_path, members):
    (tmp_path / "ensemble.json").write_text(json.dumps({"format": 1, "members": members}))
    with pytest.raises(ArtifactError, match="members must be"):
        load_ensemble(tmp_path)
