"""Taps: what modules inside a network return, or are given, during a forward pass."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from kdpipe.targets.errors import NetworkError, did_you_mean


def find_module(network: nn.Module, path: str) -> nn.Module:
    """Return the module at a path such as `layer3` or `features.7`.

    Raises:
        NetworkError: there is none; the remedy names the nearest path.
    """
    modules = dict(network.named_modules())
    if path not in modules or not path:
        raise NetworkError(f"the network has no module {path!r}", remedy=_nearest(path, network))
    return modules[path]


def matching_paths(network: nn.Module, pattern: str) -> tuple[str, ...]:
    """Return the modules' paths that a pattern names, in order of definition.

    Args:
        network: any module.
        pattern: a path, in which `*` stands for any characters but a dot: `layer*` is layer1, layer2, ..., but not
            layer1.0.

    Raises:
        NetworkError: there is none; the remedy names the nearest path.
    """
    if "*" not in pattern:
        find_module(network, pattern)
        return (pattern,)
    expression = re.compile("[^.]*".join(re.escape(part) for part in pattern.split("*")))
    paths = tuple(path for path, _ in network.named_modules() if path and expression.fullmatch(path))
    if not paths:
        raise NetworkError(f"the network has no module like {pattern!r}", remedy=_nearest(pattern, network))
    return paths


def _nearest(path: str, network: nn.Module) -> str:
    # without a near match, the list of a large network's modules would hide the message
    near = get_close_matches(path, [name for name, _ in network.named_modules()], n=1)
    return did_you_mean(path, near or [name for name, _ in network.named_children()])


@contextmanager
def capture(network: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of the modules at `paths`, by path, anew in each forward pass inside the context.

    Raises:
        NetworkError: a path does not exist.
    """
    outputs: dict[str, Tensor] = {}
    modules = {path: find_module(network, path) for path in paths}

    def recorder(path: str) -> object:
        def record(module: nn.Module, inputs: object, output: Tensor) -> None:
            outputs[path] = output

        return record

    handles = [module.register_forward_hook(recorder(path)) for path, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def capture_inputs(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Record the first input of each module, anew in each forward pass inside the context."""
    inputs: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs[module] = given[0]

    handles = [module.register_forward_pre_hook(record) for module in modules]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def classifier(network: nn.Module) -> nn.Linear:
    """Return the last linear layer in order of definition: its input is the penultimate feature.

    Raises:
        NetworkError: the network has none.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise NetworkError("the network has no linear layer, so its penultimate feature is not known")
    return layers[-1]


@dataclass(frozen=True)
class Taps:
    """Where losses look into one network.

    Args:
        feature: path of the module that returns the feature map, or None.
        layers: paths of the modules that return the maps from shallow to deep.
        embedding: whether the classifier's input is looked at.
    """

    feature: str | None = None
    layers: tuple[str, ...] = ()
    embedding: bool = False


@dataclass(frozen=True)
class Seen:
    """What the taps of one network saw in a forward pass: maps [B, C, H, W] and the embedding [B, D]."""

    feature: Tensor | None = None
    layers: tuple[Tensor, ...] = ()
    embedding: Tensor | None = None

    def float(self) -> Seen:
        """Return the same in float32."""
        return Seen(
            None if self.feature is None else self.feature.float(),
            tuple(layer.float() for layer in self.layers),
            None if self.embedding is None else self.embedding.float(),
        )


class Observer:
    """Looks into a network during the forward passes inside `with observing(network, taps) as observer`."""

    def __init__(self, taps: Taps, outputs: dict[str, Tensor], inputs: dict[nn.Module, Tensor]) -> None:
        self._taps = taps
        self._outputs = outputs
        self._inputs = inputs

    def seen(self) -> Seen:
        """Return what was seen in the latest pass.

        Raises:
            NetworkError: a module did not return a feature map, or the classifier is not given vectors.
        """
        feature = None if self._taps.feature is None else self._map(self._taps.feature)
        layers = tuple(self._map(path) for path in self._taps.layers)
        embedding = next(iter(self._inputs.values()), None)
        if embedding is not None and embedding.dim() != 2:
            raise NetworkError(f"the classifier is given {list(embedding.shape)}, not a vector an image")
        return Seen(feature, layers, embedding)

    def _map(self, path: str) -> Tensor:
        feature = self._outputs.get(path)
        if isinstance(feature, Tensor) and feature.dim() == 4:
            return feature
        returns = list(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
        raise NetworkError(
            f"the module {path!r} returns {returns}, not a feature map [B, C, H, W]",
            remedy="Tap a convolutional module",
        )


@contextmanager
def observing(network: nn.Module, taps: Taps) -> Iterator[Observer]:
    """Watch a network's taps in the forward passes inside the context.

    Raises:
        NetworkError: a module does not exist.
    """
    paths = dict.fromkeys([*([taps.feature] if taps.feature else []), *taps.layers])
    with ExitStack() as stack:
        outputs = stack.enter_context(capture(network, paths))
        inputs = stack.enter_context(capture_inputs([classifier(network)] if taps.embedding else []))
        yield Observer(taps, outputs, inputs)


@torch.no_grad()
def default_layers(network: nn.Module, images: Tensor) -> tuple[str, ...]:
    """Return the path of the last map at each resolution, from the finest to the coarsest.

    Of the modules that return maps of a resolution it is the last of the outermost: of a ResNet its stages, not a
    layer inside the next stage's first block that still has the resolution. The network's mode is put back.

    Args:
        network: any module.
        images: a few, [B, C, H, W], as the network sees them.

    Raises:
        NetworkError: no module returns a feature map.
    """
    last: dict[tuple[int, int], str] = {}

    def recorder(path: str) -> object:
        def record(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() == 4:
                size = (int(output.shape[2]), int(output.shape[3]))
                if size not in last or path.count(".") <= last[size].count("."):
                    last[size] = path

        return record

    training = network.training
    handles = [m.register_forward_hook(recorder(path)) for path, m in network.named_modules() if path]  # type: ignore[arg-type]
    try:
        network.eval()
        network(images)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    # the global mean is no map to compare; squeeze-and-excitation's 1x1 maps aren't either
    spatial = {size: path for size, path in last.items() if size != (1, 1)} or last
    if not spatial:
        raise NetworkError("no module of the network returns a feature map [B, C, H, W]")
    return tuple(spatial[size] for size in sorted(spatial, key=lambda size: -size[0] * size[1]))
