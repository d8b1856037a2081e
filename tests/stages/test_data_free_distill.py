from __future__ import annotations

import pytest
import torch

from kdpipe.pipeline.parameters import input_fields
from kdpipe.stages.artifacts import load_network, load_samples
from kdpipe.stages.data_free_distill import STAGE, DataFreeDistillParams
from kdpipe.stages.synthesis.registry import METHODS
from kdpipe.stages.training.metrics import accuracy, predict
from kdpipe.targets.errors import TrainingError

FAST = {
    "teachers": "t",
    "model": {"model": "cnn", "channels": [4, 6]},
    "epochs": 2,
    "iterations": 20,
    "batch_size": 32,
    "count": 60,
    "lr": 0.05,
}
SMALL = {"batch_size": 32, "latent": 8, "channels": 8}


def run(teachers, folder, method="dafl-batch-norm", settings=None, **change):
    synthesis = {"method": method, **SMALL, **(settings or {})}
    return STAGE.run(
        DataFreeDistillParams(**{**FAST, "synthesis": synthesis, **change}), {"teachers": teachers}, folder
    )


def weights(folder):
    return (folder.root / "network" / "weights.safetensors").read_bytes()


def test_the_stage_has_no_way_to_data():
    assert STAGE.data_free
    inputs = {name: field.kinds for name, field in input_fields(DataFreeDistillParams).items()}
    assert inputs == {"teachers": ("ensemble",)}


def test_noise_is_a_method_without_a_generator(teachers, context):
    folder = context()
    synthesis = {"method": "noise", "batch_size": 32, "student_steps": 2}
    params = DataFreeDistillParams(**{**FAST, "synthesis": synthesis, "collapse_below": 0, "iterations": 5})
    outcome = STAGE.run(params, {"teachers": teachers}, folder)
    assert set(outcome.history["student"][0]) == {"epoch", "loss", "lr", "agreement", "class_entropy"}
    assert len(load_samples(folder.root / "samples")) == 60


@pytest.mark.parametrize("method", [name for name in METHODS if name != "noise"])
def test_every_method_teaches_a_student(method, teachers, context, make_bars):
    folder = context()
    settings = {"student_steps": 2, "warm_up": 2}
    outcome = run(teachers, folder, method, settings, epochs=4, iterations=30)
    student, _ = load_network(folder.root / "network")
    test = make_bars(300, 9)
    assert accuracy(predict(student, test.normalized()), test.labels) > 0.6
    assert len(load_samples(folder.root / "samples")) == 60
    assert outcome.metrics["class_entropy"] > 0.5
    rows = outcome.history["student"]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert {"loss", "agreement", "class_entropy", "generator_one_hot"} <= set(rows[0])
    assert folder.reports[-1][:3] == (4, 4, "epoch")


@pytest.mark.parametrize("method", ["dfq", "fast"])
def test_the_same_seed_makes_the_same_bytes(method, teachers, context):
    folders = [context(name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    for index, folder in enumerate(folders):
        torch.manual_seed(index)
        run(teachers, folder, method, {"student_steps": 1, "warm_up": 1}, epochs=1, iterations=3)
    a, b, c = map(weights, folders)
    assert a == b != c


@pytest.mark.parametrize(("method", "checkpoint"), [("dfq", "ema"), ("fast", "agreement")])
def test_an_interrupted_stage_goes_on_to_the_same_bytes(method, checkpoint, teachers, context):
    change = {"epochs": 3, "iterations": 3, "shift": 1, "checkpoint": checkpoint}
    settings = {"student_steps": 2, "warm_up": 1}
    whole, broken = context("whole"), context("broken")
    run(teachers, whole, method, settings, **change)

    def interrupt(done, *rest, **metrics):
        if done == 2:
            raise KeyboardInterrupt

    broken.progress, kept = interrupt, broken.progress
    with pytest.raises(KeyboardInterrupt):
        run(teachers, broken, method, settings, **change)
    assert not (broken.root / "network").exists()
    broken.progress = kept
    torch.manual_seed(99)
    run(teachers, broken, method, settings, **change)
    assert [report[0] for report in broken.reports] == [2, 3]  # the second epoch is only reported again
    assert weights(broken) == weights(whole)
    name = "samples/samples.safetensors"
    assert (broken.root / name).read_bytes() == (whole.root / name).read_bytes()


def test_the_average_is_another_student_than_the_last(teachers, context):
    last, ema, none = context("last"), context("ema"), context("none")
    run(teachers, last)
    run(teachers, ema, checkpoint="ema")
    run(teachers, none, checkpoint="ema", ema_decay=0)
    assert weights(ema) != weights(last) == weights(none)


@pytest.mark.parametrize("method", ["dfq", "fast"])
def test_agreement_chooses_the_best_of_the_last_epochs(method, teachers, context):
    folder = context()
    settings = {"student_steps": 1, "warm_up": 1}
    outcome = run(teachers, folder, method, settings, epochs=5, iterations=4, checkpoint="agreement", candidates=3)
    assert outcome.metrics["chosen_epoch"] in (3, 4, 5)
    assert 0 < outcome.metrics["held_out_agreement"] <= 1


def test_a_collapsed_method_is_refused_in_the_epoch_in_which_it_happens(teachers, context):
    settings = {"one_hot": 1, "entropy": 0, "activation": 0, "lr": 0.05}
    folder = context()
    with pytest.raises(TrainingError, match=r"collapsed onto few classes.*Raise synthesis\.entropy"):
        run(teachers, folder, "dafl", settings, epochs=20, iterations=60, collapse_below=0.6)
    assert not (folder.root / "network").exists()
