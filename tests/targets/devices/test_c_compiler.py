"""Running a C compiler."""

import os
import sys
from pathlib import Path

import pytest

from kdpipe.targets.devices import c_compiler
from kdpipe.targets.errors import DeviceError


def test_a_compiler_has_longer_where_the_machine_is_overloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (8.0, 0.0, 0.0), raising=False)
    monkeypatch.setattr(c_compiler, "_TIMEOUT_SECONDS", 0.05)
    with pytest.raises(DeviceError, match=r"did not finish in 0 s"):
        c_compiler.compile_c([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path)
    assert c_compiler._timeout_seconds() == pytest.approx(0.2)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.0, 0.0), raising=False)
    assert c_compiler._timeout_seconds() == 0.05
