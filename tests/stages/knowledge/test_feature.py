from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kdpipe.stages.knowledge.attention import attention_loss, attention_map
from kdpipe.stages.knowledge.factor_transfer import factor_loss, make_translator, match_size
from kdpipe.stages.knowledge.flow import flow_matrix
from kdpipe.stages.knowledge.paraphraser import Paraphraser
from kdpipe.stages.knowledge.review import hierarchical_loss
from kdpipe.stages.knowledge.variational import gaussian_loss
from kdpipe.targets.errors import NetworkError, TrainingError


def first_teacher(losses, index=0):
    """The knowledge and the shapes of one of the teachers alone."""
    k, s = losses.knowledge(), losses.shapes
    one = replace(
        k,
        teacher_logits=k.teacher_logits[index : index + 1],
        teacher_features=[k.teacher_features[index]],
        teacher_layers=[k.teacher_layers[index]],
        teacher_embeddings=[k.teacher_embeddings[index]],
    )
    shapes = replace(
        s,
        teachers=(s.teachers[index],),
        teacher_layers=(s.teacher_layers[index],),
        teacher_embeddings=(s.teacher_embeddings[index],),
    )
    return one, shapes


def brute_factor_loss(student, teacher):
    total = 0.0
    for a, b in zip(student.flatten(1).tolist(), teacher.flatten(1).tolist(), strict=True):
        norm_a, norm_b = math.hypot(*a), math.hypot(*b)
        total += sum(abs(p / norm_a - q / norm_b) for p, q in zip(a, b, strict=True))
    return total / len(student) / math.sqrt(student[0].numel())


def brute_translation(x, translator):
    for layer in (0, 2, 4):
        convolution = translator[layer]
        x = F.conv2d(x, convolution.weight, convolution.bias, padding=1)
        x = torch.where(x > 0, x, 0.1 * x)
    return x


def test_feed_with_one_teacher_is_factor_transfer_by_brute_force(losses, numeric):
    k, shapes = first_teacher(losses)
    feed = losses.build("feed", shapes)
    expected = brute_factor_loss(brute_translation(k.student_feature, feed.translators[0]), k.teacher_features[0])
    assert numeric(feed(k)) == pytest.approx(expected, rel=1e-4)


def test_feed_is_the_sum_over_independent_translators(losses):
    k = losses.knowledge()
    feed = losses.build("feed")
    parts = []
    for index in range(3):
        one, shapes = first_teacher(losses, index)
        single = losses.build("feed", shapes)
        single.translators[0].load_state_dict(feed.translators[index].state_dict())
        parts.append(single(replace(one, student_feature=k.student_feature)))
    torch.testing.assert_close(feed(k), torch.stack(parts).sum())
    # the first and the last teacher have the same shape, yet translators of their own
    assert not torch.equal(feed.translators[0][0].weight, feed.translators[2][0].weight)
    gradient = torch.autograd.grad(parts[0], list(feed.translators[2].parameters()), allow_unused=True)
    assert gradient == (None,) * 6


def test_factor_transfer_looks_through_the_paraphraser(losses, numeric):
    k, shapes = first_teacher(losses)
    loss = losses.build("factor-transfer", shapes)
    assert loss.paraphrasers.factors == [3]  # half of the teacher's channels
    factors = brute_translation(k.teacher_features[0], loss.paraphrasers.networks[0].encoder)
    expected = brute_factor_loss(brute_translation(k.student_feature, loss.translators[0]), factors)
    assert numeric(loss(k)) == pytest.approx(expected, rel=1e-4)
    # FEED with paraphrasers is the same for one teacher
    feed = losses.build("feed", shapes, paraphraser=True)
    feed.load_state_dict(loss.state_dict())
    torch.testing.assert_close(feed(k), loss(k))


def test_paraphrasers_learn_before_the_student_and_are_frozen(losses):
    loss = losses.build("factor-transfer", paraphraser_epochs=60, paraphraser_lr=1e-2)
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    figures = loss.prepare(losses.survey())
    assert set(figures) == {"reconstruction_0", "reconstruction_1", "reconstruction_2"}
    assert all(0 < share < 0.7 for share in figures.values())
    changed = {key for key, value in loss.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.startswith("paraphrasers.")}
    trained = [name for name, p in loss.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith("translators.") for name in trained)


