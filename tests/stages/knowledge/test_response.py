from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from kdpipe.stages.knowledge.class_wise import class_wise_loss, next_of_class
from kdpipe.stages.knowledge.correlation import dist_loss, pearson_distance
from kdpipe.stages.knowledge.decoupled import decoupled_loss, decoupled_parts
from kdpipe.stages.knowledge.response import average_distribution, distillation_loss, log_average_distribution


def softmax(row, temperature=1.0):
    exponentials = [math.exp(value / temperature) for value in row]
    return [e / sum(exponentials) for e in exponentials]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_kd_equals_brute_force(temperature, average, losses, numeric):
    k = losses.knowledge()
    target = average_distribution(k.teacher_logits, temperature, average)
    torch.testing.assert_close(target.sum(dim=1), torch.ones(losses.images))
    rows = zip(target.tolist(), k.student_logits.tolist(), strict=True)
    expected = sum(divergence(p, softmax(z, temperature)) for p, z in rows) / losses.images
    loss = losses.build("kd", temperature=temperature, average=average)
    assert numeric(loss(k)) == pytest.approx(expected * temperature**2, rel=1e-4)
    plain = losses.build("kd", temperature=temperature, average=average, scale=False)
    assert numeric(plain(k)) == pytest.approx(expected, rel=1e-4)


def test_the_two_averages_differ_and_agree_for_one_teacher(losses):
    k = losses.knowledge()
    two = [average_distribution(k.teacher_logits, 1.0, a) for a in ("probabilities", "logits")]
    one = [average_distribution(k.teacher_logits[:1], 1.0, a) for a in ("probabilities", "logits")]
    assert not torch.allclose(*two)
    torch.testing.assert_close(*one)
    torch.testing.assert_close(
        log_average_distribution(k.teacher_logits, 3.0).exp(),
        average_distribution(k.teacher_logits, 3.0, "probabilities"),
    )


def test_the_logarithm_of_the_average_is_exact_where_probabilities_vanish():
    logits = torch.tensor([[[0.0, -200.0]], [[0.0, -300.0]]])
    log = log_average_distribution(logits, 1.0)
    assert float(log[0, 1]) == pytest.approx(-200 - math.log(2), rel=1e-5)


def test_kd_is_zero_for_the_teacher_itself():
    logits = torch.randn(4, 3)
    assert float(distillation_loss(logits, (logits / 2).softmax(dim=1), 2.0)) == pytest.approx(0, abs=1e-6)


def test_the_temperature_goes_to_its_end(losses, numeric):
    going = losses.build("kd", temperature=8, temperature_end=2)
    for progress, temperature in ((0.0, 8), (0.5, 5), (1.0, 2)):
        k = losses.knowledge(progress=progress)
        assert numeric(going(k)) == pytest.approx(numeric(losses.build("kd", temperature=temperature)(k)))


def test_cross_entropy_uses_the_labels(losses, numeric):
    k = losses.knowledge()
    assert numeric(losses.build("ce")(k)) == pytest.approx(numeric(F.cross_entropy(k.student_logits, k.labels)))


def test_kd_is_its_target_part_and_the_others_part():
    """KL = TCKD + (1 - p_T,t) NCKD: equation 7 of Zhao et al."""
    g = torch.Generator().manual_seed(0)
    student, teacher = (F.log_softmax(3 * torch.randn(9, 5, generator=g), dim=1) for _ in range(2))
    labels = torch.randint(0, 5, (9,), generator=g)
    target, others = decoupled_parts(student, teacher, labels)
    assert (target >= 0).all()
    assert (others >= 0).all()
    rest = 1 - teacher.exp().gather(1, labels[:, None]).squeeze(1)
    whole = (teacher.exp() * (teacher - student)).sum(dim=1)
    torch.testing.assert_close(target + rest * others, whole)


