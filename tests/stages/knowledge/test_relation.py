from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kdpipe.stages.knowledge.adversarial import discrimination_loss, reverse_gradient
from kdpipe.stages.knowledge.base import Said
from kdpipe.stages.knowledge.contrastive import OtherClasses, contrast_loss
from kdpipe.stages.knowledge.relational import angle_loss, angles, distance_loss, relative_distances
from kdpipe.stages.knowledge.similarity import (
    neighbour_probabilities,
    probabilistic_transfer_loss,
    similarity_loss,
)
from kdpipe.targets.errors import DataError


def two(rows=5, columns=3, other=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=g), torch.randn(rows, other, generator=g)


def orthogonal(size):
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(9)))[0]


def huber(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def test_rkd_distances_equal_brute_force():
    a, b = two()
    tables = []
    for x in (a.tolist(), b.tolist()):
        table = [[math.dist(p, q) for q in x] for p in x]
        average = sum(map(sum, table)) / (5 * 4)
        tables.append([[d / average for d in row] for row in table])
    torch.testing.assert_close(relative_distances(a), torch.tensor(tables[0]))
    terms = [huber(p - q) for rows in zip(*tables, strict=True) for p, q in zip(*rows, strict=True)]
    assert float(distance_loss(a, b)) == pytest.approx(sum(terms) / 25, rel=1e-4)


def test_rkd_angles_equal_brute_force():
    a, b = two()

    def cosine(x, i, j, k):
        u = [p - q for p, q in zip(x[i], x[j], strict=True)]
        v = [p - q for p, q in zip(x[k], x[j], strict=True)]
        lengths = math.hypot(*u) * math.hypot(*v)
        return sum(p * q for p, q in zip(u, v, strict=True)) / lengths if lengths else 0.0

    places = [(j, i, k) for j in range(5) for i in range(5) for k in range(5)]
    found = angles(a)
    for j, i, k in places:
        assert float(found[j, i, k]) == pytest.approx(cosine(a.tolist(), i, j, k), abs=1e-5)
    terms = [huber(cosine(a.tolist(), i, j, k) - cosine(b.tolist(), i, j, k)) for j, i, k in places]
    assert float(angle_loss(a, b)) == pytest.approx(sum(terms) / 125, rel=1e-4)


def test_rkd_does_not_see_scale_shift_or_rotation(losses, numeric):
    a, b = two()
    moved = 7 * a @ orthogonal(3) + torch.tensor([3.0, -1.0, 2.0])
    torch.testing.assert_close(distance_loss(moved, b), distance_loss(a, b), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(angle_loss(moved, b), angle_loss(a, b), rtol=1e-4, atol=1e-6)


def test_rkd_weighs_distances_and_angles(losses, numeric):
    k = losses.knowledge(teachers=1)
    pair = (k.student_embedding, k.teacher_embeddings[0])
    expected = 2 * numeric(distance_loss(*pair)) + 3 * numeric(angle_loss(*pair))
    assert numeric(losses.build("rkd", distance=2, angle=3)(k)) == pytest.approx(expected, rel=1e-4)


def test_equal_rows_have_a_finite_gradient():
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0]], requires_grad=True)
    (relative_distances(x).sum() + angles(x).sum()).backward()
    assert torch.isfinite(x.grad).all()


def test_similarity_equals_brute_force():
    a, b = two()
    tables = []
    for x in (a.tolist(), b.tolist()):
        table = [[sum(p * q for p, q in zip(u, v, strict=True)) for v in x] for u in x]
        tables.append([[value / math.hypot(*row) for value in row] for row in table])
    total = sum((p - q) ** 2 for rows in zip(*tables, strict=True) for p, q in zip(*rows, strict=True))
    assert float(similarity_loss(a, b)) == pytest.approx(total / 25, rel=1e-4)


def test_similarity_does_not_see_scale_or_rotation():
    a, b = two()
    torch.testing.assert_close(similarity_loss(5 * a @ orthogonal(3), b), similarity_loss(a, b), rtol=1e-4, atol=1e-6)


def test_pkt_equals_brute_force():
    a, b = two()
    tables = []
    for x in (a.tolist(), b.tolist()):
        unit = [[value / math.hypot(*row) for value in row] for row in x]
        table = [[(sum(p * q for p, q in zip(u, v, strict=True)) + 1) / 2 for v in unit] for u in unit]
        tables.append([[value / sum(row) for value in row] for row in table])
    ours, theirs = tables
    pairs = [pair for rows in zip(theirs, ours, strict=True) for pair in zip(*rows, strict=True)]
    expected = sum(p * math.log((p + 1e-7) / (q + 1e-7)) for p, q in pairs) / 25
    assert float(probabilistic_transfer_loss(a, b)) == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(neighbour_probabilities(a).sum(dim=1), torch.ones(5))