def test_the_reported_reconstruction_is_that_of_images_not_trained_on(losses):
    loss = losses.build("factor-transfer", paraphraser_epochs=60, paraphraser_lr=1e-2)
    survey = losses.survey()
    figures = loss.prepare(survey)
    maps = torch.cat([said.teacher_features[0] for said in survey()])[::8]
    rebuilt = loss.paraphrasers.networks[0](maps)
    expected = (rebuilt - maps).abs().mean() / maps.abs().mean()
    assert figures["reconstruction_0"] == pytest.approx(float(expected), rel=1e-4)


def test_a_paraphraser_that_learned_nothing_stops_the_stage(losses):
    loss = losses.build("factor-transfer", paraphraser_epochs=1, paraphraser_lr=1e-6)
    with pytest.raises(TrainingError, match=r"paraphraser of teacher 0 is off by \d+%.*paraphraser_epochs"):
        loss.prepare(losses.survey())


def test_paraphraser_has_the_published_form():
    paraphraser = Paraphraser(6, 3)
    encoder = [tuple(layer.weight.shape) for layer in paraphraser.encoder if hasattr(layer, "weight")]
    decoder = [tuple(layer.weight.shape) for layer in paraphraser.decoder if hasattr(layer, "weight")]
    assert encoder == [(6, 6, 3, 3), (3, 6, 3, 3), (3, 3, 3, 3)]
    assert decoder == [(3, 3, 3, 3), (3, 6, 3, 3), (6, 6, 3, 3)]
    assert paraphraser(torch.randn(2, 6, 5, 3)).shape == (2, 6, 5, 3)


def test_factor_loss_does_not_see_length_and_lies_in_0_to_2():
    a, b = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(factor_loss(7 * a, b), factor_loss(a, 0.1 * b))
    assert float(factor_loss(a, a)) == pytest.approx(0, abs=1e-6)
    assert float(factor_loss(torch.ones(1, 9, 1, 1), -torch.ones(1, 9, 1, 1))) == pytest.approx(2)


def test_translator_has_the_published_form():
    translator = make_translator(4, 6)
    shapes = [tuple(layer.weight.shape) for layer in translator if hasattr(layer, "weight")]
    assert shapes == [(4, 4, 3, 3), (6, 4, 3, 3), (6, 6, 3, 3)]
    assert translator(torch.randn(2, 4, 5, 3)).shape == (2, 6, 5, 3)


def test_maps_are_pooled_to_the_smaller_size():
    student, teacher = match_size(torch.randn(2, 3, 8, 2), torch.randn(2, 5, 4, 4))
    assert student.shape == (2, 3, 4, 2)
    assert teacher.shape == (2, 5, 4, 2)


def test_fitnets_is_the_mean_square_behind_a_1x1_convolution(losses, numeric):
    k, shapes = first_teacher(losses, 1)  # its maps are twice as large
    loss = losses.build("fitnets", shapes, layer=0)
    weight, bias = loss.regressors[0].weight[:, :, 0, 0], loss.regressors[0].bias
    ours = torch.einsum("oc,bchw->bohw", weight, k.student_layers[0]) + bias.view(1, -1, 1, 1)
    theirs = k.teacher_layers[0][0].view(6, 4, 4, 2, 4, 2).mean(dim=(3, 5))
    assert numeric(loss(k)) == pytest.approx(numeric(((ours - theirs) ** 2).mean()), rel=1e-4)
    assert losses.build("fitnets").layer == 1
    with pytest.raises(NetworkError, match=r"no layer 2 among the 2 tapped ones. Choose one from 0 to 1"):
        losses.build("fitnets", layer=2)


def test_attention_equals_brute_force(losses, numeric):
    k, shapes = first_teacher(losses)
    total = 0.0
    for ours, theirs in zip(k.student_layers, k.teacher_layers[0], strict=True):
        squares = 0.0
        for a, b in zip(ours.tolist(), theirs.tolist(), strict=True):
            maps = []
            for x in (a, b):
                height, width = len(x[0]), len(x[0][0])
                q = [sum(c[i][j] ** 2 for c in x) / len(x) for i in range(height) for j in range(width)]
                maps.append([value / math.hypot(*q) for value in q])
            squares += sum((p - q) ** 2 for p, q in zip(*maps, strict=True)) / len(maps[0])
        total += squares / losses.images
    assert numeric(losses.build("attention", shapes)(k)) == pytest.approx(total, rel=1e-4)


