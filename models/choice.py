"""A network as YAML names it: `{model: resnet, depth: 8, width: 16}`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdpipe.models.registry import MODELS
from kdpipe.targets.errors import UsageError


class ModelChoice(BaseModel):
    """A model's name and, flat beside it, its arguments.

    The arguments are checked with the type that the registry has for the model, so that a mistake in one is
    reported at its own place (`members.0.depth`).
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str = Field(description="a name of `kdpipe ls models`; its arguments stand beside it")

    @model_validator(mode="after")
    def _check_arguments(self) -> ModelChoice:
        try:
            entry = MODELS[self.model]
        except UsageError as error:
            raise ValueError(str(error)) from None
        # pydantic merges a nested ValidationError into its own, with each mistake's place
        entry.arguments.model_validate(self.model_extra or {})
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments with their defaults filled in."""
        return MODELS[self.model].arguments.model_validate(self.model_extra or {}).model_dump()
