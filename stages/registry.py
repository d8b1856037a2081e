"""The kinds of stage and data source that pipeline.yaml can name, imported only when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module

from kdpipe.stages.base import Stage
from kdpipe.targets.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class StageRegistry:
    """Stages and data sources by the name that YAML gives under `uses`.

    A data source is a Stage without inputs whose outputs are of the kind `split`.

    Args:
        stages: a Stage, or where to find it as "module:attribute".
        sources: likewise.
    """

    stages: Mapping[str, str | Stage]
    sources: Mapping[str, str | Stage]

    def stage(self, name: str) -> Stage:
        """Return the stage `name`.

        Raises:
            UsageError: there is none.
        """
        return _resolve("stage", name, self.stages)

    def source(self, name: str) -> Stage:
        """Return the data source `name`.

        Raises:
            UsageError: there is none.
        """
        return _resolve("data source", name, self.sources)

    def stage_module(self, name: str) -> str:
        """Return the module that a stage's code starts in."""
        return _module(self.stages[name])

    def source_module(self, name: str) -> str:
        """Return the module that a data source's code starts in."""
        return _module(self.sources[name])

    def all_stages(self) -> Iterator[tuple[str, Stage]]:
        """Yield every stage by name, in order."""
        for name in self.stages:
            yield name, self.stage(name)

    def all_sources(self) -> Iterator[tuple[str, Stage]]:
        """Yield every data source by name, in order."""
        for name in self.sources:
            yield name, self.source(name)


STAGES = StageRegistry(
    stages={
        "teacher-ensemble": "kdpipe.stages.teachers:STAGE",
        "synthesize": "kdpipe.stages.synthesize:STAGE",
        "distill": "kdpipe.stages.distill:STAGE",
        "data-free-distill": "kdpipe.stages.data_free_distill:STAGE",
        "sensitivity": "kdpipe.stages.sensitivity:STAGE",
        "quantize": "kdpipe.stages.quantize:STAGE",
        "export": "kdpipe.stages.export:STAGE",
        "validate": "kdpipe.stages.validate:STAGE",
        "mutual": "kdpipe.stages.mutual:STAGE",
        "reconstruction": "kdpipe.stages.reconstruction:STAGE",
        "select-classes": "kdpipe.stages.select_classes:STAGE",
    },
    sources={
        "digits": "kdpipe.stages.data.digits:SOURCE",
        "mnist": "kdpipe.stages.data.mnist:SOURCE",
        "image-folder": "kdpipe.stages.data.image_folder:SOURCE",
    },
)


def _resolve(kind: str, name: str, table: Mapping[str, str | Stage]) -> Stage:
    if name not in table:
        raise UsageError(f"unknown {kind} {name!r}", remedy=did_you_mean(name, table))
    entry = table[name]
    if isinstance(entry, Stage):
        return entry
    module, attribute = entry.split(":")
    stage = getattr(import_module(module), attribute)
    if not isinstance(stage, Stage):
        raise TypeError(f"{entry} is not a Stage")
    return stage


def _module(entry: str | Stage) -> str:
    return entry.run.__module__ if isinstance(entry, Stage) else entry.split(":")[0]
