"""Names to things: the networks, losses, stages, targets, devices and data sources that YAML can name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from kdpipe.targets.errors import UsageError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of named things of one kind, which refuses to overwrite and suggests on a miss.

    Args:
        kind: what is registered, in the singular, for messages: "model", "stage".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers what it decorates as `name`.

        Raises:
            ValueError: `name` is taken (a defect in the code, never the user's mistake).
        """

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise UsageError(f"unknown {self.kind} {name!r}", remedy=did_you_mean(name, self._entries)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)
