"""clang-tidy's bugprone and cert checks and clang's static analyzer find nothing in what is written."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kdpipe.targets.c.generator import export
from kdpipe.targets.devices import firmware

CLANG_TIDY = shutil.which("clang-tidy", path=str(Path(sys.executable).parent)) or shutil.which("clang-tidy")
TARGETS = {
    "generic": [],
    "cortex-m4": ["-target", "thumbv7em-none-eabi", "-mcpu=cortex-m4"],
    "cortex-m55": ["-target", "thumbv8.1m.main-none-eabihf", "-mcpu=cortex-m55"],
}
C_LIBRARY = Path(firmware.__file__).parent / "firmware_sources" / "include"


def clang_tidy(directory: Path, core: str, *sources: Path) -> str:
    assert CLANG_TIDY is not None
    # GNU's dialect: the kernels for one core have assembly in C
    dialect = ["-std=c99" if core == "generic" else "-std=gnu99", "-DKEYWORD_TRACE"]
    options = [f"-I{directory}", f"-I{C_LIBRARY}", *dialect, *TARGETS[core]]
    done = subprocess.run([CLANG_TIDY, "--quiet", *map(str, sources), "--", *options], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else f"{done.stdout}{done.stderr}"


@pytest.mark.skipif(CLANG_TIDY is None, reason="clang-tidy is not installed")
@pytest.mark.parametrize(
    ("core", "seed", "rounding"),
    [
        ("generic", 3, "tflite"),
        ("generic", 4, "single"),
        ("cortex-m4", 2, "single"),
        ("cortex-m4", 5, "tflite"),
        ("cortex-m55", 9, "single"),
    ],
)
def test_nothing_is_found(core: str, seed: int, rounding: str, random_graph, tmp_path: Path) -> None:
    export(replace(random_graph(seed, rounding=rounding), name="keyword"), tmp_path, core, bench="cycles")
    sources = [tmp_path / "model.c", tmp_path / "model_weights.c", *sorted((tmp_path / "kernels").glob("*.c"))]
    if core != "generic":
        sources.append(tmp_path / "bench" / "bench.c")
    assert clang_tidy(tmp_path, core, *sources) == ""


@pytest.mark.skipif(CLANG_TIDY is None, reason="clang-tidy is not installed")
def test_a_planted_mistake_is_found(random_graph, tmp_path: Path) -> None:
    export(replace(random_graph(3), name="keyword"), tmp_path)
    text = (tmp_path / "model.c").read_text()
    (tmp_path / "model.c").write_text(text + "int planted(int *p) { p = 0; return *p; }\n")
    assert "clang-analyzer-core.NullDereference" in clang_tidy(tmp_path, "generic", tmp_path / "model.c")