def test_dkd_equals_brute_force(losses, numeric):
    k = losses.knowledge(teachers=1)
    temperature, alpha, beta = 3.0, 0.5, 6.0
    total = 0.0
    for z_s, z_t, y in zip(k.student_logits.tolist(), k.teacher_logits[0].tolist(), k.labels.tolist(), strict=True):
        s, t = softmax(z_s, temperature), softmax(z_t, temperature)
        target = divergence([t[y], 1 - t[y]], [s[y], 1 - s[y]])
        shares = [[p / (1 - x[y]) for i, p in enumerate(x) if i != y] for x in (t, s)]
        total += alpha * target + beta * divergence(*shares)
    loss = losses.build("dkd", temperature=temperature, alpha=alpha, beta=beta)
    assert numeric(loss(k)) == pytest.approx(temperature**2 * total / losses.images, rel=1e-4)


def test_dkd_of_two_classes_has_no_others():
    student, labels = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    teacher = F.log_softmax(torch.randn(4, 2), dim=1)
    assert float(decoupled_loss(student, teacher, labels, 1.0, 0.0, 8.0)) == pytest.approx(0, abs=1e-6)


def test_pearson_equals_brute_force_and_does_not_see_affine_changes():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 6, generator=g), torch.randn(4, 6, generator=g)
    total = 0.0
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        mx, my = sum(x) / 6, sum(y) / 6
        covariance = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
        total += covariance / math.sqrt(sum((p - mx) ** 2 for p in x) * sum((q - my) ** 2 for q in y))
    assert float(pearson_distance(a, b)) == pytest.approx(1 - total / 4, rel=1e-4)
    scale, offset = torch.rand(4, 1, generator=g) + 0.1, torch.randn(4, 1, generator=g)
    torch.testing.assert_close(pearson_distance(scale * a + offset, b), pearson_distance(a, b))
    assert float(pearson_distance(a, 2 * a + 1)) == pytest.approx(0, abs=1e-6)
    assert float(pearson_distance(a, -a)) == pytest.approx(2, abs=1e-6)
    assert float(pearson_distance(torch.ones(4, 6), b)) == pytest.approx(1)


def test_dist_is_rows_and_columns(losses, numeric):
    k = losses.knowledge(teachers=1)
    s, t = (k.student_logits / 2).softmax(dim=1), (k.teacher_logits[0] / 2).softmax(dim=1)
    rows = 1 - sum(float(torch.corrcoef(torch.stack([a, b]))[0, 1].detach()) for a, b in zip(s, t, strict=True)) / len(
        s
    )
    columns = 1 - sum(
        float(torch.corrcoef(torch.stack([a, b]))[0, 1].detach()) for a, b in zip(s.T, t.T, strict=True)
    ) / len(s.T)
    assert numeric(dist_loss(s, t, 1.0, 0.0)) == pytest.approx(rows, rel=1e-4)
    assert numeric(dist_loss(s, t, 0.0, 1.0)) == pytest.approx(columns, rel=1e-4)
    loss = losses.build("dist", temperature=2, inter=1.5, intra=0.5)
    assert numeric(loss(k)) == pytest.approx(4 * (1.5 * rows + 0.5 * columns), rel=1e-4)


def test_the_next_image_of_a_class_is_found_in_a_ring():
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (23,), generator=g)
    for place, following in enumerate(next_of_class(labels).tolist()):
        expected = next(j % 23 for j in range(place + 1, place + 24) if labels[j % 23] == labels[place])
        assert following == expected


def test_cs_kd_equals_brute_force_and_the_other_image_gets_no_gradient(losses, numeric):
    labels, temperature = torch.tensor([0, 1, 0, 2]), 4.0
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    p = [softmax(row, temperature) for row in logits.tolist()]
    expected = temperature**2 * (divergence(p[2], p[0]) + divergence(p[0], p[2])) / 4
    loss = class_wise_loss(logits, labels, temperature)
    assert numeric(loss) == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert torch.equal(logits.grad[1], torch.zeros(3))
    # T (softmax(z/T) - target) / B: the gradient with the target held
    expected_gradient = temperature * (torch.tensor(p[0]) - torch.tensor(p[2])) / 4
    torch.testing.assert_close(logits.grad[0], expected_gradient, rtol=1e-4, atol=1e-6)
