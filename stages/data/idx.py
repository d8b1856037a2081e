"""IDX files, the format of MNIST (LeCun, Cortes and Burges, yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from kdpipe.targets.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNSIGNED_BYTE = 8
MAX_BYTES = 2**32
"""A file that declares more is refused before anything of that size is made."""


def find_idx(folder: Path, name: str) -> Path:
    """Return the file `name`, or `name`.gz, of a folder.

    Raises:
        DataError: there is neither.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"neither {name} nor {name}.gz is here", where=str(folder))


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an array of unsigned bytes, gzipped if the name ends so.

    Two zero bytes, the type (8: unsigned byte), the number of dimensions; each dimension's size in 4 bytes, most
    significant first; the elements in row-major order.

    Args:
        path: the file.
        dimensions: how many the array must have.

    Raises:
        DataError: the file is unreadable, of another format, or shorter or longer than it says.
    """
    import numpy as np

    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as opened:
            file = cast(IO[bytes], opened)
            shape = _read_header(file, path, dimensions)
            size = math.prod(shape)
            # one byte more than there should be; a bomb is never unpacked further
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"can't be read: {error}", where=str(path)) from None
    if len(content) != size:
        found = "more" if len(content) > size else str(len(content))
        raise DataError(f"its header says {size} bytes of data, it has {found}", where=str(path))
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_header(file: IO[bytes], path: Path, dimensions: int) -> tuple[int, ...]:
    magic = file.read(4)
    if len(magic) != 4 or magic[:2] != b"\0\0":
        raise DataError("isn't an IDX file", where=str(path))
    if magic[2] != UNSIGNED_BYTE:
        raise DataError(f"holds elements of type {magic[2]}, not unsigned bytes (8)", where=str(path))
    if magic[3] != dimensions:
        raise DataError(f"has {magic[3]} dimensions, not {dimensions}", where=str(path))
    sizes = file.read(4 * dimensions)
    if len(sizes) != 4 * dimensions:
        raise DataError("ends inside its header", where=str(path))
    shape = tuple(int.from_bytes(sizes[4 * axis : 4 * axis + 4], "big") for axis in range(dimensions))
    if math.prod(shape) > MAX_BYTES:
        raise DataError(f"says that it holds {list(shape)} bytes, which is more than 4 GiB", where=str(path))
    return shape
