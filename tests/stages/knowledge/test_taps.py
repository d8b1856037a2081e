from __future__ import annotations

import pytest
import torch
from torch import nn

from kdpipe.models.registry import MODELS
from kdpipe.stages.knowledge.taps import (
    Taps,
    capture,
    capture_inputs,
    classifier,
    default_layers,
    matching_paths,
    observing,
)
from kdpipe.targets.errors import NetworkError


def network():
    return MODELS["cnn"].build(input_shape=(1, 8, 8), classes=10, channels=(4, 6)).eval()


def test_outputs_by_path_in_each_pass():
    net = network()
    with capture(net, ["features", "features.0"]) as seen:
        for count in (2, 3):
            x = torch.randn(count, 1, 8, 8)
            net(x)
            assert torch.equal(seen["features"], net.features(x))
            assert torch.equal(seen["features.0"], net.features[0](x))
    seen.clear()
    net(x)
    assert seen == {}


@pytest.mark.parametrize(("path", "words"), [("featurs", "Did you mean features?"), ("", "no module ''")])
def test_a_path_that_does_not_exist(path, words):
    with pytest.raises(NetworkError) as caught, capture(network(), [path]):
        pass
    assert words in str(caught.value)
    assert not any(m._forward_hooks for m in network().modules())


def test_inputs_and_classifier():
    net = network()
    with capture_inputs([classifier(net)]) as seen:
        x = torch.randn(2, 1, 8, 8)
        logits = net(x)
    torch.testing.assert_close(net.fc(seen[net.fc]), logits)
    with pytest.raises(NetworkError, match="no linear layer"):
        classifier(nn.Sequential(nn.ReLU()))


def resnet():
    return MODELS["resnet"].build(input_shape=(1, 8, 8), classes=10, depth=8, width=4)


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("layer*", ("layer1", "layer2", "layer3")),
        ("layer*.0", ("layer1.0", "layer2.0", "layer3.0")),
        ("layer2.0.*1", ("layer2.0.conv1", "layer2.0.bn1", "layer2.0.relu1")),
        ("layer1", ("layer1",)),
    ],
)
def test_a_star_stands_for_any_name_but_not_for_a_dot(pattern, paths):
    assert matching_paths(resnet(), pattern) == paths


@pytest.mark.parametrize(("pattern", "words"), [("lyaer*", "Did you mean layer"), ("q*", "Known: bn1, conv1")])
def test_a_pattern_that_matches_nothing(pattern, words):
    with pytest.raises(NetworkError) as caught:
        matching_paths(resnet(), pattern)
    assert f"no module like {pattern!r}" in str(caught.value)
    assert words in str(caught.value)


def test_default_layers_are_the_last_at_each_resolution():
    net = resnet().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert default_layers(net, torch.randn(2, 1, 8, 8)) == ("layer1", "layer2", "layer3")
    assert net.training
    # the images of a look must not reach the statistics
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())
    assert default_layers(network(), torch.randn(2, 1, 8, 8)) == ("features.2", "features")
    with pytest.raises(NetworkError, match="no module of the network returns a feature map"):
        default_layers(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.randn(2, 1, 2, 2))


def test_what_is_observed():
    net = network()
    x = torch.randn(3, 1, 8, 8)
    with observing(net, Taps("features", ("features.0", "features"), embedding=True)) as observer:
        net(x)
        seen = observer.seen()
    assert torch.equal(seen.feature, net.features(x))
    assert torch.equal(seen.layers[0], net.features[0](x))
    assert seen.layers[1] is seen.feature
    torch.testing.assert_close(seen.embedding, net.features(x).mean(dim=(2, 3)))
    with observing(net, Taps()) as observer:
        net(x)
        nothing = observer.seen()
    assert (nothing.feature, nothing.layers, nothing.embedding) == (None, (), None)
