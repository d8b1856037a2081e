"""Networks of torchvision and timm, by the names that these libraries give them. Weights are never downloaded."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.targets.errors import MissingDependencyError, NetworkError, did_you_mean


def build_torchvision(*, name: str, input_shape: tuple[int, int, int], classes: int, **arguments: Any) -> nn.Module:
    """Build a classifier of `torchvision.models`, such as resnet18, with random weights.

    Args:
        name: as torchvision gives it.
        input_shape: [3, H, W].
        classes: number of logits.
        **arguments: as its builder takes them.

    Raises:
        MissingDependencyError: torchvision is not installed, or does not go with this torch.
        NetworkError: the name or an argument is unknown, or the network does not fit the images.
    """
    library = import_library("torchvision.models")
    known = library.list_models(module=library)
    if name not in known:
        raise NetworkError(f"torchvision has no classifier {name!r}", remedy=did_you_mean(name, known))
    if input_shape[0] != 3:
        raise NetworkError(
            f"torchvision's networks take 3 channels, the images have {input_shape[0]}",
            remedy="Use timm, whose networks take any number, or a model of kdpipe's own",
        )
    return _checked(
        lambda: library.get_model(name, weights=None, num_classes=classes, **arguments),
        f"torchvision:{name}",
        input_shape,
        classes,
    )


def build_timm(*, name: str, input_shape: tuple[int, int, int], classes: int, **arguments: Any) -> nn.Module:
    """Build a network of timm, such as mobilenetv3_small_050, with random weights.

    Args:
        name: as timm gives it.
        input_shape: [C, H, W].
        classes: number of logits.
        **arguments: as `timm.create_model` takes them.

    Raises:
        MissingDependencyError: timm is not installed.
        NetworkError: the name or an argument is unknown, or the network does not fit the images.
    """
    library = import_library("timm")
    if name not in library.list_models():
        raise NetworkError(f"timm has no network {name!r}", remedy=did_you_mean(name, library.list_models()))
    return _checked(
        lambda: library.create_model(name, pretrained=False, num_classes=classes, in_chans=input_shape[0], **arguments),
        f"timm:{name}",
        input_shape,
        classes,
    )


def import_library(module: str) -> ModuleType:
    """Import a module of torchvision or timm, also where torchvision's compiled part does not go with this torch.

    Raises:
        MissingDependencyError: it is not installed, or can't be imported beside this torch.
    """
    library = module.partition(".")[0]
    _declare_operators()
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"networks of {library} need the package {error.name}", remedy='Install it: pip install "kdpipe[vision]"'
        ) from None
    except (ImportError, RuntimeError, AttributeError) as error:
        raise MissingDependencyError(
            f"{library} can't be imported beside torch {torch.__version__}: {error}",
            remedy="Install the version of torchvision that is made for this torch",
        ) from None


def _declare_operators() -> None:
    """Declare two operators of torchvision's compiled part where that part can't be loaded.

    A torchvision built for CUDA beside a torch for the CPU stops at import, because it registers shapes for
    operators that nobody declared. No classifier uses them. A compiled part that loads declares them itself, so
    this must not be done where it does.
    """
    try:
        import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            return
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


# the declarations last as long as the object that made them
_KEPT: list[Any] = []


def _checked(build: Callable[[], nn.Module], name: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a network and see that it makes logits of such images, which only it can tell."""
    try:
        network = build()
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise NetworkError(f"the network can't be built: {_first_line(error)}", where=name) from None
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(1, *input_shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise NetworkError(
            f"images of {list(input_shape)} don't go through the network: {_first_line(error)}",
            where=name,
            remedy="Use larger images, or another network",
        ) from None
    finally:
        network.train()
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (1, classes):
        returns = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise NetworkError(f"the network returns {returns}, not [1, {classes}] logits", where=name)
    return network


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
