"""What holds for every loss that can be named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from kdpipe.stages.knowledge.registry import LOSSES

PREPARED = {"factor-transfer": {"paraphraser_epochs": 10, "paraphraser_lr": 1e-2, "reconstruction": 0.99}}
ASKED = ("student_logits", "student_feature", "student_embedding")


def prepared(losses, name, seed=0):
    shapes = losses.shapes
    if name == "simkd":
        shapes = replace(shapes, teachers=shapes.teachers[:1])
    loss = losses.build(name, shapes, seed, **PREPARED.get(name, {}))
    if name == "ca-mkd-features":
        loss.attach(nn.Identity(), losses.teachers())
    loss.prepare(losses.survey())
    return loss


@pytest.mark.parametrize("name", list(LOSSES))
def test_entries_tell_what_they_are_and_give_a_scalar_with_a_gradient(name, losses):
    entry = LOSSES[name]
    assert entry.summary
    assert entry.reference
    k = losses.knowledge()
    loss = prepared(losses, name)(k)
    assert loss.shape == ()
    assert torch.isfinite(loss)
    loss.backward()
    reached = {"feature": k.student_feature, "layers": k.student_layers[-1], "embedding": k.student_embedding}
    for tensor in [reached[sight] for sight in entry.sees] or [k.student_logits]:
        assert tensor.grad.abs().sum() > 0
        assert torch.isfinite(tensor.grad).all()


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_sees_only_what_its_entry_says(name, losses):
    """What it does not see may be absent, as it is in a student whose losses do not ask for it."""
    entry = LOSSES[name]
    k = losses.knowledge()
    loss = prepared(losses, name)
    whole = loss(k)
    loss = prepared(losses, name)
    if "feature" not in entry.sees:
        k = replace(k, student_feature=None, teacher_features=())
    if "layers" not in entry.sees:
        k = replace(k, student_layers=(), teacher_layers=())
    if "embedding" not in entry.sees:
        k = replace(k, student_embedding=None, teacher_embeddings=())
    if not entry.needs_teachers:
        k = replace(k, teacher_logits=k.teacher_logits[:, :, :0])
    assert torch.equal(loss(k), whole)


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_is_a_function_of_its_seed(name, losses):
    k = losses.knowledge()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = prepared(losses, name)(k)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(prepared(losses, name)(k), a)
    first, other = prepared(losses, name), prepared(losses, name, seed=1)
    for p, q in zip(first.parameters(), other.parameters(), strict=True):
        assert p.dim() < 2 or not torch.equal(p, q)


@pytest.mark.parametrize("name", list(LOSSES))
def test_gradients_are_finite_at_the_edges(name, losses):
    """A sure teacher, a student that is far off, images that are all alike, dead features."""
    k = losses.knowledge()
    alike = [torch.zeros_like(k.student_embedding).requires_grad_() for _ in range(2)]
    dead = tuple(torch.zeros_like(layer).requires_grad_() for layer in k.student_layers)
    edge = replace(
        k,
        student_logits=torch.full_like(k.student_logits, -500).fill_diagonal_(500).requires_grad_(),
        teacher_logits=torch.full_like(k.teacher_logits, -500).index_fill(2, torch.tensor([3]), 500),
        student_embedding=alike[0],
        student_layers=dead,
        student_feature=dead[-1],
    )
    loss = prepared(losses, name)(edge)
    assert torch.isfinite(loss)
    loss.backward()
    for tensor in (edge.student_logits, edge.student_embedding, *edge.student_layers):
        assert tensor.grad is None or torch.isfinite(tensor.grad).all()


@pytest.mark.parametrize(
    "name", ["kd", "dkd", "dist", "attention", "rkd", "similarity", "pkt", "fsp", "entropy-weighted", "ca-mkd"]
)
def test_no_loss_for_a_student_that_is_the_teacher(name, losses, numeric):
    k = losses.knowledge(teachers=1)
    same = replace(
        k,
        student_logits=k.teacher_logits[0].clone(),
        student_layers=k.teacher_layers[0],
        student_feature=k.teacher_features[0],
        student_embedding=k.teacher_embeddings[0],
    )
    loss = losses.build(name)
    assert numeric(loss(k)) > 1e-3
    assert numeric(loss(same)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", list(LOSSES))
def test_state_and_generators_are_all_that_a_loss_remembers(name, losses):
    """A new loss with the old one's state goes on as the old one does."""
    k = losses.knowledge()
    loss = prepared(losses, name)
    loss(k)
    state = {key: value.clone() for key, value in loss.state_dict().items()}
    drawn = [generator.get_state() for generator in loss.generators()]
    going_on = [loss(k) for _ in range(3)]
    again = prepared(losses, name)
    again.load_state_dict(state)
    for generator, kept in zip(again.generators(), drawn, strict=True):
        generator.set_state(kept)
    assert [float(again(k).detach()) for _ in range(3)] == [float(value.detach()) for value in going_on]


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_is_the_mean_over_a_batchs_parts_unless_its_entry_says_that_it_compares_images(name, losses, numeric):
    """Which is what several processes rely on; batch norms, which they synchronize, do not learn here."""
    k = losses.knowledge()

    def part(rows):
        return replace(
            k,
            student_logits=k.student_logits[rows],
            student_feature=k.student_feature[rows],
            teacher_logits=k.teacher_logits[:, rows],
            teacher_features=[feature[rows] for feature in k.teacher_features],
            labels=k.labels[rows],
            student_layers=[layer[rows] for layer in k.student_layers],
            teacher_layers=[[layer[rows] for layer in layers] for layers in k.teacher_layers],
            student_embedding=k.student_embedding[rows],
            teacher_embeddings=[embedding[rows] for embedding in k.teacher_embeddings],
            indices=k.indices[rows],
        )

    def value(rows):
        return numeric(prepared(losses, name).eval()(part(rows)))

    whole = value(slice(0, 6))
    parts = (4 * value(slice(0, 4)) + 2 * value(slice(4, 6))) / 6
    assert (parts == pytest.approx(whole, rel=1e-4)) != LOSSES[name].compares_images
