"""Figures of a board in a report: added to the right target, shown, and refused where they are another firmware's."""

import json
from pathlib import Path

import pytest

from kdpipe.pipeline.board_figures import add_bench, split_bench_option
from kdpipe.pipeline.cli import app
from kdpipe.targets.errors import UsageError

SAMPLE = Path(__file__).parent / "report_samples" / "rich.json"
LOG = "kdpipe bench 1 digits\n0 200 conv\n0 30 head\n1 220 conv\n1 30 head\nend\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder whose validation mcu knows its layers."""
    report = json.loads(SAMPLE.read_text(encoding="utf-8"))
    for target in report["targets"]:
        if target["name"] == "mcu":
            layer = {"instructions": 100, "cycles": 150, "constant_bytes": 10, "live_bytes": 10}
            target["layers"] = [{"name": "conv", **layer}, {"name": "head", **layer}]
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (tmp_path / "log.txt").write_text(LOG)
    return tmp_path


def test_the_report_shows_and_keeps_them(run: Path) -> None:
    assert not app(["report", str(run), "--bench", f"mcu={run / 'log.txt'}"], standalone_mode=False)
    targets = {target["name"]: target for target in json.loads((run / "report.json").read_text("utf-8"))["targets"]}
    assert targets["mcu"]["measured"] == {
        "runs": 2,
        "cycles": 240,
        "layers": [{"name": "conv", "cycles": 210}, {"name": "head", "cycles": 30}],
    }
    assert all("measured" not in target for name, target in targets.items() if name != "mcu")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "On the board" in page
    assert "1.40 times the estimate" in page


@pytest.mark.parametrize(
    ("validation", "log", "message"),
    [
        ("mcv", LOG, "Did you mean mcu"),
        ("onnx", LOG, "no validation 'onnx' with layers"),
        ("mcu", LOG.replace("head", "tail"), "it lacks the layer 'head'"),
        ("mcu", "nothing", "not the whole output"),
    ],
)
def test_what_is_not_its_own_is_refused(validation: str, log: str, message: str, run: Path) -> None:
    (run / "log.txt").write_text(log)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    with pytest.raises(UsageError) as caught:
        add_bench(report, validation, run / "log.txt")
    assert message in str(caught.value)


@pytest.mark.parametrize("option", ["mcu", "mcu=", "=log.txt"])
def test_the_option_has_one_form(option: str) -> None:
    with pytest.raises(UsageError, match="VALIDATION=LOG"):
        split_bench_option(option)
