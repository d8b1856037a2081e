"""Taps: what modules inside a network return, or are given, during a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from torch import Tensor, nn

from kdpipe.targets.errors import NetworkError, did_you_mean


def find_module(network: nn.Module, path: str) -> nn.Module:
    """Return the module at a path such as `layer3` or `features.7`.

    Raises:
        NetworkError: there is none; the remedy names the nearest path.
    """
    modules = dict(network.named_modules())
    if path not in modules or not path:
        # without a near match, the list of a large network's modules would hide the message
        near = get_close_matches(path, modules, n=1)
        known = near or [name for name, _ in network.named_children()]
        raise NetworkError(f"the network has no module {path!r}", remedy=did_you_mean(path, known))
    return modules[path]


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
