from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline import storage
from kdpipe.pipeline.events import RunLogged
from kdpipe.pipeline.file_lock import FileLock
from kdpipe.pipeline.storage import sha256_of_json, storage_errors
from kdpipe.pipeline.store import OUTPUTS, Manifest, Store, check_writable, describe_outputs
from kdpipe.targets.errors import ArtifactError, StorageError

PARTS = {"uses": "toy"}
KEY = sha256_of_json(PARTS)


def publish(store: Store, text: str = "content", **fields: Any) -> Any:
    with store.workplace() as place:
        folder = place / OUTPUTS / "network"
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "weights.bin").write_text(text)
        outputs = describe_outputs(place / OUTPUTS, {"network": "network"})
        return store.publish(place, Manifest(KEY, PARTS, outputs, finished_at=1.0, **fields))


def test_what_is_published_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find(KEY).entry is None
    entry = publish(store, metrics={"accuracy": 0.5})
    found = Store(tmp_path).find(KEY)
    assert found.corrupted == ()
    assert found.entry == entry
    assert (entry.output("network") / "deep" / "weights.bin").read_text() == "content"
    assert entry.manifest.outputs["network"].bytes == 7


def test_published_files_are_read_only(tmp_path: Path) -> None:
    file = publish(Store(tmp_path)).output("network") / "deep" / "weights.bin"
    assert not file.stat().st_mode & stat.S_IWUSR


def test_the_same_content_is_kept_once_and_the_newest_other_counts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = publish(store, seconds=1.0)
    assert publish(store, seconds=2.0) == first
    second = publish(store, "other")
    assert second.directory != first.directory
    assert Store(tmp_path).find(KEY).entry == second
    assert first.directory.is_dir()  # a run that uses it is not disturbed


def test_the_digest_depends_on_kind_names_and_content_only(tmp_path: Path) -> None:
    def digest(kind: str, name: str, text: str) -> str:
        folder = tmp_path / f"{kind}-{name}-{text}"
        (folder / "out").mkdir(parents=True, exist_ok=True)
        (folder / "out" / name).write_text(text)
        return describe_outputs(folder, {"out": kind})["out"].digest

    assert digest("a", "f", "x") == digest("a", "f", "x")
    assert len({digest("a", "f", "x"), digest("b", "f", "x"), digest("a", "g", "x"), digest("a", "f", "y")}) == 4


def corrupt_content(file: Path) -> str:
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    return "its content is not what its hash says"


def corrupt_length(file: Path) -> str:
    file.chmod(0o644)
    with file.open("ab") as stream:
        stream.truncate(3)
    return "3 bytes instead of"


def corrupt_presence(file: Path) -> str:
    file.unlink()
    return "missing"


def corrupt_by_addition(file: Path) -> str:
    file.with_name("stranger").write_text("x")
    return "a file that the stage did not write"


def corrupt_manifest(file: Path) -> str:
    manifest = file.parents[2] / "manifest.json"
    content = json.loads(manifest.read_text())
    content["metrics"] = {"accuracy": 1.0}
    manifest.write_text(json.dumps(content))
    return "manifest.json: its content is not what its checksum says"


def corrupt_syntax(file: Path) -> str:
    (file.parents[2] / "manifest.json").write_text("{")
    return "manifest.json: unreadable"


def corrupt_by_nesting(file: Path) -> str:
    (file.parents[2] / "manifest.json").write_text("[" * 100_000)
    return "manifest.json: unreadable (nested too deeply)"


def corrupt_by_infinity(file: Path) -> str:
    (file.parents[2] / "manifest.json").write_text('{"format": 1, "checksum": "", "seconds": 1e999}')
    return "manifest.json: unreadable"


def corrupt_into_a_directory(file: Path) -> str:
    file.unlink()
    file.mkdir()
    return "missing"


CORRUPTIONS = [
    corrupt_content,
    corrupt_length,
    corrupt_presence,
    corrupt_by_addition,
    corrupt_manifest,
    corrupt_syntax,
    corrupt_by_nesting,
    corrupt_by_infinity,
    corrupt_into_a_directory,
]


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda corrupt: corrupt.__name__)
def test_a_corrupted_artifact_is_reported_and_rebuilt_never_used(toy: Any, corrupt: Any) -> None:
    before = toy.run()
    file = toy.outputs(before, "rounded", "network") / "value.json"
    intact = file.read_text()
    message = corrupt(file)
    reasons = toy.plan()["rounded"].reasons
    assert len(reasons) == 1
    assert "artifact corrupted" in reasons[0]
    assert message in reasons[0]
    again = toy.run()
    assert [result.stage.name for result in again.stages if result.status == "ran"] == ["rounded"]
    assert (toy.outputs(again, "rounded", "network") / "value.json").read_text() == intact
    warnings = [event for event in toy.events if isinstance(event, RunLogged)]
    assert len(warnings) == 1
    assert "rounded: artifact corrupted" in warnings[0].message
    assert toy.ran() == []


