"""The JSON schema of pipeline.yaml, for editors that complete and check while one types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic.json_schema import JsonSchemaMode, models_json_schema

from kdpipe.pipeline.gates import GATES
from kdpipe.pipeline.matrix_section import AXIS_KEYS, AXIS_PATTERN, MAX_AXES, PATH_PATTERN
from kdpipe.pipeline.parameters import input_fields
from kdpipe.pipeline.spec import ACCELERATORS, FORMAT, MAX_SEED, MAX_THREADS, NAME_PATTERN
from kdpipe.stages.base import Stage
from kdpipe.stages.registry import STAGES, StageRegistry

_MODE: JsonSchemaMode = "validation"
_SEED = {"type": "integer", "minimum": 0, "maximum": MAX_SEED - 1, "description": "the source of all randomness"}
_REFERENCE_PATTERN = r"^\$\{[^{}]+\}$"


def pipeline_schema(stages: StageRegistry = STAGES) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a pipeline file that may use the given kinds of stage."""
    models = {
        (section, name): stage.params
        for section, entries in (("data", stages.all_sources()), ("stages", stages.all_stages()))
        for name, stage in entries
    }
    references, definitions = models_json_schema(
        [(model, _MODE) for model in dict.fromkeys(models.values())], ref_template="#/$defs/{model}"
    )
    shared = definitions.get("$defs", {})
    # The parameters' own schemas are inlined with the engine's keys added; what they refer to stays shared.
    parameters = {
        model: shared[reference["$ref"].rsplit("/", 1)[1]] if "$ref" in reference else reference
        for (model, _), reference in references.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "kdpipe pipeline",
        "type": "object",
        "additionalProperties": False,
        "required": ["kdpipe", "name", "stages"],
        "properties": {
            "kdpipe": {"const": FORMAT, "description": "version of this file's format"},
            "name": {"type": "string", "pattern": f"^{NAME_PATTERN}$", "description": "the pipeline's name"},
            "seed": {**_SEED, "default": 0},
            "accelerator": {"enum": list(ACCELERATORS), "default": "auto", "description": "where to train"},
            "threads": {
                "type": ["integer", "null"],
                "minimum": 1,
                "maximum": MAX_THREADS,
                "default": None,
                "description": "how many threads of the CPU train; null: as many as torch likes",
            },
            "data": _section([(name, stage, parameters[stage.params]) for name, stage in stages.all_sources()]),
            "stages": {
                **_section([(name, stage, parameters[stage.params]) for name, stage in stages.all_stages()]),
                "minProperties": 1,
            },
            "matrix": _matrix(),
        },
        "$defs": shared,
    }


def _matrix() -> dict[str, Any]:
    path = {"type": "string", "pattern": f"^{PATH_PATTERN}$"}
    values = [{"type": "array", "minItems": 1}, {"type": "object", "minProperties": 1}]
    axis = {
        "type": "object",
        "additionalProperties": False,
        "required": list(AXIS_KEYS),
        "properties": {
            "set": {"anyOf": [path, {"type": "array", "items": path, "minItems": 1}], "description": "what it sets"},
            "values": {"anyOf": values, "description": "a list of values, or names with their values"},
        },
    }
    return {
        "type": "object",
        "description": "the pipeline once for every combination of values and seeds",
        "additionalProperties": False,
        "required": ["axes", "metrics"],
        "properties": {
            "axes": {
                "type": "object",
                "propertyNames": {"pattern": f"^{AXIS_PATTERN}$"},
                "additionalProperties": axis,
                "minProperties": 1,
                "maxProperties": MAX_AXES,
            },
            "seeds": {"type": "array", "items": _SEED, "uniqueItems": True, "default": []},
            "metrics": {
                "type": "array",
                "items": {"type": "string", "pattern": r"^[^.]+\..+$"},
                "minItems": 1,
                "description": "figures that the report shows by the axes: STAGE.METRIC",
            },
        },
    }


def _section(entries: list[tuple[str, Stage, dict[str, Any]]]) -> dict[str, Any]:
    """Return the schema of a mapping of names to stages, each by what it `uses`."""
    kinds = {"enum": [name for name, _, _ in entries], "description": "the kind of stage"}
    return {
        "type": "object",
        "propertyNames": {"pattern": f"^{NAME_PATTERN}$"},
        "additionalProperties": {
            "type": "object",
            "required": ["uses"],
            "properties": {"uses": kinds},
            "allOf": list(_alternatives(entries)),
        },
    }


def _alternatives(entries: list[tuple[str, Stage, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for name, stage, parameters in entries:
        properties: dict[str, Any] = {
            "uses": {"const": name, "description": stage.summary},
            "seed": _SEED,
            **parameters.get("properties", {}),
        }
        for field, accepts in input_fields(stage.params).items():
            properties[field] = _input(properties[field], accepts.kinds)
        if stage.validates:
            properties["gates"] = _gates()
        yield {
            "if": {"properties": {"uses": {"const": name}}, "required": ["uses"]},
            "then": {
                "description": stage.summary,
                "properties": properties,
                "required": ["uses", *parameters.get("required", [])],
                "additionalProperties": False,
            },
        }


def _input(field: dict[str, Any], kinds: tuple[str, ...]) -> dict[str, Any]:
    """Return the schema of an input: a reference, or a list of them where the field takes several."""
    reference = {"type": "string", "pattern": _REFERENCE_PATTERN}
    takes_several = any(option.get("type") == "array" for option in [field, *field.get("anyOf", [])])
    described = {"description": field.get("description", f"an output of kind {' or '.join(kinds)}")}
    return {**({"type": "array", "items": reference} if takes_several else reference), **described}


def _gates() -> dict[str, Any]:
    limits = {}
    for name, gate in GATES.items():
        limits[name] = {"type": "number", "minimum": 0, "description": gate.summary}
        if gate.highest == 1:
            limits[name]["maximum"] = 1
    return {
        "type": ["object", "null"],
        "properties": limits,
        "additionalProperties": False,
        "description": "limits that the figures must keep",
    }
