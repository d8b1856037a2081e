"""A student that starts from another network's weights, and may know more classes."""

from __future__ import annotations

from torch import nn

from kdpipe.stages.artifacts import ImageSpace, NetworkDescription, build_network, load_ensemble, load_network
from kdpipe.stages.base import Artifact
from kdpipe.stages.knowledge.taps import classifier
from kdpipe.stages.training.checkpoints import load_state
from kdpipe.targets.errors import NetworkError


def extended(artifact: Artifact, space: ImageSpace) -> tuple[nn.Module, NetworkDescription]:
    """Read a network, or an ensemble's only one, and add the classes to its last layer that it lacks.

    The new rows of the last linear layer are drawn from torch's global generator, everything else is the network's.

    Args:
        artifact: of kind network or ensemble.
        space: the images, and the classes: the network's own and, behind them, further ones.

    Raises:
        NetworkError: the network sees images of another kind, its classes are not the first ones, or there are several.
    """
    members = [load_network(artifact.path)] if artifact.kind == "network" else load_ensemble(artifact.path)
    if len(members) > 1:
        raise NetworkError(f"a student can't start as an ensemble of {len(members)}", remedy="Give one network")
    old, given = members[0]
    known = given.space.classes
    if (given.space.shape, given.space.mean, given.space.std) != (space.shape, space.mean, space.std):
        raise NetworkError("the initial network takes images of another shape or normalization than the teachers")
    if space.classes[: len(known)] != known:
        raise NetworkError(
            f"the initial network's classes, {_some(known)}, are not the student's first ones, {_some(space.classes)}",
            remedy="Start from the teacher, or from a network with its classes in its order",
        )
    description = NetworkDescription(given.model, given.arguments, space)
    network = build_network(description)
    state, own = old.state_dict(), network.state_dict()
    if len(space.classes) > len(known):
        last = next(path for path, module in network.named_modules() if module is classifier(network))
        for name in (f"{last}.weight", f"{last}.bias"):
            if name in state:
                rows = own[name].clone()
                rows[: len(state[name])] = state[name]
                state[name] = rows
    load_state(network, state, where="initial")
    return network, description


def _some(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
