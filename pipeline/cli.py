"""The commands. Everything heavy is imported by the command that needs it, so that `kdpipe --help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kdpipe.pipeline.cli_options import (
    AccuracyLimit,
    BaselineOption,
    BenchLogsOption,
    BenchOption,
    BoardOption,
    BoardsOption,
    ClockOption,
    CoreOption,
    DataOption,
    DebugOption,
    DeviceOption,
    FlashLimit,
    ForceOption,
    IoOption,
    JsonOption,
    LatencyLimit,
    LayoutOption,
    Listing,
    MaxStepsOption,
    OnlyOption,
    OptimizeOption,
    OutOption,
    PipelineFile,
    RamLimit,
    ReferenceOption,
    SamplesOption,
    SetOption,
    StoreOption,
    Target,
    WaitStateOption,
    WeightsOption,
    WorkersOption,
)
from kdpipe.pipeline.cli_words import spread_names
from kdpipe.pipeline.exit_codes import GATE_FAILED, exit_codes

app = typer.Typer(
    name="kdpipe",
    help="From large trained networks, with or without their data, to verified 2-bit networks on a microcontroller.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line: the entry point of `kdpipe`."""
    app(args=spread_names(sys.argv[1:]), prog_name="kdpipe")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"kdpipe {version('kdpipe')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From large trained networks, with or without their data, to verified 2-bit networks on a microcontroller."""


@app.command()
def run(
    file: PipelineFile,
    overrides: SetOption = None,
    out: OutOption = None,
    only: OnlyOption = None,
    force: ForceOption = None,
    store: StoreOption = None,
    debug: DebugOption = False,
) -> None:
    """Run a pipeline: whatever the store does not hold yet.

    Exit codes: 0 all passed, 1 a gate failed, 2 the file or the command line is wrong, 3 a stage failed,
    130 interrupted.
    """
    with exit_codes(debug):
        from kdpipe.pipeline.run_command import run_command

        raise typer.Exit(
            run_command(file, overrides or [], out=out, only=only or [], force=force or [], store=store, debug=debug)
        )


@app.command()
def plan(
    file: PipelineFile,
    overrides: SetOption = None,
    only: OnlyOption = None,
    force: ForceOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what would run, what is cached, and why. Runs nothing."""
    with exit_codes(debug):
        from kdpipe.pipeline.plan import make_plan
        from kdpipe.pipeline.spec_file import load_spec
        from kdpipe.pipeline.store import Store, default_root
        from kdpipe.pipeline.tables import print_json, print_plan

        spec = load_spec(file, overrides or [])
        steps = make_plan(spec, Store(store or default_root()), only or [], force or [])
        if as_json:
            print_json(
                [
                    {
                        "name": step.stage.name,
                        "uses": step.stage.uses,
                        "status": "cached" if step.entry else "run",
                        "key": step.key,
                        "reasons": list(step.reasons),
                    }
                    for step in steps
                ]
            )
        else:
            print_plan(steps, spec.matrix)


@app.command()
def export(
    target: Annotated[Target, typer.Argument(help="The format.")],
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A quantized model: runs/NAME/model, or a QDQ ONNX file.")
    ],
    directory: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the files go.")],
    core: CoreOption = None,
    weights: WeightsOption = None,
    io: IoOption = None,
    layout: LayoutOption = None,
    optimize: OptimizeOption = None,
    bench: BenchOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a quantized model for one target."""
    with exit_codes(debug):
        require_model(model, "MODEL")
        from kdpipe.pipeline.tables import print_export
        from kdpipe.stages.export import export_graph

        options = {"core": core, "weights": weights, "io": io, "layout": layout, "optimize": optimize}
        chosen = {name: choice.value for name, choice in options.items() if choice is not None}
        if bench:
            chosen["bench"] = "cycles"
        print_export(directory, export_graph(model, target.value, directory, chosen))


@app.command()
def validate(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An exported model, or a quantized one.")],
    data: DataOption,
    device: DeviceOption = None,
    board: BoardOption = None,
    boards: BoardsOption = None,
    clock_mhz: ClockOption = None,
    wait_state_factor: WaitStateOption = None,
    reference: ReferenceOption = None,
    baseline: BaselineOption = None,
    samples: SamplesOption = None,
    workers: WorkersOption = 1,
    flash_kib: FlashLimit = None,
    ram_kib: RamLimit = None,
    latency_ms: LatencyLimit = None,
    accuracy: AccuracyLimit = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run one artifact on one device, and say how accurate, large and fast it is."""
    with exit_codes(debug):
        require_directory(artifact, "ARTIFACT", "Give the directory of an export, such as runs/NAME/export/c")
        if reference is not None:
            require_model(reference, "--reference")
        if baseline is not None:
            require_directory(baseline, "--baseline", "Give the directory of a model, such as runs/NAME/model")
        from kdpipe.pipeline.data_source import split_directory
        from kdpipe.pipeline.store import Store, default_root
        from kdpipe.pipeline.validate_command import validate_and_print
        from kdpipe.stages.device_choice import choose_device

        limits = {"flash_kib": flash_kib, "ram_kib": ram_kib, "latency_ms": latency_ms, "accuracy": accuracy}
        passed = validate_and_print(
            artifact,
            choose_device(device, board=board, boards=boards, clock_mhz=clock_mhz, wait_state_factor=wait_state_factor),
            split=split_directory(data, Store(store or default_root())),
            reference=reference,
            baseline=baseline,
            samples=samples,
            workers=workers,
            limits={name: limit for name, limit in limits.items() if limit is not None},
            as_json=as_json,
        )
        if not passed:
            raise typer.Exit(GATE_FAILED)


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="An export, a quantized model, or a network.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another form of the same network.")],
    data: DataOption,
    device: Annotated[str, typer.Option("--device", help="Where to run B: see `kdpipe ls devices`.")] = "host",
    first_device: Annotated[str, typer.Option("--device-a", help="Where to run A.")] = "host",
    samples: SamplesOption = None,
    max_steps: MaxStepsOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare two artifacts layer by layer, and name the first layer that diverges.

    Exit codes: 0 every layer is within the limit, 1 a layer diverges, 2 the command line is wrong, 3 something failed.
    """
    with exit_codes(debug):
        for path, where in ((first, "A"), (second, "B")):
            require_model(path, where)
        from kdpipe.pipeline.data_source import split_directory
        from kdpipe.pipeline.diff_command import diff_and_print
        from kdpipe.pipeline.store import Store, default_root

        within_limit = diff_and_print(
            first,
            second,
            split=split_directory(data, Store(store or default_root())),
            devices=(first_device, device),
            samples=samples,
            max_steps=max_steps,
            as_json=as_json,
        )
        if not within_limit:
            raise typer.Exit(GATE_FAILED)


@app.command()
def clean(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="The pipelines whose artifacts stay.")],
    delete: Annotated[bool, typer.Option("--delete", help="Remove it. Without, it is only counted.")] = False,
    store: StoreOption = None,
    debug: DebugOption = False,
) -> None:
    """Remove from the store what none of these pipelines needs, such as the artifacts of earlier parameters."""
    with exit_codes(debug):
        from kdpipe.pipeline.clean_command import plan_cleaning
        from kdpipe.pipeline.store import Store, default_root
        from kdpipe.pipeline.tables import print_cleaning

        opened = Store(store or default_root())
        cleaning = plan_cleaning(files, opened)
        if delete:
            opened.clean()
            opened.remove(cleaning.removed)
        print_cleaning(cleaning, done=delete)


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder: runs/NAME.")],
    bench: BenchLogsOption = None,
) -> None:
    """Rebuild report.html and junit.xml from report.json, and print the summary."""
    with exit_codes():
        require_directory(directory, "DIR", "Give the folder of a run, such as runs/NAME")
        from kdpipe.pipeline.board_figures import add_bench, split_bench_option
        from kdpipe.pipeline.output import write_pages, write_report
        from kdpipe.pipeline.report_json import read_report
        from kdpipe.pipeline.tables import print_report

        content = read_report(directory)
        for option in bench or ():
            content = add_bench(content, *split_bench_option(option))
        (write_report if bench else write_pages)(content, directory)
        print_report(content, directory)


