from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.problems import SpecError
from kdpipe.targets.errors import StorageError

HEAD = "kdpipe: 1\nname: toy\ndata:\n  digits: {uses: numbers}\nstages:\n"
LEARN = "  a: {uses: learn, data: '${data.digits.train}'}\n"


def problems(toy: Any, text: str, *overrides: str) -> list[Any]:
    toy.write(text)
    with pytest.raises(SpecError) as caught:
        toy.spec(*overrides)
    return list(caught.value.problems)


def test_the_whole_pipeline_becomes_types(toy: Any) -> None:
    spec = toy.spec()
    assert list(spec.stages) == ["data.digits", "teacher", "rounded", "ensemble", "samples", "export", "host"]
    assert spec.stages["teacher"].params.epochs == 3
    assert [str(reference) for reference in spec.stages["ensemble"].inputs["networks"]] == [
        "${teacher.network}",
        "${rounded.network}",
    ]
    assert spec.stages["host"].gates == {"accuracy": 0.8, "size_kib": 10.0}
    assert spec.stages["ensemble"].needs == ("teacher", "rounded")


def test_stages_may_stand_in_any_order(toy: Any) -> None:
    toy.write(HEAD + "  b: {uses: round, network: '${a}'}\n  c: {uses: round, network: '${b}'}\n" + LEARN)
    assert list(toy.spec().stages) == ["data.digits", "a", "b", "c"]


def test_seeds(toy: Any) -> None:
    spec = toy.spec("seed=5", "stages.teacher.seed=7")
    assert spec.stages["rounded"].seed == 5
    assert spec.stages["teacher"].seed == 7


