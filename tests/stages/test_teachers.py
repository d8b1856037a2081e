from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from kdpipe.stages.artifacts import load_ensemble, load_network, save_split
from kdpipe.stages.base import Artifact
from kdpipe.stages.teachers import STAGE, TeachersParams
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.stages.training.metrics import accuracy, predict
from kdpipe.targets.errors import NetworkError

MEMBERS = [{"model": "cnn", "channels": [4, 8]}, {"model": "resnet", "depth": 8, "width": 4}]
FAST = {"epochs": 3, "batch_size": 32, "members": MEMBERS, "train": "train", "validation": "validation"}


@pytest.fixture
def splits(tmp_path, make_bars):
    result = {}
    for seed, (name, count) in enumerate({"train": 400, "validation": 200}.items()):
        (tmp_path / name).mkdir()
        save_split(tmp_path / name, make_bars(count, seed))
        result[name] = Artifact("split", tmp_path / name)
    return result


def test_teachers_learn_and_the_ensemble_is_measured(splits, context, make_bars):
    folder = context()
    outcome = STAGE.run(TeachersParams(**FAST), splits, folder)
    members = load_ensemble(folder.root / "ensemble")
    assert [d.model for _, d in members] == ["cnn", "resnet"]
    test = make_bars(300, 9)
    ensemble = TeacherEnsemble(members)
    # chance is a third; a linear classifier solves these images
    assert accuracy(predict(ensemble, test.normalized()), test.labels) > 0.9
    assert outcome.metrics["accuracy"] > 0.9
    assert {"accuracy_0", "accuracy_1", "parameters_0", "parameters_1"} <= set(outcome.metrics)
    assert [len(rows) for rows in outcome.history.values()] == [3, 3]
    assert folder.reports[-1][:3] == (6, 6, "epoch")
    losses = [row["loss"] for row in outcome.history["teacher-0"]]
    assert losses[-1] < losses[0]


def test_the_same_seed_makes_the_same_bytes_and_another_does_not(splits, context):
    def weights(name, seed):
        folder = context(name, seed)
        STAGE.run(TeachersParams(**{**FAST, "epochs": 1}), splits, folder)
        return [(folder.root / "ensemble" / i / "weights.safetensors").read_bytes() for i in "01"]

    torch.manual_seed(1)
    first = weights("first", 0)
    torch.manual_seed(2)
    assert weights("second", 0) == first
    other = weights("third", 1)
    assert other[0] != first[0]


