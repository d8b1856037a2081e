from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdpipe.stages.training.checkpoints import load_state, read_checkpoint, rename_modules, without_prefix
from kdpipe.targets.errors import NetworkError


class Trap:
    """What a hostile checkpoint does: unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.write_text, (self.target, "ran"))


STATE = {"0.weight": torch.arange(6.0).view(2, 3), "0.bias": torch.ones(2)}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE},
        {"state_dict": {f"module.{key}": value for key, value in STATE.items()}},
        {f"module._orig_mod.{key}": value for key, value in STATE.items()},
    ],
)
def test_torch_files_with_wrappers_and_prefixes(tmp_path, content):
    path = tmp_path / "net.pt"
    torch.save(content, path)
    state = read_checkpoint(path)
    assert set(state) == set(STATE)
    assert torch.equal(state["0.weight"], STATE["0.weight"])


def test_modules_are_renamed_with_all_inside_them():
    state = {"linear.weight": torch.ones(1), "linear.bias": torch.zeros(1), "linear2.weight": torch.zeros(2)}
    renamed = rename_modules(state, {"linear": "head.fc"}, where="net.pt")
    assert sorted(renamed) == ["head.fc.bias", "head.fc.weight", "linear2.weight"]
    assert renamed["head.fc.weight"] is state["linear.weight"]
    swapped = rename_modules(state, {"linear": "linear2", "linear2": "linear"}, where="net.pt")
    assert torch.equal(swapped["linear.weight"], torch.zeros(2))
    nested = rename_modules({"a.b.c": torch.ones(1), "a.d": torch.ones(1)}, {"a": "x", "a.b": "y"}, where="net.pt")
    assert sorted(nested) == ["x.d", "y.c"]


@pytest.mark.parametrize(
    ("names", "message", "remedy"),
    [
        ({"linaer": "fc"}, "no module 'linaer' to rename", "Did you mean linear?"),
        ({"linear": "linear2"}, "two tensors of the checkpoint would be named 'linear2.weight'", None),
    ],
)
def test_modules_that_cannot_be_renamed(names, message, remedy):
    state = {"linear.weight": torch.ones(1), "linear2.weight": torch.ones(1)}
    with pytest.raises(NetworkError, match=message) as caught:
        rename_modules(state, names, where="net.pt")
    assert caught.value.where == "net.pt"
    assert caught.value.remedy == remedy


def test_safetensors(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({f"module.{key}": value for key, value in STATE.items()}, path)
    assert set(read_checkpoint(path)) == set(STATE)


def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path):
    path, target = tmp_path / "net.pt", tmp_path / "written"
    torch.save({"state_dict": STATE, "extra": Trap(target)}, path)
    with pytest.raises(NetworkError, match="can't be read safely"):
        read_checkpoint(path)
    assert not target.exists()


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_damaged_and_missing_files(tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NetworkError, match=name):
        read_checkpoint(path)


def test_a_truncated_torch_file(tmp_path):
    path = tmp_path / "net.pt"
    torch.save(STATE, path)
    assert zipfile.is_zipfile(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(NetworkError, match="damaged"):
        read_checkpoint(path)


def test_a_file_without_tensors(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "net.pt")
    with pytest.raises(NetworkError, match="holds no tensors"):
        read_checkpoint(tmp_path / "net.pt")


def test_a_prefix_that_some_keys_lack_stays():
    assert set(without_prefix({"module.a": torch.ones(1), "b": torch.ones(1)})) == {"module.a", "b"}


def test_what_does_not_fit_is_named_up_to_three():
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    state = {"0.weight": torch.zeros(2, 4), "0.bias": torch.zeros(2), "head.weight": torch.zeros(1)}
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(NetworkError) as caught:
        load_state(network, state, where="file.pt")
    message = str(caught.value)
    assert message.startswith("file.pt: ")
    assert "missing 1.weight, 1.bias, 2.weight and 1 more" in message
    assert "not in the network: head.weight" in message
    assert "0.weight: [2, 4] in the file, [2, 3] in the network" in message
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_num_batches_tracked_may_be_absent():
    network = nn.BatchNorm2d(2)
    state = {key: value for key, value in network.state_dict().items() if key != "num_batches_tracked"}
    load_state(network, state | {"weight": torch.tensor([3.0, 4.0])}, where="x")
    assert network.weight.tolist() == [3, 4]
