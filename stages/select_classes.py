"""`select-classes`: the images of some classes of a split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from kdpipe.stages.base import Accepts, Inputs, Outcome, Stage, StageContext, StageParams
from kdpipe.targets.errors import DataError, did_you_mean


class SelectClassesParams(StageParams):
    """Parameters of `select-classes`."""

    split: Annotated[str, Accepts("split")] = Field(description="the images to choose from")
    classes: tuple[str, ...] = Field(min_length=1, description="names of the classes whose images are kept")
    keep_names: bool = Field(
        default=False, description="the other classes stay too, without images, so that labels keep their places"
    )


def outputs(params: Any) -> Mapping[str, str]:
    """Return the one output."""
    return {"split": "split"}


def run(params: SelectClassesParams, inputs: Inputs, context: StageContext) -> Outcome:
    """Write the split of the chosen images; it is normalized as the whole one.

    Raises:
        DataError: a class is unknown, or fewer than two would be left.
    """
    from dataclasses import replace

    import torch

    from kdpipe.stages.artifacts import load_split, save_split

    split = load_split(inputs["split"].path)
    names = split.space.classes
    for name in params.classes:
        if name not in names:
            raise DataError(f"the split has no class {name!r}", where="classes", remedy=did_you_mean(name, names))
    kept = torch.isin(split.labels, torch.tensor([names.index(name) for name in params.classes]))
    images, labels, space = split.images[kept], split.labels[kept], split.space
    if not params.keep_names:
        chosen = tuple(name for name in names if name in params.classes)
        places = torch.tensor([chosen.index(name) if name in chosen else -1 for name in names])
        labels, space = places[labels], replace(space, classes=chosen)
    save_split(context.output("split"), replace(split, images=images, labels=labels, space=space))
    return Outcome(metrics={"images": len(labels), "classes": len(space.classes)})


STAGE = Stage(
    name="select-classes",
    summary="takes the images of some classes of a split",
    params=SelectClassesParams,
    outputs=outputs,
    run=run,
    libraries=("torch", "safetensors"),
)
