"""From the reports of all runs to one table in Markdown."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe import Recipe


@dataclass(frozen=True)
class Found:
    """What one run found.

    Args:
        accuracies: of every validation that has a result, in [0, 1].
        metrics: by `stage.metric`.
        seconds: by stage.
        keys: by stage; equal keys are one and the same result.
        error: why it is incomplete, or None.
    """

    accuracies: Mapping[str, float]
    metrics: Mapping[str, Any]
    seconds: Mapping[str, float]
    keys: Mapping[str, str]
    error: str | None


Runs = Mapping[str, Mapping[int, Found]]
"""By variant and seed."""


def read_run(folder: Path) -> Found:
    """Read a run's report.json."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    stages = report["stages"]
    errors = [f"{stage['name']}: {stage['error']['message']}" for stage in stages if stage["status"] == "failed"]
    return Found(
        accuracies={target["name"]: target["accuracy"] for target in report["targets"]},
        metrics={f"{s['name']}.{key}": value for s in stages for key, value in s["metrics"].items()},
        seconds={stage["name"]: stage["seconds"] for stage in stages if stage["seconds"] is not None},
        keys={stage["name"]: stage["key"] for stage in stages if stage["key"] is not None},
        error="; ".join(errors) or None,
    )


def make_table(recipe: Recipe, runs: Runs) -> str:
    """Return the table: a row a variant, means over seeds with their standard errors, differences paired by seed."""
    lines = [
        f"| | accuracy, % | n | against, points |{''.join(f' {name} |' for name in recipe.columns)} s a run |",
        "| --- | --- | --- | --- |" + " --- |" * (len(recipe.columns) + 1),
    ]
    for name, stage in recipe.beside.items():
        # one result may stand behind many runs
        found = {run.keys[stage]: run.accuracies[stage] for run in _all(runs) if stage in run.accuracies}
        if found:
            empty = " |" * (len(recipe.columns) + 2)
            lines.append(f"| {name} | {with_error(_percent(found.values()))} | {len(found)} |{empty}")
    for name, by_seed in runs.items():
        complete = {seed: run for seed, run in by_seed.items() if recipe.accuracy in run.accuracies}
        cells = [name, with_error(_percent(run.accuracies[recipe.accuracy] for run in complete.values()))]
        cells += [str(len(complete)), _difference(recipe, runs, name)]
        for metric in recipe.columns.values():
            values = [run.metrics[metric] for run in complete.values() if run.metrics.get(metric) is not None]
            cells.append(with_error(values, digits=3))
        seconds = [sum(run.seconds.get(stage, 0) for stage in recipe.time) for run in complete.values()]
        cells.append(f"{statistics.mean(seconds):.0f}" if seconds else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_error(values: Sequence[float], digits: int = 2) -> str:
    """Return "mean ± standard error", the mean alone for one value, and nothing for none.

    >>> with_error([1.0, 2.0, 3.0])
    '2.00 ± 0.58'
    """
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}"


def _difference(recipe: Recipe, runs: Runs, name: str) -> str:
    against = recipe.variants[name].against
    if against is None or against not in runs:
        return ""
    stage = recipe.accuracy
    mine, others = (
        {seed: run.accuracies[stage] for seed, run in runs[which].items() if stage in run.accuracies}
        for which in (name, against)
    )
    paired = [100 * (mine[seed] - others[seed]) for seed in mine if seed in others]
    found = with_error(paired)
    return f"{'' if found.startswith('-') else '+'}{found} ({against})" if found else ""


def _percent(shares: Any) -> list[float]:
    return [100 * share for share in shares]


def _all(runs: Runs) -> list[Found]:
    return [run for by_seed in runs.values() for run in by_seed.values()]
