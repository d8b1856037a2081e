"""What is measured of one layer alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.stages.artifacts import ImageSpace
from kdpipe.stages.quantization.sensitivity import measure
from kdpipe.stages.quantization.weights import optimal_step, ternary_step
from kdpipe.stages.sensitivity import SensitivityParams
from kdpipe.targets.errors import GraphError, NetworkError

SPACE = ImageSpace((1, 8, 8), ("a", "b", "c"), (0.0,), (1.0,))


class Small(nn.Module):
    """Two convolutions, dropout and a classifier; from 3 on its logits are far apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(self.drop(torch.flatten(x, 1)))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    network = Small()
    with torch.no_grad():
        network.fc.weight.mul_(6)
    return network.eval()


@pytest.fixture
def images() -> Tensor:
    pixels = torch.randint(0, 256, (300, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    return pixels / 255


def logits(network: nn.Module, images: Tensor) -> Tensor:
    """With batch statistics, in batches as they are measured, and without dropout; the network stays as it is."""
    changed = copy.deepcopy(network).train()
    changed.drop.eval()
    with torch.no_grad():
        return torch.cat([changed(part) for part in images.tensor_split(2)])


def params(**given: Any) -> SensitivityParams:
    return SensitivityParams(network="n", samples="s", **given)


def test_narrower_weights_lose_more_and_the_network_stays_as_it_is(network: nn.Module, images: Tensor) -> None:
    state = copy.deepcopy(network.state_dict())
    found = measure(network, SPACE, images, None, params())
    assert list(found.layers) == ["conv1", "conv2", "fc"]
    assert [entry.layer.is_end for entry in found.layers.values()] == [True, False, True]
    assert [entry.layer.weights for entry in found.layers.values()] == [54, 432, 384]
    for entry in found.layers.values():
        losses = [entry.by_bits[bits].loss for bits in (2, 3, 4, 8)]
        assert losses == sorted(losses, reverse=True)
        assert losses[0] > 3 * losses[-1]
        assert entry.by_bits[8].agreement > 0.95
        assert entry.by_bits[2].accuracy is None
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not network.training


def test_the_loss_is_the_divergence_of_the_network_with_that_layer_rounded(network: nn.Module, images: Tensor) -> None:
    """Against the definition; with 8-bit activations the rest is nearly float."""
    found = measure(network, SPACE, images, None, params(widths=[3], images=300))

    expected = F.log_softmax(logits(network, images), dim=1)
    for path in ("conv1", "conv2", "fc"):
        changed = copy.deepcopy(network)
        weight = changed.get_submodule(path).weight
        with torch.no_grad():
            rows = weight.flatten(1)
            step = optimal_step(rows, 3)
            weight.copy_((torch.floor(rows.abs() / step + 0.5).clamp(max=3) * rows.sign() * step).view_as(weight))
        said = F.log_softmax(logits(changed, images), dim=1)
        divergence = float((expected.exp() * (expected - said)).sum(dim=1).mean())
        assert found.layers[path].by_bits[3].loss == pytest.approx(divergence, rel=0.1, abs=2 * found.before.loss)


def test_a_layer_whose_weights_are_ternary_loses_nothing_at_two_bits(network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        weight = network.conv2.weight
        step = ternary_step(weight.flatten(1)).view(-1, 1, 1, 1)
        weight.copy_(weight.sign() * (weight.abs() > step / 2) * step)
    found = measure(network, SPACE, images, None, params(widths=[2, 8]))
    assert found.layers["conv2"].by_bits[2].loss == pytest.approx(found.before.loss, abs=1e-6)
    assert found.layers["conv1"].by_bits[2].loss > 10 * found.before.loss


def test_labels_give_the_accuracy(network: nn.Module, images: Tensor) -> None:
    labels = logits(network, images).argmax(dim=1)
    found = measure(network, SPACE, images, labels, params(widths=[2, 8]))
    wide, narrow = found.layers["fc"].by_bits[8], found.layers["fc"].by_bits[2]
    # the labels are what the float network says, so that the two are one
    assert wide.accuracy == wide.agreement > narrow.accuracy == narrow.agreement
    half = labels.clone()
    half[::2] = (half[::2] + 1) % 3
    found = measure(network, SPACE, images, half, params(widths=[8]))
    assert found.before.accuracy == pytest.approx(0.5, abs=0.02)


def test_activations_alone(network: nn.Module, images: Tensor) -> None:
    without = measure(network, SPACE, images, None, params(widths=[2, 8]))
    done: list[tuple[int, int]] = []
    found = measure(
        network, SPACE, images, None, params(widths=[2, 8], activations=True), lambda at, of, _: done.append((at, of))
    )
    assert found.layers == without.layers
    assert found.before == without.before
    assert list(found.activations) == ["conv1", "conv2", "fc"]
    for name, by_bits in found.activations.items():
        assert by_bits[2].loss > by_bits[8].loss, name
        assert by_bits[8].loss == pytest.approx(found.before.loss, rel=1e-6)
    assert done == [(at, 12) for at in range(1, 13)]


def test_coarse_activations_are_told_apart_from_the_layers(network: nn.Module, images: Tensor) -> None:
    fine, coarse = (measure(network, SPACE, images, None, params(widths=[8], activation_bits=n)) for n in (8, 2))
    assert coarse.before.loss > 5 * fine.before.loss
    assert coarse.layers["conv2"].by_bits[8].loss == pytest.approx(coarse.before.loss, rel=0.2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(network: nn.Module, images: Tensor, value: float) -> None:
    with torch.no_grad():
        network.conv2.weight[0, 0, 0, 0] = value
    with pytest.raises(GraphError, match="finite") as caught:
        measure(network, SPACE, images, None, params())
    assert "conv2" in str(caught.value)


def test_predictions_that_are_not_finite_are_refused(network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        network.conv2.weight.fill_(1e38)
    with pytest.raises(NetworkError, match="the float network's predictions are not finite"):
        measure(network, SPACE, images, None, params())