def test_what_another_version_wrote_is_not_used_and_stays(toy: Any) -> None:
    toy.run()
    entry = toy.plan()["rounded"].entry
    manifest = entry.directory / "manifest.json"
    later = json.dumps(json.loads(manifest.read_text()) | {"format": 2})
    manifest.write_text(later)
    assert "of format 2, this kdpipe reads 1" in toy.plan()["rounded"].reasons[0]
    assert toy.ran() == ["rounded"]
    assert manifest.read_text() == later
    assert toy.ran() == []


def test_what_was_last_known_of_a_stage_may_be_damaged(toy: Any) -> None:
    toy.run()
    for file in (toy.store.root / "latest" / "toy").iterdir():
        file.write_text("[" * 100_000)
    assert toy.plan("stages.teacher.epochs=4")["teacher"].reasons == ("new",)


def test_an_older_intact_execution_stands_in_for_a_corrupted_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = publish(store)
    corrupt_content(publish(store, "other").output("network") / "deep" / "weights.bin")
    found = Store(tmp_path).find(KEY)
    assert found.entry == first
    assert len(found.corrupted) == 1


def test_corruption_is_seen_by_a_store_that_has_verified_before(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = publish(store).output("network") / "deep" / "weights.bin"
    assert store.find(KEY).entry is not None
    corrupt_content(file)
    assert store.find(KEY).entry is None


def test_an_output_without_files_or_with_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match="wrote no file"):
        describe_outputs(tmp_path, {"out": "network"})
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="neither a file nor a directory"):
        describe_outputs(tmp_path, {"out": "network"})


def test_what_dead_runs_left_is_removed_and_what_living_ones_use_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.workplace() as living:
        (living / "file").write_text("in use")
        code = (
            "import os, sys; from pathlib import Path; from kdpipe.pipeline.store import Store\n"
            "workplace = Store(Path(sys.argv[1])).workplace()\n"
            "place = workplace.__enter__()\n"
            "(place / 'file').write_text('left'); print(place); sys.stdout.flush(); os._exit(9)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
        dead = Path(done.stdout.strip())
        assert (dead / "file").is_file()
        store.clean()
        assert not dead.exists()
        assert not dead.with_suffix(".lock").exists()
        assert (living / "file").is_file()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()
    assert not (tmp_path / "lock").exists()


def test_a_directory_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a file stands where a directory is needed"):
        check_writable(tmp_path / "file" / "store")
    with pytest.raises(StorageError), Store(tmp_path / "file").workplace():
        pass


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EACCES, "no permission to write here"),
        (errno.EROFS, "no permission to write here"),
        (errno.EIO, "can't write"),
    ],
)
def test_each_failure_of_a_disk_has_its_message(number: int, message: str) -> None:
    with pytest.raises(StorageError, match=message), storage_errors(Path("somewhere"), "write"):
        raise OSError(number, os.strerror(number), "somewhere")


def test_a_full_disk_while_publishing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(tmp_path)
    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        publish(store)
    assert store.find(KEY).entry is None
    assert list((tmp_path / "temporary").iterdir()) == []


def test_is_disk_full_looks_into_causes_and_foreign_messages() -> None:
    assert storage.is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    wrapped = ValueError("wrapped")
    wrapped.__cause__ = OSError(errno.ENOSPC, "full")
    assert storage.is_disk_full(wrapped)
    assert not storage.is_disk_full(ValueError("other"))


def test_concurrent_runs_on_one_store(toy: Any) -> None:
    runs = [toy.process("--out", str(toy.folder / f"out{n}"), "--force", "teacher", "rounded") for n in range(4)]
    outputs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0] * 4, outputs
    reports = [json.loads((toy.folder / f"out{n}" / "report.json").read_text()) for n in range(4)]
    contents = [[stage["outputs"] for stage in report["stages"] if stage["name"] == "rounded"] for report in reports]
    assert len({content[0]["network"]["sha256"] for content in contents}) == 1
    assert list((toy.store.root / "temporary").iterdir()) == []
    assert all(step.entry is not None for step in toy.plan().values())