@app.command("ls")
def list_known(
    what: Annotated[Listing, typer.Argument(help="What to list.")],
    as_json: JsonOption = False,
) -> None:
    """List what a pipeline file can name."""
    with exit_codes():
        from kdpipe.pipeline.listing import LISTINGS
        from kdpipe.pipeline.tables import print_json, print_rows

        rows: list[dict[str, Any]] = list(LISTINGS[what.value]())
        if as_json:
            print_json(rows)
        else:
            print_rows(rows)


@app.command()
def schema() -> None:
    """Print the JSON schema of pipeline files, for editors."""
    with exit_codes():
        from kdpipe.pipeline.json_schema import pipeline_schema
        from kdpipe.pipeline.tables import print_json

        print_json(pipeline_schema())


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say which runtimes, compilers and emulators are here, and how to get the missing ones."""
    with exit_codes():
        from dataclasses import asdict

        from kdpipe.pipeline.doctor import examine
        from kdpipe.pipeline.tables import print_findings, print_json

        findings = list(examine())
        if as_json:
            print_json([asdict(finding) for finding in findings])
        else:
            print_findings(findings)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")] = Path("pipeline.yaml"),
) -> None:
    """Write a commented pipeline.yaml: the default pipeline. An existing file is never overwritten."""
    with exit_codes():
        from kdpipe.pipeline.default_pipeline import write_default_pipeline

        write_default_pipeline(file)
        typer.echo(f"Wrote {file}. Next: kdpipe run {file}")


def require_model(path: Path, where: str) -> None:
    """Check a quantized model that the command line names: a directory, or an ONNX file.

    Raises:
        UsageError: it is not there, or is another file.
    """
    from kdpipe.targets.errors import UsageError

    remedy = "Give the directory of a quantized model, such as runs/NAME/model, or a QDQ ONNX file"
    if is_there(path, where) and path.is_file():
        if path.suffix.lower() != ".onnx":
            raise UsageError(f"{path} is neither a directory nor an .onnx file", where=where, remedy=remedy)
    else:
        require_directory(path, where, remedy)


def require_directory(path: Path, where: str, remedy: str) -> None:
    """Check a directory that the command line names.

    Raises:
        UsageError: it is not there.
    """
    from kdpipe.targets.errors import UsageError

    if not (is_there(path, where) and path.is_dir()):
        raise UsageError(f"no such directory: {path}", where=where, remedy=remedy)


def is_there(path: Path, where: str) -> bool:
    """Return whether a path that the command line names leads to something.

    Raises:
        UsageError: nobody can tell: its name is too long, or it lies in a folder that may not be read.
    """
    from kdpipe.targets.errors import UsageError

    try:
        return path.exists()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", where=where, remedy="Give another path") from None


if __name__ == "__main__":
    main()