# Each: text below HEAD, or a whole document where it begins with "kdpipe"; line and column; message; remedy.
BAD: dict[str, tuple[str, int, int, str, str | None]] = {
    "unknown stage": ("  a: {uses: lern}\n", 6, 13, "unknown stage 'lern'", "Did you mean learn?"),
    "unknown source": (
        "kdpipe: 1\nname: t\ndata: {d: {uses: number}}\nstages: {a: {uses: mischief}}",
        3,
        18,
        "unknown data source 'number'",
        "Did you mean numbers?",
    ),
    "unknown top key": (
        "kdpipe: 1\nname: t\nstage: {}\nstages: {a: {uses: mischief}}",
        3,
        1,
        "unknown key 'stage'",
        "Did you mean stages?",
    ),
    "unknown parameter": (
        "  a:\n    uses: learn\n    data: ${data.digits.train}\n    epoch: 3\n",
        9,
        5,
        "unknown key 'epoch'",
        "Did you mean epochs?",
    ),
    "unknown nested parameter": (
        "  a: {uses: learn, data: '${data.digits.train}', options: [{}, {momentun: 1}]}\n",
        6,
        65,
        "unknown key 'momentun'",
        "Did you mean momentum?",
    ),
    "wrong type": (
        "  a: {uses: learn, data: '${data.digits.train}', epochs: many}\n",
        6,
        58,
        "found 'many'",
        None,
    ),
    "out of range": (
        "  a: {uses: learn, data: '${data.digits.train}', epochs: 0}\n",
        6,
        58,
        "must be greater than or equal to 1, found 0",
        None,
    ),
    "nested out of range": (
        "  a: {uses: learn, data: '${data.digits.train}', options: [{momentum: 2}]}\n",
        6,
        71,
        "less than or equal to 1",
        None,
    ),
    "wrong word": (
        "  a: {uses: learn, data: '${data.digits.train}', kind: huge}\n",
        6,
        56,
        "must be 'small' or 'large', found 'huge'",
        None,
    ),
    "missing input": ("  a: {uses: learn}\n", 6, 6, "missing key 'data'", None),
    "missing uses": ("  a: {epochs: 3}\n", 6, 6, "missing key 'uses'", None),
    "not a mapping": ("  a: 3\n", 6, 6, "must be a mapping", None),
    "no reference": ("  a: {uses: learn, data: digits}\n", 6, 26, "not a reference", "Write ${STAGE.OUTPUT}"),
    "bad reference": ("  a: {uses: learn, data: '${data.digits}'}\n", 6, 26, "not a reference", None),
    "half a reference": ("  a: {uses: learn, data: 'x${data.digits.train}'}\n", 6, 26, "not a reference", None),
    "unknown stage in a reference": (
        LEARN + "  b: {uses: round, network: '${teacher.network}'}\n",
        7,
        29,
        "names an unknown stage 'teacher'",
        "Known: a, b",
    ),
    "unknown source in a reference": (
        "  a: {uses: learn, data: '${data.digit.train}'}\n",
        6,
        26,
        "names an unknown data source 'digit'",
        "Did you mean digits?",
    ),
    "unknown output": (
        LEARN + "  b: {uses: round, network: '${a.weights}'}\n",
        7,
        29,
        "'a' has no output 'weights'",
        "It has ${a.network}",
    ),
    "unknown split": (
        "  a: {uses: learn, data: '${data.digits.validation}'}\n",
        6,
        26,
        "'data.digits' has no output 'validation'",
        "It has ${data.digits.train}, ${data.digits.test}",
    ),
    "ambiguous": (
        LEARN + "  b: {uses: combine, networks: ['${a}']}\n  c: {uses: dream, teachers: '${b}'}\n",
        8,
        30,
        "has several outputs",
        "Write one of ${b.ensemble}, ${b.model}",
    ),
    "wrong kind": (
        LEARN + "  b: {uses: pack, graph: '${a}'}\n",
        7,
        26,
        "${a} is of kind network",
        "'graph' takes integer-graph",
    ),
    "wrong kind with a hint": (
        LEARN + "  b: {uses: combine, networks: ['${a}']}\n  c: {uses: dream, teachers: '${b.model}'}\n",
        8,
        30,
        "is of kind integer-graph",
        "takes ensemble or network: ${b.ensemble}",
    ),
    "data for a data-free stage": (
        "  a: {uses: dream, teachers: '${data.digits.train}'}\n",
        6,
        30,
        "hands real data to a data-free stage",
        None,
    ),
    "data under a key of a data-free stage": (
        LEARN + "  b: {uses: dream, teachers: '${a}', train: '${data.digits.train}'}\n",
        7,
        45,
        "hands real data to a data-free stage",
        "Remove this key",
    ),
    "a reference as a parameter": (
        LEARN + "  b: {uses: round, network: '${a}', step: '${a.epochs}'}\n",
        7,
        43,
        "stands in a parameter",
        "Only inputs can be references",
    ),
    "a list where one is taken": (
        LEARN + "  b: {uses: round, network: ['${a}']}\n",
        7,
        29,
        "must be a reference such as ${STAGE.OUTPUT}, found ['${a}']",
        None,
    ),
    "a word where a list is taken": (
        LEARN + "  b: {uses: combine, networks: '${a}'}\n",
        7,
        32,
        "must be a list of references such as",
        None,
    ),
    "itself": (
        "  a: {uses: round, network: '${a}'}\n",
        6,
        29,
        "the stages form a cycle: a -> a",
        None,
    ),
    "cycle": (
        "  a: {uses: round, network: '${c}'}\n  b: {uses: round, network: '${a}'}\n"
        "  c: {uses: round, network: '${b}'}\n",
        7,
        29,
        "the stages form a cycle: a -> b -> c -> a",
        None,
    ),
    "gates where there are none": (
        "  a: {uses: learn, data: '${data.digits.train}', gates: {accuracy: 1}}\n",
        6,
        50,
        "a stage of kind 'learn' has no gates",
        None,
    ),
    "unknown gate": (
        LEARN + "  b: {uses: check, artifact: '${a}', data: '${data.digits.test}', gates: {acuracy: 0.9}}\n",
        7,
        75,
        "unknown key 'acuracy'",
        "Did you mean accuracy?",
    ),
    "gate in percent": (
        LEARN + "  b: {uses: check, artifact: '${a}', data: '${data.digits.test}', gates: {accuracy: 97}}\n",
        7,
        85,
        "must be from 0 to 1 (a fraction: 97 % is 0.97), found 97",
        None,
    ),
    "negative gate": (
        LEARN + "  b: {uses: check, artifact: '${a}', data: '${data.digits.test}', gates: {cycles: -1}}\n",
        7,
        83,
        "must be not negative, found -1",
        None,
    ),
    "gate that is no number": (
        LEARN + "  b: {uses: check, artifact: '${a}', data: '${data.digits.test}', gates: {cycles: few}}\n",
        7,
        83,
        "must be a number, found 'few'",
        None,
    ),
    "same name in another case": (LEARN + "  A: {uses: mischief}\n", 7, 3, "in case only", None),
    "same name twice": (LEARN + "  a: {uses: mischief}\n", 7, 3, "duplicate key 'a'", None),
    "not a name": ("  a/b: {uses: mischief}\n", 6, 3, "'a/b' is not a name", None),
    "dots as a name": ("  ..: {uses: mischief}\n", 6, 3, "'..' is not a name", None),
    "a device of Windows": ("  con: {uses: mischief}\n", 6, 3, "Windows", None),
    "a stage called data": ("  data: {uses: mischief}\n", 6, 3, "can't be called 'data'", None),
    "path that leaves": (
        "  a: {uses: learn, data: '${data.digits.train}', options: [{weights: ../secret}]}\n",
        6,
        70,
        "leaves the pipeline file's folder",
        None,
    ),
    "absolute path": (
        "  a: {uses: learn, data: '${data.digits.train}', options: [{weights: /etc/passwd}]}\n",
        6,
        70,
        "leaves the pipeline file's folder",
        None,
    ),
    "path of Windows": (
        "  a: {uses: learn, data: '${data.digits.train}', options: [{weights: 'C:\\secret'}]}\n",
        6,
        70,
        "leaves the pipeline file's folder",
        None,
    ),
    "file that is not there": (
        "  a: {uses: learn, data: '${data.digits.train}', options: [{weights: w.bin}]}\n",
        6,
        70,
        "no such file: 'w.bin'",
        None,
    ),
    "file whose name no disk can hold": (
        f"  a: {{uses: learn, data: '${{data.digits.train}}', options: [{{weights: {'w' * 300}}}]}}\n",
        6,
        70,
        "can't be read (",
        None,
    ),
    "folder that is not there": (
        "  a: {uses: learn, data: '${data.digits.train}', options: [{folder: pictures}]}\n",
        6,
        69,
        "no such folder: 'pictures'",
        None,
    ),
    "folder that leaves": (
        "  a: {uses: learn, data: '${data.digits.train}', options: [{folder: ../pictures}]}\n",
        6,
        69,
        "leaves the pipeline file's folder",
        None,
    ),
    "seed": ("  a: {uses: mischief, seed: -1}\n", 6, 29, "must be an integer from 0 to 2147483647", None),
    "version": ("kdpipe: 2\nname: t\nstages: {a: {uses: mischief}}", 1, 9, "unknown version 2", "reads 1"),
    "no version": ("name: t\nstages: {a: {uses: mischief}}", 1, 1, "missing key 'kdpipe'", None),
    "no stages": ("kdpipe: 1\nname: t\n", 1, 1, "missing key 'stages'", None),
    "empty stages": ("kdpipe: 1\nname: t\nstages: {}", 3, 9, "must be a mapping of names", None),
    "name with a slash": (
        "kdpipe: 1\nname: ../t\nstages: {a: {uses: mischief}}",
        2,
        7,
        "'../t' is not a name",
        None,
    ),
    "accelerator": (
        "kdpipe: 1\nname: t\naccelerator: gpu\nstages: {a: {uses: mischief}}",
        3,
        14,
        "unknown accelerator 'gpu'",
        "Known: auto, cpu, cuda, mps",
    ),
    "threads": (
        "kdpipe: 1\nname: t\nthreads: 0\nstages: {a: {uses: mischief}}",
        3,
        10,
        "not a number of threads: 0",
        "Give an integer from 1 to 1024",
    ),
    "threads as a truth value": (
        "kdpipe: 1\nname: t\nthreads: true\nstages: {a: {uses: mischief}}",
        3,
        10,
        "not a number of threads: True",
        "Give an integer from 1 to 1024",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_each_mistake_has_its_place_and_remedy(toy: Any, name: str) -> None:
    text, line, column, message, remedy = BAD[name]
    found = problems(toy, text if "kdpipe" in text or text.startswith("name") else HEAD + text)
    assert len(found) == 1, found
    assert message in found[0].message
    assert remedy is None or remedy in (found[0].remedy or "")
    assert (found[0].place.source, found[0].place.line, found[0].place.column) == (str(toy.file), line, column)


def test_empty_and_scalar_files(toy: Any) -> None:
    assert "empty" in problems(toy, "")[0].message
    assert "empty" in problems(toy, "# nothing\n")[0].message
    assert "not a mapping" in problems(toy, "- a\n- b\n")[0].message
    assert "not a mapping" in problems(toy, "just words\n", "a.b=3")[0].message


def test_all_mistakes_at_once_in_the_order_of_the_file(toy: Any) -> None:
    text = (
        HEAD.replace("name: toy", "name: 3")
        + "  a: {uses: learn, data: '${data.digits.trian}', epochs: 0, rte: 1}\n"
        + "  a: {uses: dream}\n"
        + "  b: {uses: rund}\n"
        + "  c: {uses: check, artifact: '${a}', data: '${data.digits.test}', gates: {accuracy: 97}}\n"
    )
    found = problems(toy, text, "stages.c.device=[1]", "stages.d.uses=learn")
    assert [problem.place.line for problem in found] == [0, 0, 2, 6, 6, 6, 7, 8, 9]
    text = "\n".join(map(str, found))
    assert f"{toy.file}:6:58: stages.a.epochs: must be" in text
    assert "--set stages.c.device=[1]: stages.c.device: must be a valid string" in text


def test_a_value_that_could_not_be_read_is_complained_of_once(toy: Any) -> None:
    found = problems(toy, HEAD + "  a: {uses: learn, data: '${data.digits.train}', rate: .inf}\n")
    assert [problem.message for problem in found] == [".inf is not a finite number"]


def test_the_message_of_the_error_is_one_line_a_mistake(toy: Any) -> None:
    toy.write(HEAD + "  a: {uses: lern}\n  b: {uses: lern}\n")
    with pytest.raises(SpecError) as caught:
        toy.spec()
    assert str(caught.value).count("\n") == 1


def test_files_are_found_in_nested_models(toy: Any) -> None:
    (toy.folder / "w.bin").write_text("one")
    toy.write(HEAD + "  a: {uses: learn, data: '${data.digits.train}', options: [{weights: w.bin}]}\n")
    assert toy.ran() == ["data.digits", "a"]
    assert toy.ran() == []
    (toy.folder / "w.bin").write_text("two")
    assert toy.plan()["a"].reasons == ("file w.bin changed",)
    assert toy.ran() == ["a"]


def test_a_folders_paths_and_contents_belong_to_the_key(toy: Any) -> None:
    pictures = toy.folder / "pictures" / "cats"
    pictures.mkdir(parents=True)
    (pictures / "a.png").write_text("one")
    toy.write(HEAD + "  a: {uses: learn, data: '${data.digits.train}', options: [{folder: pictures}]}\n")
    assert toy.ran() == ["data.digits", "a"]
    assert toy.ran() == []
    for change in (
        lambda: (pictures / "a.png").write_text("two"),
        lambda: (pictures / "a.png").rename(pictures / "b.png"),
        lambda: (pictures / "c.png").write_text(""),
        lambda: (pictures / "c.png").unlink() or (pictures / "d.png").write_text(""),
    ):
        change()
        assert toy.plan()["a"].reasons == ("file pictures changed",)
        assert toy.ran() == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_in_a_folder_is_refused(toy: Any) -> None:
    (toy.folder / "pictures").mkdir()
    (toy.folder / "pictures" / "a.png").symlink_to("/etc/hostname")
    toy.write(HEAD + "  a: {uses: learn, data: '${data.digits.train}', options: [{folder: pictures}]}\n")
    with pytest.raises(StorageError, match=r"a\.png: neither a file nor a directory\. Put a copy of the file there"):
        toy.run()


def test_a_file_in_a_folder_beside_the_pipeline(toy: Any, tmp_path: Path) -> None:
    (toy.folder / "weights").mkdir()
    (toy.folder / "weights" / "w.bin").write_text("one")
    toy.write(HEAD + "  a: {uses: learn, data: '${data.digits.train}', options: [{weights: weights/w.bin}]}\n")
    assert toy.ran() == ["data.digits", "a"]
