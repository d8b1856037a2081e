"""log.jsonl: every event of a run as one line of JSON, written through at once so that a crash loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import TextIO

from kdpipe.pipeline.events import Event, StageProgress, event_to_json
from kdpipe.pipeline.storage import storage_errors

PROGRESS_INTERVAL = 1.0
"""Seconds between two lines of progress of one stage; its last unit is always written."""


class LogFile:
    """A sink that writes log.jsonl.

    A disk that fills up during a run must not take the run down with it: the log then ends, and `failure` says why.

    Args:
        path: the file, which is written anew.

    Raises:
        StorageError: it can't be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failure: OSError | None = None
        self._last_progress: dict[str, float] = {}
        with storage_errors(path, "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = path.open("w", encoding="utf-8", newline="\n")

    def __call__(self, event: Event) -> None:
        """Write one event."""
        if self.failure is not None or not self._is_due(event):
            return
        try:
            self._file.write(json.dumps(event_to_json(event), ensure_ascii=False, default=str) + "\n")
            self._file.flush()
        except OSError as error:
            self.failure = error

    def _is_due(self, event: Event) -> bool:
        if not isinstance(event, StageProgress) or event.done >= event.total:
            return True
        if event.at - self._last_progress.get(event.stage, 0.0) < PROGRESS_INTERVAL:
            return False
        self._last_progress[event.stage] = event.at
        return True

    def __enter__(self) -> LogFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as close_error:
            self.failure = self.failure or close_error
