"""Missing and broken optional packages."""

import json
import sys
from pathlib import Path

import pytest

from kdpipe.targets.dependencies import require
from kdpipe.targets.errors import MissingDependencyError


def test_an_installed_module_is_returned() -> None:
    assert require("json", "onnx") is json


def test_a_missing_package_names_its_extra() -> None:
    with pytest.raises(MissingDependencyError, match="not_a_package is not installed") as refused:
        require("not_a_package.part", "onnx")
    assert refused.value.remedy == 'pip install "kdpipe[onnx]"'


def test_a_package_that_fails_to_import_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package_of_a_test.py").write_text("raise ImportError('libfoo.so is missing')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"libfoo\.so is missing"):
        require("broken_package_of_a_test", "tflite")
    assert "broken_package_of_a_test" not in sys.modules
