import errno
import io

import pytest
from rich.console import Console

from kdpipe.pipeline import events
from kdpipe.pipeline.progress import PLAIN_INTERVAL, Running, main_metric, progress_sink


class Screen:
    """A console that records what it is sent, and a clock set by hand."""

    def __init__(self, terminal, encoding="utf-8", width=100):
        self.bytes = io.BytesIO()
        file = io.TextIOWrapper(self.bytes, encoding=encoding, errors="strict", write_through=True)
        self.console = Console(file=file, force_terminal=terminal, width=width, _environ={"TERM": "xterm"})
        self.encoding = encoding
        self.now = 0.0

    def clock(self):
        return self.now

    def show(self, *items):
        with progress_sink(self.console, clock=self.clock) as sink:
            for item in items:
                self.now = item.at
                sink(item)
        return self.text()

    def text(self):
        return self.bytes.getvalue().decode(self.encoding)


def started(*names, cached=()):
    stages = tuple(events.PlannedStage(name, "distill", name in cached) for name in names)
    return events.RunStarted(at=0.0, pipeline="digits", out="runs/digits", stages=stages)


def epochs(stage, count, every=1.0, start=0.0):
    yield events.StageStarted(at=start, stage=stage, uses="distill", key="k", reasons=("seed changed",))
    for epoch in range(1, count + 1):
        yield events.StageProgress(
            at=start + every * epoch, stage=stage, done=epoch, total=count, metrics={"loss": 1 / epoch, "accuracy": 0.9}
        )


def test_plain_lines_name_stage_epoch_metrics_and_time_left():
    lines = Screen(terminal=False).show(started("student"), *epochs("student", 20)).splitlines()
    assert lines[0] == "digits: 1 stage"
    assert lines[1] == "student: started (seed changed)"
    assert lines[2] == "student: epoch 5 of 20, loss 0.2, accuracy 90.0 %, 15 s left"
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_console_that_fails_once_is_silent_from_then_on(terminal):
    screen = Screen(terminal=terminal)
    console = screen.console
    taken = []

    def full(text):
        taken.append(text)
        raise OSError(errno.ENOSPC, "No space left on device")

    with progress_sink(console, clock=screen.clock) as sink:
        console.file.write = full
        for event in [started("student"), *epochs("student", 20)]:
            sink(event)
    assert len(taken) == 1


def test_plain_progress_is_throttled_to_one_line_in_an_interval():
    lines = Screen(terminal=False).show(started("student"), *epochs("student", 1000, every=0.01)).splitlines()
    progress = [line for line in lines if " of 1000" in line]
    assert len(progress) == int(10 / PLAIN_INTERVAL)


def test_two_stages_are_throttled_apart():
    mixed = sorted([*epochs("a", 10), *epochs("b", 10, start=0.5)], key=lambda event: event.at)
    lines = Screen(terminal=False).show(started("a", "b"), *mixed).splitlines()
    assert [line.split(":")[0] for line in lines if " of 10" in line] == ["a", "b", "a", "b"]


def test_outcomes_are_lines_with_time_metric_cause_and_gate():
    text = Screen(terminal=False).show(
        started("data.digits", "teachers", "samples", "student", "mcu", cached=["data.digits"]),
        events.StageCached(at=0.0, stage="data.digits", key="k", seconds=3.0),
        events.StageFinished(at=1.0, stage="teachers", key="k", seconds=75.0, metrics={"accuracy": 0.9875}),
        events.StageFailed(at=2.0, stage="samples", message="the generator collapsed", seconds=1.5),
        events.StageSkipped(at=2.0, stage="student", because="samples failed"),
        events.GateEvaluated(at=3.0, stage="mcu", gate="accuracy_drop", limit=0.02, value=0.031, passed=False),
        events.GateEvaluated(at=3.0, stage="mcu", gate="flash_kib", limit=64, value=20, passed=True),
        events.RunFinished(at=4.0, status="failed", seconds=4.0, out="r", counts={"ran": 1, "failed": 1, "skipped": 0}),
    )
    assert "= data.digits" in text
    assert "cached" in text
    assert "✓ teachers       1 min 15 s  accuracy 98.8 %" in text
    assert "✗ samples failed after 1.50 s: the generator collapsed" in text
    assert "- student skipped: samples failed" in text
    assert "✗ mcu: accuracy_drop is 3.10 points, the limit is ≤ 2.00 points" in text
    assert "flash_kib" not in text
    assert "failed: 1 ran, 1 failed, 1 of 2 gates hold, 4.00 s" in text


