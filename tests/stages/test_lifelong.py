"""Learning without forgetting: `select-classes`, `lwf` and a student that starts as another network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from kdpipe.pipeline.spec_file import load_spec
from kdpipe.stages import teachers
from kdpipe.stages.artifacts import load_network, load_split, save_split
from kdpipe.stages.base import Artifact
from kdpipe.stages.data.digits import SOURCE, DigitsParams
from kdpipe.stages.distill import STAGE, DistillParams
from kdpipe.stages.knowledge.base import Knowledge
from kdpipe.stages.knowledge.registry import LOSSES
from kdpipe.stages.knowledge.starting_point import extended
from kdpipe.stages.select_classes import STAGE as SELECT
from kdpipe.stages.select_classes import SelectClassesParams
from kdpipe.stages.training.metrics import accuracy, predict
from kdpipe.targets.errors import DataError, NetworkError

OLD, NEW = [str(digit) for digit in range(5)], [str(digit) for digit in range(5, 10)]


def select(split, folder, classes, **change):
    outcome = SELECT.run(
        SelectClassesParams(split="s", classes=classes, **change), {"split": Artifact("split", split)}, folder
    )
    assert outcome.metrics["images"] == len(load_split(folder.root / "split"))
    return Artifact("split", folder.root / "split")


def learn(old, samples, folder, **change):
    values = {"teachers": "t", "samples": "s", "initial": "i", "losses": {"ce": {}, "lwf": {}}, "epochs": 1, **change}
    inputs = {"teachers": old, "samples": samples, "initial": old}
    return STAGE.run(DistillParams(**values), inputs, folder)


@pytest.fixture
def bars(tmp_path, make_bars):
    (tmp_path / "bars").mkdir()
    save_split(tmp_path / "bars", make_bars(200, 3))
    return tmp_path / "bars"


@pytest.fixture
def old(context, bars):
    """A network that knows left and right."""
    two = select(bars, context("two"), ["left", "right"])
    params = teachers.TeachersParams(train="t", members=[{"model": "cnn", "channels": [4, 6]}], epochs=4, batch_size=32)
    folder = context("old")
    teachers.STAGE.run(params, {"train": two}, folder)
    return Artifact("ensemble", folder.root / "ensemble")


def test_classes_are_chosen_by_name(bars, context):
    whole = load_split(bars)
    kept = load_split(select(bars, context("a"), ["top", "left"]).path)
    rows = whole.labels != 1
    assert kept.space.classes == ("left", "top")
    assert torch.equal(kept.images, whole.images[rows])
    assert torch.equal(kept.labels, whole.labels[rows] // 2)
    placed = load_split(select(bars, context("b"), ["top"], keep_names=True).path)
    assert placed.space == whole.space
    assert set(placed.labels.tolist()) == {2}
    with pytest.raises(DataError, match=r"no class 'tap'. Did you mean top\?"):
        select(bars, context("c"), ["left", "tap"])
    with pytest.raises(DataError, match="at least two classes"):
        select(bars, context("d"), ["left"])


def test_the_student_is_the_old_network_with_a_longer_head(bars, old, context):
    top = select(bars, context("top"), ["top"], keep_names=True)
    learn(old, top, context("new"), lr=1e-9, weight_decay=0)
    before, _ = load_network(old.path / "0")
    after, description = load_network(context("new").root / "network")
    assert description.space.classes == ("left", "right", "top")
    torch.testing.assert_close(after.features[0].weight, before.features[0].weight)
    torch.testing.assert_close(after.fc.weight[:2], before.fc.weight)
    torch.testing.assert_close(after.fc.bias[:2], before.fc.bias)
    assert after.fc.weight.shape == (3, 6)


def test_what_does_not_go_together(bars, old, context, trained_teachers):
    trained_teachers = Artifact("ensemble", trained_teachers)
    top = select(bars, context("top"), ["top"], keep_names=True)
    with pytest.raises(DataError, match="kd compares all 3 classes, of which the teachers know 2"):
        learn(old, top, context("a"), losses={"lwf": {}, "kd": {}})
    with pytest.raises(DataError, match="the images have 3 classes, the networks 2"):
        learn(old, top, context("b"), losses={"ce": {}})
    other = select(bars, context("other"), ["right", "top"])
    params = teachers.TeachersParams(train="t", members=[{"model": "cnn", "channels": [4, 6]}], epochs=1)
    folder = context("others")
    teachers.STAGE.run(params, {"train": other}, folder)
    with pytest.raises(NetworkError, match="classes, right, top, are not the student's first ones, left, right, top"):
        STAGE.run(
            DistillParams(teachers="t", samples="s", initial="i", losses={"ce": {}, "lwf": {}}),
            {"teachers": old, "samples": top, "initial": Artifact("network", folder.root / "ensemble" / "0")},
            context("c"),
        )
    with pytest.raises(NetworkError, match="can't start as an ensemble of 2"):
        extended(trained_teachers, load_split(bars).space)
    for change in ({"model": {"model": "cnn"}}, {"initial": None}):
        with pytest.raises(ValidationError, match="give the student as `model`, or"):
            DistillParams(**{"teachers": "t", "samples": "s", "initial": "i", **change})


def test_both_losses_by_hand():
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    old = torch.randn(1, 4, 2, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([2, 4, 0, 3])
    knowledge = Knowledge(logits, None, old, (), labels)
    p, q = (old[0] / 2).softmax(dim=1), (logits[:, :2] / 2).softmax(dim=1)
    found = LOSSES["lwf"].build(LOSSES["lwf"].parameters(), None, 0)(knowledge)
    assert float(found) == pytest.approx(float((p * (p / q).log()).sum() / 4), rel=1e-5)
    further = LOSSES["ce"].build(LOSSES["ce"].parameters(further_only=True), None, 0)
    expected = -sum(float(logits[i, 2:].log_softmax(dim=0)[labels[i] - 2]) for i in (0, 1, 3)) / 3
    assert float(further(knowledge)) == pytest.approx(expected, rel=1e-5)
    assert float(further(replace(knowledge, labels=torch.zeros(4, dtype=torch.int64)))) == 0
    with pytest.raises(DataError, match="the teachers know all 5 classes"):
        further(replace(knowledge, teacher_logits=logits[None]))


def test_digits_that_were_learned_first_are_kept(context):
    """0 to 4, then 5 to 9: without the loss much of the old classes is lost."""
    data = context("digits")
    SOURCE.run(DigitsParams(), {}, data)
    first = select(data.root / "train", context("first"), OLD)
    second = select(data.root / "train", context("second"), NEW)
    folder = context("old")
    params = teachers.TeachersParams(train="t", members=[{"model": "cnn", "channels": [16, 32, 32]}], epochs=15)
    teachers.STAGE.run(params, {"train": first}, folder)
    old = Artifact("network", folder.root / "ensemble" / "0")
    test = load_split(data.root / "test")
    found = {}
    for name, weight in (("forgets", 0.0), ("keeps", 1.0)):
        folder = context(name)
        losses = {"ce": {"further_only": True}, "lwf": {"weight": weight}}
        learn(old, second, folder, losses=losses, epochs=12, lr=0.05)
        network, description = load_network(folder.root / "network")
        assert description.space.classes == test.space.classes
        logits = predict(network, test.normalized())
        olds, news = test.labels < 5, test.labels >= 5
        found[name] = (
            accuracy(logits[olds][:, :5], test.labels[olds]),
            accuracy(logits[olds], test.labels[olds]),
            accuracy(logits[news], test.labels[news]),
        )
    (lost, lost_of_all, _), (kept, kept_of_all, learned) = found["forgets"], found["keeps"]
    assert kept > max(0.96, lost + 0.1)
    assert kept_of_all > lost_of_all + 0.1
    assert learned > 0.7


def test_the_example_is_a_valid_pipeline():
    spec = load_spec(Path(__file__).parents[2] / "examples" / "lifelong.yaml")
    assert spec.stages["keeps"].uses == "distill"
