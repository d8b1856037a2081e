"""report.html in a real browser: headless Chromium, driven over its debugging pipe, with no way to the network."""

import base64
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import pytest

from kdpipe.pipeline.report.html import write_html

SAMPLES = Path(__file__).parent / "report_samples"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (Debian: apt-get install chromium)"),
    pytest.mark.skipif(sys.platform == "win32", reason="the debugging pipe is opened the POSIX way"),
]

# Every text on the page whose contrast with what lies behind it is under WCAG's 4.5 : 1.
LOW_CONTRAST = """
(() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const luminance = c => { const f = c.slice(0, 3).map(v => { v /= 255;
      return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2]; };
  const behind = node => { for (let n = node; n; n = n.parentElement) {
      const c = parse(getComputedStyle(n).backgroundColor); if (c[3] > 0.99) return c; }
    return [255, 255, 255, 1]; };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || !node.getClientRects().length || node.tagName === 'title') continue;
    const style = getComputedStyle(node);
    const ink = luminance(parse(node instanceof SVGElement ? style.fill : style.color));
    const paper = luminance(behind(node));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (ratio < 4.5) found.push(node.textContent.slice(0, 30) + ' ' + ratio.toFixed(2));
  }
  return found;
})()
"""

# Every label of a drawing that sticks out of it.
STICKING_OUT = """
[...document.querySelectorAll('svg')].filter(s => s.getClientRects().length).flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(t => { const b = t.getBoundingClientRect();
    return b.left < frame.left - 3 || b.right > frame.right + 3 || b.top < frame.top - 3 || b.bottom > frame.bottom + 3;
  }).map(t => t.textContent);
})
"""


class Browser:
    """Chromium and the one page that it shows."""

    def __init__(self, profile):
        command_read, self.commands = os.pipe()
        self.replies, reply_write = os.pipe()
        # Chromium reads descriptor 3 and writes 4; move ours out of their way first.
        import fcntl

        child_read = fcntl.fcntl(command_read, fcntl.F_DUPFD_CLOEXEC, 10)
        child_write = fcntl.fcntl(reply_write, fcntl.F_DUPFD_CLOEXEC, 10)

        def connect():
            os.dup2(child_read, 3)
            os.dup2(child_write, 4)

        self.process = subprocess.Popen(
            [
                CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--remote-debugging-pipe", "--no-first-run", "--disable-background-networking",
                "--disable-component-update", "--disable-sync", "--hide-scrollbars",
                "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "about:blank",
            ],
            preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for descriptor in (command_read, reply_write, child_read, child_write):
            os.close(descriptor)
        self.buffer, self.number, self.session, self.events = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Network.enable")

    def close(self):
        os.close(self.commands)
        os.close(self.replies)
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)

    def receive(self):
        while b"\0" not in self.buffer:
            part = os.read(self.replies, 1 << 16)
            assert part, "Chromium ended"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            reply = self.receive()
            if reply.get("id") == self.number:
                assert "error" not in reply, reply
                return reply["result"]
            self.events.append(reply)

    def open(self, path, width, height=900, dark=False, media="screen"):
        """Show a file and wait until it is loaded; return the addresses of all requests that it made."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())
        self.ask("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        requests = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in requests]

    def ask(self, script):
        reply = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def screenshot(self, path):
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        area = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 12_000), "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", clip=area, captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))
        return path


@pytest.fixture(scope="module")
def browser():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        running = Browser(profile)
        yield running
        running.close()


@pytest.fixture
def page(tmp_path):
    def write(name):
        path = tmp_path / f"{name}.html"
        write_html(json.loads((SAMPLES / f"{name}.json").read_text(encoding="utf-8")), path)
        return path

    return write


def picture(path):
    """Return width, height, the first pixel and the share of bytes that differ from their neighbour's prediction."""
    data, offset, packed, size = path.read_bytes(), 8, b"", (0, 0)
    while offset < len(data):
        (length,) = struct.unpack(">I", data[offset : offset + 4])
        kind, body = data[offset + 4 : offset + 8], data[offset + 8 : offset + 8 + length]
        if kind == b"IHDR":
            size = struct.unpack(">II", body[:8])
        packed += body if kind == b"IDAT" else b""
        offset += 12 + length
    raw = zlib.decompress(packed)
    return *size, tuple(raw[1:4]), 1 - raw.count(0) / len(raw)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1280])
