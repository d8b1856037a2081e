from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError

from kdpipe.stages.artifacts import NetworkDescription, build_network
from kdpipe.stages.data_free_distill import DataFreeDistillParams
from kdpipe.stages.synthesis.bank import ImageBank
from kdpipe.stages.synthesis.base import frozen
from kdpipe.stages.synthesis.losses import disagreement_loss
from kdpipe.stages.synthesis.online import SynthesizedBatches
from kdpipe.stages.synthesis.registry import METHODS, MethodChoice
from kdpipe.stages.training.ensemble import TeacherEnsemble
from kdpipe.stages.training.precision import FLOAT32
from kdpipe.targets.errors import TrainingError

SMALL = {"batch_size": 16, "latent": 6, "channels": 8}
GENERATORS = [name for name in METHODS if name != "noise"]


def build(name, teachers, seed=0, **change):
    settings = {**(SMALL if name in GENERATORS else {"batch_size": 16}), **change}
    return MethodChoice(method=name, **settings), METHODS[name].build(
        METHODS[name].parameters(**settings), teachers, seed, FLOAT32
    )


@pytest.fixture
def ensemble(teachers):
    return TeacherEnsemble.load(teachers.path)


@pytest.fixture
def student(space):
    torch.manual_seed(7)
    return build_network(NetworkDescription("cnn", {"channels": (4, 4)}, space)).train()


@pytest.mark.parametrize(("name", "known"), [("dafl", [True, False, True, False]), ("fast", [False] * 4)])
def test_logits_that_a_step_found_out_come_with_the_batch(name, known, ensemble, student):
    """The student trains on the generator's own batch first: its teachers need not be asked again."""
    choice, method = build(name, ensemble, student_steps=2)
    params = DataFreeDistillParams(teachers="t", model={"model": "cnn"}, iterations=2, batch_size=16)
    batches = SynthesizedBatches(method, student, params.model_copy(update={"synthesis": choice}))
    made = list(batches)
    assert [said is not None for _, said in made] == known
    for images, said in made:
        if said is not None:
            assert torch.equal(said, ensemble(images))


