from __future__ import annotations

import pytest
import torch
from torch import nn

from kdpipe.models.registry import MODELS
from kdpipe.stages.artifacts import load_network, save_split
from kdpipe.stages.base import Artifact
from kdpipe.stages.data_free_distill import STAGE as DATA_FREE
from kdpipe.stages.data_free_distill import DataFreeDistillParams
from kdpipe.stages.distill import STAGE, DistillParams
from kdpipe.stages.training import precision
from kdpipe.stages.training.precision import FLOAT32, Precision, choose_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LARGE = (3, 32, 32)


@pytest.fixture
def on_amx(monkeypatch):
    monkeypatch.setattr(precision, "has_amx", lambda: True)


def network(name="resnet", **arguments):
    return MODELS[name].build(input_shape=LARGE, classes=3, **arguments)


def test_auto_is_bfloat16_only_where_it_was_measured_to_be_faster(on_amx, monkeypatch):
    plain = network(depth=8, width=4)
    assert choose_precision("auto", CPU, LARGE, [plain]).name == "bfloat16"
    assert choose_precision("auto", CPU, (3, 8, 8), [plain]).name == "float32"
    assert choose_precision("auto", CPU, LARGE, [plain, network("mobilenet-v2")]).name == "float32"
    assert choose_precision("auto", GPU, LARGE, [plain]).name == "float32"
    monkeypatch.setattr(precision, "has_amx", lambda: False)
    assert choose_precision("auto", CPU, LARGE, [plain]).name == "float32"
    for name in ("float32", "bfloat16"):
        assert choose_precision(name, GPU, (1, 4, 4), [plain]) == Precision(name, "cuda")


def test_bfloat16_rounds_products_and_keeps_weights_statistics_and_outputs():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    images = torch.randn(5, 3, 8, 8)
    kinds = []
    net[1].register_forward_hook(lambda module, given, y: kinds.append(y.dtype))
    exact = FLOAT32.compute(net, images)
    rounded = Precision("bfloat16").compute(net, images)
    assert kinds == [torch.float32, torch.bfloat16]
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)
    rounded.sum().backward()
    assert {p.grad.dtype for p in net.parameters()} == {b.dtype for b in net.buffers() if b.dim()} == {torch.float32}


@pytest.mark.parametrize("losses", [{"kd": {}, "feed": {}}, {"attention": {}, "rkd": {}}])
@pytest.mark.parametrize("cache_mib", [0, 512])
def test_a_student_learns_in_bfloat16(tmp_path, teachers, context, make_bars, losses, cache_mib):
    """Losses see float32, whether the teachers' outputs come from the cache or not."""
    (tmp_path / "split").mkdir()
    save_split(tmp_path / "split", make_bars(150, 0))
    params = DistillParams(
        teachers="t",
        samples="s",
        model={"model": "cnn", "channels": [4, 8]},
        losses=losses,
        epochs=3,
        batch_size=30,
        precision="bfloat16",
        cache_mib=cache_mib,
    )
    folder = context()
    outcome = STAGE.run(params, {"teachers": teachers, "samples": Artifact("split", tmp_path / "split")}, folder)
    assert outcome.metrics["precision"] == "bfloat16"
    rows = outcome.history["student"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    state = load_network(folder.root / "network")[0].state_dict()
    assert all(value.dtype == torch.float32 for value in state.values() if value.is_floating_point())


@pytest.mark.parametrize("method", ["dafl-batch-norm", "dfq", "fast"])
def test_data_free_distillation_in_bfloat16_has_the_curves_of_float32(teachers, context, method):
    """The generator's steps, which go through the teachers, and the student's alike; losses see float32."""
    outcomes = []
    for wanted in ("float32", "bfloat16"):
        params = DataFreeDistillParams(
            teachers="t",
            model={"model": "cnn", "channels": [4, 6]},
            synthesis={"method": method, "batch_size": 32, "latent": 8, "channels": 8, "warm_up": 1},
            epochs=2,
            iterations=3,
            batch_size=32,
            count=30,
            lr=0.02,
            collapse_below=0,
            precision=wanted,
        )
        outcomes.append(DATA_FREE.run(params, {"teachers": teachers}, context(wanted)))
    assert [outcome.metrics["precision"] for outcome in outcomes] == ["float32", "bfloat16"]
    exact, rounded = (outcome.history["student"] for outcome in outcomes)
    assert exact != rounded
    for one, other in zip(exact, rounded, strict=True):
        generator = [name for name in one if name.startswith("generator_")]
        assert len(generator) >= 3
        for name in ("loss", "class_entropy", *generator):
            assert other[name] == pytest.approx(one[name], rel=0.1, abs=0.02), name
