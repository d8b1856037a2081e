"""A small network that ends in a large one's classifier: SimKD's student (Chen et al. 2022, arXiv:2203.14001)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import nn

from kdpipe.models.initialization import initialize_convolutions
from kdpipe.models.registry import MODELS
from kdpipe.targets.errors import NetworkError


def make_projector(inputs: int, outputs: int, middle: int) -> nn.Sequential:
    """Return SimKD's projector: 1x1, 3x3 and 1x1 convolutions, each with batch norm and ReLU (appendix A).

    Args:
        inputs: channels of the backbone's last map.
        outputs: what the classifier takes.
        middle: channels in between.
    """
    layers: list[nn.Module] = []
    for before, after, size in ((inputs, middle, 1), (middle, middle, 3), (middle, outputs, 1)):
        layers += [nn.Conv2d(before, after, size, 1, size // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def build_reused_classifier(
    *,
    input_shape: tuple[int, int, int],
    classes: int,
    backbone: Mapping[str, Any],
    channels: int,
    reduction: int,
) -> nn.Module:
    """Build a backbone whose last map goes through a projector before its global mean and classifier.

    The map after the projector is the output of the module `pool.projector`.

    Args:
        input_shape: [C, H, W].
        classes: number of logits.
        backbone: a model of kdpipe's own with its arguments: {"model": "resnet", "depth": 8}.
        channels: what the classifier takes, as many as the teacher's.
        reduction: the projector's inner layers have channels / reduction.

    Raises:
        NetworkError: the backbone is not one that ends in a global mean and a linear layer.
    """
    arguments = dict(backbone)
    network = MODELS[arguments.pop("model")].build(input_shape=input_shape, classes=classes, **arguments)
    pool, last = getattr(network, "pool", None), getattr(network, "fc", None)
    if not isinstance(pool, nn.AdaptiveAvgPool2d) or not isinstance(last, nn.Linear):
        raise NetworkError(
            f"{backbone['model']!r} can't be a backbone of reused-classifier",
            remedy="Use resnet, cnn, ds-cnn or a mobilenet, which end in a global mean and one linear layer",
        )
    projector = make_projector(last.in_features, channels, max(1, channels // reduction))
    initialize_convolutions(projector)
    network.add_module("pool", nn.Sequential(OrderedDict(projector=projector, mean=pool)))
    network.add_module("fc", nn.Linear(channels, classes))
    return network