@pytest.mark.parametrize("name", ["rich", "minimal", "failed", "matrix"])
def test_page_is_drawn_fits_and_reads_well(browser, page, tmp_path, name, width, dark):
    requests = browser.open(page(name), width, dark=dark)
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert [url for url in requests if url.startswith("file:")] == [page(name).as_uri()]
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(STICKING_OUT) == []
    assert browser.ask(LOW_CONTRAST) == []
    drawn_width, height, corner, drawn = picture(browser.screenshot(tmp_path / f"{name}-{width}.png"))
    assert drawn_width == width
    assert height > 500
    assert drawn > 0.004, "the page is all but blank"
    assert (max(corner) < 60) if dark else (min(corner) > 230)


def test_sections_of_a_run_are_visible(browser, page):
    browser.open(page("rich"), 1280)
    visible = "[...document.querySelectorAll('h2')].filter(h => h.getClientRects().length).map(h => h.textContent)"
    assert browser.ask(visible) == ["Pipeline", "Targets", "Gates", "Parity", "Training", "Stages"]
    sizes = (
        "[...document.querySelectorAll('svg.chart')].map(s => s.getBoundingClientRect()).map(b => [b.width, b.height])"
    )
    charts = browser.ask(sizes)
    assert len(charts) >= 9
    assert all(width > 200 and height > 60 for width, height in charts)
    assert browser.ask("document.querySelectorAll('.wide-only .node').length") == 11


def test_wide_pages_show_the_layered_drawing_and_narrow_ones_the_rail(browser, page):
    shown = "['.wide-only', '.narrow-only'].map(c => document.querySelector(c).getClientRects().length > 0)"
    browser.open(page("rich"), 1280)
    assert browser.ask(shown) == [True, False]
    browser.open(page("rich"), 390)
    assert browser.ask(shown) == [False, True]


def test_arrow_of_the_drawing_leads_to_the_opened_stage(browser, page):
    browser.open(page("rich"), 1280)
    browser.ask("document.querySelector('.wide-only a[href=\"#stage-4\"]').dispatchEvent(new MouseEvent('click'))")
    assert browser.ask("document.querySelector('#stage-4').closest('details').open") is True


def test_hostile_name_runs_no_script(browser, page):
    browser.open(page("failed"), 1280)
    assert browser.ask("document.scripts.length") == 0
    assert browser.ask("document.querySelector('h1').textContent").startswith("<script>alert(1)</script>")


def test_printed_page_shows_what_is_folded_away(browser, page):
    unseen = "e => !e.checkVisibility({contentVisibilityAuto: true})"
    hidden = f"[...document.querySelectorAll('.inside')].filter({unseen}).length"
    browser.open(page("rich"), 1000)
    assert browser.ask(hidden) == 11
    browser.open(page("rich"), 1000, media="print")
    assert browser.ask(hidden) == 0


def test_this_test_would_see_a_request_and_an_overflow(browser, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><body style='color:#999'>"
        "<img src='http://example.invalid/x.png'><p style='width:900px'>pale<svg width=20 height=20><text x=15 y=15>out"
        "</text></svg>",
        encoding="utf-8",
    )
    requests = browser.open(path, 390)
    assert "http://example.invalid/x.png" in requests
    assert browser.ask("document.documentElement.scrollWidth") > 390
    assert browser.ask(LOW_CONTRAST) == ["paleout 2.85"]
    assert browser.ask(STICKING_OUT) == ["out"]


def test_heat_maps_of_a_matrix_show_every_cell(browser, page):
    browser.open(page("matrix"), 1280)
    maps = "[...document.querySelectorAll('.maps svg.heatmap')].filter(s => s.getClientRects().length)"
    assert browser.ask(f"{maps}.map(s => s.querySelectorAll('.cell').length)") == [4, 4, 4, 4]
    shown = browser.ask(f"{maps}[0].textContent")
    assert "95.00 %" in shown
    assert "1 of 2 seeds" in shown
    # The same value has the same tint in every map of a figure: the largest of all stands in the first.
    tints = browser.ask(
        f"{maps}.slice(0, 2).map(s => [...s.querySelectorAll('.cell')].map(c => +c.getAttribute('fill-opacity')))"
    )
    assert max(tints[0]) == 0.55
    assert max(tints[1]) < 0.55
    assert browser.ask("document.querySelectorAll('.wide-only .node').length") == 4
    overlapping = """
    [...document.querySelectorAll('.maps svg.heatmap g')].flatMap(g => {
      const cell = g.querySelector('.cell').getBoundingClientRect();
      return [...g.querySelectorAll('text')].filter(t => { const b = t.getBoundingClientRect();
        return b.left < cell.left || b.right > cell.right || b.top < cell.top - 1 || b.bottom > cell.bottom + 1;
      }).map(t => t.textContent); })
    """
    assert browser.ask(overlapping) == []
