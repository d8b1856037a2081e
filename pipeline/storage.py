"""Files that appear whole or not at all, hashes of them, and messages for what a disk can do wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kdpipe.targets.errors import StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} if hasattr(errno, "EDQUOT") else {errno.ENOSPC, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_CHUNK = 1 << 20


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one that caused it, says that there is no space left.

    Libraries written in other languages hide the number in their message.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        if "No space left on device" in str(seen) or "os error 28" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextmanager
def storage_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn every OSError of the block into a StorageError.

    Args:
        path: what is being read or written, for the message.
        doing: "read" or "write".
    """
    try:
        yield
    except OSError as error:
        where = str(error.filename or path)
        if is_disk_full(error):
            raise StorageError(
                "the disk is full", where=where, remedy="Free some space, or put the store elsewhere with --store"
            ) from error
        if error.errno in _FORBIDDEN:
            raise StorageError(
                f"no permission to {doing} here", where=where, remedy="Choose a directory of yours, or ask its owner"
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise StorageError(
                "a file stands where a directory is needed", where=where, remedy="Choose another directory"
            ) from error
        raise StorageError(f"can't {doing} ({error.strerror or error})", where=where) from error


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_folder(folder: Path) -> str:
    """Return one SHA-256, hexadecimal, of the paths and contents of all files in a folder, at any depth.

    Raises:
        StorageError: a file can't be read, or there is something that is neither a file nor a directory: a link
            could lead to what nobody meant to be read.
    """
    files = []
    with storage_errors(folder, "read"):
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise StorageError(
                    "neither a file nor a directory", where=str(path), remedy="Put a copy of the file there"
                )
            if path.is_file():
                files.append([path.relative_to(folder).as_posix(), sha256_of_file(path)])
    return sha256_of_json(files)


def sha256_of_json(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file by renaming a complete one into place.

    Raises:
        StorageError: the disk is full, or the directory can't be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with storage_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def replace_directory(directory: Path, fill: Callable[[Path], None]) -> None:
    """Replace a directory by what `fill` writes into an empty one, which is moved into place when it is complete.

    Raises:
        StorageError: the disk is full, or the parent can't be written.
    """
    suffix = f"{os.getpid()}.{secrets.token_hex(4)}"
    fresh = directory.with_name(f".{directory.name}.new.{suffix}")
    old = directory.with_name(f".{directory.name}.old.{suffix}")
    with storage_errors(directory, "write"):
        fresh.mkdir(parents=True)
        try:
            fill(fresh)
            if directory.exists():
                directory.rename(old)
            fresh.rename(directory)
        finally:
            remove_tree(fresh)
            remove_tree(old)


def copy_tree(source: Path, destination: Path) -> None:
    """Copy files, which become writable again, into a directory that is made for them."""
    destination.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.rglob("*")):
        copy = destination / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
        else:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def remove_tree(directory: Path) -> None:
    """Remove a directory if it is there, read-only files included; what resists stays."""
    if not directory.is_dir():
        return
    if os.name == "nt":  # Windows refuses to delete files that are read-only
        for path in directory.rglob("*"):
            with suppress(OSError):
                path.chmod(stat.S_IREAD | stat.S_IWRITE)
    shutil.rmtree(directory, ignore_errors=True)


def sync_tree(directory: Path) -> None:
    """Force a directory's files and the directories themselves to the disk, so that a power cut keeps them whole."""
    for path in [*directory.rglob("*"), directory]:
        sync(path)


def sync(path: Path) -> None:
    """Force one file or directory to the disk; where directories can't be synced (Windows), do nothing."""
    if path.is_dir() and os.name == "nt":
        return
    # Windows syncs only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
