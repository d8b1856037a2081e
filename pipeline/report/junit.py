"""junit.xml: what continuous-integration systems show of a run.

The dialect is the one that Jenkins, GitLab, GitHub's report actions, Azure and CircleCI all read: `testsuites` of
`testsuite`s of `testcase`s with at most one `error`, `failure` or `skipped` each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from kdpipe.pipeline.report.document import Report, StageEntry, Target, parse_report
from kdpipe.pipeline.report.files import write_text
from kdpipe.pipeline.report.gates import sentence


def write_junit(report: Mapping[str, Any], path: Path) -> None:
    """Write junit.xml for the content of a report.json: a case for each stage and one for each gate.

    Raises:
        ArtifactError: `report` is not a report.
        StorageError: the file can't be written.
    """
    root = junit(parse_report(report))
    ElementTree.indent(root)
    write_text(path, ElementTree.tostring(root, encoding="unicode", xml_declaration=False), head=True)


def junit(report: Report) -> ElementTree.Element:
    """Return the document: suite `PIPELINE.stages`, then suite `PIPELINE.gates`."""
    stages = [stage_case(report.pipeline, stage) for stage in report.stages]
    gates = [
        gate_case(report.pipeline, target, index) for target in report.targets for index in range(len(target.gates))
    ]
    suites = [suite(f"{report.pipeline}.stages", stages)]
    if gates:
        suites.append(suite(f"{report.pipeline}.gates", gates))
    root = ElementTree.Element("testsuites", {"name": report.pipeline, **_totals(stages + gates)})
    root.extend(suites)
    return root


def suite(name: str, cases: list[ElementTree.Element]) -> ElementTree.Element:
    """Return a suite with its totals."""
    element = ElementTree.Element("testsuite", {"name": name, **_totals(cases)})
    element.extend(cases)
    return element


def _totals(cases: list[ElementTree.Element]) -> dict[str, str]:
    """Return the counts and the time that suites carry as attributes."""
    counts = {
        plural: str(sum(case.find(tag) is not None for case in cases))
        for plural, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped"))
    }
    seconds = sum(float(case.get("time", "0")) for case in cases)
    return {"tests": str(len(cases)), **counts, "time": f"{seconds:.3f}"}


def stage_case(pipeline: str, stage: StageEntry) -> ElementTree.Element:
    """Return the case of a stage: failed is an error, skipped is skipped, ran and cached are passed.

    The time is 0 for a cached stage: it took none in this run.
    """
    seconds = stage.seconds if stage.status != "cached" and stage.seconds is not None else 0.0
    case = ElementTree.Element(
        "testcase", {"classname": f"{pipeline}.{stage.name}", "name": "stage", "time": f"{seconds:.3f}"}
    )
    if stage.status in {"ran", "cached"}:
        return case
    message = stage.error or "; ".join(stage.reasons) or f"the stage is {stage.status}"
    if stage.status == "skipped":
        ElementTree.SubElement(case, "skipped", {"message": message})
    else:
        ElementTree.SubElement(case, "error", {"message": message, "type": "StageFailed"}).text = message
    return case


def gate_case(pipeline: str, target: Target, index: int) -> ElementTree.Element:
    """Return the case of a target's gate number `index`, named without its limit, so that its history goes on."""
    gate = target.gates[index]
    case = ElementTree.Element(
        "testcase",
        {
            "classname": f"{pipeline}.{target.name}",
            "name": gate.name,
            "time": "0.000",
        },
    )
    message = sentence(target.name, gate.name, gate.limit, gate.value, gate.reason)
    if gate.passed:
        ElementTree.SubElement(case, "system-out").text = message
    else:
        ElementTree.SubElement(case, "failure", {"message": message, "type": "GateFailed"}).text = message
    return case
