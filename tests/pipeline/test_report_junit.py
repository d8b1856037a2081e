import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kdpipe.pipeline.report.junit import write_junit
from kdpipe.targets.errors import ArtifactError

SAMPLES = Path(__file__).parent / "report_samples"


def written(report, tmp_path):
    path = tmp_path / "junit.xml"
    write_junit(report, path)
    return ElementTree.parse(path).getroot()  # noqa: S314 - our own file


def sample(name):
    return json.loads((SAMPLES / f"{name}.json").read_text(encoding="utf-8"))


def test_a_case_for_each_stage_and_each_gate(tmp_path):
    report = sample("rich")
    root = written(report, tmp_path)
    stages, gates = root.findall("testsuite")
    assert [case.get("classname") for case in stages.iter("testcase")] == [
        f"digits.{stage['name']}" for stage in report["stages"]
    ]
    assert [(case.get("classname"), case.get("name")) for case in gates.iter("testcase")] == [
        (f"digits.{target['name']}", gate["name"]) for target in report["targets"] for gate in target["gates"]
    ]
    assert root.get("tests") == "22"
    assert root.get("failures") == root.get("errors") == root.get("skipped") == "0"


def test_failed_stages_are_errors_skipped_ones_skipped_broken_gates_failures(tmp_path):
    root = written(sample("failed"), tmp_path)
    outcome = {
        case.get("classname").rpartition(".")[2] + "/" + case.get("name"): [child.tag for child in case]
        for case in root.iter("testcase")
    }
    assert outcome["samples/stage"] == ["error"]
    assert outcome["student/stage"] == ["skipped"]
    assert outcome["teachers/stage"] == []
    assert [tags for name, tags in outcome.items() if name.endswith(("/accuracy", "/latency_ms"))] == [["failure"]] * 2
    assert root.find(".//error").get("message").startswith("samples: the generator collapsed onto 2 of 10 classes")
    assert "accuracy is 93.1 %, the limit is ≥ 97.0 %" in root.find(".//failure").get("message")
    assert (root.get("tests"), root.get("failures"), root.get("errors"), root.get("skipped")) == ("7", "2", "1", "1")


def test_totals_add_up(tmp_path):
    for name in ("rich", "minimal", "failed"):
        root = written(sample(name), tmp_path)
        for key in ("tests", "failures", "errors", "skipped"):
            assert int(root.get(key)) == sum(int(suite.get(key)) for suite in root.findall("testsuite"))
        for suite in root.findall("testsuite"):
            assert int(suite.get("tests")) == len(suite.findall("testcase"))
            assert float(suite.get("time")) == pytest.approx(
                sum(float(case.get("time")) for case in suite.findall("testcase"))
            )


def test_cached_stage_took_no_time_in_this_run(tmp_path):
    root = written(sample("rich"), tmp_path)
    times = {case.get("classname"): case.get("time") for case in root.findall("testsuite")[0]}
    assert times["digits.data.digits"] == "0.000"
    assert times["digits.teachers"] == "41.200"


def test_no_gates_no_suite_of_gates(tmp_path):
    assert [suite.get("name") for suite in written(sample("minimal"), tmp_path)] == ["one.stages"]


def test_characters_that_xml_forbids_are_replaced(tmp_path):
    report = sample("failed")
    report["pipeline"] = "a\x00b\x1b[31m\ud800\ufffe]]><x>"
    report["stages"][2]["error"] = {"message": "line 1\nline 2\x08 \x7f <&> \U0001f600"}
    root = written(report, tmp_path)
    assert root.get("name") == "a\ufffdb\ufffd[31m\ufffd\ufffd]]><x>"
    assert root.find(".//error").text == "line 1\nline 2\ufffd \ufffd <&> \U0001f600"


def test_file_declares_its_encoding(tmp_path):
    write_junit(sample("failed"), tmp_path / "junit.xml")
    assert (tmp_path / "junit.xml").read_bytes().startswith(b'<?xml version="1.0" encoding="utf-8"?>')


def test_what_is_no_report_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="pipeline"):
        write_junit({"schema": 1}, tmp_path / "junit.xml")
