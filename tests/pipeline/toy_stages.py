"""Small stages in plain Python, with which the engine is tested. Each test gets a copy of its own: see conftest.py."""

from __future__ import annotations

import errno
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdpipe.stages.base import (
    Accepts,
    Artifact,
    Grid,
    Outcome,
    ReadsFile,
    ReadsFolder,
    Stage,
    StageParams,
    TargetRecord,
)
from kdpipe.targets.errors import TrainingError

CONSTANT = 1  # a test changes it


class NumbersParams(StageParams):
    count: int = Field(default=10, ge=1)


def numbers(params: NumbersParams, inputs: Any, context: Any) -> Outcome:
    for split in ("train", "test"):
        write(context.output(split), {"split": split, "numbers": list(range(params.count))})
    return Outcome(metrics={"count": params.count})


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    momentum: float = Field(default=0.5, ge=0, le=1)
    weights: Annotated[str | None, ReadsFile()] = None
    folder: Annotated[str | None, ReadsFolder()] = None


class LearnParams(StageParams):
    data: Annotated[str, Accepts("split")]
    epochs: int = Field(default=1, ge=1, le=1000)
    rate: float = Field(default=0.1, gt=0)
    kind: Literal["small", "large"] = "small"
    options: tuple[Options, ...] = ()


def learn(params: LearnParams, inputs: dict[str, Artifact], context: Any) -> Outcome:
    content = read(inputs["data"].path)
    for epoch in range(params.epochs):
        context.progress(epoch + 1, params.epochs, loss=1 / (epoch + 1))
    for option in params.options:
        if option.weights:
            content["weights"] = context.file(option.weights).read_text()
        if option.folder:
            content["files"] = sorted(path.name for path in context.file(option.folder).iterdir())
    context.log("learned")
    write(context.output("network"), {"epochs": params.epochs, "seed": context.seed, "data": content})
    (context.output("network") / "curve.png").write_bytes(b"\x89PNG toy")
    return Outcome(
        metrics={"accuracy": 0.9, "bad": float("nan")},
        history={"learner": [{"epoch": 1, "loss": 0.5}]},
        figures={"A curve": "network/curve.png"},
        grids={"A grid": Grid(("a", "b"), ("x",), ((0.5,), (float("nan"),)), ("first", "second"), ((1, 0),))},
    )


class RoundParams(StageParams):
    network: Annotated[str, Accepts("network")]
    step: int = Field(default=10, ge=1)


