"""What a run shows while it runs: a live display on a terminal, plain lines elsewhere. Both read the events alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from kdpipe.pipeline import events
from kdpipe.pipeline.report.document import printable
from kdpipe.pipeline.report.formatting import duration, figure, percent, plural
from kdpipe.pipeline.report.gates import sentence

PLAIN_INTERVAL = 5.0
MOST_METRICS = 4
_FIRST_METRICS = ("accuracy", "validation_accuracy", "test_accuracy", "top1_agreement", "agreement")
_SIGNS = {"done": "✓", "cached": "=", "failed": "✗", "skipped": "-", "warning": "!", "separator": "·"}
_ASCII_SIGNS = {"done": "+", "cached": "=", "failed": "x", "skipped": "-", "warning": "!", "separator": "-"}
_STYLES = {"done": "green", "cached": "blue", "failed": "bold red", "skipped": "dim", "warning": "yellow"}

Clock = Callable[[], float]


@dataclass
class Running:
    """A stage that is running now.

    Args:
        name: as in pipeline.yaml.
        started: when, in seconds since the epoch.
        first: its first progress, from which its pace is measured: what came before was set-up.
        latest: its latest progress.
        shown: when it last had a plain line.
    """

    name: str
    started: float
    first: events.StageProgress | None = None
    latest: events.StageProgress | None = None
    shown: float = 0.0

    def take(self, step: events.StageProgress) -> None:
        """Take note of progress; a new total or unit, or going backwards, starts a new measurement of the pace."""
        last = self.latest
        if last is None or (step.total, step.unit) != (last.total, last.unit) or step.done < last.done:
            self.first = step
        self.latest = step

    def time_left(self, now: float) -> float | None:
        """Return the seconds that the rest takes at the pace so far, or None before there is a pace."""
        first, step = self.first, self.latest
        if first is None or step is None or step.done <= first.done:
            return None
        pace = max(0.0, step.at - first.at) / (step.done - first.done)
        return max(0.0, pace * (step.total - step.done) - (now - step.at))


@dataclass
class State:
    """What the events so far add up to."""

    planned: int = 0
    closed: int = 0
    started: float = 0.0
    gates: list[bool] = field(default_factory=list)
    running: dict[str, Running] = field(default_factory=dict)
    names: int = 12


@contextmanager
def progress_sink(console: Console, clock: Clock = time.time) -> Iterator[events.Sink]:
    """Show a run on `console` until the context is left; the value is the sink to hand the events to.

    On a terminal, finished stages stay as lines and below them the running one is redrawn in place: its progress,
    its latest metrics, the time left. Elsewhere each event of weight is a line, and progress is a line at most every
    few seconds a stage.

    A run does not end because its console does: see `falling_silent`.
    """
    state = State()
    if not console.is_terminal or console.is_dumb_terminal:
        yield _enduring(lambda event: _plain(event, state, console), console)
        return
    view = Live(
        get_renderable=lambda: _live(state, console, clock()),
        console=console,
        refresh_per_second=8,
        transient=True,
    )
    with view:
        yield _enduring(lambda event: _lines(event, state, console), console)


def _enduring(show: events.Sink, console: Console) -> events.Sink:
    def take(event: events.Event) -> None:
        with falling_silent(console):
            show(event)

    return take


@contextmanager
def falling_silent(console: Console) -> Iterator[None]:
    """Let a console print nothing any more once it can't: its reader has gone, or its disk is full."""
    try:
        yield
    except (OSError, SystemExit):  # rich turns a broken pipe into SystemExit
        console.quiet = True
        # What its file still holds must not fail when the process ends.
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, console.file.fileno())
            os.close(null)


def _plain(event: events.Event, state: State, console: Console) -> None:
    """Take one event on a console that is no terminal."""
    _lines(event, state, console)
    if isinstance(event, events.StageStarted):
        _print(console, Text(f"{event.stage}: started" + _because(event.reasons)))
    elif isinstance(event, events.StageProgress) and (run := state.running.get(event.stage)):
        if event.at - run.shown < PLAIN_INTERVAL:
            return
        run.shown = event.at
        parts = [f"{event.unit} {event.done} of {event.total}", *_metrics(event.metrics)]
        left = run.time_left(event.at)
        if left is not None and event.done < event.total:
            parts.append(f"{_whole(left)} left")
        _print(console, Text(f"{event.stage}: " + ", ".join(parts)))


