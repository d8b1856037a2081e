from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.pipeline.problems import Place, SpecError
from kdpipe.pipeline.yaml_source import MAX_BYTES, parse_yaml, read_document


def test_every_key_and_value_has_its_place() -> None:
    document = parse_yaml("a: 1\nb:\n  - x: {y: 2}\n  - 3\n", "f.yaml")
    assert document.data == {"a": 1, "b": [{"x": {"y": 2}}, 3]}
    assert document.problems == []
    assert document.keys["b", 0, "x", "y"] == Place("f.yaml", 3, 9)
    assert document.values["b", 0, "x", "y"] == Place("f.yaml", 3, 12)
    assert document.values["b", 1] == Place("f.yaml", 4, 5)


def test_the_place_of_what_is_absent_is_that_of_what_surrounds_it() -> None:
    document = parse_yaml("a:\n  b: {c: 1}\n", "f.yaml")
    assert document.value_place(("a", "b", "missing", "deeper")) == Place("f.yaml", 2, 6)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.", 1.0),
        (".5", 0.5),
        ("-7", -7),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("|-\n text", "text"),
    ],
)
def test_scalars_mean_what_the_core_schema_says(text: str, value: object) -> None:
    document = parse_yaml(f"a: {text}\n", "f")
    assert document.problems == []
    assert document.data["a"] == value
    assert type(document.data["a"]) is type(value)


HOSTILE = {
    "tag": ("a: !!python/object/apply:os.system ['true']\nb: 2", 1, 4, "tags are not supported"),
    "local tag": ("a: 1\nb: !thing {x: 1}", 2, 4, "tags are not supported"),
    "tag on a key": ("!!int 3: x", 1, 1, "tags are not supported"),
    "alias": ("a: &x [1]\nb: *x", 1, 4, "anchors and aliases"),
    "bomb": ("a: &a [z,z]\nb: &b [*a,*a]\nc: &c [*b,*b]", 1, 4, "anchors and aliases"),
    "merge": ("a:\n  <<: {x: 1}\n", 2, 3, "merge keys"),
    "duplicate": ("a: 1\nb: 2\na: 3", 3, 1, "duplicate key 'a', first at line 1"),
    "nested duplicate": ("a: {b: 1, b: 2}", 1, 11, "duplicate key 'b'"),
    "number as key": ("3: x", 1, 1, "a key must be a word"),
    "null as key": ("~: x", 1, 1, "a key must be a word"),
    "list as key": ("? [a]\n: x", 1, 3, "a key must be a word"),
    "two documents": ("a: 1\n---\nb: 1", 2, 1, "a second document"),
    "unclosed": ("a: [1", 1, 7, "not YAML"),
    "tab": ("a:\n\tb: 1", 2, 1, "not YAML"),
    "control character": ("a: \x07", 1, 1, "U+0007"),
    "deep": ("[" * 5000, 1, 41, "nested more than"),
    "deep blocks": ("a:\n" + "\n".join(" " * n + f"k{n}:" for n in range(1, 200)), 41, 41, "nested more than"),
    "not a number": ("a: .nan", 1, 4, "not a finite number"),
    "infinity": ("a: -.inf", 1, 4, "not a finite number"),
    "overflow": ("a: 1e999", 1, 4, "not a finite number"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents_are_refused_with_their_place(name: str) -> None:
    text, line, column, message = HOSTILE[name]
    problem = parse_yaml(text, "f").problems[0]
    assert message in problem.message
    if name not in ("unclosed", "deep blocks"):
        assert (problem.place.line, problem.place.column) == (line, column)


def test_reading_goes_on_after_what_can_be_passed_over() -> None:
    text = "a: 1\na: {b: [1, {c: 2}]}\n4: [x]\nd: !t [1]\n!u e: {f: 1}\n5: !v [{}]\nf: {g: [!w {}, 2]}\nh: 6\n"
    document = parse_yaml(text, "f")
    assert [problem.place.line for problem in document.problems] == [2, 3, 4, 5, 6, 7]
    assert document.is_complete
    assert document.data == {"a": 1, "d": None, "f": {"g": [None, 2]}, "h": 6}


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_text_makes_the_reader_raise(text: str) -> None:
    document = parse_yaml(text, "f")
    assert document.is_complete or document.problems


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: \xff\xfe", "not UTF-8"),
        (b"#" * (MAX_BYTES + 1), "larger than"),
        (None, "no such file"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "p.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SpecError, match=message):
        read_document(file)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="a directory, not a file"):
        read_document(tmp_path)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_document(file).data == {"a": 1}


def test_override_sets_values_and_their_place() -> None:
    document = parse_yaml("s: {t: {m: [{w: 1}, {w: 2}]}}", "f")
    document.override("s.t.m.1.w=1e-2")
    document.override("s.t.new.key=[a, {b: true}]")
    assert document.problems == []
    assert document.data == {"s": {"t": {"m": [{"w": 1}, {"w": 0.01}], "new": {"key": ["a", {"b": True}]}}}}
    assert str(document.value_place(("s", "t", "m", 1, "w"))) == "--set s.t.m.1.w=1e-2"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("a", "KEY.KEY=VALUE"),
        ("=1", "KEY.KEY=VALUE"),
        ("a..b=1", "KEY.KEY=VALUE"),
        ("m.7=1", "no item '7' in a list of 1"),
        ("m.x=1", "no item 'x'"),
        ("n.x=1", "neither a mapping nor a list"),
        ("n=[1", "not YAML"),
        ("n=!t 1", "tags are not supported"),
        ("n=*x", "anchors and aliases"),
    ],
)
def test_wrong_overrides(assignment: str, message: str) -> None:
    document = parse_yaml("m: [1]\nn: 2", "f")
    document.override(assignment)
    assert message in document.problems[0].message + (document.problems[0].remedy or "")
    assert str(document.problems[0].place) == f"--set {assignment}"
