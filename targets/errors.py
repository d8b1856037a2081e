"""The one hierarchy of errors that users are meant to read.

It lives in `targets` because `targets` is the bottom of the house: it stands alone, and everything above may
import it. Each error says what is wrong, where, and what to do about it. Whatever is not a `KdpipeError` is a
defect of kdpipe, and only then does the user see a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class KdpipeError(Exception):
    """An error with a message for the user.

    Args:
        message: what is wrong, as a sentence without a full stop.
        where: the place: `file:line:column`, a stage, a layer, a file. Printed before the message.
        remedy: what to do about it, as a sentence without a full stop. Printed after the message.
    """

    def __init__(self, message: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.message = message
        self.where = where
        self.remedy = remedy
        super().__init__(message)

    def at(self, where: str) -> KdpipeError:
        """Return the same error at a place, in front of that which it names itself."""
        return type(self)(self.message, where=f"{where}: {self.where}" if self.where else where, remedy=self.remedy)

    def __str__(self) -> str:
        prefix = f"{self.where}: " if self.where else ""
        suffix = f". {self.remedy}" if self.remedy else ""
        return f"{prefix}{self.message}{suffix}"


@contextmanager
def placed(where: str | None) -> Iterator[None]:
    """Let errors that users read say `where`, in front of the place that they name themselves; None adds nothing."""
    try:
        yield
    except KdpipeError as error:
        if where is None:
            raise
        raise error.at(where) from None


class UsageError(KdpipeError):
    """The command line or a file that the user wrote is wrong (exit code 2)."""


class ArtifactError(KdpipeError):
    """A stored or exported artifact is missing, unreadable, truncated or not what its hash says."""


class StorageError(KdpipeError):
    """The disk is full, or a directory can't be read or written."""


class DataError(KdpipeError):
    """A data set has the wrong shape, range or labels, or can't be read."""


class NetworkError(KdpipeError):
    """A network or checkpoint is unknown, does not fit, or can't be traced."""


class TrainingError(KdpipeError):
    """Training stopped: a loss that is not finite, a generator that collapsed."""


class GraphError(KdpipeError):
    """An integer graph is invalid: shapes, ranges, scales or a possible overflow. `where` names the layer."""


class UnsupportedError(KdpipeError):
    """An operation, width or option that a target or stage does not have. `where` names the layer."""


class DeviceError(KdpipeError):
    """A compiler, runtime or emulator failed, or the firmware faulted or never returned."""


class MissingDependencyError(KdpipeError):
    """An optional package or tool is not installed; the remedy names the extra or package to install."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the remedy for an unknown name: the nearest known one, or else the list of them.

    >>> did_you_mean("distil", ["distill", "export"])
    'Did you mean distill?'
    >>> did_you_mean("x", ["distill", "export"])
    'Known: distill, export'
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else "Known: " + (", ".join(names) or "none")
