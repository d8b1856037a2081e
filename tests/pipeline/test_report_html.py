import copy
import json
import math
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kdpipe.pipeline.report.html import render_html, write_html
from kdpipe.targets.errors import ArtifactError, StorageError

SAMPLES = Path(__file__).parent / "report_samples"
VOID = {"meta", "link", "img", "br"}


def sample(name):
    return json.loads((SAMPLES / f"{name}.json").read_text(encoding="utf-8"))


def png(width=8, height=8):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(range(width)) for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def render(report, folder=Path("does-not-exist")):
    return Page(render_html(report, folder))


def many_stages(count):
    return {
        "schema": 1,
        "pipeline": "many",
        "seed": 0,
        "status": "passed",
        "stages": [
            {"name": f"stage-{i}", "uses": "distill", "status": "ran", "key": "a" * 64, "seconds": 1.0, "metrics": {},
             "outputs": {}, "needs": [f"stage-{i - 1}"] if i else []}
            for i in range(count)
        ],
        "targets": [],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["rich", "minimal", "failed"])
def test_page_is_well_formed_and_loads_nothing(name):
    text = render_html(sample(name), SAMPLES)
    page = Page(text)
    assert page.all("script") == []
    for _, attributes in page.tags:
        for key, value in attributes.items():
            assert not key.startswith("on"), (key, value)
            if key in {"src", "href"}:
                assert value.startswith(("#", "data:")), value
    assert "url(" not in text
    assert "@import" not in text
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize("name", ["rich", "minimal", "failed"])
def test_links_inside_the_page_arrive_and_names_are_unique(name):
    page = render(sample(name))
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    for link in page.all("a"):
        assert link["href"].removeprefix("#") in names


@pytest.mark.parametrize("name", ["rich", "minimal", "failed"])
def test_tables_have_captions_and_headers_and_drawings_have_titles(name):
    page = render(sample(name))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all("scope" in header for header in page.all("th"))
    for drawing in page.all("svg"):
        assert drawing.get("aria-hidden") == "true" or (drawing["role"] == "img" and drawing["aria-label"])


def test_everything_of_a_run_is_on_its_page():
    report = sample("rich")
    text = render(report).text
    for stage in report["stages"]:
        assert stage["name"] in text
        assert stage["key"] in text
        for output in stage["outputs"].values():
            assert output["path"] in text
            assert output["sha256"][:12] in text
    for target in report["targets"]:
        assert f"{target['accuracy'] * 100:.2f} %" in text
        for gate in target["gates"]:
            assert gate["name"] in text
    assert "layer2.0.conv1" in text
    assert "2 410 870" in text
    assert "11 of 11" in text


def test_layers_that_were_compared_are_on_the_page():
    report = sample("rich")
    (target,) = (target for target in report["targets"] if target["name"] == "tflite")
    target["parity"]["layers"] = [
        {"name": "conv1", "steps": 0, "exact": 1.0, "snr_db": None, "own_steps": 0, "misrounded": 0},
        {"name": "layer2.0.conv1", "steps": 2, "exact": 0.999999, "snr_db": 41.25, "own_steps": 1, "misrounded": 1234},
    ]
    text = render(report).text
    assert "tflite, layer by layer" in text
    assert "layer2.0.conv1 2 steps 99.9999 % 41.2 dB 1 step 1 234" in text
    assert "onnx, layer by layer" not in text


def test_missing_values_are_dashes_with_their_reason():
    text = render(sample("rich")).text
    assert "an emulator's clock says nothing about the device" in text
    assert "counted only on an emulated microcontroller" in text
    assert "None" not in text
    assert "nan" not in text.split()


def test_failed_run_leads_with_what_went_wrong():
    page = render(sample("failed"))
    text = page.text
    assert "What went wrong" in text
    assert text.index("the generator collapsed") < text.index("Each artifact was run")
    assert "latency_ms was not measured (the device has no clock)" in text
    assert [details.get("class") for details in page.all("details") if "open" in details] == ["stage is-failed"]


def test_interrupted_run_says_so():
    report = sample("minimal") | {"status": "failed", "interrupted": True}
    report["stages"].append({"name": "late", "uses": "distill", "status": "skipped", "metrics": {}, "outputs": {}})
    assert "The run was interrupted; 1 stage skipped." in render(report).text


def test_page_without_targets_says_so():
    assert "Nothing was validated in this run" in render(sample("minimal")).text


HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x00\x1b\ud800"


