"""An experiment: a pipeline of the folder `recipes`, and beside it the variants that are compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdpipe.pipeline.spec import Spec
from kdpipe.pipeline.spec_file import load_spec

RECIPES = Path(__file__).resolve().parent / "recipes"
VARIANTS = ".variants.yaml"


class Variant(BaseModel):
    """One row of the table.

    Args:
        set: values by their paths in the pipeline file, as after `kdpipe run --set`.
        against: the variant whose accuracy of the same seed its own is compared with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    set: dict[str, Any] = Field(default={})
    against: str | None = None

    def assignments(self, seed: int) -> list[str]:
        """Return what follows `--set` for one seed."""
        return [f"{path}={json.dumps(value)}" for path, value in {"seed": seed, **self.set}.items()]


class Recipe(BaseModel):
    """What is compared, and how.

    Args:
        question: what the table answers.
        protocol: what it takes to judge the figures.
        accuracy: the validation whose accuracy is compared.
        beside: by what they are called, further validations, shown once: they don't depend on the variant.
        time: the stages whose seconds are the variant's.
        columns: by heading, further figures: `stage.metric`.
        seeds: that every variant is run with, unless the command line names others.
        variants: by name, in the table's order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str
    protocol: str
    accuracy: str
    beside: dict[str, str] = {}
    time: tuple[str, ...] = Field(min_length=1)
    columns: dict[str, str] = {}
    seeds: tuple[int, ...] = (0, 1, 2)
    variants: dict[str, Variant] = Field(min_length=1)

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the stages whose figures are in the table; nothing is run that these don't need."""
        columns = [metric.partition(".")[0] for metric in self.columns.values()]
        return tuple(dict.fromkeys([self.accuracy, *self.beside.values(), *columns]))

    @model_validator(mode="after")
    def _check_pairs(self) -> Recipe:
        for name, variant in self.variants.items():
            if variant.against is not None and (variant.against not in self.variants or variant.against == name):
                raise ValueError(f"{name!r} can't be compared with {variant.against!r}")
        return self


def known() -> list[str]:
    """Return the names of all recipes."""
    return sorted(path.name.removesuffix(VARIANTS) for path in RECIPES.glob(f"*{VARIANTS}"))


def load_recipe(name: str) -> Recipe:
    """Read what is compared."""
    return Recipe.model_validate(yaml.safe_load((RECIPES / f"{name}{VARIANTS}").read_text(encoding="utf-8")))


def load_variant(name: str, variant: Variant, seed: int, data: Path, settings: Sequence[str] = ()) -> Spec:
    """Return the checked pipeline of one variant.

    Args:
        name: of the recipe.
        variant: one of its variants.
        seed: of every stage that has none of its own.
        data: the folder that the recipe's files are relative to.
        settings: further assignments, which win.

    Raises:
        SpecError: an assignment does not fit the pipeline, or a file is not in the folder.
    """
    return load_spec(RECIPES / f"{name}.yaml", [*variant.assignments(seed), *settings], folder=data)
