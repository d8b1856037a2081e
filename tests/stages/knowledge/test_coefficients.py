from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from pydantic import ValidationError

from kdpipe.stages.knowledge.coefficients import SHAPES, coefficient, epoch_progress
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
        assert [parameters.weight_at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([2.0, 1.5, 1.0])
        assert LOSSES[name].parameters().weight_at(0.5) == LOSSES[name].parameters().weight


@pytest.mark.parametrize("values", [{"weight_end": -1}, {"weight_schedule": "sine"}, {"temperature_end": 0}])
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