def _lines(event: events.Event, state: State, console: Console) -> None:
    """Take one event: change the state and print what is to stay."""
    match event:
        case events.RunStarted():
            state.planned, state.started = len(event.stages), event.at
            state.names = min(30, max([len(stage.name) for stage in event.stages], default=0))
            cached = sum(stage.cached for stage in event.stages)
            words = f"{event.pipeline}: {plural(len(event.stages), 'stage')}" + (f", {cached} cached" if cached else "")
            words += f"; {event.matrix}" if event.matrix else ""
            _print(console, Text(words, style="bold"))
        case events.RunLogged():
            if event.level != "info":
                _stay(console, "failed" if event.level == "error" else "warning", event.message)
        case events.StageStarted():
            state.running[event.stage] = Running(event.stage, event.at, shown=event.at)
        case events.StageProgress():
            if run := state.running.get(event.stage):
                run.take(event)
        case events.StageFinished():
            _close(event, state)
            _stay(console, "done", _row(event.stage, event.seconds, event.metrics, state))
        case events.StageCached():
            _close(event, state)
            _stay(console, "cached", _row(event.stage, None, event.metrics, state))
        case events.StageFailed():
            _close(event, state)
            _stay(console, "failed", f"{event.stage} failed after {duration(event.seconds)}: {event.message}")
        case events.StageInterrupted():
            _close(event, state)
            _stay(console, "failed", f"{event.stage} was interrupted after {duration(event.seconds)}")
        case events.StageSkipped():
            _close(event, state)
            _stay(console, "skipped", f"{event.stage} skipped: {event.because}")
        case events.GateEvaluated():
            state.gates.append(event.passed)
            if not event.passed:
                told = sentence(event.stage, event.gate, event.limit, event.value, event.reason)
                if console.options.ascii_only:
                    told = told.replace("≥", ">=").replace("≤", "<=")
                _stay(console, "failed", told)
        case events.CellFinished():
            _stay(console, "failed" if event.problems else "done", _cell(event))
        case events.RunFinished():
            state.running.clear()
            _print(console, _summary(event, state))


def _cell(event: events.CellFinished) -> str:
    """Return the line of a finished cell: its values, and its figures or what went wrong."""
    where = ", ".join(f"{axis} {label}" for axis, label in event.coordinates.items())
    told = ", ".join(event.problems or _named_metrics(event.figures)) or "no figures"
    return f"cell {event.done} of {event.total}: {where}: {told}"


def _named_metrics(figures: Mapping[str, float]) -> list[str]:
    """Return the figures of a cell, each after its stage's name."""
    split = [(*name.partition("."), value) for name, value in figures.items()]
    return [f"{stage} {_metric(name, value)}" for stage, _, name, value in split]


def _close(event: events.StageEvent, state: State) -> None:
    state.running.pop(event.stage, None)
    state.closed += 1


def _row(stage: str, seconds: float | None, metrics: Mapping[str, Any], state: State) -> str:
    """Return the line of a finished stage: name, time, main metric."""
    when = "cached" if seconds is None else duration(seconds)
    return f"{stage:<{state.names}}  {when:>12}  {main_metric(metrics)}".rstrip()


def main_metric(metrics: Mapping[str, Any]) -> str:
    """Return the metric that says most about a finished stage: an accuracy, or else the first number.

    >>> main_metric({"loss": 0.25, "validation_accuracy": 0.9875})
    'validation accuracy 98.8 %'
    """
    numbers = {name: value for name, value in metrics.items() if _is_number(value)}
    name = next((name for name in _FIRST_METRICS if name in numbers), next(iter(numbers), None))
    return "" if name is None else _metric(name, numbers[name])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _metric(name: str, value: float) -> str:
    fraction = name.endswith(("accuracy", "agreement")) and 0 <= value <= 1
    return f"{name.replace('_', ' ')} {percent(value) if fraction else figure(float(value))}"


