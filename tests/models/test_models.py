from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from pydantic import BaseModel, ValidationError
from torch import fx, nn

from kdpipe.models.choice import ModelChoice
from kdpipe.models.generator import Generator
from kdpipe.models.mobilenet import scaled_channels
from kdpipe.models.registry import MODELS
from kdpipe.targets.errors import NetworkError

SMALL = {
    "resnet": {"depth": 8, "width": 4},
    "cnn": {"channels": (4, 8)},
    "ds-cnn": {"width": 8, "blocks": 2},
    "lenet": {"channels": (2, 3, 4), "hidden": 6, "batch_norm": True},
    "mlp": {"hidden": (5,)},
    "mobilenet-v1": {"width": 0.1},
    "mobilenet-v2": {"width": 0.1},
    "reused-classifier": {"backbone": {"model": "cnn", "channels": (4, 8)}, "channels": 12},
}


def test_every_model_has_a_small_form_here():
    assert set(SMALL) == set(MODELS)


def images_of(name):
    return (32, 36) if name == "lenet" else (8, 10)


@pytest.mark.parametrize("name", list(SMALL))
def test_models_trace_and_give_logits_and_a_feature_map(name):
    entry = MODELS[name]
    shape = (3, *images_of(name))
    network = entry.build(input_shape=shape, classes=7, **SMALL[name]).eval()
    x = torch.randn(2, *shape)
    assert network(x).shape == (2, 7)
    torch.testing.assert_close(fx.symbolic_trace(network)(x), network(x), rtol=0, atol=0)
    if entry.feature is not None:
        assert entry.feature(entry.check(SMALL[name])) in dict(network.named_modules())
    assert (entry.feature is None) == (name == "mlp")


@pytest.mark.parametrize("name", list(SMALL))
def test_every_convolution_is_without_bias_and_followed_by_batch_norm(name):
    network = MODELS[name].build(input_shape=(1, *images_of(name)), classes=10, **SMALL[name])
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.bias is None for m in convolutions)
    assert sorted(m.out_channels for m in convolutions) == sorted(m.num_features for m in norms)


def test_resnet20_has_the_parameters_of_the_paper():
    network = MODELS["resnet"].build(input_shape=(3, 32, 32), classes=10, depth=20, width=16, shortcut="pad")
    # He et al. 2016, table 6: 0.27 M; exactly 269,722 with option A and batch norm
    assert sum(p.numel() for p in network.parameters()) == 269_722


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [({}, 61_706), ({"channels": (3, 8, 60), "hidden": 42}, 15_738), ({"batch_norm": True}, 61_706 + 6 + 16 + 120)],
)
def test_lenet5_has_the_parameters_of_the_paper(arguments, parameters):
    network = MODELS["lenet"].build(input_shape=(1, 32, 32), classes=10, **arguments).eval()
    assert network.features(torch.zeros(1, 1, 32, 32)).shape[2:] == (1, 1)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_lenet_says_what_to_do_with_mnist():
    with pytest.raises(NetworkError, match="28x28 is too small for lenet") as caught:
        MODELS["lenet"].build(input_shape=(1, 28, 28), classes=10)
    assert "padding: 2" in str(caught.value.remedy)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_an_mlp_has_the_layers_that_it_is_told(batch_norm):
    network = MODELS["mlp"].build(input_shape=(1, 28, 28), classes=10, hidden=(32, 16), batch_norm=batch_norm)
    sizes = [(m.in_features, m.out_features) for m in network.modules() if isinstance(m, nn.Linear)]
    assert sizes == [(784, 32), (32, 16), (16, 10)]
    assert sum(isinstance(m, nn.BatchNorm1d) for m in network.modules()) == 2 * batch_norm


def test_ds_cnn_has_the_layers_of_mlperf_tiny():
    network = MODELS["ds-cnn"].build(input_shape=(1, 49, 10), classes=12, kernel=(10, 4))
    assert network.features(torch.zeros(1, 1, 49, 10)).shape == (1, 64, 25, 5)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    # 64 x 10 x 4, and four times 64 x 9 + 64 x 64
    assert sum(m.weight.numel() for m in convolutions) == 2560 + 4 * (576 + 4096)


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "classes", "parameters"),
    [
        # 470,072 are trained with 1000 classes (Keras' MobileNet with alpha 0.25)
        ("mobilenet-v1", {"width": 0.25}, (3, 96, 96), 2, 213_586),
        # torchvision's mobilenet_v2 with width_mult 0.35
        ("mobilenet-v2", {"width": 0.35}, (3, 96, 96), 2, 398_690),
        ("mobilenet-v2", {"width": 1.0}, (3, 96, 96), 1000, 3_504_872),
        # MLPerf Tiny's anomaly detection: nine layers with batch norm, and one without
        (
            "mlp",
            {"hidden": (128, 128, 128, 128, 8, 128, 128, 128, 128)},
            (1, 5, 128),
            640,
            2 * 640 * 128 + 640 + 6 * 128 * 128 + 2 * 128 * 8 + 2 * (8 * 128 + 8),
        ),
    ],
)
def test_networks_of_the_papers_have_their_parameters(name, arguments, shape, classes, parameters):
    network = MODELS[name].build(input_shape=shape, classes=classes, **arguments)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_channels_of_a_mobilenet_are_multiples_of_8():
    assert [scaled_channels(channels, 0.35) for channels in (16, 24, 32, 64, 96, 160, 320)] == [
        8,
        8,
        16,
        24,
        32,
        56,
        112,
    ]


