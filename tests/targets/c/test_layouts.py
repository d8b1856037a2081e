"""Arduino libraries and Zephyr modules: complete, built by what their users build them with or the nearest thing."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdpipe.targets import reference
from kdpipe.targets.artifact import read_artifact
from kdpipe.targets.c.generator import export, render
from kdpipe.targets.c.layouts import NAMES
from kdpipe.targets.devices import cortex_m
from kdpipe.targets.devices.c_compiler import zig_compiler
from kdpipe.targets.errors import UsageError
from kdpipe.targets.graph import IntegerGraph

pytest.importorskip("ziglang")

ARDUINO_H = """
#include <stdint.h>
struct SerialPort {
  void begin(long) {}
  template <typename T> void print(T) {}
  void println() {}
};
static SerialPort Serial;
unsigned long micros();
void delay(unsigned long);
"""

ZEPHYR_SHIM = """
cmake_minimum_required(VERSION 3.20)
project(application C ASM)
# what Zephyr's own build system does with the calls of a module
set(CONFIG_{upper}_MODEL {enabled})
macro(zephyr_library_named name)
  set(library ${{name}})
  add_library(${{library}} STATIC)
endmacro()
macro(zephyr_library_sources)
  target_sources(${{library}} PRIVATE ${{ARGN}})
endmacro()
macro(zephyr_include_directories)
  include_directories(${{ARGN}})
  target_include_directories(${{library}} PUBLIC ${{ARGN}})
endmacro()
add_subdirectory({module}/zephyr module)
add_executable(application {module}/test/test_model.c)
target_link_libraries(application PRIVATE {name}_model)
enable_testing()
add_test(NAME golden_vectors COMMAND application)
"""


@pytest.fixture
def graph(random_graph) -> IntegerGraph:
    return replace(random_graph(3, rounding="single"), name="keyword")


@pytest.mark.parametrize("core", ["generic", "cortex-m4"])
@pytest.mark.parametrize("layout", NAMES)
def test_every_layout_runs_and_equals_the_reference(
    layout: str, core: str, graph: IntegerGraph, random_inputs, tmp_path: Path
) -> None:
    export(graph, tmp_path, core, layout)
    assert set(read_artifact(tmp_path).files) <= set(render(graph, core, layout))
    inputs = random_inputs(graph, 3)
    measured = cortex_m.create("cortex-m4").measure(tmp_path, inputs)
    np.testing.assert_array_equal(measured.outputs, reference.run(graph, inputs))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no cc on the PATH")
@pytest.mark.parametrize("core", ["generic", "cortex-m4"])
@pytest.mark.parametrize("layout", NAMES)
def test_the_call_in_the_readme_builds_and_passes(layout: str, core: str, graph: IntegerGraph, tmp_path: Path) -> None:
    """As it stands there, by the shell."""
    export(graph, tmp_path, core, layout)
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    (call,) = (line.strip() for line in readme.splitlines() if line.startswith("    "))
    done = subprocess.run(["sh", "-c", call], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert call.startswith("cc ")
    assert (done.stderr, done.stdout.strip()) == ("", "6 golden vectors, 0 differences")


def test_an_arduino_library_compiles_with_its_example(graph: IntegerGraph, tmp_path: Path) -> None:
    library = tmp_path / "library"
    export(graph, library, layout="arduino")
    properties = dict(line.split("=", 1) for line in (library / "library.properties").read_text().splitlines())
    # what the specification asks for
    required = {"name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url", "architectures"}
    assert required <= set(properties)
    assert properties["includes"] == "keyword.h"
    (tmp_path / "Arduino.h").write_text(ARDUINO_H)
    sketch = next((library / "examples").rglob("*.ino"))
    assert sketch.stem == sketch.parent.name
    # the Arduino builder compiles everything below src/, with src/ on the include path
    sources = sorted((library / "src").rglob("*.c"))
    compiler = [*zig_compiler(), "-target", "thumb-freestanding-eabi", "-mcpu=cortex_m0plus", "-Os", "-c"]
    compiler += ["-Wall", "-Wextra", "-Werror"]
    c_library = Path(cortex_m.__file__).parent / "firmware_sources" / "include"
    include = ["-I", str(library / "src"), "-I", str(tmp_path), "-I", str(c_library)]
    for index, source in enumerate(sources):
        command = [*compiler, "-std=gnu11", *include, str(source), "-o", str(tmp_path / f"{index}.o")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    as_cpp = [*compiler, "-x", "c++", "-std=gnu++11", "-include", "Arduino.h", *include]
    done = subprocess.run([*as_cpp, str(sketch), "-o", str(tmp_path / "sketch.o")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_core_with_too_narrow_an_int_is_refused_by_the_compiler(graph: IntegerGraph, tmp_path: Path) -> None:
    export(graph, tmp_path, layout="arduino")
    command = [*zig_compiler(), "-target", "avr-freestanding", "-mcpu=atmega2560", "-c", "-o", str(tmp_path / "o")]
    source = next((tmp_path / "src" / "kernels").glob("*.c"))
    c_library = Path(cortex_m.__file__).parent / "firmware_sources" / "include"
    done = subprocess.run([*command, "-I", str(c_library), str(source)], capture_output=True, text=True)
    assert done.returncode != 0
    assert "need an int of 32 bits" in done.stderr


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
@pytest.mark.parametrize("enabled", ["y", "n"])
def test_a_zephyr_module_builds_where_it_is_switched_on(enabled: str, graph: IntegerGraph, tmp_path: Path) -> None:
    import yaml

    module = tmp_path / "module"
    export(graph, module, layout="zephyr")
    described = yaml.safe_load((module / "zephyr" / "module.yml").read_text())
    assert (module / described["build"]["cmake"] / "CMakeLists.txt").is_file()
    assert "config KEYWORD_MODEL" in (module / described["build"]["kconfig"]).read_text()
    application = tmp_path / "application"
    application.mkdir()
    shim = ZEPHYR_SHIM.format(upper="KEYWORD", name="keyword", module=module.as_posix(), enabled=enabled)
    (application / "CMakeLists.txt").write_text(shim)
    codes = [
        subprocess.run(command, cwd=application, capture_output=True, text=True).returncode
        for command in (["cmake", "-B", "build"], ["cmake", "--build", "build"], ["ctest", "--test-dir", "build"])
    ]
    assert codes[0] == 0
    assert (codes[1:] == [0, 0]) == (enabled == "y")


def test_an_unknown_layout_is_refused_before_anything_is_written(graph: IntegerGraph, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean arduino"):
        export(graph, tmp_path / "c", layout="ardunio")
    assert not (tmp_path / "c").exists()