def test_attention_does_not_see_scale_or_the_order_of_channels():
    a, b = torch.randn(3, 5, 4, 4), torch.randn(3, 7, 4, 4)
    torch.testing.assert_close(attention_loss(3 * a[:, torch.randperm(5)], b), attention_loss(a, b))
    torch.testing.assert_close(attention_map(a, 2).norm(dim=1), torch.ones(3))


def test_vid_is_the_likelihood_of_a_gaussian(losses, numeric):
    g = torch.Generator().manual_seed(0)
    predicted, target = torch.randn(2, 3, 2, 2, generator=g), torch.randn(2, 3, 2, 2, generator=g)
    variance = torch.tensor([0.5, 1.0, 4.0])
    gaussian = torch.distributions.Normal(predicted, variance.sqrt().view(1, 3, 1, 1))
    expected = -gaussian.log_prob(target).mean() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(gaussian_loss(predicted, target, variance), expected)
    # the best variance is the mean squared error
    error = (predicted - target).square().mean(dim=(0, 2, 3))
    best = gaussian_loss(predicted, target, error)
    assert best < gaussian_loss(predicted, target, 1.1 * error)
    assert best < gaussian_loss(predicted, target, 0.9 * error)


def test_vid_starts_at_its_variance_and_learns_it(losses):
    k, shapes = first_teacher(losses)
    loss = losses.build("vid", shapes, initial_variance=3.0)
    spread = loss.gaussians[0][0].spread
    torch.testing.assert_close(F.softplus(spread) + 1e-5, torch.full((4,), 3.0))
    loss(k).backward()
    assert (spread.grad != 0).all()


def test_hierarchical_loss_equals_brute_force():
    a, b = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    levels = [8, 4, 2, 1]
    weights = [1, 1 / 2, 1 / 4, 1 / 8]
    total = 0.0
    for size, weight in zip(levels, weights, strict=True):
        step = 8 // size
        pooled = [x.view(2, 3, size, step, size, step).mean(dim=(3, 5)) for x in (a, b)]
        total += weight * float(((pooled[0] - pooled[1]) ** 2).mean())
    assert float(hierarchical_loss(a, b)) == pytest.approx(total / sum(weights), rel=1e-4)
    # a 2x2 map has only two levels
    small = [torch.randn(2, 3, 2, 2) for _ in range(2)]
    means = [x.mean(dim=(2, 3)) for x in small]
    expected = (F.mse_loss(*small) + 0.5 * F.mse_loss(*means)) / 1.5
    torch.testing.assert_close(hierarchical_loss(*small), expected)


def test_review_lets_deep_layers_reach_shallow_targets(losses):
    """Without fusion the shallow teacher map would tell the student's deep layer nothing."""
    k, shapes = first_teacher(losses)
    loss = losses.build("review", shapes, channels=8).eval()
    shallow_only = loss.reviews[0].fusions[1]
    _, fused = loss.reviews[0].fusions[0](k.student_layers[1], None)
    compared, _ = shallow_only(k.student_layers[0], fused)
    assert compared.shape == k.teacher_layers[0][0].shape
    hierarchical_loss(compared, k.teacher_layers[0][0]).backward()
    assert k.student_layers[1].grad.abs().sum() > 0


def test_flow_equals_brute_force_and_pools_the_larger_map():
    g = torch.Generator().manual_seed(0)
    shallow, deep = torch.randn(2, 3, 4, 4, generator=g), torch.randn(2, 5, 2, 2, generator=g)
    pooled = shallow.view(2, 3, 2, 2, 2, 2).mean(dim=(3, 5))
    found = flow_matrix(shallow, deep)
    for b in range(2):
        for i in range(3):
            for j in range(5):
                expected = sum(float(pooled[b, i, h, w] * deep[b, j, h, w]) for h in range(2) for w in range(2)) / 4
                assert float(found[b, i, j]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_fsp_needs_two_layers_of_equal_channels(losses):
    shapes = replace(losses.shapes, teacher_layers=(((4, 4, 4), (6, 2, 2)), ((4, 4, 4), (8, 2, 2))))
    with pytest.raises(NetworkError, match=r"student's have \[4, 6\], teacher 1's \[4, 8\]"):
        losses.build("fsp", shapes)
    with pytest.raises(NetworkError, match="two layers at least"):
        losses.build("fsp", replace(losses.shapes, student_layers=((6, 2, 2),)))
