from __future__ import annotations

import pytest
import torch
from torch import nn

from kdpipe.models.registry import MODELS
from kdpipe.stages.knowledge.taps import capture, capture_inputs, classifier
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