def test_other_classes_are_drawn_alike_and_never_the_own():
    labels = torch.tensor([2, 0, 0, 1, 2, 0, 4, 1])
    drawn = OtherClasses(labels).draw(torch.tensor([0, 2, 4]), 6000, torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 6000)
    for row, label in zip(drawn, (0, 2, 4), strict=True):
        others = (labels != label).nonzero().flatten()
        counts = row.bincount(minlength=8)
        assert counts.sum() == counts[others].sum()
        assert counts[others].min() > 0.8 * 6000 / len(others)


def test_contrast_loss_equals_brute_force():
    scores = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) + 0.1
    total = 0.0
    for positive, *negatives in scores.tolist():
        h = [s / (s + 4 / 50) for s in (positive, *negatives)]
        total -= math.log(h[0]) + sum(math.log(1 - value) for value in h[1:])
    assert float(contrast_loss(scores, 50)) == pytest.approx(total / 3, rel=1e-4)


def test_crd_remembers_the_images_of_the_batch_alone(losses):
    loss = losses.build("crd", dimensions=8)
    loss.prepare(losses.survey())
    k = losses.knowledge()
    before = loss.pairs[0].student_memory.clone()
    loss(k)
    after = loss.pairs[0].student_memory
    changed = (after != before).any(dim=1).nonzero().flatten()
    assert changed.tolist() == sorted(k.indices.tolist())
    projected = F.normalize(loss.pairs[0].projections[0](k.student_embedding), dim=1)
    expected = F.normalize(0.5 * before[k.indices] + 0.5 * projected, dim=1)
    torch.testing.assert_close(after[k.indices], expected.detach())


def test_crd_contrasts_each_network_with_the_others_memory(losses, numeric):
    """Brute force of the first batch: projections, memories as they were, and constants from this batch."""
    loss = losses.build("crd", dimensions=8, negatives=5)
    loss.prepare(losses.survey())
    pair, k = loss.pairs[0], losses.knowledge()
    rows = torch.randint(0, 20, (losses.images, 6), generator=torch.Generator().manual_seed(1))
    expected = 0.0
    for x, project, memory in (
        (k.student_embedding, pair.projections[0], pair.teacher_memory.clone()),
        (k.teacher_embeddings[0], pair.projections[1], pair.student_memory.clone()),
    ):
        unit = [(row / row.norm()).tolist() for row in project(x).detach()]
        table = [
            [math.exp(sum(p * q for p, q in zip(unit[b], memory[j].tolist(), strict=True)) / 0.07) for j in rows[b]]
            for b in range(losses.images)
        ]
        constant = sum(map(sum, table)) / (losses.images * 6) * 20
        for positive, *negatives in table:
            h = [score / constant / (score / constant + 5 / 20) for score in (positive, *negatives)]
            expected -= (math.log(h[0]) + sum(math.log(1 - value) for value in h[1:])) / losses.images
    assert numeric(pair(k.student_embedding, k.teacher_embeddings[0], rows)) == pytest.approx(expected, rel=1e-3)


def test_crd_falls_when_the_memory_is_met(losses, numeric):
    """An image whose projection is its memory's direction is told apart better than one at random."""
    loss = losses.build("crd", dimensions=8, temperature=0.5)
    loss.prepare(losses.survey())
    k = losses.knowledge(teachers=3)
    first = numeric(loss(k))
    for _ in range(40):
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
        optimizer.zero_grad()
        loss(k).backward()
        optimizer.step()
    assert numeric(loss(k)) < first


def test_crd_needs_two_classes(losses):
    loss = losses.build("crd")

    def survey(generator=None):
        yield Said(torch.zeros(3, 4, 4), [], torch.ones(4, dtype=torch.int64), torch.arange(4))

    with pytest.raises(DataError, match="all are of one class"):
        loss.prepare(survey)


def test_the_discriminators_loss_is_log_2_when_it_sees_no_difference():
    zero = torch.zeros(4, 1)
    assert float(discrimination_loss(zero, zero)) == pytest.approx(math.log(2))
    assert float(discrimination_loss(torch.full((4, 1), -9.0), torch.full((4, 1), 9.0))) < 1e-3


def test_gradients_are_turned_round():
    x = torch.ones(3, requires_grad=True)
    (2 * reverse_gradient(x)).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), -2.0))


def test_a_step_makes_the_student_more_like_the_teacher_and_the_judge_sharper(losses):
    k = losses.knowledge(teachers=1)
    shapes = replace(losses.shapes, teacher_embeddings=losses.shapes.teacher_embeddings[:1])
    loss = losses.build("adversarial", shapes)
    value = loss(k)
    value.backward()
    judge = loss.discriminators[0].judge
    with torch.no_grad():
        student = k.student_embedding - 0.5 * k.student_embedding.grad
        fooled = loss(replace(k, student_embedding=student))
        for p in judge.parameters():
            p -= 0.1 * p.grad
        sharper = loss(k)
    assert fooled > value.detach()
    assert sharper < value.detach()