def _metrics(metrics: Mapping[str, float]) -> list[str]:
    return [_metric(name, value) for name, value in list(metrics.items())[:MOST_METRICS] if _is_number(value)]


def _because(reasons: tuple[str, ...]) -> str:
    return f" ({'; '.join(reasons)})" if reasons else ""


def _summary(event: events.RunFinished, state: State) -> Text:
    """Return the last line: status, counts, gates, time."""
    counts = ", ".join(f"{number} {status}" for status, number in event.counts.items() if number)
    parts = [counts] if counts else []
    if state.gates:
        parts.append(f"{sum(state.gates)} of {len(state.gates)} gates hold")
    parts.append(duration(event.seconds))
    style = "bold green" if event.status == "passed" else "bold red"
    return Text(f"{event.status}: {', '.join(parts)}", style=style)


def _print(console: Console, text: Text) -> None:
    """Print one line without markup, highlighting or control characters."""
    text.plain = _encodable(printable(text.plain), console)
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _encodable(text: str, console: Console) -> str:
    """Replace what the console's encoding lacks, rather than fail on it."""
    try:
        return text.encode(console.encoding, "replace").decode(console.encoding)
    except LookupError:
        return text


def _stay(console: Console, kind: str, message: str) -> None:
    """Print a line that starts with a sign."""
    sign = (_ASCII_SIGNS if console.options.ascii_only else _SIGNS)[kind]
    style = _STYLES[kind]
    loud = kind in {"failed", "skipped", "warning"}
    _print(console, Text.assemble((sign, style), (f" {message}", style if loud else "")))


def _live(state: State, console: Console, now: float) -> Group:
    """Return the part of the display that is redrawn: the running stages and the whole run."""
    rows: list[Any] = []
    dot = (_ASCII_SIGNS if console.options.ascii_only else _SIGNS)["separator"]
    for run in state.running.values():
        rows += _running(run, state, console, now, dot)
    if state.planned and state.closed < state.planned:
        place = f"stage {min(state.closed + 1, state.planned)} of {state.planned}"
        rows.append(Text(f"  {place} {dot} {_whole(max(0.0, now - state.started))}", style="dim"))
    return Group(*rows)


def _running(run: Running, state: State, console: Console, now: float, dot: str) -> list[Any]:
    """Return the lines of one running stage: bar, count and time left; under it the latest metrics."""
    step = run.latest
    grid = Table.grid(padding=(0, 1), expand=False)
    name = Text(_encodable(printable(run.name), console), style="bold", no_wrap=True, overflow="ellipsis")
    for _ in range(2):
        grid.add_column(no_wrap=True)
    spinner = Spinner("line" if console.options.ascii_only else "dots", style="cyan")
    spinner.start_time = 0.0  # so that the frame depends on the time alone
    if step is None or step.total <= 0:
        grid.add_column(no_wrap=True)
        grid.add_row(spinner, name, Text(duration(max(0.0, now - run.started)), style="dim"))
        return [grid]
    for _ in range(3):
        grid.add_column(no_wrap=True)
    left = run.time_left(now)
    bar = ProgressBar(total=step.total, completed=min(step.done, step.total), width=max(8, min(32, console.width // 4)))
    remaining = f"{dot} {_whole(left)} left" if left is not None and step.done < step.total else ""
    grid.add_row(spinner, name, bar, Text(f"{step.unit} {step.done}/{step.total}"), Text(remaining, style="dim"))
    metrics = f" {dot} ".join(_metrics(step.metrics))
    if not metrics:
        return [grid]
    return [grid, Text(f"  {_encodable(printable(metrics), console)}", style="dim", no_wrap=True, overflow="ellipsis")]


def _whole(seconds: float) -> str:
    """Return a time left in whole seconds, so that it does not flicker.

    >>> _whole(4.3), _whole(75.2)
    ('4 s', '1 min 15 s')
    """
    return f"{round(seconds)} s" if seconds < 59.5 else duration(round(seconds))
