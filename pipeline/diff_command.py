"""`kdpipe diff`: two artifacts compared layer by layer, printed as a table or as JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from kdpipe.pipeline.tables import print_difference, print_json
from kdpipe.stages.diff import diff_artifacts


def diff_and_print(
    first: Path,
    second: Path,
    *,
    split: Path,
    devices: tuple[str, str],
    samples: int | None,
    max_steps: int | None,
    as_json: bool,
) -> bool:
    """Compare two artifacts, print what is found, and return whether every layer is within the limit.

    The arguments are those of `kdpipe.stages.diff.diff_artifacts`.
    """
    found = diff_artifacts(first, second, split=split, devices=devices, samples=samples, max_steps=max_steps)
    if as_json:
        print_json(asdict(found))
    else:
        print_difference(found)
    return found.first_divergent_layer is None
