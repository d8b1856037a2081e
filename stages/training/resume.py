"""Resuming inside a stage: the state of a loop after each epoch, in a place that survives a kill."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from kdpipe.stages.base import Rows
from kdpipe.stages.training.parallel import ALONE, Parallel

FORMAT = 2
_DIGEST = 32


class Stateful(Protocol):
    """What a loop changes: a module, an optimizer, a data-free method."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers, strings, None, and containers of them."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Go back to a state."""
        ...


class GeneratorState:
    """A random generator as Stateful."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state."""
        return {"state": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self._generator.set_state(state["state"])


class Resume:
    """Keeps everything that the rest of a loop depends on, so that a killed stage goes on from its last epoch.

    What is trained, every random generator and the rows of the finished epochs are written after each epoch, beside
    torch's own global generators, which may differ between processes that share the work. The file, which the first
    of these writes, is moved into place when it is complete, and carries a hash of its content: whatever happens,
    there is the newest whole state or an older one.

    Args:
        directory: of the stage, as `StageContext.scratch()` lends it.
        name: of the loop in the stage: "student", "teacher-1".
        parts: what the loop changes, by name; an optimizer is added by the loop.
    """

    def __init__(self, directory: Path, name: str, parts: Mapping[str, Stateful]) -> None:
        self._path = directory / f"{name}.state"
        self._parts = dict(parts)

    def watch(self, name: str, part: Stateful) -> None:
        """Add a part."""
        self._parts[name] = part

    def save(self, rows: Rows, done: int, parallel: Parallel = ALONE) -> None:
        """Write the state after `len(rows)` epochs and `done` steps; called by all processes."""
        random = parallel.gather(torch.get_rng_state())
        random_cuda = parallel.gather(torch.cuda.get_rng_state()) if torch.cuda.is_initialized() else []
        if parallel.rank:
            return
        document = {
            "format": FORMAT,
            "torch": str(torch.__version__),
            "rows": rows,
            "done": done,
            "random": list(random),
            "random_cuda": list(random_cuda),
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
        }
        buffer = io.BytesIO()
        torch.save(document, buffer)
        content = buffer.getvalue()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, parallel: Parallel = ALONE) -> tuple[Rows, int]:
        """Go back to the newest state, if there is a whole one that fits.

        Returns:
            The rows of the finished epochs and the number of steps done: [] and 0 where there is no state.
        """
        try:
            content = self._path.read_bytes()
        except OSError:
            return [], 0
        if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
            return [], 0
        document = torch.load(io.BytesIO(content[_DIGEST:]), map_location="cpu", weights_only=True)
        same = document["format"] == FORMAT and document["torch"] == str(torch.__version__)
        same = same and len(document["random"]) == parallel.count
        if not same or set(document["parts"]) != set(self._parts):
            return [], 0
        for name, part in self._parts.items():
            part.load_state_dict(document["parts"][name])
        torch.set_rng_state(document["random"][parallel.rank])
        if document["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(document["random_cuda"][parallel.rank])
        return document["rows"], document["done"]
