"""A network as YAML names it: `{model: resnet, depth: 8, width: 16}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from kdpipe.models.registry import MODELS
from kdpipe.targets.errors import UsageError, did_you_mean

M = TypeVar("M", bound=BaseModel)


class ModelChoice(BaseModel):
    """A model's name and, flat beside it, its arguments.

    The arguments are checked with the type that the registry has for the model, so that a mistake in one is
    reported at its own place (`members.0.depth`).
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str = Field(
        description="a name of `kdpipe ls models`, or `torchvision:NAME` or `timm:NAME`; its arguments stand beside it"
    )

    @model_validator(mode="after")
    def _check_arguments(self) -> ModelChoice:
        try:
            entry = MODELS[self.model]
        except UsageError as error:
            raise ValueError(str(error)) from None
        check_named(entry.arguments, self.model_extra or {}, f"argument of {self.model}")
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments with their defaults filled in."""
        return MODELS[self.model].arguments.model_validate(self.model_extra or {}).model_dump()

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions that the network comes from, if it is not kdpipe's own."""
        return MODELS[self.model].libraries


def check_named(type_: type[M], values: Mapping[str, Any], what: str, *, path: tuple[str, ...] = ()) -> M:
    """Check values with a type that was found by a name, from inside another type's validator.

    Args:
        type_: what the values must be.
        values: by field.
        what: what a field is, for messages: "argument of resnet".
        path: where the values stand in the type that is being validated.

    Raises:
        ValidationError: every mistake at its place; pydantic merges it into the outer type's own.
    """
    try:
        return type_.model_validate(values)
    except ValidationError as error:
        details = []
        for line in error.errors(include_url=False):
            place = (*path, *line["loc"])
            if line["type"] == "extra_forbidden":
                name = str(line["loc"][-1])
                message = f"unknown {what} {name!r}. {did_you_mean(name, type_.model_fields)}"
            else:
                message = line["msg"].removeprefix("Value error, ")
            # braces would be taken for placeholders
            kind = PydanticCustomError("named", message.replace("{", "(").replace("}", ")"))  # type: ignore[arg-type]
            details.append(InitErrorDetails(type=kind, loc=place, input=line["input"]))
        raise ValidationError.from_exception_data(type_.__name__, details) from None