def test_terminal_redraws_the_running_stage_and_keeps_finished_ones():
    screen = Screen(terminal=True)
    steps = list(epochs("student", 10))
    with progress_sink(screen.console, clock=screen.clock) as sink:
        sink(started("student", "mcu"))
        for event in steps[:5]:
            screen.now = event.at
            sink(event)
        screen.console._live_stack[-1].refresh()
        during = screen.text()
        sink(events.StageFinished(at=10.0, stage="student", key="k", seconds=10.0, metrics={"accuracy": 0.95}))
        sink(events.RunFinished(at=11.0, status="passed", seconds=11.0, out="r", counts={"ran": 1}))
    assert "epoch 4/10" in during
    assert "6 s left" in during
    assert "accuracy 90.0 %" in during
    assert "stage 1 of 2" in during
    after = screen.text()[len(during) :]
    assert "\x1b[2K" in after, "the redrawn lines are erased"
    assert "accuracy 95.0 %" in after
    assert after.count("\x1b[?25h") == 1, "the cursor is shown again"


def test_terminal_is_restored_after_an_exception():
    screen = Screen(terminal=True)

    def interrupt():
        with progress_sink(screen.console) as sink:
            sink(started("student"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert "\x1b[?25h" in screen.text()


def test_dumb_terminal_gets_plain_lines():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, color_system=None, _environ={"TERM": "dumb"})
    with progress_sink(console) as sink:
        sink(started("student"))
        sink(events.StageStarted(at=0.0, stage="student", uses="distill", key="k"))
    assert "student: started" in file.getvalue()
    assert "\x1b[?25l" not in file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_hostile_names_carry_neither_markup_nor_control_sequences(terminal):
    name = "[red]x[/red]\x1b]0;owned\x07"
    screen = Screen(terminal)
    text = screen.show(
        started(name),
        *epochs(name, 3, every=6.0),
        events.StageFailed(at=20.0, stage=name, message="[link=http://x]boom", seconds=1.0),
    )
    assert "\x1b]0;" not in text
    assert "\x07" not in text
    assert "[red]x[/red]" in text
    assert "[link=http://x]boom" in text


def test_console_without_unicode_gets_ascii_signs():
    text = Screen(terminal=False, encoding="ascii").show(
        started("größe"),
        events.StageFinished(at=1.0, stage="größe", key="k", seconds=1.0, metrics={"accuracy": 0.5}),
        events.GateEvaluated(at=1.0, stage="größe", gate="accuracy", limit=0.9, value=0.5, passed=False),
    )
    assert "+ gr??e" in text
    assert "the limit is >= 90.0 %" in text


def test_time_left_needs_a_pace_and_counts_down():
    run = Running("student", started=0.0)
    assert run.time_left(5.0) is None
    run.take(events.StageProgress(at=10.0, stage="student", done=1, total=11))
    assert run.time_left(10.0) is None, "what came before the first progress was set-up"
    run.take(events.StageProgress(at=20.0, stage="student", done=6, total=11))
    assert run.time_left(20.0) == 10.0
    assert run.time_left(24.0) == 6.0
    assert run.time_left(100.0) == 0.0
    run.take(events.StageProgress(at=30.0, stage="student", done=3, total=200, unit="image"))
    assert run.time_left(30.0) is None, "another unit has another pace"


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({}, ""),
        ({"note": "text", "ok": True}, ""),
        ({"loss": 0.25}, "loss 0.25"),
        ({"loss": 0.25, "accuracy": 0.5}, "accuracy 50.0 %"),
        ({"loss": float("nan")}, "loss nan"),
    ],
)
def test_main_metric(metrics, expected):
    assert main_metric(metrics) == expected


def test_gate_without_a_value_says_why():
    text = Screen(terminal=False).show(
        started("mcu"),
        events.GateEvaluated(
            at=1.0, stage="mcu", gate="latency_ms", limit=1, value=None, passed=False, reason="an emulator has no clock"
        ),
    )
    assert "latency_ms was not measured (an emulator has no clock), the limit is ≤ 1 ms" in text
