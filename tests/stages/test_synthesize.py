from __future__ import annotations

import hashlib

import pytest
import torch

from kdpipe.pipeline.parameters import input_fields
from kdpipe.stages.artifacts import load_samples
from kdpipe.stages.synthesis.discriminator import Discriminator
from kdpipe.stages.synthesize import STAGE, SynthesisWeights, SynthesizeParams
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.stages.training.metrics import predict
from kdpipe.targets.errors import TrainingError

FAST = {"teachers": "t", "count": 200, "iterations": 40, "batch_size": 64, "latent": 8, "channels": 8}


def digest(folder):
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_stage_has_no_way_to_data():
    assert STAGE.data_free
    assert {name: field.kinds for name, field in input_fields(SynthesizeParams).items()} == {"teachers": ("ensemble",)}


def test_samples_of_every_class_that_the_teachers_are_sure_of(teachers, context, space):
    folder = context()
    before = digest(teachers.path)
    outcome = STAGE.run(SynthesizeParams(**FAST), {"teachers": teachers}, folder)
    samples = load_samples(folder.root / "samples")
    assert samples.images.shape == (200, 1, 8, 8)
    assert samples.space == space
    ensemble = TeacherEnsemble.load(teachers.path)
    torch.testing.assert_close(predict(ensemble, samples.images), samples.logits, rtol=1e-4, atol=1e-4)
    assert torch.bincount(samples.logits.argmax(dim=1), minlength=3).min() >= 40
    assert outcome.metrics["class_entropy"] > 0.9
    assert (folder.root / next(iter(outcome.figures.values()))).read_bytes().startswith(b"\x89PNG")
    rows = outcome.history["generator"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {"one_hot", "entropy", "activation", "batch_norm", "class_entropy"} <= set(rows[0])
    assert digest(teachers.path) == before


def test_the_same_seed_makes_the_same_bytes(teachers, context):
    folders = [context(name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    for index, folder in enumerate(folders):
        torch.manual_seed(index)
        STAGE.run(SynthesizeParams(**{**FAST, "iterations": 5}), {"teachers": teachers}, folder)
    a, b, c = [(folder.root / "samples" / "samples.safetensors").read_bytes() for folder in folders]
    assert a == b != c


def test_more_images_than_were_made_on_the_way(teachers, context):
    folder = context()
    params = SynthesizeParams(**{**FAST, "iterations": 3, "count": 500})
    assert STAGE.run(params, {"teachers": teachers}, folder).metrics["images"] == 500


def test_a_collapsed_generator_is_refused(teachers, context):
    # nothing but certainty is asked for: the generator ends in one class (with three seeds of three, here)
    weights = {"one_hot": 1, "entropy": 0, "activation": 0, "batch_norm": 0}
    params = SynthesizeParams(**{**FAST, "iterations": 200, "weights": weights, "lr": 0.02, "keep_from": 0.8})
    folder = context()
    with pytest.raises(TrainingError, match=r"collapsed onto few classes.*Raise weights\.entropy"):
        STAGE.run(params, {"teachers": teachers}, folder)
    assert not (folder.root / "samples").exists()


def test_synthesis_leaves_teachers_alone_and_reaches_the_images(teachers):
    ensemble = TeacherEnsemble.load(teachers.path)
    before = {key: value.clone() for key, value in ensemble.state_dict().items()}
    images = torch.randn(16, 1, 8, 8, requires_grad=True)
    with Discriminator.watching(ensemble, SynthesisWeights()) as discriminator:
        terms, _ = discriminator.judge(images)
    for name, term in terms.items():
        (gradient,) = torch.autograd.grad(term, images, retain_graph=True)
        assert gradient.abs().sum() > 0, name
    assert all(torch.equal(value, before[key]) for key, value in ensemble.state_dict().items())
    assert not any(m._forward_pre_hooks for m in ensemble.modules())


def test_a_term_without_weight_is_left_out(teachers):
    ensemble = TeacherEnsemble.load(teachers.path)
    for name in ("one_hot", "entropy", "activation", "batch_norm"):
        weights = SynthesisWeights(**{key: float(key == name) for key in SynthesisWeights.model_fields})
        with Discriminator.watching(ensemble, weights) as discriminator:
            terms, _ = discriminator.judge(torch.randn(8, 1, 8, 8))
        assert set(terms) == {name}


def test_the_batch_norm_term_by_hand(teachers):
    ensemble = TeacherEnsemble.load(teachers.path)
    x = torch.randn(16, 1, 8, 8)
    expected = torch.zeros(())
    for network in ensemble.networks:
        distances = []
        h = x
        for layer in network.features:
            if hasattr(layer, "running_mean"):
                variance, mean = torch.var_mean(h, dim=(0, 2, 3))
                distances.append((mean - layer.running_mean).norm() + (variance - layer.running_var).norm())
            h = layer(h)
        expected = expected + torch.stack(distances).mean()
    with Discriminator.watching(ensemble, SynthesisWeights(batch_norm=2)) as discriminator:
        terms, _ = discriminator.judge(x)
    torch.testing.assert_close(terms["batch_norm"], 2 * expected)


def test_a_loss_that_is_not_finite_names_the_term(teachers, context, tmp_path):
    path = teachers.path / "0" / "weights.safetensors"
    from safetensors.torch import load, save

    state = load(path.read_bytes())
    state["features.1.running_mean"][0] = float("nan")
    path.write_bytes(save(state))
    with pytest.raises(TrainingError, match="not finite at iteration 1"):
        STAGE.run(SynthesizeParams(**FAST), {"teachers": teachers}, context())
