"""A run that is killed in the middle of a stage, in a process of its own.

It is killed at the same point each time: when a loop's second state is written and about to take the first one's place.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

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
    "reconstruction": {
        "uses": "reconstruction",
        "network": "${student.network}",
        "teachers": "${teachers.ensemble}",
        "samples": "${data.digits.train}",
        "epochs": 3,
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
    ("reconstruction", "translator-1"),
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
    return {
        **quick,
        **({"student": STUDENT} if killed in ("quantize", "reconstruction") else {}),
        "killed": STAGES[killed],
    }


KILLER = """
import os
import signal
import sys

moves = []


def watch(event, arguments):
    if event == "os.rename" and os.path.basename(arguments[1]) == {state!r}:
        moves.append(event)
        if len(moves) == 2:
            os.killpg(0, signal.SIGKILL)


sys.addaudithook(watch)
"""


def run(folder, store, killed, loop=None):
    """Run the pipeline, and return its exit code and what it said; with a loop, it dies in that."""
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
    path = os.environ.get("PYTHONPATH", "")
    if loop is not None:
        # Python imports it when it starts, in the processes that share a training too
        (folder / "killer").mkdir()
        (folder / "killer" / "sitecustomize.py").write_text(KILLER.format(state=f"{loop}.state"))
        path = os.pathsep.join([str(folder / "killer"), path])
    done = subprocess.run(
        [*command, "--store", str(store)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        start_new_session=True,  # a group of its own, that dies as a whole
        check=False,
    )
    return done.returncode, done.stdout


def finish(folder, store, killed):
    code, said = run(folder, store, killed)
    assert code == 0, said
    return [json.loads(line) for line in (folder / "runs" / "killed" / "log.jsonl").read_text().splitlines()]


def results(store):
    """By kind of stage, what each came to: its outputs' digests, and its figures."""
    found = {}
    for path in store.glob("executions/*/*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        digests = {name: output["digest"] for name, output in manifest["outputs"].items()}
        found.setdefault(manifest["parts"]["uses"], []).append([digests, manifest["metrics"], manifest["history"]])
    return {uses: sorted(outputs, key=str) for uses, outputs in found.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """By stage, the results of an uninterrupted run."""
    found = {}

    def uninterrupted(killed):
        if killed not in found:
            folder = tmp_path_factory.mktemp(killed)
            finish(folder, folder / "store", killed)
            found[killed] = results(folder / "store")
        return found[killed]

    return uninterrupted


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("killed", "loop"), LOOPS)
def test_a_killed_run_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path, whole, killed, loop):
    expected = whole(killed)
    code, said = run(tmp_path, tmp_path / "store", killed, loop)
    assert code == -signal.SIGKILL, said
    assert sum(map(len, results(tmp_path / "store").values())) == sum(map(len, expected.values())) - 1
    events = finish(tmp_path, tmp_path / "store", killed)
    first = next(event for event in events if event["event"] == "StageProgress")
    assert first["done"] > 0
    assert results(tmp_path / "store") == expected
    assert not list((tmp_path / "store" / "scratch").iterdir())
