"""The networks that YAML can name, what each may be told, and how one is built. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from kdpipe.models.arguments import (
    CnnArguments,
    DsCnnArguments,
    ExternalArguments,
    LeNetArguments,
    MlpArguments,
    MobileNetV1Arguments,
    MobileNetV2Arguments,
    ModelArguments,
    ResNetArguments,
    ReusedClassifierArguments,
)
from kdpipe.targets.errors import NetworkError, UsageError, did_you_mean
from kdpipe.targets.registry import Registry

if TYPE_CHECKING:
    from torch import nn

InputShape = tuple[int, int, int]


@dataclass(frozen=True)
class ModelEntry:
    """A network that can be named.

    Args:
        summary: one line for `kdpipe ls models`.
        constructor: "module:callable", called with `input_shape=(C, H, W)`, `classes=K` and the arguments.
        arguments: the type of the arguments.
        feature: given the arguments, the path of the module whose output is the last convolutional feature map; None
            where it is to be found by a forward pass.
        fixed: further arguments of the callable, which are not the user's.
        libraries: distributions that the network comes from, and whose version matters.
    """

    summary: str
    constructor: str
    arguments: type[ModelArguments]
    feature: Callable[[Any], str] | None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    libraries: tuple[str, ...] = ()

    def build(self, *, input_shape: Sequence[int], classes: int, **arguments: Any) -> nn.Module:
        """Build the network, its weights drawn from torch's global generator (seed it before).

        Args:
            input_shape: [C, H, W] of one image.
            classes: number of logits.
            **arguments: as the `arguments` type declares them.

        Raises:
            NetworkError: an argument is unknown or out of range, or the network does not fit the input.
        """
        module, _, name = self.constructor.partition(":")
        channels, height, width = input_shape
        if min(channels, height, width) < 1 or classes < 2:
            raise NetworkError(f"a network needs an image and two classes, got {tuple(input_shape)} and {classes}")
        network: nn.Module = getattr(import_module(module), name)(
            input_shape=(channels, height, width), classes=classes, **self.fixed, **self.check(arguments).model_dump()
        )
        return network

    def check(self, arguments: dict[str, Any]) -> Any:
        """Return the arguments as their type, defaults filled in.

        Raises:
            NetworkError: an argument is unknown or out of range.
        """
        try:
            return self.arguments.model_validate(arguments)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                known = list(self.arguments.model_fields)
                raise NetworkError(f"unknown argument {name!r}", remedy=did_you_mean(name, known)) from None
            message = first["msg"].removeprefix("Value error, ")
            raise NetworkError(f"{name}: {message}" if name else message) from None


class ModelRegistry(Registry[ModelEntry]):
    """kdpipe's own networks by name, and those of libraries as `torchvision:resnet18` or `timm:NAME`."""

    def __getitem__(self, name: str) -> ModelEntry:
        """Return the entry of a name. Of a library's network only the library's name is checked before it is built.

        Raises:
            UsageError: the model or the library is unknown.
        """
        library, separator, network = name.partition(":")
        if not separator:
            return super().__getitem__(name)
        if library not in LIBRARIES:
            raise UsageError(f"unknown library {library!r} in {name!r}", remedy=did_you_mean(library, LIBRARIES))
        return ModelEntry(
            summary=f"{network} of {library}",
            constructor=f"kdpipe.models.external:build_{library}",
            arguments=ExternalArguments,
            feature=None,
            fixed={"name": network},
            libraries=(library,),
        )


LIBRARIES = ("torchvision", "timm")

MODELS = ModelRegistry("model")

MODELS.register("resnet")(
    ModelEntry(
        "ResNet for small images: 3x3 stem, stages of basic blocks, global mean (He et al. 2016, section 4.2)",
        "kdpipe.models.resnet:ResNet",
        ResNetArguments,
        lambda arguments: f"layer{arguments.stages}",
    )
)
MODELS.register("cnn")(
    ModelEntry(
        "plain stack of 3x3 convolutions, each with batch norm and ReLU, and global mean",
        "kdpipe.models.cnn:Cnn",
        CnnArguments,
        lambda arguments: "features",
    )
)
MODELS.register("ds-cnn")(
    ModelEntry(
        "depthwise-separable convolutions of one width, and global mean (Zhang et al. 2017, Hello Edge)",
        "kdpipe.models.ds_cnn:DsCnn",
        DsCnnArguments,
        lambda arguments: "features",
    )
)

MODELS.register("lenet")(
    ModelEntry(
        "LeNet-5 with ReLU and max pooling, for 32x32 pixels (LeCun et al. 1998)",
        "kdpipe.models.lenet:LeNet",
        LeNetArguments,
        lambda arguments: "features",
    )
)
MODELS.register("mlp")(
    ModelEntry(
        "linear layers with ReLU between them; an autoencoder, with as many classes as features",
        "kdpipe.models.mlp:Mlp",
        MlpArguments,
        None,
    )
)
MODELS.register("mobilenet-v1")(
    ModelEntry(
        "13 depthwise-separable blocks, and global mean (Howard et al. 2017)",
        "kdpipe.models.mobilenet:MobileNetV1",
        MobileNetV1Arguments,
        lambda arguments: "features",
    )
)
MODELS.register("mobilenet-v2")(
    ModelEntry(
        "17 inverted residuals, a 1x1 convolution, and global mean (Sandler et al. 2018)",
        "kdpipe.models.mobilenet:MobileNetV2",
        MobileNetV2Arguments,
        lambda arguments: "features",
    )
)
MODELS.register("reused-classifier")(
    ModelEntry(
        "a small network that ends in the teacher's classifier, through a projector; for simkd",
        "kdpipe.models.reused_classifier:build_reused_classifier",
        ReusedClassifierArguments,
        lambda arguments: "pool.projector",
    )
)
