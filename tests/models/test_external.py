"""Networks of torchvision and timm by name."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from pydantic import ValidationError

from kdpipe.models.choice import ModelChoice
from kdpipe.models.registry import MODELS
from kdpipe.stages.distill import DistillParams
from kdpipe.stages.knowledge.taps import default_layers
from kdpipe.stages.teachers import TeachersParams
from kdpipe.targets.errors import MissingDependencyError, NetworkError, UsageError

needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")


@needs_torchvision
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("torchvision:resnet18", ("relu", "layer1", "layer2", "layer3", "layer4")),
        ("torchvision:mobilenet_v2", ("features.1", "features.3", "features.6", "features.13", "features")),
    ],
)
def test_a_torchvision_network_has_the_classes_and_layers_at_each_resolution(name, layers):
    network = MODELS[name].build(input_shape=(3, 64, 64), classes=7)
    assert network.training
    assert network.eval()(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    assert default_layers(network, torch.randn(1, 3, 64, 64)) == layers


@needs_torchvision
def test_arguments_reach_the_builder():
    narrow = MODELS["torchvision:mobilenet_v2"].build(input_shape=(3, 32, 32), classes=2, width_mult=0.25)
    assert narrow.features[0][0].out_channels == 8


@needs_torchvision
@pytest.mark.parametrize(
    ("name", "shape", "arguments", "words"),
    [
        ("torchvision:resnet1", (3, 32, 32), {}, "no classifier 'resnet1'. Did you mean resnet"),
        ("torchvision:retinanet_resnet50_fpn", (3, 32, 32), {}, "no classifier"),
        ("torchvision:resnet18", (1, 32, 32), {}, "take 3 channels, the images have 1. Use timm"),
        ("torchvision:alexnet", (3, 8, 8), {}, "don't go through the network"),
        ("torchvision:resnet18", (3, 32, 32), {"depth": 8}, "unexpected keyword argument 'depth'"),
    ],
)
def test_what_does_not_fit_is_refused(name, shape, arguments, words):
    with pytest.raises(NetworkError) as caught:
        MODELS[name].build(input_shape=shape, classes=10, **arguments)
    assert words in str(caught.value)


@needs_timm
def test_a_timm_network_takes_any_channels():
    network = MODELS["timm:mobilenetv3_small_050"].build(input_shape=(1, 32, 32), classes=7).eval()
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    with pytest.raises(NetworkError, match="Did you mean resnet18"):
        MODELS["timm:resnet1"].build(input_shape=(1, 32, 32), classes=7)


def test_only_known_libraries():
    with pytest.raises(UsageError, match=r"unknown library 'torchvison' in 'torchvison:resnet18'\. Did you mean"):
        MODELS["torchvison:resnet18"]


@pytest.mark.parametrize(
    ("argument", "words"), [("pretrained", "nothing is downloaded"), ("num_classes", "their classes decide it")]
)
def test_weights_and_classes_are_not_the_users(argument, words):
    with pytest.raises(ValidationError, match=words):
        ModelChoice.model_validate({"model": "torchvision:resnet18", argument: True})


def test_the_librarys_version_belongs_to_the_key_of_who_builds_it():
    own = {"teachers": "t", "samples": "s", "model": {"model": "cnn"}}
    assert DistillParams(**own).further_libraries() == ()
    assert DistillParams(**{**own, "model": {"model": "timm:resnet18"}}).further_libraries() == ("timm",)
    members = [{"model": "torchvision:resnet18"}, {"model": "cnn"}, {"model": "torchvision:resnet34"}]
    assert TeachersParams(train="d", members=members).further_libraries() == ("torchvision",)


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match=r'need the package timm. .*pip install "kdpipe\[vision\]"'):
        MODELS["timm:resnet18"].build(input_shape=(3, 32, 32), classes=2)


def test_naming_a_librarys_network_imports_nothing():
    code = (
        "import sys; from kdpipe.models.choice import ModelChoice;"
        "ModelChoice.model_validate({'model': 'torchvision:resnet18', 'norm_layer': None}).arguments;"
        "sys.exit(','.join(m for m in ('torch', 'torchvision', 'timm') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
