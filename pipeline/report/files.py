"""Writing a report's files: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from kdpipe.targets.errors import StorageError

_XML_HEAD = '<?xml version="1.0" encoding="utf-8"?>\n'


def write_text(path: Path, text: str, *, head: bool = False) -> None:
    """Write `text` as UTF-8 into `path` by an atomic rename; `head` puts an XML declaration before it.

    Raises:
        StorageError: the folder is not there or can't be written, or the disk is full.
    """
    data = ((_XML_HEAD if head else "") + text + ("" if text.endswith("\n") else "\n")).encode("utf-8", "replace")
    scratch: str | None = None
    try:
        handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(scratch).chmod(0o644)
        Path(scratch).replace(path)
    except OSError as error:
        if scratch is not None:
            with contextlib.suppress(OSError):
                Path(scratch).unlink()
        raise StorageError(
            f"can't write {path.name}: {error.strerror or error}",
            where=str(path.parent),
            remedy="Free some space or choose another directory with --out",
        ) from error
