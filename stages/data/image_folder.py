"""Images as files, a folder a class: train/CLASS/*.png, test/CLASS/*.jpg."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from kdpipe.stages.base import Inputs, Outcome, ReadsFolder, Stage, StageContext, StageParams
from kdpipe.targets.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
MAX_PIXELS = 2**26
REPORT_EVERY = 1000


class ImageFolderParams(StageParams):
    """Parameters of `image-folder`."""

    folder: Annotated[str, ReadsFolder()] = Field(
        description="holds train/CLASS/ and test/CLASS/ with images, and validation/CLASS/ or none"
    )
    channels: Literal[1, 3] = Field(default=3, description="3: colour; 1: grey")
    size: tuple[Annotated[int, Field(ge=1, le=4096)], Annotated[int, Field(ge=1, le=4096)]] | None = Field(
        default=None, description="[height, width] that every image is resized to; if not given, all must be alike"
    )
    validation: int = Field(
        default=1000, ge=1, description="images held out of train, stratified, where there is no folder validation"
    )
    train_images: int | None = Field(
        default=None, ge=1, description="to train on only so many of the others, stratified; all if not given"
    )


def outputs(params: Any) -> Mapping[str, str]:
    """Return the three splits."""
    return {"train": "split", "validation": "split", "test": "split"}


def run(params: ImageFolderParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Write train, validation and test, which depend on the files' paths and content, and on no seed."""
    from kdpipe.stages.data.splits import hold_out, reduce_to, write_splits

    folder = context.file(params.folder)
    classes = _classes(folder / "train")
    names = [name for name in ("train", "validation", "test") if name != "validation" or (folder / name).is_dir()]
    files = {name: list(_files(folder / name, classes)) for name in names}
    total, done = sum(map(len, files.values())), 0
    splits: dict[str, tuple[Tensor, Tensor]] = {}
    size = params.size
    for name in names:
        if not files[name]:
            raise DataError("no PNG or JPEG file in its folders of classes", where=str(folder / name))
        size = size or read_image(files[name][0][0], params.channels).shape[1:]
        splits[name] = _read(files[name], params, size, context, done, total)
        done += len(files[name])
    if "validation" not in splits:
        splits["train"], splits["validation"] = hold_out(*splits["train"], params.validation)
    if params.train_images is not None:
        splits["train"] = reduce_to(*splits["train"], params.train_images)
    return write_splits(context, splits, classes)


def read_image(path: Path, channels: int, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read a PNG or JPEG file as uint8 [C, H, W].

    Args:
        path: the file; its content says what it is, not its name.
        channels: 1 or 3.
        size: [height, width] to resize to (bilinear, antialiased); its own if not given.

    Raises:
        DataError: it is damaged, of another format, or of more than 2^26 pixels.
        MissingDependencyError: Pillow is not installed.
    """
    import numpy as np

    from kdpipe.targets.dependencies import require

    image_module = require("PIL.Image", "images")
    try:
        with image_module.open(path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:  # before anything is unpacked
                raise DataError(f"{image.width}x{image.height} pixels are too many", where=str(path))
            pixels = image.convert("RGB" if channels == 3 else "L")
            if size is not None and (pixels.height, pixels.width) != size:
                pixels = pixels.resize((size[1], size[0]), image_module.Resampling.BILINEAR)
            array = np.asarray(pixels, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, image_module.DecompressionBombError) as error:
        # SyntaxError: what Pillow's PNG reader raises on a broken chunk
        raise DataError(f"isn't a PNG or JPEG image that can be read: {error}", where=str(path)) from None
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def _classes(folder: Path) -> list[str]:
    """Return the names of the folders in `folder`, sorted: the classes."""
    if not folder.is_dir():
        raise DataError("no such folder", where=str(folder), remedy="Put the images into train/CLASS and test/CLASS")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise DataError(f"{len(classes)} folders of classes, at least two are needed", where=str(folder))
    return classes


def _files(folder: Path, classes: list[str]) -> Iterator[tuple[Path, int]]:
    """Yield (file, label), by class and name."""
    found = _classes(folder)
    if extra := [name for name in found if name not in classes]:
        raise DataError(f"the class {extra[0]!r} is not among those of train", where=str(folder))
    for label, name in enumerate(classes):
        for path in sorted((folder / name).iterdir()) if (folder / name).is_dir() else ():
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                if path.is_symlink() or not path.is_file():
                    raise DataError("isn't an ordinary file", where=str(path))
                yield path, label


def _read(
    files: list[tuple[Path, int]],
    params: ImageFolderParams,
    size: tuple[int, int],
    context: StageContext,
    done: int,
    total: int,
) -> tuple[Tensor, Tensor]:
    import torch

    from kdpipe.stages.data.splits import as_labels

    images = torch.empty((len(files), params.channels, *size), dtype=torch.uint8)
    for index, (path, _) in enumerate(files):
        image = torch.from_numpy(read_image(path, params.channels, params.size).copy())
        if image.shape != images.shape[1:]:
            raise DataError(
                f"{image.shape[1]}x{image.shape[2]} pixels, where others have {size[0]}x{size[1]}",
                where=str(path),
                remedy="Give `size: [height, width]` to resize all of them",
            )
        images[index] = image
        if (done + index + 1) % REPORT_EVERY == 0 or done + index + 1 == total:
            context.progress(done + index + 1, total, "image")
    return images, as_labels([label for _, label in files])


SOURCE = Stage(
    name="image-folder",
    summary="PNG or JPEG files in folders train/CLASS and test/CLASS",
    params=ImageFolderParams,
    outputs=outputs,
    run=run,
    libraries=("torch", "pillow"),
)
