"""The default pipeline that `kdpipe init` writes: a copy of the repository's own pipeline.yaml."""

from __future__ import annotations

from pathlib import Path

from kdpipe.pipeline.storage import storage_errors
from kdpipe.targets.errors import UsageError

_DEFAULT = Path(__file__).with_name("default.yaml")


def default_pipeline() -> str:
    """Return the text of the default pipeline."""
    return _DEFAULT.read_text(encoding="utf-8")


def write_default_pipeline(file: Path) -> None:
    """Write the default pipeline into a new file.

    Raises:
        UsageError: the file is there already.
        StorageError: it can't be written.
    """
    with storage_errors(file, "write"):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with file.open("x", encoding="utf-8", newline="\n") as stream:
                stream.write(default_pipeline())
        except FileExistsError:
            raise UsageError(
                "is there already", where=str(file), remedy="Give another name: kdpipe init FILE"
            ) from None
