"""How the files of an export are arranged: plain sources, an Arduino library or a Zephyr module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from jinja2 import Environment

Layout = Literal["sources", "arduino", "zephyr"]
SOURCES: Layout = "sources"
NAMES: tuple[str, ...] = get_args(Layout)

Bench = Literal["none", "cycles"]
NO_BENCH: Bench = "none"
BENCHES: tuple[str, ...] = get_args(Bench)

_ROOTS = {"arduino": "src/"}
_TEMPLATES = {
    "sources": {},
    # https://arduino.github.io/arduino-cli/latest/library-specification/
    "arduino": {
        "library.properties": "library.properties.jinja",
        "src/{name}.h": "arduino.h.jinja",
        "examples/{name}/{name}.ino": "example.ino.jinja",
    },
    # https://docs.zephyrproject.org/latest/develop/modules.html
    "zephyr": {
        "zephyr/module.yml": "zephyr_module.yml.jinja",
        "zephyr/CMakeLists.txt": "zephyr_CMakeLists.txt.jinja",
        "zephyr/Kconfig": "zephyr_Kconfig.jinja",
    },
}


def source_root(layout: str) -> str:
    """Return the folder of the program's own sources: "" or a path that ends with /."""
    return _ROOTS.get(layout, "")


def layout_texts(layout: str, environment: Environment, values: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of each file that the layout adds, by its path in the export's directory."""
    name = values["name"]
    return {
        path.format(name=name): environment.get_template(template).render(values)
        for path, template in _TEMPLATES[layout].items()
    }


def is_program(path: str, layout: str) -> bool:
    """Return whether the file at `path` is part of the program: what is deployed, not what describes or tests it."""
    root = source_root(layout)
    return path.startswith((f"{root}model", f"{root}kernels/"))
