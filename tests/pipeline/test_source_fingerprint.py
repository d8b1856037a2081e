from __future__ import annotations

import ast
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.source_fingerprint import SourceFingerprints, hash_of_code


class House:
    """A package of its own on the import path."""

    def __init__(self, folder: Path) -> None:
        self.name = f"house_{uuid.uuid4().hex}"
        self.folder = folder / self.name
        self.folder.mkdir()
        self.write("__init__.py", "")

    def write(self, path: str, text: str) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("HOUSE", self.name))

    def of(self, module: str) -> dict[str, str]:
        prints = SourceFingerprints().of(f"{self.name}.{module}")
        return {name.removeprefix(f"{self.name}.").replace(self.name, "HOUSE"): hash for name, hash in prints.items()}


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.syspath_prepend(tmp_path)
    return House(tmp_path)


def test_imports_are_followed_wherever_they_stand(house: House) -> None:
    house.write("a.py", "import os\nfrom HOUSE.b import x\ndef f():\n    import HOUSE.c\n    from HOUSE import d\n")
    house.write("b.py", "from . import e\n")
    house.write("c.py", "from .deep.f import y\n")
    house.write("d.py", "")
    house.write("e.py", "")
    house.write("deep/__init__.py", "")
    house.write("deep/f.py", "from ..g import z\n")
    house.write("g.py", "import HOUSE.a\n")
    house.write("stranger.py", "")
    assert set(house.of("a")) == {"HOUSE", "a", "b", "c", "d", "deep", "deep.f", "e", "g"}
    assert not any(name.startswith(house.name) for name in sys.modules)  # nothing was imported


def test_a_change_shows_in_the_module_that_changed(house: House) -> None:
    house.write("a.py", "from HOUSE.b import x\n")
    house.write("b.py", "x = 1\n")
    before = house.of("a")
    house.write("b.py", "x = 2\n")
    after = house.of("a")
    assert {name for name in after if after[name] != before[name]} == {"b"}


def test_data_files_of_a_reached_package_count(house: House) -> None:
    house.write("c/__init__.py", "")
    house.write("c/generator.py", "")
    house.write("c/kernels/conv.c", "int x;")
    house.write("c/kernels/readme.bin", "no source")
    house.write("other/__init__.py", "")
    house.write("other/x.c", "int y;")
    before = house.of("c.generator")
    assert "c/kernels/conv.c" in before
    assert not any("other" in name or "readme" in name for name in before)
    house.write("c/kernels/conv.c", "int z;")
    assert house.of("c.generator")["c/kernels/conv.c"] != before["c/kernels/conv.c"]


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("x = 1", "x=1  # comment", True),
        ('def f():\n    "Doc."\n    return 1', "def f():\n    return 1", True),
        ('"""Doc."""\nx = 1', "x = 1", True),
        ("x = 1", "x = 2", False),
        ("x = 'a'", "x = 'b'", False),
        ("x = 1", "x = 1.0", False),
        ("def f(a): return a", "def f(b): return b", False),
    ],
)
def test_only_what_would_run_counts(one: str, other: str, is_same: bool) -> None:
    assert (hash_of_code(ast.parse(one)) == hash_of_code(ast.parse(other))) == is_same


def test_names_of_modules_in_strings_are_followed() -> None:
    prints = SourceFingerprints().of("kdpipe.models.registry")
    assert "kdpipe.models.resnet" in prints  # named as "kdpipe.models.resnet:ResNet" only


@pytest.mark.parametrize("stage", ["teachers", "synthesize", "distill", "quantize"])
def test_the_stages_of_the_house(stage: str) -> None:
    prints = SourceFingerprints().of(f"kdpipe.stages.{stage}")
    assert f"kdpipe.stages.{stage}" in prints
    assert len(prints) > 5
    assert not any("pipeline" in name for name in prints)
    assert "kdpipe.stages.registry" not in prints
    # Teachers don't depend on how a network is exported, nor samples on how one is quantized.
    foreign: dict[str, Any] = {"teachers": "kdpipe.targets.c", "synthesize": "kdpipe.stages.quantization"}
    assert not any(name.startswith(foreign.get(stage, "none")) for name in prints)
