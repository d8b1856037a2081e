from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from kdpipe.pipeline.json_schema import pipeline_schema

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = pipeline_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture
def document() -> Any:
    return yaml.safe_load((ROOT / "pipeline.yaml").read_text(encoding="utf-8"))


def test_the_default_pipeline_fits(validator: Any, document: Any) -> None:
    validator.validate(document)


def change(document: Any, path: str, value: Any) -> Any:
    changed = copy.deepcopy(document)
    *parents, last = path.split(".")
    place = changed
    for word in parents:
        place = place[word]
    place[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kdpipe", 2),
        ("nme", "x"),
        ("seed", -1),
        ("accelerator", "gpu"),
        ("threads", 0),
        ("stages", {}),
        ("stages.teachers.uses", "teacher"),
        ("stages.teachers.epoch", 3),
        ("stages.teachers.epochs", "many"),
        ("stages.teachers.members", []),
        ("stages.samples.teachers", "teachers"),
        ("stages.samples.gates", {"accuracy": 0.9}),
        ("stages.mcu.gates", {"accuracy": 97}),
        ("stages.mcu.gates", {"acuracy": 0.9}),
        ("stages.export.targets", ["onnxx"]),
        ("data.digits.uses", "digit"),
    ],
)
def test_mistakes_do_not_fit(validator: Any, document: Any, path: str, value: Any) -> None:
    assert not validator.is_valid(change(document, path, value))


def test_the_schema_knows_the_toys_too(toy: Any) -> None:
    schema = pipeline_schema(toy.registry)
    check = jsonschema.Draft202012Validator(schema)
    document = yaml.safe_load(toy.file.read_text())
    check.validate(document)
    assert not check.is_valid(change(document, "stages.ensemble.networks", "${teacher}"))
    assert not check.is_valid(change(document, "stages.teacher.options", [{"momentun": 1}]))
