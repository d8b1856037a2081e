"""The artifacts that learning stages hand over, written to and read from directories.

| kind | files |
| --- | --- |
| split | split.json, split.safetensors: images uint8 [N, C, H, W], labels int64 [N] |
| network | network.json, weights.safetensors: the state dict |
| ensemble | ensemble.json, and a network directory for each member |
| samples | samples.json, samples.safetensors: images float32 [N, C, H, W] normalized, logits float32 [N, K] |

A pixel p stands for p / 255; networks see (p / 255 - mean) / std, by channel. Reading checks what a later step
relies on (shapes, ranges, keys) and raises `ArtifactError` with the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.models.registry import MODELS
from kdpipe.targets.errors import ArtifactError, DataError, KdpipeError
from kdpipe.targets.json_files import MALFORMED, read_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

FORMAT = 1


@dataclass(frozen=True)
class ImageSpace:
    """What images are and what they are told apart into.

    Args:
        shape: [C, H, W].
        classes: a name for each logit.
        mean: by channel, of pixels in [0, 1].
        std: by channel, positive.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise DataError(f"an image's shape must be [C, H, W], got {list(self.shape)}")
        if len(self.mean) != self.shape[0] or len(self.std) != self.shape[0]:
            raise DataError(f"mean and std must have {self.shape[0]} numbers, one a channel")
        if min(self.std) <= 0:
            raise DataError(f"std must be positive, got {list(self.std)}")
        if len(self.classes) < 2:
            raise DataError("at least two classes are needed")


@dataclass(frozen=True)
class Split:
    """Labelled images: uint8 [N, C, H, W] and int64 [N]."""

    name: str
    images: Tensor
    labels: Tensor
    space: ImageSpace

    def __len__(self) -> int:
        return len(self.labels)

    def normalized(self) -> Tensor:
        """Return the images as networks see them, float32 [N, C, H, W]."""
        return normalize(self.images, self.space)


@dataclass(frozen=True)
class Samples:
    """Synthesized images, normalized float32 [N, C, H, W], and the teachers' mean logits, float32 [N, K]."""

    images: Tensor
    logits: Tensor
    space: ImageSpace

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class NetworkDescription:
    """What it takes to rebuild a network around its weights.

    Args:
        model: a name of `kdpipe ls models`.
        arguments: as the model's entry declares them.
        space: the images it was trained on and the classes of its logits.
        quantization: of a quantized network, how it was prepared; None for a float network.
    """

    model: str
    arguments: Mapping[str, Any]
    space: ImageSpace
    quantization: Mapping[str, Any] | None = field(default=None)

    @property
    def feature(self) -> str | None:
        """The path of the module whose output is the last convolutional feature map; None: its entry doesn't know."""
        entry = MODELS[self.model]
        return entry.feature(entry.check(dict(self.arguments))) if entry.feature is not None else None


