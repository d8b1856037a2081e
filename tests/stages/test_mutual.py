"""The stage `mutual`."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from kdpipe.stages.artifacts import Samples, load_ensemble, load_network, save_samples, save_split
from kdpipe.stages.base import Artifact
from kdpipe.stages.knowledge.mutual import mutual_losses
from kdpipe.stages.mutual import STAGE, MutualParams
from kdpipe.stages.training.metrics import accuracy, predict

MEMBERS = [{"model": "cnn", "channels": [4, 6]}, {"model": "cnn", "channels": [4, 8]}, {"model": "ds-cnn", "width": 8}]


@pytest.fixture
def inputs(tmp_path, make_bars):
    (tmp_path / "split").mkdir()
    save_split(tmp_path / "split", make_bars(320, 5))
    return {"samples": Artifact("split", tmp_path / "split")}


def run(inputs, folder, **change):
    values = {"samples": "s", "members": MEMBERS, "epochs": 6, "batch_size": 32, **change}
    return STAGE.run(MutualParams(**values), inputs, folder)


def test_the_losses_equal_brute_force():
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    temperature = 2.0

    def softmax(row):
        exponentials = [math.exp(value / temperature) for value in row]
        return [e / sum(exponentials) for e in exponentials]

    p = [[softmax(row) for row in peer] for peer in logits.tolist()]
    for i, found in enumerate(mutual_losses(logits, temperature)):
        total = 0.0
        for j in range(3):
            for b in range(4):
                total += sum(q * math.log(q / r) for q, r in zip(p[j][b], p[i][b], strict=True)) if j != i else 0.0
        assert float(found) == pytest.approx(temperature**2 * total / 2 / 4, rel=1e-4)


def test_no_gradient_goes_through_a_peers_target():
    logits = torch.randn(2, 4, 5, requires_grad=True)
    mutual_losses(logits, 1.0)[0].backward()
    assert logits.grad[0].abs().sum() > 0
    assert torch.equal(logits.grad[1], torch.zeros(4, 5))
    same = torch.randn(1, 4, 5).expand(3, 4, 5)
    torch.testing.assert_close(mutual_losses(same, 3.0), torch.zeros(3), atol=1e-6, rtol=0)


def test_peers_learn_and_grow_alike(inputs, context, make_bars):
    folder, apart = context("together"), context("apart")
    outcome = run(inputs, folder)
    test = make_bars(300, 9)
    first, description = load_network(folder.root / "network")
    assert (description.model, description.arguments["channels"]) == ("cnn", [4, 6])
    assert accuracy(predict(first, test.normalized()), test.labels) > 0.9
    members = load_ensemble(folder.root / "ensemble")
    assert [member.model for _, member in members] == ["cnn", "cnn", "ds-cnn"]
    assert torch.equal(members[0][0].fc.weight, first.fc.weight)
    rows = outcome.history["mutual"]
    assert {"ce_2", "mutual_0", "accuracy_1"} <= set(rows[0])
    assert outcome.metrics["accuracy_0"] == rows[-1]["accuracy_0"]
    # without the exchange they differ more
    run(inputs, apart, weight=0)

    def distance(root):
        a, b = (predict(net, test.normalized()).softmax(dim=1) for net, _ in load_ensemble(root / "ensemble")[:2])
        return float((a - b).abs().mean())

    assert distance(folder.root) < distance(apart.root)


def test_the_same_seed_makes_the_same_bytes(inputs, context):
    folders = [context(name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    for index, folder in enumerate(folders):
        torch.manual_seed(index)
        run(inputs, folder, epochs=1)
    a, b, c = [(folder.root / "network" / "weights.safetensors").read_bytes() for folder in folders]
    assert a == b != c


def test_samples_have_the_teachers_choice_as_labels(context, tmp_path, space, make_bars):
    split = make_bars(320, 5)
    logits = torch.nn.functional.one_hot((split.labels + 1) % 3, 3).float()
    (tmp_path / "samples").mkdir()
    save_samples(tmp_path / "samples", Samples(split.normalized(), logits, space))
    folder = context()
    run({"samples": Artifact("samples", tmp_path / "samples")}, folder)
    network, _ = load_network(folder.root / "network")
    test = make_bars(300, 9)
    assert accuracy(predict(network, test.normalized()), (test.labels + 1) % 3) > 0.9


def test_one_network_has_no_peer():
    with pytest.raises(ValidationError, match="at least 2"):
        MutualParams(samples="s", members=MEMBERS[:1])
