"""`kdpipe validate`: one artifact on one device, held against limits given on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kdpipe.pipeline.execution import target_to_json
from kdpipe.pipeline.gates import GateResult, evaluate_gates
from kdpipe.pipeline.report.gates import sentence
from kdpipe.pipeline.tables import figures, print_failures, print_figures, print_json, print_layers, progress_bar
from kdpipe.stages.device_choice import DeviceChoice
from kdpipe.stages.validate import validate_artifact


def validate_and_print(
    artifact: Path,
    choice: DeviceChoice,
    *,
    split: Path,
    reference: Path | None,
    baseline: Path | None,
    samples: int | None,
    workers: int,
    limits: Mapping[str, float],
    as_json: bool,
) -> bool:
    """Run an artifact, print what was found, and return whether every limit is kept.

    Args:
        artifact: its directory.
        choice: where to run it.
        split: the directory of labelled images.
        reference: what to compare every output with.
        baseline: what to compare the accuracy with.
        samples: how many images; all if None.
        workers: processes that share them on an emulated device.
        limits: gates by name; the board's are added to them.
        as_json: print JSON instead of tables: an entry of `targets` in report.json, without its name.

    Raises:
        KdpipeError: as `validate_artifact`.
    """
    with progress_bar("images") as progress:
        record = validate_artifact(
            artifact,
            device=choice.device,
            split=split,
            reference=reference,
            baseline=baseline,
            samples=samples,
            clock=choice.clock,
            workers=workers,
            progress=progress,
        )
    found = target_to_json(choice.complete(record))
    gates = evaluate_gates(limits, found)
    if as_json:
        print_json({**found, "gates": [gate.to_json() for gate in gates]})
    else:
        print_figures(figures(found))
        print_layers(found["layers"])
        print_failures([_sentence(gate) for gate in gates if not gate.passed])
    return all(gate.passed for gate in gates)


def _sentence(gate: GateResult) -> str:
    return sentence("validation", gate.name, gate.limit, gate.value, gate.reason)
