"""A pipeline as types, checked: what kdpipe.pipeline.spec_file reads, and everything after it works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdpipe.pipeline.matrix import Matrix, Variant
from kdpipe.pipeline.references import Reference
from kdpipe.stages.base import Stage, StageParams

FORMAT = 1
MAX_SEED = 2**31
ACCELERATORS = ("auto", "cpu", "cuda", "mps")
MAX_THREADS = 1024
TOP_KEYS = ("kdpipe", "name", "seed", "accelerator", "threads", "data", "stages", "matrix")
NAME_PATTERN = "[A-Za-z][A-Za-z0-9_-]{0,63}"
"""Names become folders, log lines and parts of references."""


@dataclass(frozen=True)
class StageSpec:
    """One stage or data source of a pipeline, checked.

    Args:
        name: as in YAML; a data source's is `data.NAME`.
        uses: the kind of stage.
        stage: what that kind is.
        module: where its code starts.
        params: its parameters; input fields hold the references as text.
        inputs: by input field, the references: each with its output filled in. An input that is not set is absent.
        is_list: the input fields that take several.
        outputs: the kinds of its outputs by name.
        gates: limits by the names of kdpipe.pipeline.gates.GATES.
        seed: its source of randomness.
        variant: in an expanded matrix, where it comes from; None where there is one for all cells.
    """

    name: str
    uses: str
    stage: Stage
    module: str
    params: StageParams
    inputs: Mapping[str, tuple[Reference, ...]]
    is_list: frozenset[str]
    outputs: Mapping[str, str]
    gates: Mapping[str, float]
    seed: int
    variant: Variant | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Return the names of the stages that it takes inputs from, in order, each once."""
        return tuple(dict.fromkeys(reference.stage for references in self.inputs.values() for reference in references))


@dataclass(frozen=True)
class Spec:
    """A pipeline, checked: every reference leads somewhere, every kind fits, there is no cycle.

    Args:
        name: the pipeline's name.
        seed: of every stage that has none of its own.
        accelerator: auto, cpu, cuda or mps.
        threads: of the CPU that train, or None for as many as torch likes.
        folder: where pipeline.yaml lies, or its files; they are named relative to it.
        stages: data sources and stages by name, in the order of execution; where there is a matrix, those of all cells.
        matrix: which of them each cell has, or None.
    """

    name: str
    seed: int
    accelerator: str
    threads: int | None
    folder: Path
    stages: Mapping[str, StageSpec]
    matrix: Matrix | None = None

    def named(self, name: str) -> list[str]:
        """Return the stages that a name means: of a matrix, a stage's name in YAML means all its variants.

        STAGE@AXIS=VALUE means those at that value.
        """
        if name in self.stages:
            return [name]
        base, *words = name.split("@")
        variants = [(stage.name, stage.variant) for stage in self.stages.values() if stage.variant is not None]
        return [found for found, variant in variants if variant.base == base and variant.is_at(words)]

    @property
    def yaml_names(self) -> list[str]:
        """Return the names of the stages as in YAML, each once."""
        return list(
            dict.fromkeys(stage.variant.base if stage.variant else stage.name for stage in self.stages.values())
        )
