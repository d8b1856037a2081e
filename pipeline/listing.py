"""What `kdpipe ls` shows: everything that pipeline.yaml can name, read from the registries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, Any]


def list_stages() -> Iterator[Row]:
    """Yield the kinds of stage with the inputs they take."""
    from kdpipe.pipeline.parameters import input_fields
    from kdpipe.stages.registry import STAGES

    for name, stage in STAGES.all_stages():
        inputs = {field: list(accepts.kinds) for field, accepts in input_fields(stage.params).items()}
        yield {"name": name, "summary": stage.summary, "inputs": inputs, "data_free": stage.data_free}


def list_data() -> Iterator[Row]:
    """Yield the data sources with their splits."""
    from kdpipe.stages.registry import STAGES

    for name, source in STAGES.all_sources():
        defaults = source.params.model_construct()  # a source that needs a folder has the same splits whichever it is
        yield {"name": name, "summary": source.summary, "splits": list(source.outputs(defaults))}


def list_models() -> Iterator[Row]:
    """Yield the networks, and how those of libraries are named."""
    from kdpipe.models.registry import LIBRARIES, MODELS

    yield from ({"name": name, "summary": MODELS[name].summary} for name in MODELS)
    for library in LIBRARIES:
        yield {"name": f"{library}:NAME", "summary": f"a classifier of {library} by its name there; kdpipe[vision]"}


def list_targets() -> Iterator[Row]:
    """Yield the formats that a quantized network can be exported to, with their options, defaults first."""
    from kdpipe.targets.exporters import EXPORTERS

    for name in EXPORTERS:
        options = {option: list(value.choices) for option, value in EXPORTERS[name].options.items()}
        yield {"name": name, "summary": EXPORTERS[name].summary, "options": options}


def list_operators() -> Iterator[Row]:
    """Yield the operators of the integer graph with, for each target, whether it can write them."""
    from typing import get_args

    from kdpipe.targets.exporters import EXPORTERS
    from kdpipe.targets.graph import Operator

    written = {name: EXPORTERS[name].operators() for name in EXPORTERS}
    for operator in get_args(Operator):
        summary = (operator.__doc__ or "").split("\n\n")[0].split(";")[0].split(":")[0].rstrip(".")
        yield {
            "name": operator.__name__,
            **{name: operator in table for name, table in written.items()},
            "summary": summary,
        }


def list_devices() -> Iterator[Row]:
    """Yield the devices with the formats that each runs."""
    from kdpipe.targets.devices.registry import DEVICES

    for name in DEVICES:
        device = DEVICES[name]
        yield {"name": name, "summary": device.summary, "formats": list(device.formats)}


def list_boards() -> Iterator[Row]:
    """Yield the boards with their cores, clocks and memories."""
    from kdpipe.targets.devices.boards import load_boards

    for name, board in load_boards().items():
        yield {"name": name, **board.model_dump(exclude={"source"})}


def list_losses() -> Iterator[Row]:
    """Yield the distillation losses."""
    from kdpipe.stages.knowledge.registry import LOSSES

    for name in LOSSES:
        loss = LOSSES[name]
        parameters = {field: value.default for field, value in loss.parameters.model_fields.items()}
        yield {
            "name": name,
            "summary": loss.summary,
            "category": loss.category,
            "parameters": parameters,
            "reference": loss.reference,
        }


LISTINGS: dict[str, Callable[[], Iterator[Row]]] = {
    "stages": list_stages,
    "models": list_models,
    "targets": list_targets,
    "ops": list_operators,
    "devices": list_devices,
    "boards": list_boards,
    "losses": list_losses,
    "data": list_data,
}


def shown(value: Any) -> str:
    """Return a cell of a listing as text.

    >>> shown({"teachers": ["ensemble"], "samples": ["samples", "split"]})
    'teachers: ensemble; samples: samples|split'
    """
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {'|'.join(item) if isinstance(item, list) else item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