def normalize(images: Tensor, space: ImageSpace) -> Tensor:
    """Return uint8 images [N, C, H, W] as float32: (p / 255 - mean) / std."""
    import torch

    mean = torch.tensor(space.mean, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
    std = torch.tensor(space.std, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
    return (images.to(torch.float32) / 255 - mean) / std


def renormalize(images: Tensor, given: ImageSpace, wanted: ImageSpace) -> Tensor:
    """Convert images [N, C, H, W] that were normalized with one mean and std to another's, of as many channels."""
    import torch

    if (given.mean, given.std) == (wanted.mean, wanted.std):
        return images
    given_mean, given_std, mean, std = (
        torch.tensor(values, device=images.device).view(1, -1, 1, 1)
        for values in (given.mean, given.std, wanted.mean, wanted.std)
    )
    return (images * given_std + given_mean - mean) / std


def save_split(directory: Path, split: Split) -> None:
    """Write a split into an existing directory.

    Raises:
        DataError: images aren't uint8 [N, C, H, W], or a label isn't a class.
    """
    _check_split(split)
    _write_tensors(directory / "split.safetensors", {"images": split.images, "labels": split.labels})
    _write_json(
        directory / "split.json",
        {
            "name": split.name,
            "classes": list(split.space.classes),
            "mean": list(split.space.mean),
            "std": list(split.space.std),
        },
    )


def load_split(directory: Path) -> Split:
    """Read a split.

    Raises:
        ArtifactError: a file is missing or does not hold what it must.
    """
    document = _read_json(directory / "split.json", "name", "classes", "mean", "std")
    tensors = _read_tensors(directory / "split.safetensors", "images", "labels")
    try:
        shape = tuple(tensors["images"].shape[1:])
        split = Split(document["name"], tensors["images"], tensors["labels"], _space(document, shape))
        _check_split(split)
    except KdpipeError as error:
        raise ArtifactError(error.message, where=str(directory)) from None
    return split


def save_samples(directory: Path, samples: Samples) -> None:
    """Write samples into an existing directory."""
    _write_tensors(directory / "samples.safetensors", {"images": samples.images, "logits": samples.logits})
    _write_json(
        directory / "samples.json",
        {
            "shape": list(samples.space.shape),
            "count": len(samples),
            "classes": list(samples.space.classes),
            "mean": list(samples.space.mean),
            "std": list(samples.space.std),
        },
    )


def load_samples(directory: Path) -> Samples:
    """Read samples.

    Raises:
        ArtifactError: a file is missing or does not hold what it must.
    """
    document = _read_json(directory / "samples.json", "shape", "count", "classes", "mean", "std")
    tensors = _read_tensors(directory / "samples.safetensors", "images", "logits")
    images, logits = tensors["images"], tensors["logits"]
    space = _space(document, document["shape"], where=directory)
    if tuple(images.shape) != (document["count"], *space.shape) or not images.is_floating_point():
        raise ArtifactError(f"images have shape {list(images.shape)}, not what samples.json says", where=str(directory))
    if tuple(logits.shape) != (document["count"], len(space.classes)):
        raise ArtifactError(f"logits have shape {list(logits.shape)}, not one a class", where=str(directory))
    return Samples(images, logits, space)


def save_network(directory: Path, network: nn.Module, description: NetworkDescription) -> None:
    """Write a network's description and its weights into an existing directory."""
    space = description.space
    document = {
        "model": description.model,
        "arguments": dict(description.arguments),
        "input_shape": list(space.shape),
        "classes": list(space.classes),
        "mean": list(space.mean),
        "std": list(space.std),
    }
    if description.quantization is not None:
        document["quantization"] = dict(description.quantization)
    _write_tensors(directory / "weights.safetensors", network.state_dict())
    _write_json(directory / "network.json", document)


def load_description(directory: Path) -> NetworkDescription:
    """Read network.json.

    Raises:
        ArtifactError: it is missing or lacks something.
    """
    document = _read_json(directory / "network.json", "model", "arguments", "input_shape", "classes", "mean", "std")
    space = _space(document, document["input_shape"], where=directory)
    return NetworkDescription(document["model"], document["arguments"], space, document.get("quantization"))


def build_network(description: NetworkDescription) -> nn.Module:
    """Build the float network that a description names, with new weights from torch's global generator.

    Raises:
        NetworkError: the model does not take those arguments, or does not fit the images.
        UsageError: the model is unknown.
    """
    entry = MODELS[description.model]
    return entry.build(
        input_shape=description.space.shape,
        classes=len(description.space.classes),
        **dict(description.arguments),
    )


def load_weights(network: nn.Module, directory: Path) -> nn.Module:
    """Put weights.safetensors into a network of the same structure, and return it.

    Raises:
        ArtifactError: the file is missing or unreadable.
        NetworkError: keys or shapes differ.
    """
    from kdpipe.stages.training.checkpoints import load_state

    path = directory / "weights.safetensors"
    load_state(network, _read_tensors(path), where=str(path))
    return network


def load_network(directory: Path) -> tuple[nn.Module, NetworkDescription]:
    """Read a float network, in evaluation mode and on the CPU.

    Raises:
        ArtifactError: a file is missing or unreadable, or the network is a quantized one.
        NetworkError: the weights do not fit the description.
    """
    description = load_description(directory)
    if description.quantization is not None:
        raise ArtifactError(
            "this is a quantized network, where a float one is expected",
            where=str(directory),
            remedy="Use the network of the stage before quantization, or the integer graph",
        )
    return load_weights(build_network(description), directory).eval(), description


def save_ensemble(directory: Path, members: Sequence[tuple[nn.Module, NetworkDescription]]) -> None:
    """Write networks as the members of an ensemble into an existing directory."""
    names = [str(index) for index in range(len(members))]
    for name, (network, description) in zip(names, members, strict=True):
        (directory / name).mkdir()
        save_network(directory / name, network, description)
    _write_json(directory / "ensemble.json", {"members": names})


def load_ensemble(directory: Path) -> list[tuple[nn.Module, NetworkDescription]]:
    """Read the members of an ensemble, each in evaluation mode.

    Raises:
        ArtifactError: a file is missing or unreadable, the ensemble has no member, or its members' inputs or
            classes differ.
        NetworkError: a member's weights do not fit its description.
    """
    names = _read_json(directory / "ensemble.json", "members")["members"]
    if not isinstance(names, list) or not names or not all(str(name).isdigit() for name in names):
        raise ArtifactError("members must be a list of directory names", where=str(directory / "ensemble.json"))
    members = [load_network(directory / str(name)) for name in names]
    for index, (_, description) in enumerate(members):
        if len(description.space.classes) != len(members[0][1].space.classes):
            raise ArtifactError(
                f"member {index} has {len(description.space.classes)} classes, "
                f"member 0 has {len(members[0][1].space.classes)}",
                where=str(directory),
            )
        if description.space.shape != members[0][1].space.shape:
            raise ArtifactError(f"member {index} takes images of another shape than member 0", where=str(directory))
    return members


def _check_split(split: Split) -> None:
    import torch

    if split.images.dtype != torch.uint8 or tuple(split.images.shape[1:]) != split.space.shape:
        raise DataError(f"images must be uint8 [N, C, H, W], got {split.images.dtype} {list(split.images.shape)}")
    if split.labels.dtype != torch.int64 or split.labels.shape != (len(split.images),):
        raise DataError(f"labels must be int64 [{len(split.images)}], got {list(split.labels.shape)}")
    if len(split.labels) == 0:
        raise DataError(f"the split {split.name!r} is empty")
    if int(split.labels.min()) < 0 or int(split.labels.max()) >= len(split.space.classes):
        raise DataError(
            f"labels lie in [{int(split.labels.min())}, {int(split.labels.max())}], "
            f"but there are {len(split.space.classes)} classes"
        )


def _space(document: Mapping[str, Any], shape: Sequence[int], *, where: Path | None = None) -> ImageSpace:
    try:
        return ImageSpace(
            tuple(int(size) for size in shape),  # type: ignore[arg-type]
            tuple(str(name) for name in document["classes"]),
            tuple(float(value) for value in document["mean"]),
            tuple(float(value) for value in document["std"]),
        )
    except (DataError, TypeError, ValueError) as error:
        raise ArtifactError(str(error), where=str(where) if where else None) from None


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps({"format": FORMAT, **document}, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path, *keys: str) -> dict[str, Any]:
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"can't be read: {error}", where=str(path)) from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ArtifactError(f"isn't a file of format {FORMAT}", where=str(path))
    if missing := [key for key in keys if key not in document]:
        raise ArtifactError(f"lacks {', '.join(missing)}", where=str(path))
    return document


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    # contiguous copies on the CPU, in a fixed order: the same tensors make the same bytes
    plain = {name: tensors[name].detach().to("cpu").contiguous() for name in sorted(tensors)}
    path.write_bytes(save(plain))


def _read_tensors(path: Path, *keys: str) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(path.read_bytes())
    except (SafetensorError, *MALFORMED) as error:
        raise ArtifactError(f"can't be read: {error}", where=str(path)) from None
    if missing := [key for key in keys if key not in tensors]:
        raise ArtifactError(f"lacks {', '.join(missing)}", where=str(path))
    return tensors