@pytest.mark.parametrize("name", list(METHODS))
def test_a_step_changes_neither_teachers_nor_student(name, ensemble, student):
    _, method = build(name, ensemble)
    states = [copy.deepcopy(network.state_dict()) for network in (ensemble, student)]
    for _ in range(3):
        step = method.step(student)
    assert step.images.shape == (16, 1, 8, 8)
    assert not step.images.requires_grad
    assert student.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in student.parameters())
    for network, state in zip((ensemble, student), states, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert ("adversarial" in step.terms) == (name in ("dfq", "fast"))
    assert ("batch_norm" in step.terms) == (name not in ("dafl", "noise"))
    assert "adversarial" not in method.step(None).terms


@pytest.mark.parametrize("name", list(METHODS))
def test_a_restored_method_goes_on_to_the_bit(name, ensemble, student):
    _, method = build(name, ensemble)
    for _ in range(3):
        method.step(student)
    state = copy.deepcopy(method.state_dict())
    expected = [method.images(16), method.step(student).images, method.images(16), method.images(40)]
    _, other = build(name, ensemble, seed=5)
    other.load_state_dict(state)
    found = [other.images(16), other.step(student).images, other.images(16), other.images(40)]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_noise_is_standard_normal_and_new_each_time(ensemble):
    _, method = build("noise", ensemble, batch_size=200)
    step = method.step(None)
    assert step.terms == {}
    torch.testing.assert_close(step.logits, ensemble(step.images))
    later = method.images(200)
    assert not torch.equal(step.images, later)
    assert abs(float(later.mean())) < 0.05
    assert float(later.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", GENERATORS)
def test_the_teachers_find_less_and_less_wrong(name, ensemble):
    _, method = build(name, ensemble, batch_size=64)
    first = method.step(None)
    for _ in range(40):
        last = method.step(None)
    assert sum(map(float, last.terms.values())) < sum(map(float, first.terms.values()))


def test_an_adversarial_generator_finds_what_the_student_gets_wrong(ensemble, student):
    divergence = {}
    for weight in (0.0, 5.0):
        _, method = build("dfq", ensemble, adversarial=weight, batch_size=64)
        for _ in range(40):
            step = method.step(student)
        with frozen(student), torch.no_grad():
            divergence[weight] = -float(disagreement_loss(student(step.images), ensemble(step.images)))
    assert divergence[5.0] > divergence[0.0]


def test_dafl_hands_out_the_batch_that_it_was_trained_on_once(ensemble):
    _, method = build("dafl", ensemble)
    made = method.step(None).images
    assert torch.equal(method.images(16), made)
    assert not torch.equal(method.images(16), made)


def test_fast_starts_from_learned_values_and_keeps_the_best_of_its_steps(ensemble):
    _, method = build("fast", ensemble, inner_steps=4, bank=40)
    before = [parameter.detach().clone() for parameter in (*method.generator.parameters(), method.latent)]
    steps = [method.step(None) for _ in range(4)]
    moved = [
        not torch.equal(a, b) for a, b in zip(before, (*method.generator.parameters(), method.latent), strict=True)
    ]
    assert all(moved)
    assert len(method.bank) == 40
    newest = torch.cat([step.images for step in steps])[-40:]
    drawn = method.images(40)
    assert {image.sum().item() for image in drawn} == {image.sum().item() for image in newest}


@pytest.mark.parametrize("name", list(METHODS))
def test_held_out_images_are_never_handed_out(name, ensemble):
    _, method = build(name, ensemble)
    method.step(None)
    held = method.held_out()
    assert held.shape == (16, 1, 8, 8)
    seen = {float(image.sum()) for _ in range(4) for image in method.images(16)}
    assert not seen & {float(image.sum()) for image in held}


def test_disagreement_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    p = teacher[0].softmax(dim=0)
    expected = float((p * (p * 2).log()).sum())
    assert disagreement_loss(student, teacher).item() == pytest.approx(-expected)
    # equal logits: the first class is the student's choice, which only the first teacher's row agrees with
    assert disagreement_loss(student, teacher, only_agreed=True).item() == pytest.approx(-expected / 2)
    assert disagreement_loss(teacher, teacher).item() == pytest.approx(0)


def test_a_bank_is_a_ring():
    bank = ImageBank(5, (1, 1, 1))
    with pytest.raises(ValueError, match="empty"):
        bank.draw(1, torch.Generator())
    bank.add(torch.arange(3.0).view(3, 1, 1, 1))
    assert sorted(bank.draw(3, torch.Generator()).flatten().tolist()) == [0, 1, 2]
    assert len(bank.draw(9, torch.Generator())) == 9
    bank.add(torch.arange(3.0, 7).view(4, 1, 1, 1))
    assert sorted(bank.draw(5, torch.Generator()).flatten().tolist()) == [2, 3, 4, 5, 6]
    bank.add(torch.arange(10.0, 20).view(10, 1, 1, 1))
    assert sorted(bank.draw(5, torch.Generator()).flatten().tolist()) == [15, 16, 17, 18, 19]


def test_a_loss_that_is_not_finite_names_the_term(ensemble):
    ensemble.networks[0].features[1].running_mean[0] = float("nan")
    for name in ("dafl-batch-norm", "fast"):
        with pytest.raises(TrainingError, match="term 'one_hot' is not finite at iteration 1"):
            build(name, ensemble)[1].step(None)


def test_methods_are_checked_where_they_stand():
    assert MethodChoice(method="fast", inner_steps=3).parameters.inner_steps == 3
    with pytest.raises(ValidationError, match="Did you mean fast"):
        MethodChoice(method="fsat")
    with pytest.raises(ValidationError, match=r"unknown parameter of noise 'latent'"):
        MethodChoice(method="noise", latent=3)
    with pytest.raises(ValidationError, match=r"unknown parameter of dafl 'inner_steps'"):
        MethodChoice(method="dafl", inner_steps=3)
