"""A pipeline of toy stages in a folder of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.events import Event
from kdpipe.pipeline.pipeline_run import run_pipeline
from kdpipe.pipeline.plan import Step, make_plan
from kdpipe.pipeline.runner import RunResult
from kdpipe.pipeline.spec import Spec
from kdpipe.pipeline.spec_file import load_spec
from kdpipe.pipeline.store import Store

PIPELINE = """\
kdpipe: 1
name: toy
data:
  digits: {uses: numbers}
stages:
  teacher:
    uses: learn
    data: ${data.digits.train}
    epochs: 3
  rounded:
    uses: round
    network: ${teacher.network}
  ensemble:
    uses: combine
    networks: ["${teacher}", "${rounded}"]
  samples:
    uses: dream
    teachers: ${ensemble.ensemble}
  export:
    uses: pack
    graph: ${ensemble.model}
  host:
    uses: check
    artifact: ${export.onnx}
    data: ${data.digits.test}
    gates: {accuracy: 0.8, size_kib: 10}
"""


class Toy:
    """A folder with a pipeline file, a store, and a module of stages that can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "pipeline.yaml"
        self.file.write_text(PIPELINE)
        self.out = folder / "out"
        self.store = Store(folder / "store")
        self.module = f"toy_{uuid.uuid4().hex}"
        self.source = folder / f"{self.module}.py"
        shutil.copyfile(Path(__file__).with_name("toy_stages.py"), self.source)
        spec = importlib.util.spec_from_file_location(self.module, self.source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.module] = module
        spec.loader.exec_module(module)
        self.registry = module.registry(self.module)
        self.events: list[Event] = []

    def write(self, text: str) -> None:
        self.file.write_text(text)

    def spec(self, *overrides: str) -> Spec:
        return load_spec(self.file, overrides, self.registry)

    def run(self, *overrides: str, only: Sequence[str] = (), force: Sequence[str] = ()) -> RunResult:
        self.events.clear()
        return run_pipeline(self.spec(*overrides), self.store, self.out, [self.events.append], only=only, force=force)

    def ran(self, *overrides: str, **options: Any) -> list[str]:
        """Run, and return the stages that were executed."""
        return [result.stage.name for result in self.run(*overrides, **options).stages if result.status == "ran"]

    def plan(self, *overrides: str, **options: Any) -> dict[str, Step]:
        return {step.stage.name: step for step in make_plan(self.spec(*overrides), self.store, **options)}

    def outputs(self, result: RunResult, stage: str, output: str) -> Path:
        entry = next(found.entry for found in result.stages if found.stage.name == stage)
        assert entry is not None
        return entry.output(output)

    def process(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start a run in a process of its own, which knows the toy stages."""
        command = [sys.executable, str(self.source), str(self.file), "--out", str(self.out)]
        return subprocess.Popen(
            [*command, "--store", str(self.store.root), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            **options,
        )


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    """A pipeline of toy stages."""
    folder = tmp_path / "toy"
    folder.mkdir()
    made = Toy(folder)
    yield made
    del sys.modules[made.module]
