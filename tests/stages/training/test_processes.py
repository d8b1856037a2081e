"""Training that several processes share. Each test starts some, which takes seconds."""

from __future__ import annotations

import errno
import multiprocessing
import time
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from kdpipe.stages.artifacts import (
    NetworkDescription,
    build_network,
    load_ensemble,
    load_network,
    save_network,
    save_split,
)
from kdpipe.stages.base import Artifact, Outcome
from kdpipe.stages.data_free_distill import DataFreeDistillParams
from kdpipe.stages.distill import STAGE as DISTILL
from kdpipe.stages.distill import DistillParams
from kdpipe.stages.knowledge.distillation import distill
from kdpipe.stages.mutual import MutualParams
from kdpipe.stages.quantize import STAGE as QUANTIZE
from kdpipe.stages.quantize import QuantizeParams
from kdpipe.stages.teachers import STAGE as TEACHERS
from kdpipe.stages.teachers import TeachersParams
from kdpipe.stages.training.processes import train_in_processes
from kdpipe.stages.training.teachers import make_ensemble
from kdpipe.targets.errors import DataError, TrainingError

# 17 images a batch: one process gets 9, the other 8; both models have batch norms
SMALL = {"model": "cnn", "channels": [4, 8]}
TEACHER = {"train": "train", "members": [SMALL], "epochs": 3, "batch_size": 17, "shift": 1, "flip": True}
STUDENT = {
    "teachers": "teachers",
    "samples": "split",
    "model": SMALL,
    "losses": {"ce": {}, "feed": {}},
    "epochs": 3,
    "batch_size": 17,
}
SAME = {"rel": 2e-4, "abs": 1e-5}  # rounding, which a few steps amplify


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """The processes import the functions below by this file's name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))


@pytest.fixture
def split(tmp_path, make_bars):
    (tmp_path / "split").mkdir()
    save_split(tmp_path / "split", make_bars(70, 0))
    return Artifact("split", tmp_path / "split")


def same_curves(ours: Outcome, theirs: Outcome) -> bool:
    return all(
        mine == pytest.approx(other, **SAME)
        for name in theirs.history
        for mine, other in zip(ours.history[name], theirs.history[name], strict=True)
    )


def test_two_processes_have_the_curves_and_weights_of_one(split, context):
    """Batch norms, augmentation and a batch that can't be halved included."""
    outcomes, weights = [], []
    for processes in (1, 2):
        folder = context(f"of-{processes}")
        outcomes.append(TEACHERS.run(TeachersParams(**TEACHER, processes=processes), {"train": split}, folder))
        assert [report[:2] for report in folder.reports] == [(1, 3), (2, 3), (3, 3)]
        ((network, _),) = load_ensemble(folder.root / "ensemble")
        weights.append(network.state_dict())
    assert same_curves(*outcomes)
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-4)
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize(
    "further",
    [
        {},  # the teachers' outputs come from the cache, which the first process writes
        {"losses": {"review": {}, "kd": {}}, "shift": 1, "checkpoint": "ema"},  # batch norms in the loss
        {"losses": {"feed": {}}, "generations": 2},  # the classifier gets no gradient
    ],
)
def test_a_student_of_two_processes_is_that_of_one(split, teachers, context, further):
    inputs = {"teachers": teachers, "samples": split}
    outcomes, weights = [], []
    for processes in (1, 2):
        folder = context(f"of-{processes}")
        outcomes.append(DISTILL.run(DistillParams(**{**STUDENT, **further}, processes=processes), inputs, folder))
        weights.append(load_network(folder.root / "network")[0].state_dict())
    assert same_curves(*outcomes)
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_peers_of_two_processes_are_those_of_one(split, context):
    from kdpipe.stages.mutual import STAGE

    params = {"samples": "split", "members": [SMALL, SMALL], "epochs": 2, "batch_size": 17}
    one, two = (
        STAGE.run(MutualParams(**params, processes=count), {"samples": split}, context(f"of-{count}"))
        for count in (1, 2)
    )
    assert same_curves(two, one)


@pytest.mark.slow
@pytest.mark.parametrize(
    "further",
    [
        {"losses": {"kd": {}, "speq": {}}, "activation_bits": 4, "shift": 1},
        {"losses": {"ce": {}}, "weight_gradient": "lsq", "activation_gradient": "lsq", "progressive": [8]},
    ],
)
def test_a_network_quantized_in_two_processes_is_that_of_one(tmp_path, split, context, further, space):
    """Batch norms that round what they return do so nowhere, and SPEQ's teacher leaves no trace in either.

    Where a sum is rounded otherwise, an activation falls to another level now and then.
    """
    (tmp_path / "float").mkdir()
    description = NetworkDescription("resnet", {"depth": 8, "width": 4}, space)
    torch.manual_seed(0)
    save_network(tmp_path / "float", build_network(description), description)
    network = Artifact("network", tmp_path / "float")
    inputs = {"network": network, "samples": split, "teachers": network}
    params = {"network": "n", "samples": "s", "teachers": "t", "epochs": 2, "batch_size": 17, **further}
    alone, shared = (
        QUANTIZE.run(QuantizeParams(**params, processes=count), inputs, context(f"of-{count}")) for count in (1, 2)
    )
    for name, rows in alone.history.items():
        for one, other in zip(rows, shared.history[name], strict=True):
            # of so few images the share on which they agree moves by a rounding
            assert {**other, "agreement": 0} == pytest.approx({**one, "agreement": 0}, rel=1e-2, abs=3e-4)


