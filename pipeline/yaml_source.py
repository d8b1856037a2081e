"""YAML as plain data, with the line and column of every key and value.

Only PyYAML's event parser is used: nothing is ever constructed from a tag, and nothing is expanded. Anchors, aliases,
merge keys, tags and several documents in a file are refused, and so are duplicate keys and keys that aren't words.
Plain scalars mean what YAML 1.2's core schema says they mean: `no` is a word and `1e-3` is a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kdpipe.pipeline.problems import KeyPath, Place, Problem, SpecError

MAX_BYTES = 1 << 20
MAX_DEPTH = 40
MAX_SCALAR_DIGITS = 300

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOLEAN = re.compile(r"true|True|TRUE|false|False|FALSE")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_OCTAL = re.compile(r"0o[0-7]+")
_REAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass
class Document:
    """Plain data (dict, list, str, int, float, bool, None) and where each part of it stands.

    Args:
        source: the file's name, as messages show it.
        data: the value.
        keys: for each entry of a mapping, by its path, where its key stands.
        values: for each value, by its path, where it begins.
        problems: mistakes found while reading; the data then leaves the wrong parts out.
        is_complete: whether the file was read to its end.
    """

    source: str
    data: Any = None
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    values: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    is_complete: bool = True

    def key_place(self, path: KeyPath) -> Place:
        """Return where the key at `path` stands, or where the nearest thing around it does."""
        return self.keys[path] if path in self.keys else self.value_place(path)

    def value_place(self, path: KeyPath) -> Place:
        """Return where the value at `path` begins, or that of the nearest thing around it."""
        for length in range(len(path), -1, -1):
            for places in (self.values, self.keys):
                if path[:length] in places:
                    return places[path[:length]]
        return Place(self.source, 1, 1)

    def override(self, assignment: str) -> None:
        """Apply one `--set a.b.c=value`, whose value is read as YAML and whose mistakes are added to `problems`."""
        place = Place(f"--set {assignment}")
        dotted_path, equals, text = assignment.partition("=")
        words = dotted_path.strip().split(".")
        if not equals or not all(words):
            self.problems.append(
                Problem(place, (), "not of the form KEY.KEY=VALUE", "Write for instance --set stages.student.epochs=3")
            )
            return
        value = parse_yaml(text, place.source)
        if value.problems:
            self.problems += [Problem(place, tuple(words), p.message, p.remedy) for p in value.problems]
            return
        self.assign(words, value.data, place)

    def assign(self, words: Sequence[str], value: Any, place: Place, source: KeyPath | None = None) -> None:
        """Set one value; a mistake is added to `problems`.

        Args:
            words: the path of its key, the indices of lists as text.
            value: plain data.
            place: where the assignment stands.
            source: the path in this document that the value comes from: the parts of it stand where they do there.
        """
        path, problem = _assign(self.data, words, value)
        if problem:
            self.problems.append(Problem(place, path, *problem))
            return
        for places in (self.keys, self.values):
            for old in [old for old in places if old[: len(path)] == path]:
                del places[old]
            if source is not None:
                inner = {known: there for known, there in places.items() if known[: len(source)] == source}
                places.update({path + known[len(source) :]: there for known, there in inner.items()})
            places[path] = place
        for length in range(1, len(path)):  # mappings that this made
            self.values.setdefault(path[:length], place)


def read_document(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        SpecError: it is missing, unreadable, too large, not UTF-8 or not YAML at all.
    """
    place = Place(str(path))
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise SpecError([Problem(place, (), "no such file", "Run `kdpipe init` to write one")]) from None
    except IsADirectoryError:
        raise SpecError([Problem(place, (), "a directory, not a file", "Give a pipeline.yaml")]) from None
    except OSError as error:
        raise SpecError([Problem(place, (), f"can't be read ({error.strerror or error})")]) from None
    if len(content) > MAX_BYTES:
        raise SpecError([Problem(place, (), f"larger than {MAX_BYTES >> 20} MiB: surely not a pipeline file")])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SpecError([Problem(Place(str(path), line, 1), (), "not UTF-8", "Save the file as UTF-8")]) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Document:
    """Return `text` as a document; whatever is wrong is in its `problems`.

    Args:
        text: YAML.
        source: the file's name, for messages.
    """
    builder = _Builder(source)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if not builder.take(event):
                break
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(source, mark.line + 1, mark.column + 1) if mark else Place(source)
        builder.give_up(place, f"not YAML: {error.problem or error.context or error}")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        builder.give_up(Place(source, line, 1), f"a character that YAML does not allow: {_character(error.character)}")
    return builder.document


def _character(character: int | str | bytes) -> str:
    code = character if isinstance(character, int) else ord(character)
    return f"U+{code:04X}"


@dataclass
class _Container:
    """A mapping or sequence that is being read."""

    value: dict[str, Any] | list[Any]
    path: KeyPath
    key: str | None = None
    skip_value: bool = False
    """Whether the entry's key was refused, so that its value must be passed over."""


