"""Artifacts, content-addressed: what a stage wrote is found again by the key of everything that could influence it.

    STORE/
      executions/ab/abcdef.../ID/    one finished execution of the stage with the key abcdef...
        manifest.json                what it is: see Manifest
        outputs/NAME/...             its outputs, read-only
      temporary/ID/                  an execution under way; its process holds the lock on temporary/ID.lock
      scratch/abcdef.../             what the stage with that key needs to go on after it was killed
      latest/PIPELINE/STAGE.json     the parts of the key that a stage last had, to say what has changed since

An execution is published by one rename of its complete directory, and never changed afterwards: a forced or repeated
execution stands beside the earlier one, and the newest that is intact counts. So runs that share a store can't
disturb one another, and a run that was killed leaves only a directory in `temporary`, which the next run removes.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kdpipe.pipeline.file_lock import FileLock
from kdpipe.pipeline.storage import (
    remove_tree,
    sha256_of_file,
    sha256_of_json,
    storage_errors,
    sync,
    sync_tree,
    write_atomically,
)
from kdpipe.targets.errors import ArtifactError, StorageError
from kdpipe.targets.json_files import MALFORMED, read_json

FORMAT = 1
SCRATCH_DAYS = 7
MANIFEST, OUTPUTS = "manifest.json", "outputs"
_KEY_CHARACTERS = 40
"""How much of a key names its directory: enough never to collide, short enough for Windows' limit on paths."""


@dataclass(frozen=True)
class StoredFile:
    """A file of an output: its path inside the output with `/` between the parts, its size and its SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class StoredOutput:
    """One output of an execution.

    Args:
        kind: of artifact.
        digest: SHA-256 of the kind and of every file's path and content: equal for equal content.
        files: what it consists of, by path.
    """

    kind: str
    digest: str
    files: tuple[StoredFile, ...]

    @property
    def bytes(self) -> int:
        """Return the size of all files."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class Manifest:
    """What is known of a finished execution.

    Args:
        key: SHA-256 of `parts`.
        parts: everything that could influence the stage, as kdpipe.pipeline.keys builds it.
        outputs: by name.
        metrics: as the stage returned them, like history, figures, grids and target (see kdpipe.stages.base.Outcome).
        seconds: how long it ran.
        finished_at: when, in seconds since the Unix epoch.
    """

    key: str
    parts: Mapping[str, Any]
    outputs: Mapping[str, StoredOutput]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    history: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, str] = field(default_factory=dict)
    grids: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, Any] | None = None
    seconds: float = 0.0
    finished_at: float = 0.0
    format: int = FORMAT


@dataclass(frozen=True)
class Entry:
    """A finished execution in the store."""

    directory: Path
    manifest: Manifest

    def output(self, name: str) -> Path:
        """Return the directory of an output."""
        return self.directory / OUTPUTS / name


@dataclass(frozen=True)
class Lookup:
    """The answer to a key: the newest intact execution, or None; and what is wrong with those that are not intact."""

    entry: Entry | None
    corrupted: tuple[str, ...] = ()


_Signature = tuple[tuple[str, int, int, int], ...]
"""Path, size, time of change and inode number of every file of an execution."""


class OtherFormatError(ArtifactError):
    """An execution of a kdpipe that writes another format: it can't be read, and nothing says that it is damaged."""


