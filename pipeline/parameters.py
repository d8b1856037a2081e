"""What pipeline.yaml may set under a stage, read from the stage's pydantic model: inputs, files, plain parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from kdpipe.pipeline.problems import KeyPath
from kdpipe.stages.base import Accepts, ReadsFile, ReadsFolder, Stage
from kdpipe.targets.errors import did_you_mean

RESERVED = ("uses", "gates", "seed")
"""Keys under a stage that belong to the engine."""


def input_fields(params: type[BaseModel]) -> dict[str, Accepts]:
    """Return the fields of a stage's parameters that are inputs."""
    marked = {name: _marker(field, Accepts) for name, field in params.model_fields.items()}
    return {name: marker for name, marker in marked.items() if marker is not None}


def plain_parameters(params: BaseModel) -> dict[str, Any]:
    """Return the parameters without the inputs as JSON, defaults included: what belongs to the stage's key."""
    return params.model_dump(mode="json", exclude=set(input_fields(type(params))))


def read_files(params: BaseModel) -> Iterator[tuple[KeyPath, str]]:
    """Yield (path of the key, path of the file) for every ReadsFile field that is set, nested models included."""
    yield from _marked(params, ReadsFile, ())


def read_folders(params: BaseModel) -> Iterator[tuple[KeyPath, str]]:
    """Yield (path of the key, path of the folder) for every ReadsFolder field that is set, likewise."""
    yield from _marked(params, ReadsFolder, ())


def parameter_problems(stage: Stage, values: Mapping[str, Any], error: ValidationError) -> Iterator[_Complaint]:
    """Yield (path, whether the key is meant rather than the value, message, remedy) for each of pydantic's errors."""
    seen = set()
    inputs = input_fields(stage.params)
    for detail in error.errors(include_url=False):
        path = _existing_path(values, detail["loc"])
        if detail["type"] == "missing":
            yield path, False, f"missing key {str(detail['loc'][-1])!r}", None
        elif detail["type"] == "extra_forbidden":
            model = _model_at(stage.params, path[:-1])
            known = [*(model.model_fields if model else ()), *(RESERVED if len(path) == 1 else ())]
            yield path, True, f"unknown key {str(path[-1])!r}", did_you_mean(str(path[-1]), known)
        else:
            message = _message(detail["msg"], detail.get("input"))
            if detail["loc"][:1] and detail["loc"][0] in inputs and detail["type"] in _REFERENCE_TYPES:
                message = f"must be {_REFERENCE_TYPES[detail['type']]}, found {_shown(detail.get('input'))}"
            if (path, message) not in seen:
                yield path, False, message, None
            seen.add((path, message))


_REFERENCE_TYPES = {
    "string_type": "a reference such as ${STAGE.OUTPUT}",
    "tuple_type": "a list of references such as [${STAGE.OUTPUT}]",
}
_Complaint = tuple[KeyPath, bool, str, str | None]


def _message(message: str, value: object) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if not message.startswith("Input should be"):
        return message
    return f"{message.replace('Input should be', 'must be')}, found {_shown(value)}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _marker(field: FieldInfo, kind: type[Any]) -> Any:
    """Return the marker of a field, also from inside a union or tuple, or None."""
    return next(
        (entry for entry in [*field.metadata, *_annotations(field.annotation)] if isinstance(entry, kind)), None
    )


def _annotations(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for argument in get_args(annotation):
        yield from _annotations(argument)


def _marked(params: BaseModel, kind: type[Any], path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    for name, field in type(params).model_fields.items():
        value = getattr(params, name)
        if _marker(field, kind) is not None:
            yield from _strings(value, (*path, name))
        else:
            yield from _nested(value, kind, (*path, name))


def _strings(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _strings(item, (*path, index))
    elif value is not None:
        yield path, str(value)


def _nested(value: Any, kind: type[Any], path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, BaseModel):
        yield from _marked(value, kind, path)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _nested(item, kind, (*path, index))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _nested(item, kind, (*path, key))


def _existing_path(values: Any, location: tuple[int | str, ...]) -> KeyPath:
    """Return the part of pydantic's location that names something in `values`: it puts names of types in between."""
    path: KeyPath = ()
    for word in location:
        is_there = (isinstance(values, Mapping) and word in values) or (
            isinstance(values, list | tuple) and isinstance(word, int) and word < len(values)
        )
        if is_there:
            values = values[word]
            path = (*path, word)
    return path


def _model_at(model: type[BaseModel] | None, path: KeyPath) -> type[BaseModel] | None:
    """Return the model that holds the keys at `path`, or None where there is more than one candidate."""
    for word in path:
        if isinstance(word, int) or model is None:
            continue
        field = model.model_fields.get(word)
        candidates = list(_models(field.annotation)) if field else []
        model = candidates[0] if len(candidates) == 1 else None
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
