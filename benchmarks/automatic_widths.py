"""Uniform widths against automatic ones of equal size: a small network on the digits, without data, several seeds.

python benchmarks/automatic_widths.py

For each seed a student is distilled from a teacher on synthesized images, its sensitivities are measured on them, and
it is quantized seven times with equal training: at 2, 3 and 4 bits with 8 bits at both ends, and with all widths
automatic at the size of each, each weight counted at its own width. Seven minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

STUDENT = {"model": "resnet", "depth": 8, "width": 4}
IMAGE, CLASSES = (1, 8, 8), 10
UNIFORM, END = (2, 3, 4), 8


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=6, help="of each quantization")
    parser.add_argument("--out", type=Path, default=Path("runs/automatic-widths"))
    given = parser.parse_args()
    sizes = {bits: uniform_size(bits) for bits in UNIFORM}
    found = [run(pipeline(sizes, seed, given.epochs), given.out / str(seed)) for seed in given.seeds]
    print("| widths | bytes | predicted loss | agreement, % | accuracy, % | of each seed |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(f"| float | {4 * sum(layer.weights for layer in layers().values())} | | | {figures(found, 'float')} |")
    for bits in UNIFORM:
        for name, label in ((f"uniform{bits}", f"{bits} bits, ends {END}"), (f"auto{bits}", "automatic")):
            stages = [report[f"{name}"]["metrics"] for report in found]
            size = {m["weight_bytes"] + m["scale_and_bias_bytes"] for m in stages}
            loss = [m["predicted_loss"] for m in stages if "predicted_loss" in m] or [
                predicted(report, bits) for report in found
            ]
            agreement = [100 * m["agreement"] for m in stages]
            print(
                f"| {label} | {' to '.join(str(n) for n in sorted({min(size), max(size)}))} "
                f"| {statistics.mean(loss):.3f} | {statistics.mean(agreement):.1f} | {figures(found, name)} |"
            )


def layers() -> dict[str, Any]:
    """Return the student's layers."""
    import torch

    from kdpipe.models.registry import MODELS
    from kdpipe.stages.quantization.found_layers import find_layers

    arguments = {key: value for key, value in STUDENT.items() if key != "model"}
    network = MODELS[str(STUDENT["model"])].build(input_shape=IMAGE, classes=CLASSES, **arguments)
    return find_layers(network.eval(), torch.zeros(2, *IMAGE))


def uniform_size(bits: int) -> int:
    """Return the bytes of weights, scales and biases at one width, with END bits at both ends."""
    return sum(
        (layer.weights * (END if layer.is_end else bits) + 7) // 8 + 8 * layer.channels for layer in layers().values()
    )


def pipeline(sizes: dict[int, int], seed: int, epochs: int) -> dict[str, Any]:
    """Return the pipeline of one seed as pipeline.yaml has it."""
    images, student = "${samples.samples}", "${student.network}"
    data = {"train": "${data.digits.train}", "validation": "${data.digits.validation}"}
    stages: dict[str, Any] = {
        "teachers": {
            "uses": "teacher-ensemble", **data, "epochs": 30, "members": [{"model": "resnet", "depth": 8, "width": 16}],
        },
        "samples": {"uses": "synthesize", "teachers": "${teachers.ensemble}", "count": 4000, "iterations": 300},
        "student": {
            "uses": "distill", "teachers": "${teachers.ensemble}", "samples": images, "model": STUDENT,
            "losses": {"kd": {}}, "epochs": 20, "batch_size": 128,
        },
        "sensitivity": {"uses": "sensitivity", "network": student, "samples": images},
        "float": {"uses": "validate", "artifact": student, "data": "${data.digits.test}"},
    }  # fmt: skip
    for bits, size in sizes.items():
        common = {"uses": "quantize", "network": student, "samples": images, "losses": {"kd": {}}, "epochs": epochs}
        stages[f"uniform{bits}"] = {**common, "weight_bits": bits, "first_last_bits": END}
        stages[f"auto{bits}"] = {
            **common,
            "sensitivity": "${sensitivity.sensitivity}",
            "weight_bits": "auto",
            "first_last_bits": "auto",
            "budget": {"size_kib": size / 1024, "target": "integer-graph"},
        }
        for kind in ("uniform", "auto"):
            stages[f"{kind}{bits}-accuracy"] = {
                "uses": "validate", "artifact": f"${{{kind}{bits}.graph}}", "data": "${data.digits.test}",
            }  # fmt: skip
    header = {"kdpipe": 1, "name": "automatic-widths", "seed": seed, "threads": 1}
    return {**header, "data": {"digits": {"uses": "digits"}}, "stages": stages}


def run(document: dict[str, Any], out: Path) -> dict[str, dict[str, Any]]:
    """Run a pipeline and return its stages' entries of report.json by name."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "pipeline.yaml"
    file.write_text(json.dumps(document, indent=1), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "kdpipe.pipeline.cli", "run", str(file), "--out", str(out / "run")]
    subprocess.run(command, check=True, stdout=sys.stderr)
    report = json.loads((out / "run" / "report.json").read_text(encoding="utf-8"))
    return {stage["name"]: stage for stage in report["stages"]}


def predicted(report: dict[str, dict[str, Any]], bits: int) -> float:
    """Return what the sensitivities say of uniform widths."""
    (grid,) = (g for caption, g in report["sensitivity"]["grids"].items() if caption.startswith("Predicted loss"))
    before = report["sensitivity"]["metrics"]["loss_before"]
    ends = {path for path, layer in layers().items() if layer.is_end}
    column = {name: at for at, name in enumerate(grid["columns"])}
    losses = [
        values[column[f"{END if path in ends else bits} bits"]]
        for path, values in zip(grid["rows"], grid["values"], strict=True)
    ]
    return float(before + sum(loss - before for loss in losses))


def figures(found: list[dict[str, dict[str, Any]]], name: str) -> str:
    """Return the mean accuracy and that of each seed as two cells."""
    stage = name if name == "float" else f"{name}-accuracy"
    accuracies = [100 * report[stage]["metrics"]["accuracy"] for report in found]
    return f"{statistics.mean(accuracies):.2f} | {', '.join(f'{value:.1f}' for value in accuracies)}"


if __name__ == "__main__":
    main()