def test_pad_shortcut_appends_zero_channels():
    network = MODELS["resnet"].build(input_shape=(1, 8, 8), classes=2, depth=8, width=4, shortcut="pad")
    x = torch.randn(1, 4, 8, 8)
    y = network.layer2[0].shortcut(x)
    assert y.shape == (1, 8, 4, 4)
    torch.testing.assert_close(y[:, 2:6], x[:, :, ::2, ::2], rtol=0, atol=0)
    assert y[:, :2].abs().sum() == 0
    assert y[:, 6:].abs().sum() == 0


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "words"),
    [
        ("resnet", {"depth": 9}, (1, 8, 8), "can't have depth 9"),
        ("resnet", {"dept": 8}, (1, 8, 8), "Did you mean depth?"),
        ("resnet", {"depth": 8, "width": 0}, (1, 8, 8), "width"),
        ("resnet", {"depth": 8}, (1, 3, 8), "too small"),
        ("cnn", {"channels": (4, 4, 4, 4, 4)}, (1, 8, 8), "can't be halved 4 times"),
        ("ds-cnn", {}, (1, 1, 8), "too small"),
        ("reused-classifier", {"backbone": {"model": "renset"}}, (1, 8, 8), "Did you mean resnet?"),
        ("reused-classifier", {"backbone": {"model": "resnet", "dept": 8}}, (1, 8, 8), "Did you mean depth?"),
        ("mobilenet-v1", {"width": 0}, (1, 8, 8), "width"),
        ("mlp", {"hidden": (0,)}, (1, 8, 8), "hidden"),
        ("cnn", {}, (0, 8, 8), "needs an image"),
    ],
)
def test_what_does_not_fit_is_refused(name, arguments, shape, words):
    with pytest.raises(NetworkError, match=words.replace("?", r"\?")):
        MODELS[name].build(input_shape=shape, classes=10, **arguments)


class Holder(BaseModel):
    members: tuple[ModelChoice, ...]


@pytest.mark.parametrize(
    ("member", "place", "words"),
    [
        ({"model": "renset"}, ("members", 0), "Did you mean resnet?"),
        ({"model": "resnet", "dept": 8}, ("members", 0, "dept"), "Did you mean depth?"),
        ({"model": "resnet", "depth": "x"}, ("members", 0, "depth"), "integer"),
        ({"model": "resnet", "depth": 9}, ("members", 0), "depths that fit: 8, 14"),
    ],
)
def test_a_mistake_in_a_model_is_reported_at_its_place(member, place, words):
    with pytest.raises(ValidationError) as caught:
        Holder.model_validate({"members": [member]})
    (error,) = caught.value.errors()
    assert error["loc"] == place
    assert words in error["msg"]


def test_arguments_are_part_of_what_is_dumped():
    choice = ModelChoice.model_validate({"model": "resnet", "depth": 8})
    assert choice.model_dump() == {"model": "resnet", "depth": 8}
    assert choice.arguments == {"depth": 8, "width": 16, "stages": 3, "shortcut": "projection"}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 7, 9), (1, 1, 1)])
def test_generator_makes_normalized_images_of_any_shape(shape):
    generator = Generator(shape, channels=8, latent=5)
    images = generator(generator.noise(64, torch.Generator().manual_seed(0)))
    assert images.shape == (64, *shape)
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(shape[0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.var(dim=(0, 2, 3)), torch.ones(shape[0]), atol=0.05, rtol=0)


def test_registries_and_stage_modules_import_without_torch():
    code = (
        "import sys, kdpipe.models.registry, kdpipe.models.choice, kdpipe.stages.teachers, kdpipe.stages.synthesize,"
        "kdpipe.stages.distill, kdpipe.stages.data.digits, kdpipe.stages.knowledge.registry, kdpipe.stages.artifacts;"
        "sys.exit(','.join(m for m in ('torch', 'sklearn', 'safetensors', 'numpy') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
