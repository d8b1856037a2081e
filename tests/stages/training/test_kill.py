"""A run that is killed in the middle of a stage, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

TEACHERS = {
    "uses": "teacher-ensemble",
    "train": "${data.digits.train}",
    "members": [{"model": "cnn"}, {"model": "resnet", "depth": 8, "width": 4}],
    "epochs": 8,
}
SMALL = {"model": "cnn", "channels": [4, 6]}
STAGES = {
    "data-free-distill": {
        "uses": "data-free-distill",
        "teachers": "${teachers.ensemble}",
        "model": SMALL,
        "synthesis": {"method": "fast", "batch_size": 32, "channels": 8, "warm_up": 2},
        "epochs": 8,
        "iterations": 5,
        "count": 50,
        "collapse_below": 0,
    },
    "synthesize": {
        "uses": "synthesize",
        "teachers": "${teachers.ensemble}",
        "iterations": 400,
        "count": 400,
        "batch_size": 16,
        "channels": 4,
        "keep_from": 0,
        "collapse_below": 0,
    },
    "distill": {
        "uses": "distill",
        "teachers": "${teachers.ensemble}",
        "samples": "${data.digits.train}",
        "model": SMALL,
        "losses": {
            "kd": {},
            "feed": {"paraphraser": True, "paraphraser_epochs": 2, "reconstruction": 0.99},
            "crd": {"negatives": 16},
            "random-teacher": {},
        },
        "generations": 2,
        "epochs": 6,
    },
    "mutual": {"uses": "mutual", "samples": "${data.digits.train}", "members": [SMALL, SMALL], "epochs": 8},
    "shared": {
        "uses": "mutual",
        "samples": "${data.digits.train}",
        "members": [SMALL, SMALL],
        "epochs": 8,
        "processes": 2,
    },
    "quantize": {
        "uses": "quantize",
        "network": "${student.network}",
        "samples": "${data.digits.train}",
        "teachers": "${teachers.ensemble}",
        "losses": {"kd": {}, "speq": {}},
        "activation_bits": 3,
        "progressive": [8, 4, 3],
        "progressive_epochs": 3,
        "epochs": 4,
    },
}
STUDENT = {**STAGES["distill"], "losses": {"ce": {}}, "generations": 1, "epochs": 1}

LOOPS = [  # what is killed, and the loop in it
    ("teachers", "teacher-1"),
    ("data-free-distill", "student"),
    ("synthesize", "generator"),
    ("distill", "student-0"),
    ("distill", "student-1"),
    ("mutual", "members"),
    ("shared", "members"),
    ("quantize", "quantized-8"),
    ("quantize", "quantized-4"),
    ("quantize", "quantized-3"),
    ("quantize", "quantized"),
]


def stages(killed):
    if killed == "teachers":
        return {"teachers": TEACHERS}
    if killed in ("mutual", "shared"):
        return {"killed": STAGES[killed]}
    quick = {"teachers": {**TEACHERS, "epochs": 1}}
    return {**quick, **({"student": STUDENT} if killed == "quantize" else {}), "killed": STAGES[killed]}


def start(folder, store, killed):
    document = {
        "kdpipe": 1,
        "name": "killed",
        "accelerator": "cpu",
        "threads": 1,
        "data": {"digits": {"uses": "digits"}},
        "stages": stages(killed),
    }
    (folder / "pipeline.yaml").write_text(json.dumps(document))
    command = [sys.executable, "-c", "from kdpipe.pipeline.cli import main; main()", "run", "pipeline.yaml"]
    return subprocess.Popen(
        [*command, "--store", str(store)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(folder, store, killed):
    run = start(folder, store, killed)
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 0, said
    return [json.loads(line) for line in (folder / "runs" / "killed" / "log.jsonl").read_text().splitlines()]


def digests(store):
    """By kind of stage, the digests of its outputs."""
    found = {}
    for path in store.glob("executions/*/*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        found.setdefault(manifest["parts"]["uses"], []).append(
            {name: out["digest"] for name, out in manifest["outputs"].items()}
        )
    return {uses: sorted(outputs, key=str) for uses, outputs in found.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """By stage, the digests of an uninterrupted run."""
    found = {}

    def run(killed):
        if killed not in found:
            folder = tmp_path_factory.mktemp(killed)
            finish(folder, folder / "store", killed)
            found[killed] = digests(folder / "store")
        return found[killed]

    return run


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("killed", "loop"), LOOPS)
def test_a_killed_run_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path, whole, killed, loop):
    expected = whole(killed)
    run = start(tmp_path, tmp_path / "store", killed)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob(f"store/scratch/*/{loop}.state")):
        assert run.poll() is None, run.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    run.kill()
    run.communicate(timeout=60)
    assert sum(map(len, digests(tmp_path / "store").values())) == sum(map(len, expected.values())) - 1
    events = finish(tmp_path, tmp_path / "store", killed)
    first = next(event for event in events if event["event"] == "StageProgress")
    assert first["done"] > 0
    assert digests(tmp_path / "store") == expected
    assert not list((tmp_path / "store" / "scratch").iterdir())
