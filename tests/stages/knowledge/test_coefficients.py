from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from pydantic import ValidationError

from kdpipe.stages.knowledge.coefficients import SHAPES, coefficient, epoch_progress, warmed_up
from kdpipe.stages.knowledge.loss_parameters import EpochWeights
from kdpipe.stages.knowledge.registry import LOSSES


@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_coefficient_starts_and_ends_where_it_should_and_never_turns(shape):
    path = [coefficient(1.0, 0.0, shape, epoch_progress(epoch, 30)) for epoch in range(30)]
    assert path[0] == 1.0
    assert path[-1] == 0.0
    assert all(a >= b for a, b in pairwise(path))
    # the other way, from 0 to 1, is what is missing to 1: the coefficient of the hard loss
    rising = [coefficient(0.0, 1.0, shape, epoch_progress(epoch, 30)) for epoch in range(30)]
    assert [a + b for a, b in zip(path, rising, strict=True)] == pytest.approx([1.0] * 30)


@pytest.mark.parametrize(("shape", "quarter"), [("linear", 0.75), ("cosine", 0.853553), ("step", 2 / 3)])
def test_the_shapes_differ_on_the_way(shape, quarter):
    assert coefficient(1.0, 0.0, shape, 0.25) == pytest.approx(quarter, abs=1e-6)


def test_without_an_end_it_stays():
    assert coefficient(0.9, None, "linear", 0.7) == 0.9
    assert epoch_progress(0, 1) == 0.0


def test_every_loss_may_change_its_weight():
    for name in LOSSES:
        parameters = LOSSES[name].parameters(weight=2.0, weight_end=1.0, weight_schedule="cosine")
        assert [parameters.weight_at(epoch, 3) for epoch in range(3)] == pytest.approx([2.0, 1.5, 1.0])
        assert LOSSES[name].parameters().weight_at(1, 3) == LOSSES[name].parameters().weight


def test_a_warm_up_rises_by_epoch_to_the_whole_weight_and_leaves_none_out():
    assert [warmed_up(epoch, 240, 20 / 240) for epoch in (0, 9, 18, 19, 239)] == pytest.approx([0.05, 0.5, 0.95, 1, 1])
    for epochs in (1, 2, 10):  # a training shorter than the warm-up's denominator has none
        assert warmed_up(0, epochs, 1 / 12) == 1.0
    # on top of what the weight does otherwise
    falling = LOSSES["kd"].parameters(weight=2, weight_end=0, weight_warmup=0.5)
    assert [falling.weight_at(epoch, 5) for epoch in range(5)] == pytest.approx([2 / 2.5, 1.5 * 2 / 2.5, 1, 0.5, 0])


def test_dkd_and_review_warm_up_as_published():
    for name in LOSSES:
        first = LOSSES[name].parameters().weight_at(0, 240) / LOSSES[name].parameters().weight
        assert first == pytest.approx(0.05 if name in ("dkd", "review") else 1.0)


def test_weights_of_an_epoch():
    weights = EpochWeights({"dkd": LOSSES["dkd"].parameters(), "ce": LOSSES["ce"].parameters(weight_end=0)}, 24)
    assert (weights.progress, weights.now) == (0.0, {"dkd": 0.5, "ce": 1.0})
    weights.start(23)
    assert (weights.progress, weights.now) == (1.0, {"dkd": 1.0, "ce": 0.0})


@pytest.mark.parametrize(
    "values", [{"weight_end": -1}, {"weight_schedule": "sine"}, {"temperature_end": 0}, {"weight_warmup": 1.1}]
)
def test_what_makes_no_sense_is_refused(values):
    with pytest.raises(ValidationError):
        LOSSES["kd"].parameters(**values)


def test_parameters_and_registry_import_without_torch():
    code = (
        "import sys, kdpipe.stages.knowledge.registry, kdpipe.stages.knowledge.coefficients;"
        "sys.exit(','.join(m for m in ('torch', 'numpy') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
