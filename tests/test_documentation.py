"""What the documents say is so: commands exist, links lead somewhere, examples are valid."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from kdpipe.pipeline.gates import GATES
from kdpipe.pipeline.spec import TOP_KEYS
from kdpipe.pipeline.spec_file import load_spec
from kdpipe.stages.registry import STAGES

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
CHEAP = re.compile(r"kdpipe (--version|ls \w+|schema|doctor|init [\w.-]+|plan .*)")


def name(path):
    return str(path.relative_to(ROOT))


def blocks(language):
    """Yield (document, text) of every fenced block of a language."""
    for path in DOCUMENTS:
        for text in re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M):
            yield name(path), text


def commands():
    """Return every command of the documents and the CI examples as (file, words), without redirections."""
    found = [(path, line.strip()) for path, text in blocks("sh") for line in text.splitlines() if line.strip()]
    for path in sorted(ROOT.glob("examples/ci/*.yml")):
        lines = re.findall(r"(?:run: |- )((?:kdpipe|pip) .*)", path.read_text(encoding="utf-8"))
        found += [(name(path), line) for line in lines]
    return [(path, shlex.split(line.partition(" > ")[0])) for path, line in found if not line.startswith("#")]


def starting_with(word):
    return list(dict.fromkeys((path, tuple(words)) for path, words in commands() if words[0] == word))


def as_id(value):
    return " ".join(value) if isinstance(value, tuple) else value


def test_every_command_of_the_documents_is_of_a_known_kind():
    kinds = {words[0] for _, words in commands()}
    assert {"kdpipe", "make"} <= kinds
    assert kinds <= {"kdpipe", "make", "pip", "pytest", "python", "."}


def usage_problem(command, context, words):
    """Return what the command line's parser says against the words after a command's name, or None."""
    import click

    try:
        command.make_context(words[1], list(words[2:]), parent=context)
    except click.UsageError as error:
        return error.format_message()
    return None


@pytest.mark.parametrize(("path", "words"), starting_with("kdpipe"), ids=as_id)
def test_kdpipe_command_parses(path, words):
    import typer.main

    from kdpipe.pipeline.cli import app

    group = typer.main.get_command(app)
    context = group.make_context("kdpipe", list(words[1:]), resilient_parsing=words[1].startswith("-"))
    if words[1].startswith("-"):
        assert words[1] in {option for parameter in group.params for option in parameter.opts}
        return
    command = group.get_command(context, words[1])
    assert command is not None, f"{path}: no command {words[1]}"
    problem = usage_problem(command, context, words)
    # Files that the reader has and this test has not are no mistake of the document.
    assert problem is None or "does not exist" in problem, f"{path}: {problem}"


@pytest.mark.parametrize(
    ("path", "words"), [item for item in starting_with("kdpipe") if CHEAP.match(" ".join(item[1]))], ids=as_id
)
def test_cheap_kdpipe_command_runs(path, words, tmp_path):
    if "pipeline.yaml" in words:
        shutil.copy(ROOT / "pipeline.yaml", tmp_path)
    if any(word.startswith("examples/") for word in words):
        shutil.copytree(ROOT / "examples", tmp_path / "examples")
    executable = shutil.which("kdpipe", path=str(Path(sys.executable).parent))
    assert executable is not None, "kdpipe is not installed beside this Python"
    done = subprocess.run(
        [executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, f"{path}: {done.stderr or done.stdout}"
    assert done.stdout.strip()


@pytest.mark.parametrize(("path", "words"), starting_with("pytest"), ids=as_id)
def test_pytest_command_finds_tests(path, words):
    command = [sys.executable, "-m", *words, "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, f"{path}: {done.stderr or done.stdout}"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("path", "words"), starting_with("make"), ids=as_id)
def test_make_command_has_a_target(path, words):
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{path}: {done.stderr}"
    assert done.stdout.strip()


@pytest.mark.parametrize(("path", "words"), starting_with("pip"), ids=as_id)
def test_pip_command_names_files_and_extras_that_exist(path, words):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in words:
        if match := re.fullmatch(r"(?:\.|kdpipe)\[(.*)\]", word):
            assert set(match[1].split(",")) <= set(extras), path
    if "-c" in words:
        assert (ROOT / words[words.index("-c") + 1]).is_file()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_inside_the_repository_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:", link):
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.exists(), link
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
                slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, link


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_document_has_one_title_and_no_loose_ends(path):
    text = path.read_text(encoding="utf-8")
    outside = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    assert len(re.findall(r"^# ", outside, re.M)) == 1
    assert text.count("```") % 2 == 0
    assert not re.search(r"\b(TODO|FIXME|XXX)\b|/root/|/home/", text)


def test_example_pipeline_is_valid(tmp_path):
    examples = [text for _, text in blocks("yaml") if text.startswith("kdpipe:")]
    assert examples
    for text in examples:
        path = tmp_path / "pipeline.yaml"
        path.write_text(text, encoding="utf-8")
        assert load_spec(path).name == "digits"


def test_example_stage_is_one(monkeypatch):
    (text,) = [text for _, text in blocks("python")]
    module = types.ModuleType("kdpipe_documented_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(text, "docs/extending.md", "exec"), module.__dict__)  # noqa: S102 - our own example
    stage = module.STAGE
    assert stage.outputs(stage.params(network="${student.network}")) == {"network": "network"}


def sections(path):
    """Return a document's second-level sections by heading."""
    parts = re.split(r"^## (.*)$", path.read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("kind", list(STAGES.stages))
def test_every_parameter_of_every_stage_is_explained(kind):
    page = sections(ROOT / "docs" / "stages.md")
    assert kind in page
    shared = (ROOT / "docs" / "stages.md").read_text(encoding="utf-8").partition("## ")[0]
    for parameter in STAGES.stage(kind).params.model_fields:
        assert f"`{parameter}`" in page[kind] + shared, f"{kind}: {parameter}"


def test_every_gate_and_every_top_level_key_is_explained():
    text = (ROOT / "docs" / "pipeline-yaml.md").read_text(encoding="utf-8")
    for gate in GATES:
        assert f"`{gate}`" in text
    for key in TOP_KEYS:
        assert re.search(rf"^{key}:", text, re.M)


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/ci/*.yml")), ids=name)
def test_ci_examples_are_yaml_and_run_the_pipeline(path):
    text = path.read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(text), dict)
    assert "kdpipe run pipeline.yaml" in text
    assert "junit.xml" in text
    assert ".kdpipe/store" in text


def test_picture_is_well_formed_and_named():
    root = ElementTree.parse(ROOT / "docs" / "pipeline.svg").getroot()  # noqa: S314 - our own file
    assert root.find("{http://www.w3.org/2000/svg}title").text
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", (ROOT / "docs" / "pipeline.svg").read_text(encoding="utf-8"))


def test_licence_is_the_whole_apache_licence():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert all(f"   {number}. " in text for number in range(1, 10))


def test_constraints_pin_every_direct_dependency_and_no_local_build():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.M))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(pins) == len(lines), "every line is NAME==VERSION"
    assert not any("+" in version for version in pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(item for group in project["optional-dependencies"].values() for item in group),
    ]
    known = {re.sub(r"[-_.]+", "-", pin).lower() for pin in pins}
    for requirement in wanted:
        distribution = re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()
        assert distribution == "kdpipe" or distribution in known, requirement