class _Builder:
    """Builds a Document from parser events with a stack of its own, so that deep nesting can't exhaust Python's."""

    def __init__(self, source: str) -> None:
        self.document = Document(source)
        self._stack: list[_Container] = []
        self._skipping = 0
        self._documents = 0

    def complain(self, place: Place, message: str, remedy: str | None = None) -> None:
        path = self._next_path() if self._stack else ()
        self.document.problems.append(Problem(place, path, message, remedy))

    def give_up(self, place: Place, message: str, remedy: str | None = None) -> bool:
        """Complain of something after which nothing more can be read; return False."""
        self.document.is_complete = False
        self.complain(place, message, remedy)
        return False

    def take(self, event: yaml.Event) -> bool:
        """Take one event; return whether to go on."""
        mark: Any = event.start_mark
        place = Place(self.document.source, mark.line + 1, mark.column + 1)
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                return self.give_up(place, "a second document in one file", "Remove the line `---` and what follows it")
        elif isinstance(event, yaml.NodeEvent):
            return self._node(event, place)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._end()
        return True

    def _node(self, event: yaml.NodeEvent, place: Place) -> bool:
        is_start = isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent)
        if self._skipping:
            self._skipping += is_start
            return True
        if self._stack and self._stack[-1].skip_value:
            self._stack[-1].skip_value = False
            self._skipping = int(is_start)
            return True
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            # Nothing after it can be relied on, and a document of nested aliases deserves no more of our time.
            return self.give_up(place, "anchors and aliases (& and *) are not supported", "Repeat the value instead")
        if self._awaiting_key() and is_start:
            return self.give_up(place, "a key must be a word, found a list or mapping")
        if (tag := getattr(event, "tag", None)) is not None:
            self._tagged(str(tag), place)
            self._skipping = int(is_start)
        elif isinstance(event, yaml.ScalarEvent):
            self._scalar(event, place)
        elif len(self._stack) >= MAX_DEPTH:
            return self.give_up(place, f"nested more than {MAX_DEPTH} deep")
        else:
            container: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
            self._stack.append(_Container(container, self._add(container, place)))
        return True

    def _tagged(self, tag: str, place: Place) -> None:
        name = tag.removeprefix("tag:yaml.org,2002:").lstrip("!")
        self.complain(place, f"tags are not supported, found !{name}", "Pipeline files are plain data")
        if self._awaiting_key():
            self._stack[-1].skip_value = True
        else:
            self._add(None, place)

    def _end(self) -> None:
        if self._skipping:
            self._skipping -= 1
        else:
            self._stack.pop()

    def _awaiting_key(self) -> bool:
        top = self._stack[-1] if self._stack else None
        return top is not None and isinstance(top.value, dict) and top.key is None and not top.skip_value

    def _scalar(self, event: yaml.ScalarEvent, place: Place) -> None:
        if self._awaiting_key():
            self._key(event, place)
            return
        # `implicit[0]` says that a plain scalar was written, without quotes or a block indicator.
        value: Any = event.value
        if event.implicit[0]:
            value, complaint = resolve_scalar(event.value)
            if complaint:
                self.complain(place, complaint)
        self._add(value, place)

    def _key(self, event: yaml.ScalarEvent, place: Place) -> None:
        top = self._stack[-1]
        assert isinstance(top.value, dict)  # noqa: S101 - _awaiting_key saw it
        name = event.value
        value = resolve_scalar(name)[0] if event.implicit[0] else name
        if event.implicit[0] and name == "<<":
            self.complain(place, "merge keys (<<) are not supported", "Repeat the keys instead")
        elif not isinstance(value, str) or not name:
            self.complain(place, f"a key must be a word, found {name!r}", f'Write "{name}" if you mean the word')
        elif name in top.value:
            first = self.document.keys[(*top.path, name)]
            self.complain(place, f"duplicate key {name!r}, first at line {first.line}", "Remove one of the two")
        else:
            top.key = name
            self.document.keys[(*top.path, name)] = place
            return
        top.skip_value = True

    def _add(self, value: Any, place: Place) -> KeyPath:
        path = self._next_path() if self._stack else ()
        if not self._stack:
            self.document.data = value
        elif isinstance(top := self._stack[-1].value, list):
            top.append(value)
        elif (key := self._stack[-1].key) is not None:
            top[key] = value
            self._stack[-1].key = None
        self.document.values[path] = place
        return path

    def _next_path(self) -> KeyPath:
        """Return the path of the value that is read next, or of the mapping whose next key is read."""
        top = self._stack[-1]
        if isinstance(top.value, list):
            return (*top.path, len(top.value))
        return top.path if top.key is None else (*top.path, top.key)


def resolve_scalar(text: str) -> tuple[Any, str | None]:
    """Return what a plain scalar means in YAML 1.2's core schema, and a complaint or None.

    >>> resolve_scalar("1e-3"), resolve_scalar("no"), resolve_scalar("0x10")
    ((0.001, None), ('no', None), (16, None))
    """
    if _NULL.fullmatch(text):
        return None, None
    if _BOOLEAN.fullmatch(text):
        return text[0] in "tT", None
    if _NOT_FINITE.fullmatch(text):
        return None, f"{text} is not a finite number"
    if len(text) > MAX_SCALAR_DIGITS:
        return text, None
    if _INTEGER.fullmatch(text):
        return int(text), None
    if _HEXADECIMAL.fullmatch(text):
        return int(text[2:], 16), None
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8), None
    if _REAL.fullmatch(text):
        number = float(text)
        return (number, None) if math.isfinite(number) else (None, f"{text} is not a finite number")
    return text, None


def _assign(data: Any, words: Sequence[str], value: Any) -> tuple[KeyPath, tuple[str, str | None] | None]:
    """Set the item of nested `data` that `words` name; return its path, and (message, remedy) if it can't be."""
    path: KeyPath = ()
    for index, word in enumerate(words):
        last = index == len(words) - 1
        key: str | int = word
        if isinstance(data, list):
            if not word.isdecimal() or int(word) >= len(data):
                return path, (f"no item {word!r} in a list of {len(data)}", f"Give an index below {len(data)}")
            key = int(word)
        elif isinstance(data, dict):
            if word not in data and not last:
                data[word] = {}
        else:
            return path, ("neither a mapping nor a list, so nothing can be set inside it", None)
        path = (*path, key)
        if last:
            data[key] = value
        else:
            data = data[key]
    return path, None
