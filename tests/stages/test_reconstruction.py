"""The stage `reconstruction`."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from kdpipe.stages.artifacts import (
    NetworkDescription,
    Samples,
    build_network,
    save_ensemble,
    save_network,
    save_samples,
    save_split,
)
from kdpipe.stages.base import Artifact
from kdpipe.stages.reconstruction import STAGE, ReconstructionParams
from kdpipe.targets.errors import DataError, NetworkError


@pytest.fixture
def inputs(tmp_path, space, make_bars):
    """A student, and as teachers the student itself and a stranger with another normalization."""
    own = NetworkDescription("cnn", {"channels": (4, 8)}, space)
    other = type(space)(space.shape, space.classes, (0.5,), (0.2,))
    stranger = NetworkDescription("cnn", {"channels": (4, 8)}, other)
    networks = []
    for seed, description in enumerate((own, stranger)):
        torch.manual_seed(seed)
        networks.append(build_network(description).eval())
    for name in ("student", "ensemble", "split", "samples"):
        (tmp_path / name).mkdir()
    save_network(tmp_path / "student", networks[0], own)
    save_ensemble(tmp_path / "ensemble", list(zip(networks, (own, stranger), strict=True)))
    save_split(tmp_path / "split", make_bars(200, 3))
    return {
        "network": Artifact("network", tmp_path / "student"),
        "teachers": Artifact("ensemble", tmp_path / "ensemble"),
        "samples": Artifact("split", tmp_path / "split"),
    }


def run(inputs, folder, **change):
    values = {"network": "n", "teachers": "t", "samples": "s", "epochs": 8, "batch_size": 32, "lr": 5e-3}
    return STAGE.run(ReconstructionParams(**{**values, **change}), inputs, folder)


def test_a_teacher_that_is_the_student_is_found_in_it_and_a_stranger_less(inputs, context):
    folder = context()
    outcome = run(inputs, folder, epochs=100, lr=1e-2)
    own, stranger = (outcome.metrics[f"reconstruction_{index}"] for index in range(2))
    assert 0 < own < 0.9 * stranger < 0.9 * 2
    assert outcome.metrics["reconstruction"] == pytest.approx((own + stranger) / 2)
    assert (outcome.metrics["images"], outcome.metrics["held_out_images"]) == (160, 40)
    assert list(outcome.history) == ["teacher-0", "teacher-1"]
    rows = outcome.history["teacher-0"]
    assert len(rows) == 100
    assert rows[-1]["held_out"] == own < rows[0]["held_out"]
    assert [done for done, _, _, _ in folder.reports] == list(range(1, 201))
    assert STAGE.outputs(None) == {}


def test_the_same_seed_gives_the_same_figures(inputs, context):
    figures = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(figures))
        figures.append(run(inputs, context(name, seed), epochs=1).metrics)
    assert figures[0] == figures[1] != figures[2]


def test_an_interrupted_stage_goes_on_to_the_same_figures(inputs, context):
    """Interrupted in the second translator: the first is not fitted again, the second from its last epoch."""
    expected = run(inputs, context("whole"), epochs=3)
    folder = context("broken")
    say = folder.progress

    def stop(done, *others, **metrics):
        say(done, *others, **metrics)
        if done == 4:
            raise KeyboardInterrupt

    folder.progress = stop
    with pytest.raises(KeyboardInterrupt):
        run(inputs, folder, epochs=3)
    folder.progress = say
    folder.reports.clear()
    assert run(inputs, folder, epochs=3) == expected
    assert [done for done, _, _, _ in folder.reports] == [3, 4, 5, 6]


def test_one_network_may_be_looked_for(inputs, context):
    outcome = run({**inputs, "teachers": inputs["network"]}, context(), epochs=1, teacher_taps=["features.0"])
    assert set(outcome.metrics) >= {"reconstruction_0"}
    assert "reconstruction_1" not in outcome.metrics


def test_what_cannot_be_measured_is_refused(inputs, context, tmp_path, space):
    with pytest.raises(NetworkError, match="Did you mean features"):
        run(inputs, context("a"), student_tap="featurs")
    save_samples(tmp_path / "samples", Samples(torch.zeros(2, 1, 8, 8), torch.zeros(2, 3), space))
    with pytest.raises(DataError, match="2 images are too few to hold out 20%"):
        run({**inputs, "samples": Artifact("samples", tmp_path / "samples")}, context("b"))
    with pytest.raises(ValidationError, match="less than 1"):
        ReconstructionParams(network="n", teachers="t", samples="s", held_out=1)
