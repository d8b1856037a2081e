"""Weights from files: kdpipe's own and the ones that people bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.targets.errors import NetworkError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
PREFIXES = ("module.", "_orig_mod.", "model.")
SHOWN = 3


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file or a torch file.

    A torch file is read with `weights_only=True`, so that it can't run code. A wrapper such as
    {"state_dict": ...} is opened, and a prefix that all keys share (`module.` of DataParallel) is removed.

    Raises:
        NetworkError: the file is missing, unreadable, holds code, holds no tensors, or values that are not finite.
    """
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except OSError as error:
        raise NetworkError(f"the checkpoint can't be read: {error.strerror or error}", where=str(path)) from None
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    state = _tensors(content)
    if not state:
        raise NetworkError(
            "the checkpoint holds no tensors",
            where=str(path),
            remedy='Save it with torch.save(network.state_dict(), "file.pt") or safetensors.torch.save_file',
        )
    _check_finite(state, path)
    return without_prefix(state)


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove prefixes that wrappers put before every key, as often as they stand there."""
    result = dict(state)
    while prefix := next((p for p in PREFIXES if result and all(key.startswith(p) for key in result)), None):
        result = {key.removeprefix(prefix): value for key, value in result.items()}
    return result


def rename_modules(state: Mapping[str, Tensor], names: Mapping[str, str], *, where: str) -> dict[str, Tensor]:
    """Rename modules, and all that is inside them: {"linear": "fc"} makes `linear.weight` into `fc.weight`.

    Args:
        state: tensors by key.
        names: by the path of a module, its new path.
        where: the file, for messages.

    Raises:
        NetworkError: there is no module of that path, or two keys would become one.
    """
    result: dict[str, Tensor] = {}
    used: set[str] = set()
    for key, value in state.items():
        old = max((name for name in names if key.startswith(f"{name}.")), key=len, default=None)
        new = key
        if old is not None:
            used.add(old)
            new = names[old] + key[len(old) :]
        if new in result:
            raise NetworkError(f"two tensors of the checkpoint would be named {new!r}", where=where)
        result[new] = value
    if unused := [name for name in names if name not in used]:
        modules = sorted({key.rpartition(".")[0] for key in state})
        raise NetworkError(
            f"the checkpoint has no module {unused[0]!r} to rename",
            where=where,
            remedy=did_you_mean(unused[0], modules),
        )
    return result


def load_state(network: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Put a state dict into a network, all keys and shapes being equal.

    Batch norms' `num_batches_tracked`, which older torch did not save, may be absent.

    Args:
        network: changed in place.
        state: tensors by key.
        where: the file, for messages.

    Raises:
        NetworkError: names the first keys that are missing or too many, and the first shapes that differ.
    """
    own = network.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in own]
    shapes = [
        f"{key}: {list(state[key].shape)} in the file, {list(own[key].shape)} in the network"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [
        f"{title} {_first(found)}"
        for title, found in (("missing", missing), ("not in the network:", extra), ("other shapes:", shapes))
        if found
    ]
    if problems:
        raise NetworkError(
            "the weights don't fit the network: " + "; ".join(problems),
            where=where,
            remedy="Give the model the arguments that it was trained with",
        )
    network.load_state_dict(dict(state), strict=False)


def _check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    import torch

    broken = [key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise NetworkError(
            f"the checkpoint holds values that are not finite: {_first(broken)}",
            where=str(path),
            remedy="Take a checkpoint from before the training broke",
        )


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _tensors(content: Any) -> dict[str, Tensor]:
    import torch

    if not isinstance(content, Mapping):
        return {}
    return {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except (SafetensorError, ValueError) as error:
        raise NetworkError(f"the checkpoint isn't a safetensors file: {error}", where=str(path)) from None


def _read_torch(path: Path) -> Any:
    import torch

    if not path.is_file():
        raise NetworkError("the checkpoint doesn't exist", where=str(path))
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # the unpickler has no common base for what it raises on a damaged or refused file
        reason = "it holds more than tensors" if "weights_only" in str(error).lower() else "it is damaged"
        raise NetworkError(
            f"the checkpoint can't be read safely: {reason} ({type(error).__name__})",
            where=str(path),
            remedy="Save only the state dict, best as safetensors; files that need code to load are never run",
        ) from None