def poisoned(value):
    """Replace every text in a report that its author could choose; lengthen every list of names."""
    if isinstance(value, dict):
        return {poisoned(key) if key.startswith("x-") else key: poisoned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return HOSTILE + value if isinstance(value, str) else value


def test_hostile_text_stays_text_wherever_it_stands():
    report = poisoned(sample("rich"))
    report["stages"][1]["metrics"] = {HOSTILE: HOSTILE}
    report["stages"][1]["history"] = {HOSTILE: [{HOSTILE: 1.0}, {HOSTILE: 2.0}]}
    report["stages"][1]["figures"] = {HOSTILE: HOSTILE}
    report["stages"][1]["grids"] = {
        HOSTILE: {"rows": [HOSTILE], "columns": [HOSTILE], "values": [[1.0]], "notes": [HOSTILE], "marked": [[0, 0]]}
    }
    report["stages"][1]["error"] = {"message": HOSTILE}
    buffer = {"name": HOSTILE, "offset": 0, "bytes": 4, "first": 0, "last": 0}
    report["targets"][0]["arena"] = {"bytes": 4, "lower_bound": 4, "buffers": [buffer], "layers": [HOSTILE]}
    text = render_html(report, SAMPLES)
    page = Page(text)
    assert page.all("script") == []
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert not re.search("[\x00\x1b\ud800]", text)
    text.encode("utf-8")


def test_figures_are_inlined_from_the_reports_folder_alone(tmp_path):
    out = tmp_path / "out"
    (out / "figures").mkdir(parents=True)
    (out / "figures" / "grid.png").write_bytes(png())
    (out / "figures" / "not.png").write_text("<svg onload=alert(1)>", encoding="utf-8")
    (tmp_path / "secret.png").write_bytes(png())
    report = sample("minimal")
    report["stages"][0]["figures"] = {
        "samples": "figures/grid.png",
        "outside": "../secret.png",
        "absolute": str(tmp_path / "secret.png"),
        "missing": "figures/gone.png",
        "folder": "figures",
        "other": "figures/not.png",
    }
    page = render(report, out)
    assert [image["alt"] for image in page.all("img")] == ["samples"]
    assert page.text.count("it lies outside the report's folder") == 2
    assert page.text.count("the file is missing") == 2
    assert page.text.count("it is not a PNG picture") == 1


def test_page_stays_under_3_mb_whatever_the_run_brings(tmp_path):
    report = many_stages(50)
    noise = b"\x89PNG\r\n\x1a\n" + bytes(700_000)
    for index, stage in enumerate(report["stages"]):
        (tmp_path / f"{index}.png").write_bytes(noise)
        stage["figures"] = {"noise": f"{index}.png"}
        stage["history"] = {
            f"s{series}": [{"step": step, **{f"m{m}": math.sin(step) for m in range(4)}} for step in range(600)]
            for series in range(3)
        }
        cells = [[float(row + at) for at in range(4)] for row in range(40)]
        names = [f"layer{row}.0.conv" for row in range(40)]
        stage["grids"] = {"widths": {"rows": names, "columns": list("abcd"), "values": cells}}
    path = tmp_path / "report.html"
    write_html(report, path)
    assert path.stat().st_size < 3_000_000
    text = path.read_text(encoding="utf-8")
    assert "it is too large for this page" in text
    assert "more charts would make this page too large" in text


def test_fifty_stages_and_long_names():
    report = many_stages(50)
    report["stages"][7]["name"] = "ü" * 400
    page = render(report)
    assert len(page.all("details")) == 50
    assert "All 50 stages finished" in page.text


@pytest.mark.parametrize("spoil", [
    lambda report: report.pop("pipeline"),
    lambda report: report.update(stages={"a": 1}),
    lambda report: report.update(schema=2),
    lambda report: report["stages"][0].update(seconds="soon"),
    lambda report: report.clear(),
])  # fmt: skip
def test_what_is_no_report_is_refused(spoil, tmp_path):
    report = copy.deepcopy(sample("minimal"))
    spoil(report)
    with pytest.raises(ArtifactError):
        write_html(report, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_not_there_is_a_clear_error(tmp_path):
    with pytest.raises(StorageError, match=r"report\.html"):
        write_html(sample("minimal"), tmp_path / "gone" / "report.html")


def test_writing_replaces_the_old_page_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    write_html(sample("minimal"), path)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert list(tmp_path.iterdir()) == [path]


def test_same_report_gives_the_same_page():
    assert render_html(sample("rich"), SAMPLES) == render_html(sample("rich"), SAMPLES)