class Store:
    """The artifacts under one directory, which any number of runs may use at once.

    Args:
        root: the directory; it is made when something is first written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._verified: dict[Path, _Signature] = {}

    def find(self, key: str) -> Lookup:
        """Return the newest intact execution of `key`, every file of which has the size and hash it should have."""
        corrupted = []
        for directory in self._executions(key):
            try:
                manifest = read_manifest(directory)
                if manifest.key != key:
                    raise ArtifactError("of another key", where=MANIFEST)
                self._verify(directory, manifest)
            except ArtifactError as error:
                corrupted.append(str(error))
            else:
                return Lookup(Entry(directory, manifest), tuple(corrupted))
        return Lookup(None, tuple(corrupted))

    def discard_corrupted(self, key: str) -> None:
        """Remove the executions of `key` that are not intact. Those of another format stay: another kdpipe's."""
        for directory in self._executions(key):
            try:
                verify_outputs(directory, read_manifest(directory))
            except OtherFormatError:
                continue
            except ArtifactError:
                self._remove(directory)

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """Lend an empty directory on the store's disk, removed afterwards unless it was published.

        Raises:
            StorageError: it can't be made.
        """
        temporary = self.root / "temporary"
        with storage_errors(self.root, "write"):
            temporary.mkdir(parents=True, exist_ok=True)
            lock = FileLock(temporary / f"{_new_id()}.lock")
            while not lock.acquire():
                lock = FileLock(temporary / f"{_new_id()}.lock")
            directory = lock.path.with_suffix("")
        try:
            with storage_errors(directory, "write"):
                directory.mkdir()
            yield directory
        finally:
            remove_tree(directory)
            lock.release()

    def publish(self, workplace: Path, manifest: Manifest) -> Entry:
        """Add a finished execution: a workplace whose outputs are complete. The workplace is gone afterwards.

        Returns:
            The entry; an earlier one when that holds the same content.

        Raises:
            StorageError: the disk is full, or the store can't be written.
        """
        earlier = self.find(manifest.key).entry
        if earlier is not None and _content(earlier.manifest) == _content(manifest):
            return earlier
        with storage_errors(workplace, "write"):
            for path in (workplace / OUTPUTS).rglob("*"):
                if path.is_file():
                    path.chmod(0o444)
            content = asdict(manifest)
            write_atomically(
                workplace / MANIFEST, json.dumps({**content, "checksum": sha256_of_json(content)}, indent=1) + "\n"
            )
            sync_tree(workplace)
            destination = self._key_directory(manifest.key) / _new_id()
            destination.parent.mkdir(parents=True, exist_ok=True)
            workplace.rename(destination)
            sync(destination.parent)
        return Entry(destination, manifest)

    def scratch(self, key: str) -> Path:
        """Return the directory, made or not, that a stage with this key keeps its unfinished work in."""
        return self.root / "scratch" / key[:_KEY_CHARACTERS]

    def discard_scratch(self, key: str) -> None:
        """Remove the unfinished work of a key."""
        remove_tree(self.scratch(key))

    def remember(self, pipeline: str, stage: str, parts: Mapping[str, Any]) -> None:
        """Note the parts of the key that a stage has now, for `recall` in a later run."""
        write_atomically(self._latest(pipeline, stage), json.dumps(parts, indent=1) + "\n")

    def recall(self, pipeline: str, stage: str) -> Mapping[str, Any] | None:
        """Return what was last remembered of a stage, or None."""
        try:
            parts = read_json(self._latest(pipeline, stage))
        except (OSError, ValueError):
            return None
        return parts if isinstance(parts, dict) else None

    def clean(self) -> None:
        """Remove what killed runs left behind; the files of living ones are locked and stay.

        Unfinished work stays for SCRATCH_DAYS after it was last written, in case its stage runs again.
        """
        self._clean_scratch()
        temporary = self.root / "temporary"
        if not temporary.is_dir():
            return
        with storage_errors(temporary, "write"):
            for lock_file in temporary.glob("*.lock"):
                lock = FileLock(lock_file)
                if lock.acquire():
                    remove_tree(lock_file.with_suffix(""))
                    lock.release()
            for directory in temporary.glob("discarded-*"):
                remove_tree(directory)

    def executions(self) -> Iterator[Path]:
        """Yield the directories of all finished executions."""
        with storage_errors(self.root, "read"):
            yield from sorted((self.root / "executions").glob("*/*/*"))

    def remove(self, executions: Iterable[Path]) -> None:
        """Remove executions, for good.

        Raises:
            StorageError: a stage is running that uses this store, perhaps what these hold.
        """
        temporary = self.root / "temporary"
        with storage_errors(temporary, "write"):
            for lock_file in temporary.glob("*.lock"):
                lock = FileLock(lock_file)
                if not lock.acquire():
                    raise StorageError(
                        "a run that uses this store is under way", where=str(self.root), remedy="Wait for its end"
                    )
                lock.release()
        for directory in executions:
            self._remove(directory)

    def _remove(self, directory: Path) -> None:
        # Renamed first: half a removal must not look like an execution.
        doomed = self.root / "temporary" / f"discarded-{secrets.token_hex(8)}"
        with storage_errors(directory, "write"):
            doomed.parent.mkdir(parents=True, exist_ok=True)
            directory.rename(doomed)
        remove_tree(doomed)

    def _clean_scratch(self) -> None:
        folder = self.root / "scratch"
        oldest = time.time() - SCRATCH_DAYS * 86_400
        with storage_errors(folder, "write"):
            for directory in folder.iterdir() if folder.is_dir() else ():
                with suppress(FileNotFoundError):  # another run's stage has finished
                    if max(path.stat().st_mtime for path in (directory, *directory.iterdir())) < oldest:
                        remove_tree(directory)

    def _verify(self, directory: Path, manifest: Manifest) -> None:
        """Verify an execution, unless this process did and no file has been touched since."""
        signature = _signature(directory)
        if signature is None or self._verified.get(directory) != signature:
            verify_outputs(directory, manifest)
            if signature is not None:
                self._verified[directory] = signature

    def _key_directory(self, key: str) -> Path:
        return self.root / "executions" / key[:2] / key[:_KEY_CHARACTERS]

    def _executions(self, key: str) -> list[Path]:
        """Return the directories of a key's executions, newest first: their names begin with the time."""
        directory = self._key_directory(key)
        with storage_errors(directory, "read"):
            return sorted(directory.iterdir(), reverse=True) if directory.is_dir() else []

    def _latest(self, pipeline: str, stage: str) -> Path:
        return self.root / "latest" / pipeline / f"{stage}.json"


