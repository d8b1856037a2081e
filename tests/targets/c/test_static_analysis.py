"""clang-tidy's bugprone and cert checks and clang's static analyzer find nothing in what is written, nor recursion."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kdpipe.targets.c.generator import export, render
from kdpipe.targets.devices import firmware

CLANG_TIDY = shutil.which("clang-tidy", path=str(Path(sys.executable).parent)) or shutil.which("clang-tidy")
TARGETS = {
    "generic": [],
    "cortex-m0plus": ["-target", "thumbv6m-none-eabi", "-mcpu=cortex-m0plus"],
    "cortex-m3": ["-target", "thumbv7m-none-eabi", "-mcpu=cortex-m3"],
    "cortex-m4": ["-target", "thumbv7em-none-eabi", "-mcpu=cortex-m4"],
    "cortex-m7": ["-target", "thumbv7em-none-eabi", "-mcpu=cortex-m7"],
    "cortex-m33": ["-target", "thumbv8m.main-none-eabi", "-mcpu=cortex-m33"],
    "cortex-m55": ["-target", "thumbv8.1m.main-none-eabihf", "-mcpu=cortex-m55"],
}
KERNELS = Path(render.__code__.co_filename).parent / "kernels"
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
        ("cortex-m0plus", 12, "single"),
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
@pytest.mark.slow
@pytest.mark.parametrize("rounding", ["single", "tflite"])
@pytest.mark.parametrize(
    ("core", "folder"),
    [
        ("generic", "."),
        ("cortex-m0plus", "armv6m"),
        ("cortex-m3", "armv6m"),
        ("cortex-m4", "cortex_m4"),
        ("cortex-m7", "cortex_m4"),
        ("cortex-m33", "cortex_m4"),
        ("cortex-m55", "mve"),
    ],
)
def test_nothing_is_found_in_any_kernel(core: str, folder: str, rounding: str, random_graph, tmp_path: Path) -> None:
    """All of a core's own, whether a network uses them or not."""
    texts = render(replace(random_graph(3, rounding=rounding), name="keyword"))
    for name in (".clang-tidy", "kernels/kernel_config.h"):
        (tmp_path / Path(name).name).write_text(texts[name])
    for place in {KERNELS, KERNELS / folder}:
        for path in place.glob("*.[ch]"):
            shutil.copy(path, tmp_path)
    sources = sorted(tmp_path / path.name for path in (KERNELS / folder).glob("*.c"))
    assert clang_tidy(tmp_path, core, *sources) == ""


@pytest.mark.skipif(CLANG_TIDY is None, reason="clang-tidy is not installed")
def test_planted_mistakes_are_found(random_graph, tmp_path: Path) -> None:
    export(replace(random_graph(3), name="keyword"), tmp_path)
    text = (tmp_path / "model.c").read_text()
    planted = "int planted(int *p) { p = 0; return *p; }\nint again(int n) { return n > 0 ? again(n - 1) : 0; }\n"
    (tmp_path / "model.c").write_text(text + planted)
    found = clang_tidy(tmp_path, "generic", tmp_path / "model.c")
    assert "clang-analyzer-core.NullDereference" in found
    assert "misc-no-recursion" in found
