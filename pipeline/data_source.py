"""Data by name on the command line: `digits`, `digits.test`, or the directory of a split."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from kdpipe.pipeline.runner import run_stages
from kdpipe.pipeline.spec import Spec, StageSpec
from kdpipe.pipeline.store import Store
from kdpipe.stages.registry import STAGES, StageRegistry
from kdpipe.targets.errors import ArtifactError, UsageError, did_you_mean

DEFAULT_SPLIT = "test"


def split_directory(name: str, store: Store, stages: StageRegistry = STAGES) -> Path:
    """Return the directory of a split, making it in the store when it is named by its source.

    Args:
        name: a directory; or a data source, or SOURCE.SPLIT. Without a split, the test split is meant.
        store: where the source's splits lie or go.
        stages: the data sources that may be named.

    Raises:
        UsageError: there is neither such a directory nor such a source or split.
        ArtifactError: the source failed.
    """
    directory = Path(name)
    try:
        is_directory, is_split = directory.is_dir(), (directory / "split.json").is_file()
    except OSError as error:  # a name too long, a folder that may not be read
        raise UsageError(f"{name}: {error.strerror or error}", where="--data", remedy="Give another path") from None
    if is_split:
        return directory
    source, _, split = name.partition(".")
    if source not in stages.sources:
        if is_directory:
            raise UsageError("no split here: split.json is missing", where=name)
        raise UsageError(f"no data {name!r}", where="--data", remedy=did_you_mean(source, stages.sources))
    stage = stages.source(source)
    try:
        params = stage.params()
    except ValidationError as error:
        needed = ", ".join(str(detail["loc"][0]) for detail in error.errors(include_url=False))
        raise UsageError(
            f"the data source {source!r} can't be named alone: it needs {needed}",
            where="--data",
            remedy="Give the directory of a split that a pipeline has made; report.json lists them",
        ) from None
    outputs = stage.outputs(params)
    split = split or DEFAULT_SPLIT
    if split not in outputs:
        raise UsageError(f"{source!r} has no split {split!r}", where="--data", remedy=did_you_mean(split, outputs))
    node = StageSpec(
        f"data.{source}",
        source,
        stage,
        stages.source_module(source),
        params,
        inputs={},
        is_list=frozenset(),
        outputs=outputs,
        gates={},
        seed=0,
    )
    spec = Spec(
        name="data-by-name", seed=0, accelerator="auto", threads=None, folder=Path.cwd(), stages={node.name: node}
    )
    result = run_stages(spec, store, [])
    if result.interrupted:
        raise KeyboardInterrupt
    finished = result.stages[0]
    if finished.entry is None:
        raise ArtifactError(finished.error or "failed", where=f"data source {source!r}")
    return finished.entry.output(split)