def describe_outputs(outputs: Path, kinds: Mapping[str, str]) -> dict[str, StoredOutput]:
    """Hash the files of finished outputs.

    Args:
        outputs: the directory that has one directory for each output.
        kinds: the outputs' kinds by name.

    Raises:
        ArtifactError: an output has no files, or something that is neither a file nor a directory.
        StorageError: a file can't be read.
    """
    described = {}
    for name, kind in kinds.items():
        files = []
        with storage_errors(outputs / name, "read"):
            for path in sorted((outputs / name).rglob("*")):
                relative = path.relative_to(outputs / name).as_posix()
                if path.is_symlink() or not (path.is_file() or path.is_dir()):
                    raise ArtifactError(f"{relative} is neither a file nor a directory", where=f"output {name!r}")
                if path.is_file():
                    files.append(StoredFile(relative, path.stat().st_size, sha256_of_file(path)))
        if not files:
            raise ArtifactError("the stage wrote no file into it", where=f"output {name!r}")
        digest = sha256_of_json([kind, sorted([file.path, file.sha256] for file in files)])
        described[name] = StoredOutput(kind, digest, tuple(files))
    return described


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of an execution.

    Raises:
        OtherFormatError: another version of kdpipe wrote it.
        ArtifactError: it is missing or unreadable.
    """
    try:
        content = read_json(directory / MANIFEST)
        if content["format"] != FORMAT:
            raise OtherFormatError(f"of format {content['format']}, this kdpipe reads {FORMAT}", where=MANIFEST)
        if content.pop("checksum") != sha256_of_json(content):
            raise ArtifactError("its content is not what its checksum says", where=MANIFEST)
        content["outputs"] = {
            name: StoredOutput(output["kind"], output["digest"], tuple(StoredFile(**file) for file in output["files"]))
            for name, output in content["outputs"].items()
        }
        return Manifest(**content)
    except FileNotFoundError:
        raise ArtifactError("missing", where=MANIFEST) from None
    except MALFORMED as error:
        raise ArtifactError(f"unreadable ({error})", where=MANIFEST) from None


def verify_outputs(directory: Path, manifest: Manifest) -> None:
    """Check that every file of every output is there, with its size and hash, and that no other is.

    Raises:
        ArtifactError: one is not; `where` names it.
    """
    if sha256_of_json(manifest.parts) != manifest.key:
        raise ArtifactError("altered: the key is not that of its parts", where=MANIFEST)
    for name, output in manifest.outputs.items():
        folder = directory / OUTPUTS / name
        for file in output.files:
            path = folder / file.path
            where = f"{OUTPUTS}/{name}/{file.path}"
            try:
                if not path.is_file():
                    raise ArtifactError("missing", where=where)
                size = path.stat().st_size
                if size != file.bytes:
                    raise ArtifactError(f"{size} bytes instead of {file.bytes}", where=where)
                if sha256_of_file(path) != file.sha256:
                    raise ArtifactError("its content is not what its hash says", where=where)
            except OSError as error:
                raise ArtifactError(f"unreadable ({error.strerror or error})", where=where) from None
        known = {file.path for file in output.files}
        for path in folder.rglob("*"):
            if not path.is_dir() and path.relative_to(folder).as_posix() not in known:
                raise ArtifactError("a file that the stage did not write", where=f"{OUTPUTS}/{name}/{path.name}")


def default_root() -> Path:
    """Return the store's directory where none is given: $KDPIPE_STORE, or .kdpipe/store in the current directory."""
    return Path(os.environ.get("KDPIPE_STORE") or Path(".kdpipe") / "store")


def check_writable(root: Path) -> None:
    """Make the store's directory.

    Raises:
        StorageError: it can't be made.
    """
    try:
        with storage_errors(root, "write"):
            root.mkdir(parents=True, exist_ok=True)
    except StorageError as error:
        raise StorageError(
            f"the store can't be used: {error.message}", where=error.where, remedy=error.remedy
        ) from error


def _signature(directory: Path) -> _Signature | None:
    try:
        files = [(path, path.stat()) for path in sorted(directory.rglob("*"))]
    except OSError:
        return None
    return tuple((str(path), status.st_size, status.st_mtime_ns, status.st_ino) for path, status in files)


def _new_id() -> str:
    """Return a name that no other process chooses, and that sorts by time."""
    return f"{time.time_ns():020d}-{secrets.token_hex(4)}"


def _content(manifest: Manifest) -> str:
    """Return what an execution found, regardless of when."""
    return sha256_of_json(asdict(replace(manifest, seconds=0.0, finished_at=0.0)))