def test_a_member_does_not_depend_on_those_before_it(splits, context):
    both, alone = context("both"), context("alone")
    STAGE.run(TeachersParams(**{**FAST, "epochs": 1}), splits, both)
    STAGE.run(TeachersParams(**{**FAST, "epochs": 1, "members": [MEMBERS[0]]}), splits, alone)
    files = [folder.root / "ensemble" / "0" / "weights.safetensors" for folder in (both, alone)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_checkpoints_need_no_data(splits, context, tmp_path, space):
    trained = context("trained")
    STAGE.run(TeachersParams(**{**FAST, "epochs": 1}), splits, trained)
    network, _ = load_network(trained.root / "ensemble" / "0")
    path = tmp_path / "net.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, path)
    params = TeachersParams(
        members=[{**MEMBERS[0], "checkpoint": str(path), "mean": space.mean, "std": space.std}],
        input_shape=space.shape,
        classes=space.classes,
    )
    loaded = context("loaded")
    STAGE.run(params, {}, loaded)
    again, description = load_network(loaded.root / "ensemble" / "0")
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(again(x), network(x))
    assert description.space == space


def test_a_checkpoint_is_trained_on(splits, context, tmp_path, space):
    trained = context("trained")
    STAGE.run(TeachersParams(**{**FAST, "epochs": 1}), splits, trained)
    network, _ = load_network(trained.root / "ensemble" / "0")
    path = tmp_path / "net.pt"
    torch.save({key.replace("fc.", "linear."): value for key, value in network.state_dict().items()}, path)
    member = {**MEMBERS[0], "checkpoint": str(path), "rename": {"linear": "fc"}}
    found = {}
    for name, more in {
        "loaded": {},
        "tuned": {"fine_tune": True},
        "other": {"fine_tune": True, "mean": [0.5], "std": [0.1]},
    }.items():
        outcome = STAGE.run(TeachersParams(**{**FAST, "members": [{**member, **more}]}), splits, context(name))
        tuned, description = load_network(tmp_path / name / "ensemble" / "0")
        found[name] = (outcome.history.get("teacher-0"), tuned.state_dict()["fc.weight"], description.space)
    assert found["loaded"][0] is None
    assert torch.equal(found["loaded"][1], network.fc.weight)
    assert not torch.equal(found["tuned"][1], network.fc.weight)
    first = STAGE.run(TeachersParams(**{**FAST, "members": [MEMBERS[0]]}), splits, context("new")).history["teacher-0"]
    assert found["tuned"][0][0]["loss"] < first[0]["loss"]
    # its own normalization is what it is trained with, and what it is measured with
    assert found["other"][2].mean == (0.5,)
    assert found["other"][0][0]["loss"] != found["tuned"][0][0]["loss"]


def test_a_checkpoint_that_does_not_fit_is_refused(splits, context, tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"fc.weight": torch.zeros(3, 5)}, path)
    params = TeachersParams(**{**FAST, "members": [{**MEMBERS[0], "checkpoint": str(path)}]})
    with pytest.raises(NetworkError, match=r"net\.pt: the weights don't fit .*fc\.weight: \[3, 5\] in the file"):
        STAGE.run(params, splits, context())


def test_members_with_other_normalization_see_their_own(splits, context, tmp_path, space):
    trained = context("trained")
    STAGE.run(TeachersParams(**{**FAST, "epochs": 1}), splits, trained)
    (first, own), (second, _) = load_ensemble(trained.root / "ensemble")
    other = type(own)(own.model, own.arguments, type(space)(space.shape, space.classes, (0.5,), (0.1,)))
    ensemble = TeacherEnsemble([(first, own), (second, other)])
    pixels = torch.rand(4, 1, 8, 8)
    seen = (pixels - space.mean[0]) / space.std[0]
    expected = torch.stack([first(seen), second((pixels - 0.5) / 0.1)])
    torch.testing.assert_close(ensemble.each(seen), expected, rtol=1e-4, atol=1e-4)


def test_an_ensemble_stays_in_evaluation_mode(splits, context):
    folder = context()
    STAGE.run(TeachersParams(**{**FAST, "epochs": 1}), splits, folder)
    ensemble = TeacherEnsemble.load(folder.root / "ensemble").train()
    before = {key: value.clone() for key, value in ensemble.state_dict().items()}
    x = torch.randn(8, 1, 8, 8, requires_grad=True)
    ensemble(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in ensemble.parameters())
    assert all(torch.equal(value, before[key]) for key, value in ensemble.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": None}, "needs `train`"),
        ({"members": []}, "at least 1"),
        ({"classes": ["a", "b"]}, "come from `train`"),
        ({"train": None, "members": [{**MEMBERS[0], "checkpoint": "x"}]}, "needs mean and std"),
        ({"train": None, "members": [{**MEMBERS[0], "checkpoint": "x", "fine_tune": True}]}, "needs `train`"),
        ({"members": [{**MEMBERS[0], "fine_tune": True}]}, "go with a checkpoint"),
        ({"members": [{**MEMBERS[0], "rename": {"a": "b"}}]}, "go with a checkpoint"),
        ({"train": None, "members": [{**MEMBERS[0], "checkpoint": "x", "mean": [0], "std": [1]}]}, "must be given"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"shedule": "cosine"}, "Extra inputs"),
    ],
)
def test_parameters_are_checked(change, words):
    with pytest.raises(ValidationError, match=words):
        TeachersParams(**{**FAST, **change})
