"""The devices by name, and the formats that they say they run."""

from pathlib import Path

import pytest

from kdpipe.targets.devices.cortex_m import CORES
from kdpipe.targets.devices.formats import format_of
from kdpipe.targets.devices.qemu import BOARDS
from kdpipe.targets.devices.registry import DEVICES
from kdpipe.targets.errors import ArtifactError, UsageError


def test_every_device_can_be_created_and_runs_what_it_says() -> None:
    for name in DEVICES:
        entry = DEVICES[name]
        # Float networks are run by the validate stage itself, with torch.
        assert set(entry.formats) - {"torch"} == set(entry.create().formats)
        assert entry.summary


def test_every_emulated_core_is_there() -> None:
    assert {*CORES, *BOARDS} == set(DEVICES) - {"host"}


def test_an_unknown_device_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="unknown device 'cortex-m5'") as refused:
        DEVICES["cortex-m5"]
    assert refused.value.remedy is not None
    assert "cortex-m" in refused.value.remedy


@pytest.mark.parametrize(
    ("file", "expected"), [("graph.json", "integer-graph"), ("network.json", "torch"), ("ensemble.json", "torch")]
)
def test_formats_are_told_by_files(file: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("{}")
    assert format_of(tmp_path) == expected


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such directory"):
        format_of(tmp_path / "absent")