def round_epochs(params: RoundParams, inputs: dict[str, Artifact], context: Any) -> Outcome:
    content = read(inputs["network"].path)
    write(context.output("network"), {"epochs": content["epochs"] // params.step})
    return Outcome()


class CombineParams(StageParams):
    networks: Annotated[tuple[str, ...], Accepts("network")] = Field(min_length=1)


def combine(params: CombineParams, inputs: dict[str, tuple[Artifact, ...]], context: Any) -> Outcome:
    write(context.output("ensemble"), [read(artifact.path) for artifact in inputs["networks"]])
    write(context.output("model"), {"members": len(inputs["networks"])})
    return Outcome(metrics={"members": len(inputs["networks"])})


class DreamParams(StageParams):
    teachers: Annotated[str, Accepts("ensemble", "network")]


def dream(params: DreamParams, inputs: dict[str, Artifact], context: Any) -> Outcome:
    write(context.output("samples"), read(inputs["teachers"].path))
    return Outcome()


class PackParams(StageParams):
    graph: Annotated[str, Accepts("integer-graph")]
    targets: tuple[Literal["onnx", "c"], ...] = ("onnx", "c")


def pack(params: PackParams, inputs: dict[str, Artifact], context: Any) -> Outcome:
    for target in params.targets:
        folder = context.output(target)
        (folder / "kernels").mkdir()
        (folder / "kernels" / "k.txt").write_text("kernel")
        (folder / f"model.{target}").write_text(json.dumps(read(inputs["graph"].path)))
    return Outcome()


class CheckParams(StageParams):
    artifact: Annotated[str, Accepts("network", "ensemble", "onnx", "c")]
    data: Annotated[str, Accepts("split")]
    reference: Annotated[str | None, Accepts("integer-graph")] = None
    baseline: Annotated[str | None, Accepts("network")] = None
    accuracy: float = 0.9
    device: str = "host"


def check(params: CheckParams, inputs: dict[str, Artifact], context: Any) -> Outcome:
    artifact = inputs["artifact"]
    files = tuple((path.name, path.stat().st_size) for path in sorted(artifact.path.iterdir()) if path.is_file())
    return Outcome(
        target=TargetRecord(
            format=artifact.kind,
            device=params.device,
            files=files,
            accuracy=params.accuracy,
            samples=10,
            baseline_accuracy=0.95 if "baseline" in inputs else None,
            latency_ms={"median": 1.0, "p95": 2.0} if params.device == "host" else None,
            cycles=1000 if params.device == "mcu" else None,
            flash_bytes=2048 if params.device == "mcu" else None,
            parity={"max_step_difference": 0, "top1_agreement": 1.0, "first_divergent_layer": None}
            if "reference" in inputs
            else None,
        )
    )


class MischiefParams(StageParams):
    network: Annotated[str | None, Accepts("network")] = None
    how: str = "nothing"
    signal_file: str = ""


def mischief(params: MischiefParams, inputs: Any, context: Any) -> Outcome:
    folder = context.output("network")
    write(folder, {"how": params.how, "epochs": 1})
    match params.how:
        case "diverge":
            raise TrainingError("the loss is not finite", where="epoch 3", remedy="Lower lr")
        case "crash":
            raise ZeroDivisionError("division by zero")
        case "memory":
            raise MemoryError
        case "disk":
            raise OSError(errno.ENOSPC, "No space left on device", "/somewhere")
        case "empty":
            (folder / "value.json").unlink()
        case "wait":
            print("waiting", flush=True)
            time.sleep(60)
        case "wait once":
            half = context.scratch() / "half"
            if not half.exists():
                half.write_text("done")
                print("waiting", flush=True)
                time.sleep(60)
            return Outcome(metrics={"half": half.read_text()})
        case "target":
            return Outcome(target=TargetRecord("onnx", "host", (), 1.0, 1))
        case "figure":
            return Outcome(figures={"None": "network/none.png"})
    return Outcome()


def write(folder: Path, value: Any) -> None:
    (folder / "value.json").write_text(json.dumps([CONSTANT, value]))


def read(folder: Path) -> Any:
    return json.loads((folder / "value.json").read_text())[1]


def _pack_outputs(params: PackParams) -> dict[str, str]:
    return {target: target for target in params.targets}


def _one(name: str, kind: str) -> Any:
    return lambda params: {name: kind}


NUMBERS = Stage(
    "numbers", "counts", NumbersParams, lambda params: {"train": "split", "test": "split"}, numbers, libraries=()
)
LEARN = Stage("learn", "learns", LearnParams, _one("network", "network"), learn, libraries=("numpy",))
ROUND = Stage("round", "rounds", RoundParams, _one("network", "network"), round_epochs, libraries=())
COMBINE = Stage(
    "combine",
    "combines",
    CombineParams,
    lambda params: {"ensemble": "ensemble", "model": "integer-graph"},
    combine,
    libraries=(),
)
DREAM = Stage("dream", "dreams", DreamParams, _one("samples", "samples"), dream, data_free=True, libraries=())
PACK = Stage("pack", "packs", PackParams, _pack_outputs, pack, libraries=())
CHECK = Stage("check", "checks", CheckParams, lambda params: {}, check, libraries=(), validates=True)
MISCHIEF = Stage("mischief", "misbehaves", MischiefParams, _one("network", "network"), mischief, libraries=())


def registry(module: str) -> Any:
    """Return the registry of these stages, named by the module that they stand in."""
    from kdpipe.stages.registry import StageRegistry

    names = ("learn", "round", "combine", "dream", "pack", "check", "mischief")
    return StageRegistry(
        stages={name: f"{module}:{name.upper()}" for name in names}, sources={"numbers": f"{module}:NUMBERS"}
    )


def main() -> None:
    """Do what `kdpipe run` does, with these stages, in a process of its own."""
    import typer

    from kdpipe.pipeline.cli_words import spread_names
    from kdpipe.pipeline.exit_codes import exit_codes
    from kdpipe.pipeline.run_command import run_command

    words = spread_names(sys.argv[1:])
    chosen = {option: [v for o, v in pairwise(words) if o == option] for option in words}
    # Under the name that it has in the test's process: it is part of the key.
    module = Path(__file__).stem
    sys.modules[module] = sys.modules["__main__"]
    try:
        with exit_codes("--debug" in words):
            raise typer.Exit(
                run_command(
                    Path(words[0]),
                    chosen.get("--set", []),
                    out=Path(chosen["--out"][-1]) if "--out" in chosen else None,
                    only=chosen.get("--only", []),
                    force=chosen.get("--force", []),
                    store=Path(chosen["--store"][-1]) if "--store" in chosen else None,
                    debug="--debug" in words,
                    stages=registry(module),
                )
            )
    except typer.Exit as done:
        sys.exit(done.exit_code)


if __name__ == "__main__":
    main()
