"""Pipelines with a few random mistakes each: all are told with their places, and nothing else is ever raised."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdpipe.pipeline.problems import KeyPath, SpecError
from kdpipe.pipeline.spec_file import load_spec

ROOT = Path(__file__).resolve().parents[2]
VALUES = (
    *(None, True, 0, -1, 10**30, -(10**30), 3.5, 1e308, "", " ", "x", "1e-3", "a\0b", "\u202e", "é" * 300),
    *(
        "${",
        "${}",
        "${teachers}",
        "${student.teacher}",
        "${data.digits.train}",
        "${quantized.graph}",
        "$" + "{a.b}" * 99,
    ),
    *("../../etc/passwd", "/dev/null", "C:x", "con", [], {}, [[]], [None], {"uses": "distill"}, {"": ""}, ["kd", "kd"]),
)
SNIPPETS = (
    *(
        b"\t",
        b"\0",
        b"&a ",
        b"*a",
        b"!!python/object:os.system ",
        b"<<: *a",
        b"{",
        b"[",
        b": ",
        b"- ",
        b"#",
        b"'",
        b'"',
    ),
    *(b"|", b">", b"\r\n", b"\r", b"---\n", b"...\n", b"%YAML 9\n", b"\xef\xbb\xbf", b"\xff", b"[" * 5000, b"? "),
)


def paths(tree: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the path of everything in a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from paths(value, (*path, key))


def at(tree: Any, path: KeyPath) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def mistake(tree: dict[str, Any], rng: random.Random) -> None:
    """Make one: a key less, more, or of another name; another value; a value from elsewhere."""
    known = list(paths(tree))
    if not known:
        return
    path = rng.choice(known)
    around, key = at(tree, path[:-1]), path[-1]
    kind = rng.choice(("delete", "value", "elsewhere", "rename", "add", "wrap"))
    if kind == "delete":
        del around[key]
    elif kind == "value":
        around[key] = rng.choice(VALUES)
    elif kind == "elsewhere":
        around[key] = yaml.safe_load(yaml.safe_dump(at(tree, rng.choice(known))))
    elif kind == "rename" and isinstance(around, dict):
        around[f"{key}{rng.choice('sx_-. @')}"] = around.pop(key)
    elif kind == "add" and isinstance(around, dict):
        around[rng.choice(("uses", "seed", "matrix", "gates", "losses", "data", "x"))] = rng.choice(VALUES)
    else:
        around[key] = [around[key]]


def scribble(text: bytes, rng: random.Random) -> bytes:
    """Change a few bytes of a file."""
    content = bytearray(text)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(content))
        if rng.random() < 0.2:
            content[place] = rng.randrange(256)
        elif rng.random() < 0.3:
            del content[place : place + rng.randint(1, 30)]
        else:
            content[place:place] = rng.choice(SNIPPETS)
    return bytes(content)


class Plain(yaml.SafeDumper):
    """Writes equal values out each time: aliases are refused wherever they stand."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@pytest.mark.parametrize("start", ["pipeline.yaml", "examples/**/*.yaml", "benchmarks/accuracy/recipes/*.yaml"])
def test_mistakes_are_told_with_their_places(tmp_path: Path, start: str) -> None:
    texts = [path.read_bytes() for path in sorted(ROOT.glob(start)) if ".variants" not in path.name]
    file = tmp_path / "p.yaml"
    refused = 0
    for seed in range(90):
        rng = random.Random(seed)  # noqa: S311 - no secret
        text = rng.choice(texts)
        if seed % 3:
            tree = yaml.safe_load(text)
            for _ in range(rng.randint(1, 3)):
                mistake(tree, rng)
            text = yaml.dump(tree, Dumper=Plain, allow_unicode=True).encode()
        else:
            text = scribble(text, rng)
        file.write_bytes(text)
        try:
            load_spec(file)
        except SpecError as error:
            refused += 1
            for problem in error.problems:
                assert re.match(rf"{re.escape(str(file))}:\d+:\d+: \S", str(problem)), (seed, str(problem))
    assert refused > 60
