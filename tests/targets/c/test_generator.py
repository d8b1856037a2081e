"""The C export as a directory: what is in it, that it builds, and what it refuses."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdpipe.targets.artifact import read_artifact
from kdpipe.targets.c.generator import arena_bytes, constant_bytes, export, render
from kdpipe.targets.devices.c_compiler import zig_compiler
from kdpipe.targets.errors import StorageError, UnsupportedError, UsageError
from kdpipe.targets.graph import (
    Conv2d,
    Flatten,
    IntegerGraph,
    MaxPool2d,
    Normalization,
)


@pytest.fixture
def small(chain: Callable[..., IntegerGraph], convolution: Callable[..., Conv2d]) -> IntegerGraph:
    steps = [
        ("conv", convolution((4, 2, 3, 3), padding=(1, 1, 1, 1)), (4, 5, 5)),
        ("pool", MaxPool2d((5, 5), (5, 5)), (4, 1, 1)),
        ("flat", Flatten(), (4,)),
    ]
    return chain((2, 5, 5), steps, name="tiny", normalization=Normalization((0.1, 0.2), (0.3, 0.5)))


def test_files(small: IntegerGraph, tmp_path: Path) -> None:
    paths = export(small, tmp_path / "c")
    written = {path.relative_to(tmp_path / "c").as_posix() for path in paths}
    assert written == {path.relative_to(tmp_path / "c").as_posix() for path in (tmp_path / "c").rglob("*.*")}
    assert {"model.h", "model.c", "model_weights.h", "model_weights.c", "CMakeLists.txt", "README.md"} <= written
    kernels = {name for name in written if name.endswith(".c") and name.startswith("kernels/")}
    assert kernels == {"kernels/conv2d_w2.c", "kernels/max_pool.c"}
    artifact = read_artifact(tmp_path / "c")
    assert (artifact.target, artifact.name, artifact.input.layout, artifact.input.type) == ("c", "tiny", "NHWC", "int8")
    assert set(artifact.files) == {name for name in written if name.startswith(("model", "kernels/"))}


def test_header_says_how_to_call_it(small: IntegerGraph) -> None:
    header = render(small)["model.h"]
    macros = dict(re.findall(r"#define TINY_(\w+) (.+)", header))
    assert macros["INPUT_SIZE"] == "50"
    assert (macros["INPUT_HEIGHT"], macros["INPUT_WIDTH"], macros["INPUT_CHANNELS"]) == ("5", "5", "2")
    assert macros["OUTPUT_SIZE"] == "4"
    assert macros["INPUT_ZERO_POINT"] == "(-3)"
    assert macros["MEAN"] == "{0.100000001f, 0.200000003f}"
    assert int(macros["ARENA_SIZE"]) == arena_bytes(small) == 100 + 36
    assert "int tiny_run(const int8_t *input, int8_t *output);" in header


def test_constants_are_counted_as_stored(small: IntegerGraph) -> None:
    # 18 ternary weights take two words a row; bias and multiplier 4 bytes each, the shift 1.
    assert constant_bytes(small) == {"values": 4 * 8, "scales_and_biases": 4 * 9}
    assert read_artifact_bytes(small) == constant_bytes(small)


def read_artifact_bytes(graph: IntegerGraph) -> dict[str, int]:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        export(graph, Path(directory))
        return dict(read_artifact(Path(directory)).weight_bytes)


def test_export_is_reproducible(small: IntegerGraph) -> None:
    assert render(small) == render(small)


def test_it_builds_without_the_static_arena(small: IntegerGraph, tmp_path: Path, c_compiler: str) -> None:
    export(small, tmp_path)
    command = [c_compiler, "-std=c99", "-DTINY_NO_STATIC_ARENA", "-I.", "-c", "model.c", "-o", "model.o"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert b"tiny_run_in" in (tmp_path / "model.o").read_bytes()
    assert not re.search(rb"tiny_run\0", (tmp_path / "model.o").read_bytes())


def test_null_pointers_are_refused(small: IntegerGraph, tmp_path: Path, c_compiler: str) -> None:
    export(small, tmp_path)
    (tmp_path / "test" / "test_model.c").write_text(
        '#include "model.h"\n#include <stddef.h>\n'
        "static int8_t a[TINY_ARENA_SIZE], i[TINY_INPUT_SIZE], o[TINY_OUTPUT_SIZE];\n"
        "int main(void) { return tiny_run(NULL, o) + 2 * tiny_run(i, NULL) + 4 * tiny_run_in(NULL, i, o)\n"
        "    + 8 * tiny_run_in(a, i, o); }\n"
    )
    sources = ["model.c", "model_weights.c", *map(str, tmp_path.glob("kernels/*.c")), "test/test_model.c"]
    subprocess.run([c_compiler, "-I.", *sources, "-o", "nulls"], cwd=tmp_path, check=True)
    assert subprocess.run([str(tmp_path / "nulls")]).returncode == 7


def test_golden_test_fails_on_a_wrong_output(small: IntegerGraph, tmp_path: Path, c_compiler: str) -> None:
    export(small, tmp_path)
    weights = tmp_path / "model_weights.c"
    text = weights.read_text()
    weights.write_text(re.sub(r"(tiny_bias0\[\d+\] = \{\s*)(-?\d+)", r"\g<1>12345", text))
    assert weights.read_text() != text
    sources = ["model.c", "model_weights.c", *map(str, tmp_path.glob("kernels/*.c")), "test/test_model.c"]
    subprocess.run([c_compiler, "-I.", *sources, "-o", "golden"], cwd=tmp_path, check=True)
    result = subprocess.run([str(tmp_path / "golden")], capture_output=True, text=True)
    assert result.returncode == 1
    assert "expected" in result.stdout


HOSTILE = [
    "*/ int x; /*",
    'a"b\\',
    "new\nline",
    "??/",
    "$(rm -rf .)",
    "%s%n",
    "|`<b>",
    "ünïcode\u202e",
    "input0",
    "output",
]


@pytest.mark.parametrize("name", ["int", "main", "kdp", "KDP", "_", "golden", "test", "install"])
def test_hostile_names(
    name: str,
    chain: Callable[..., IntegerGraph],
    convolution: Callable[..., Conv2d],
    run_golden_test: Callable[..., str],
    tmp_path: Path,
) -> None:
    steps = [(layer, convolution((10, 10, 1, 1), 4), (10, 1, 1)) for layer in HOSTILE]
    graph = chain((10, 1, 1), [*steps, ("flat", Flatten(), (10,))], name=name, class_names=tuple(HOSTILE))
    paths = export(graph, tmp_path)
    assert all(path.resolve().is_relative_to(tmp_path.resolve()) for path in paths)
    run_golden_test(tmp_path)
    assert [layer["name"] for layer in json.loads((tmp_path / "test" / "layers.json").read_text())["layers"]][:-1] == (
        HOSTILE
    )


def test_two_networks_link_into_one_program(small: IntegerGraph, tmp_path: Path, c_compiler: str) -> None:
    sources = []
    for name, rounding in (("one", "tflite"), ("two", "single")):
        directory = tmp_path / name
        export(replace(small, name=name, rounding=rounding), directory)
        for source in [directory / "model.c", directory / "model_weights.c", *directory.glob("kernels/*.c")]:
            compiled = f"{name}_{source.stem}.o"
            subprocess.run(
                [c_compiler, "-I", str(directory), "-c", str(source), "-o", compiled], cwd=tmp_path, check=True
            )
            sources.append(compiled)
    main = '#include "one/model.h"\n#include "two/model.h"\nint main(void) { return one_run(0, 0) + two_run(0, 0); }\n'
    (tmp_path / "main.c").write_text(main)
    subprocess.run([c_compiler, "-I.", "main.c", *sources, "-o", "both"], cwd=tmp_path, check=True)
    assert subprocess.run([str(tmp_path / "both")]).returncode == 2


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_cmake_project_builds_and_passes(small: IntegerGraph, tmp_path: Path, c_compiler: str) -> None:
    export(replace(small, name="test"), tmp_path)
    build = str(tmp_path / "build")
    subprocess.run(["cmake", "-S", str(tmp_path), "-B", build], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build], check=True, capture_output=True)
    result = subprocess.run(["ctest"], cwd=build, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "100% tests passed" in result.stdout


def test_header_is_cpp(small: IntegerGraph, tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler on the PATH")
    export(small, tmp_path)
    (tmp_path / "main.cpp").write_text('#include "model.h"\nint main() { return tiny_run(nullptr, nullptr) - 1; }\n')
    subprocess.run([compiler, "-I.", "-Wall", "-Werror", "-c", "main.cpp", "-o", "main.o"], cwd=tmp_path, check=True)


class Softmax:
    """An operator that the C target does not have."""


def test_an_unknown_operator_is_refused_before_anything_is_written(small: IntegerGraph, tmp_path: Path) -> None:
    graph = replace(small)
    nodes = (*graph.nodes[:-1], replace(graph.nodes[-1], name="classifier.softmax", op=Softmax()))
    object.__setattr__(graph, "nodes", nodes)
    with pytest.raises(UnsupportedError, match=r"layer classifier\.softmax: .*Softmax.*Conv2d"):
        export(graph, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_tensor_beyond_a_microcontroller_is_refused(chain: Callable[..., IntegerGraph], tmp_path: Path) -> None:
    graph = chain((1, 4096, 4096), [("pool", MaxPool2d((4096, 4096), (1, 1)), (1, 1, 1))])
    with pytest.raises(UnsupportedError, match="layer pool"):
        export(graph, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_an_unwritable_place_is_named(small: IntegerGraph, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        export(small, tmp_path / "file")


def test_export_into_an_existing_directory_replaces(small: IntegerGraph, tmp_path: Path) -> None:
    export(small, tmp_path)
    first = (tmp_path / "model_weights.c").read_text()
    op = small.nodes[0].op
    assert isinstance(op, Conv2d)
    changed = replace(op, bias=(op.bias + 1).astype(np.int32))
    export(replace(small, nodes=(replace(small.nodes[0], op=changed), *small.nodes[1:])), tmp_path)
    assert (tmp_path / "model_weights.c").read_text() != first


def test_sources_for_a_core(
    chain: Callable[..., IntegerGraph], convolution: Callable[..., Conv2d], c_compiler: str, tmp_path: Path
) -> None:
    """They have kernels of their own, and the same network for any core beside them, which the host's test builds."""
    steps = [
        ("first", convolution((8, 2, 3, 3), 8, padding=(1, 1, 1, 1)), (8, 5, 5)),
        ("second", convolution((8, 8, 3, 3), 8, padding=(1, 1, 1, 1)), (8, 5, 5)),
        ("third", convolution((8, 8, 3, 3), 8, padding=(1, 1, 1, 1)), (8, 5, 5)),
    ]
    graph = chain((2, 5, 5), steps, name="tiny", rounding="tflite")
    written = {path.relative_to(tmp_path).as_posix() for path in export(graph, tmp_path, "cortex-m4")}
    # Two layers of one shape share their rows.
    rows = {name for name in written if name.startswith("kernels/conv8_row")}
    assert rows == {"kernels/conv8_row0.S", "kernels/conv8_row1.S"}
    assert {"kernels/conv8_w8.c", "kernels/conv8.inc", "portable/model.c", "portable/kernels/conv2d_w8.c"} <= written
    artifact = read_artifact(tmp_path)
    assert artifact.core == "cortex-m4"
    assert not any(name.startswith("portable/") for name in artifact.files)
    assert "kernels/conv8_row0.S" in artifact.files
    command = next(line.strip() for line in (tmp_path / "README.md").read_text().splitlines() if "    cc " in line)
    build, run = command.split(" && ")
    sources = [part for pattern in build.split()[1:] for part in sorted(map(str, tmp_path.glob(pattern))) or [pattern]]
    subprocess.run([c_compiler, *sources], cwd=tmp_path, check=True)
    assert "0 differences" in subprocess.run([run], cwd=tmp_path, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("core", ["generic", "cortex-m0plus", "cortex-m3"])
def test_sources_for_one_core_hold_portable_ones_too(core: str, small: IntegerGraph, tmp_path: Path) -> None:
    export(small, tmp_path, core)
    assert (tmp_path / "portable").exists() == (core != "generic")
    readme = (tmp_path / "README.md").read_text()
    assert ("GNU assembly" in readme) == (core != "generic")
    assert "DSP" not in readme
    assert read_artifact(tmp_path).core == core
    assert render(small, core).get("portable/model.c", render(small, core)["model.c"]) == render(small)["model.c"]


@pytest.mark.parametrize(
    ("core", "target", "suited"),
    [
        *[("cortex-m0plus", "cortex_m0plus", True), ("cortex-m0plus", "cortex_m4", True)],
        *[("cortex-m3", "cortex_m0plus", False), ("cortex-m3", "cortex_m3", True)],
        *[("cortex-m4", "cortex_m3", False), ("cortex-m4", "cortex_m4", True), ("cortex-m0plus", None, False)],
    ],
)
def test_cmake_builds_the_core_s_sources_where_they_run(
    core: str, target: str | None, suited: bool, small: IntegerGraph, tmp_path: Path
) -> None:
    pytest.importorskip("ziglang")
    found = re.search(r'check_c_source_compiles\("(.*?)"', render(small, core)["CMakeLists.txt"], re.DOTALL)
    assert found is not None
    (tmp_path / "asked.c").write_text(found[1])
    flags = ["-target", "thumb-freestanding-eabi", f"-mcpu={target}"] if target else []
    command = [*zig_compiler(), *flags, "-c", "asked.c"]
    assert (subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0) == suited


def test_an_unknown_core_is_refused(small: IntegerGraph, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean cortex-m4"):
        export(small, tmp_path / "c", "cortex-m44")
    assert not (tmp_path / "c").exists()


def test_cmake_builds_what_the_compiler_can(small: IntegerGraph, tmp_path: Path, c_compiler: str) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    export(small, tmp_path, "cortex-m4")
    for command in (["cmake", "-B", "build"], ["cmake", "--build", "build"], ["ctest", "--test-dir", "build"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
