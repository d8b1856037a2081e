"""Runs that end before their time, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.store import SCRATCH_DAYS

WAITING = """\
kdpipe: 1
name: waiting
data: {digits: {uses: numbers}}
stages:
  first: {uses: learn, data: "${data.digits.train}"}
  slow: {uses: mischief, network: "${first}", how: wait}
  last: {uses: round, network: "${slow}"}
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


def start(toy: Any, how: str = "wait") -> Any:
    """Start the run, and return when its slow stage is under way."""
    toy.write(WAITING.replace("how: wait", f"how: {how}"))
    run = toy.process(start_new_session=True)
    for line in run.stdout:
        if line.strip() == "waiting":
            return run
    raise AssertionError(run.stderr.read())


def statuses(toy: Any) -> dict[str, str]:
    report = json.loads((toy.out / "report.json").read_text())
    return {stage["name"]: stage["status"] for stage in report["stages"]}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_reports_and_the_next_goes_on(toy: Any, number: int, code: int) -> None:
    run = start(toy)
    run.send_signal(number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == code
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert statuses(toy) == {"data.digits": "ran", "first": "ran", "slow": "failed", "last": "skipped"}
    report = json.loads((toy.out / "report.json").read_text())
    assert report["status"] == "failed"
    assert report["interrupted"] is True
    assert (toy.out / "junit.xml").is_file()
    assert list((toy.store.root / "temporary").iterdir()) == []
    assert toy.ran("stages.slow.how=nothing", only=["slow"]) == ["slow"]


def test_a_killed_run_leaves_a_store_that_the_next_goes_on_from(toy: Any) -> None:
    run = start(toy)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=60)
    left = list((toy.store.root / "temporary").iterdir())
    assert len(left) == 2  # the lock and the half-written outputs
    assert toy.ran("stages.slow.how=nothing") == ["slow", "last"]
    assert list((toy.store.root / "temporary").iterdir()) == []


def test_a_killed_stage_finds_its_unfinished_work_again(toy: Any) -> None:
    run = start(toy, "wait once")
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=60)
    (scratch,) = (toy.store.root / "scratch").iterdir()
    assert (scratch / "half").is_file()
    result = toy.run("stages.slow.how=nothing")  # of another key: it never sees that work
    assert [stage.status for stage in result.stages] == ["cached", "cached", "ran", "ran"]
    assert (scratch / "half").is_file()
    (slow,) = [stage for stage in toy.run().stages if stage.stage.name == "slow"]
    assert slow.entry.manifest.metrics == {"half": "done"}
    assert not scratch.exists()


def test_unfinished_work_is_forgotten_by_force_and_with_time(toy: Any) -> None:
    toy.write(WAITING)
    toy.ran("stages.slow.how=nothing")
    key = toy.plan("stages.slow.how=nothing")["slow"].key
    for how in ("forced", "old", "young"):
        scratch = toy.store.scratch(key)
        scratch.mkdir(parents=True)
        (scratch / "half").write_text("done")
        if how == "forced":
            assert toy.ran("stages.slow.how=nothing", force=["slow"]) == ["slow"]
        if how == "old":
            for path in (scratch / "half", scratch):
                os.utime(path, (0, time.time() - 86_400 * (SCRATCH_DAYS + 1)))
        toy.store.clean()
        assert scratch.exists() == (how == "young")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux's limits on the size of files")
def test_a_full_disk_is_said_to_be_full(toy: Any) -> None:
    def limit() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    toy.write(WAITING.replace("wait", "nothing").replace("uses: numbers", "uses: numbers, count: 100000"))
    run = toy.process(preexec_fn=limit)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 3
    assert "the disk is full" in errors
    assert "Traceback" not in errors
    assert toy.ran("data.digits.count=3")[0] == "data.digits"