@pytest.mark.slow
def test_a_killed_process_is_named_and_the_rest_is_trained_to_the_same_bytes(split, teachers, context):
    """Dropout included, of which every process draws its own."""
    inputs = {"teachers": teachers, "samples": split}
    params = DistillParams(**STUDENT, processes=2)

    def weights(folder):
        return (folder.root / "network" / "weights.safetensors").read_bytes()

    whole = context("whole")
    expected = train_in_processes(with_dropout, params, inputs, whole)
    broken = context("broken")
    say = broken.progress

    def kill_the_second(done, *others, **metrics):
        say(done, *others, **metrics)
        next(child for child in multiprocessing.active_children() if child.name == "kdpipe-1").kill()

    broken.progress = kill_the_second
    with pytest.raises(TrainingError, match="process 1 of 2 was killed by SIGKILL"):
        train_in_processes(with_dropout, params, inputs, broken)
    assert not multiprocessing.active_children()
    assert len(broken.reports) < 3
    broken.progress = say
    again = train_in_processes(with_dropout, params, inputs, broken)
    assert again.history == expected.history
    assert weights(broken) == weights(whole)


def with_dropout(params, inputs, context, parallel):
    """`distill` with dropout in every student."""
    from kdpipe.stages.knowledge import distillation

    plain = distillation.build_network

    def dropping(description: NetworkDescription):
        network = plain(description)
        network.register_forward_hook(lambda module, given, y: torch.dropout(y, 0.3, module.training))
        return network

    distillation.build_network = dropping
    return distill(params, inputs, context, parallel)


def hang(params, inputs, context, parallel):
    """Train, but let the second process stop in the middle of it."""
    if parallel.rank == 1:
        beat = parallel.backward

        def backward(loss, share):
            if len(steps) == 3:
                time.sleep(3600)
            steps.append(1)
            beat(loss, share)

        steps: list[int] = []
        parallel.backward = backward
    return make_ensemble(params, inputs, context, parallel)


@pytest.mark.slow
def test_a_process_that_hangs_is_named(split, context):
    params = TeachersParams(**TEACHER, processes=2)
    with pytest.raises(TrainingError, match=r"process 1 of 2 \(from 0\) did not answer the others for 20 s"):
        train_in_processes(hang, params, {"train": split}, context(), timeout=20)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_errors_come_out_as_they_are(split, context):
    few = TeachersParams(**{**TEACHER, "lr": 100, "epochs": 50, "shift": 0}, processes=2)
    with pytest.raises(TrainingError, match=r"not finite|is nan|is inf"):
        train_in_processes(explode, few, {"train": split}, context("explodes"))
    with pytest.raises(DataError, match="70 images can't be shared by 71 processes"):
        make_ensemble(TeachersParams(**{**TEACHER, "batch_size": 80}), {"train": split}, context("many"), Crowd())
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        train_in_processes(defective, few, {"train": split}, context("defective"))
    with pytest.raises(OSError, match="No space left") as full:
        train_in_processes(filling, few, {"train": split}, context("filling"))
    assert full.value.errno == errno.ENOSPC


class Crowd:
    """One of more processes than there are images."""

    rank, count = 0, 71

    def device(self, accelerator):
        return torch.device(accelerator)

    def rows(self, total):
        return slice(0, 1)


def explode(params, inputs, context, parallel):
    """Break the loss of the second process alone."""
    from kdpipe.stages.training import teachers

    plain = teachers.F.cross_entropy
    if parallel.rank == 1:
        teachers.F.cross_entropy = lambda logits, labels: plain(logits, labels) * float("nan")
    return make_ensemble(params, inputs, context, parallel)


def defective(params, inputs, context, parallel):
    """Raise what is no error for users, in the second process alone."""
    if parallel.rank == 1:
        1 / 0  # noqa: B018
    return make_ensemble(params, inputs, context, parallel)


def filling(params, inputs, context, parallel):
    """Find the disk full, in the first process alone."""
    if parallel.rank == 0:
        raise OSError(errno.ENOSPC, "No space left on device")
    return make_ensemble(params, inputs, context, parallel)


def test_what_processes_cannot_share_is_refused():
    with pytest.raises(ValidationError, match="rkd compares images of a batch"):
        DistillParams(**{**STUDENT, "losses": {"kd": {}, "rkd": {}}}, processes=2)
    with pytest.raises(ValidationError, match="a batch of 2 images can't be shared by 3 processes"):
        TeachersParams(**{**TEACHER, "batch_size": 2}, processes=3)
    with pytest.raises(ValidationError, match="dist compares images of a batch"):
        QuantizeParams(network="n", samples="s", losses={"dist": {}, "speq": {}}, processes=2)
    with pytest.raises(ValidationError, match="processes"):  # the generator's losses look at whole batches
        DataFreeDistillParams(teachers="t", model=SMALL, processes=2)
    with pytest.raises(ValidationError, match="precision"):  # what is trained would not be what is deployed
        QuantizeParams(network="n", samples="s", precision="bfloat16")
    assert "lightning-fabric" in DistillParams(**STUDENT, processes=2).further_libraries()
    assert "lightning-fabric" not in DistillParams(**STUDENT).further_libraries()
