"""A run that is killed in the middle of training, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

PIPELINE = """\
kdpipe: 1
name: killed
accelerator: cpu
data: {digits: {uses: digits}}
stages:
  teachers:
    uses: teacher-ensemble
    train: ${data.digits.train}
    members: [{model: cnn}, {model: resnet, depth: 8, width: 4}]
    epochs: 8
  student:
    uses: data-free-distill
    teachers: ${teachers.ensemble}
    model: {model: cnn, channels: [4, 6]}
    synthesis: {method: fast, batch_size: 32, channels: 8, warm_up: 2}
    epochs: 8
    iterations: 5
    count: 50
    collapse_below: 0
"""


def start(folder, store):
    (folder / "pipeline.yaml").write_text(PIPELINE)
    command = [sys.executable, "-c", "from kdpipe.pipeline.cli import main; main()", "run", "pipeline.yaml"]
    return subprocess.Popen(
        [*command, "--store", str(store)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(folder, store):
    run = start(folder, store)
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 0, said
    return [json.loads(line) for line in (folder / "runs" / "killed" / "log.jsonl").read_text().splitlines()]


def digests(store):
    """By stage, the digests of its outputs."""
    found = {}
    for path in store.glob("executions/*/*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        found[manifest["parts"]["uses"]] = {name: out["digest"] for name, out in manifest["outputs"].items()}
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("loop", ["teacher-1", "student"])
def test_a_killed_run_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path, loop):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    finish(whole, whole / "store")
    run = start(broken, broken / "store")
    deadline = time.monotonic() + 120
    while not list(broken.glob(f"store/scratch/*/{loop}.state")):
        assert run.poll() is None, run.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    run.kill()
    run.communicate(timeout=60)
    assert {"teacher-1": 1, "student": 2}[loop] == len(digests(broken / "store"))
    events = finish(broken, broken / "store")
    first = next(event for event in events if event["event"] == "StageProgress")
    assert first["done"] > 0
    assert digests(broken / "store") == digests(whole / "store")
    assert not list((broken / "store" / "scratch").iterdir())
