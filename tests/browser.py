"""Pages opened in a real headless browser: what it drew, what it complained of, what it fetched."""

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,2000 --virtual-time-budget=10000 --dump-dom"
)
EARLY = """<script>window.complaints = [];
addEventListener("error", e => complaints.push(e.message || "not loaded: " + e.target.outerHTML), true);
addEventListener("unhandledrejection", e => complaints.push(String(e.reason)));
console.error = console.warn = (...words) => complaints.push(words.join(" "));
window.alert = word => complaints.push("alert " + word);</script>"""
LATE = """<script>addEventListener("load", () => setTimeout(() => {
const probe = document.createElement("pre");
probe.id = "probe";
const plots = [...document.querySelectorAll(".plotly-graph-div")];
probe.textContent = JSON.stringify({complaints, fetched: performance.getEntriesByType("resource").map(e => e.name),
plots: plots.map(plot => plot.querySelectorAll(
".point path, path.point, .js-line, .heatmaplayer image, .text path").length),
width: document.documentElement.scrollWidth});
document.body.append(probe); }, 3000));</script>"""


@dataclass(frozen=True)
class Opened:
    """What a browser made of a page.

    Attributes:
        dom: the document as HTML after its scripts ran.
        complaints: JavaScript errors, warnings, alerts and what could not be loaded.
        fetched: addresses of whatever the page asked for.
        plots: drawn bars, points, lines and maps of each figure.
        width: of the whole document, in pixels; the window has 1280.
    """

    dom: str
    complaints: list[str]
    fetched: list[str]
    plots: list[int]
    width: int


def open_page(html: str) -> Opened:
    """Open a page as a file; skips the test where there is no browser."""
    if CHROMIUM is None:
        pytest.skip("no chromium here: pages are not opened in a browser")
    html = html.replace("<head>", f"<head>{EARLY}", 1).replace("</body>", f"{LATE}</body>", 1)
    with tempfile.TemporaryDirectory(prefix="twinfocus-browser-") as folder:
        page = Path(folder) / "page.html"
        page.write_text(html, encoding="utf-8")
        command = [CHROMIUM, *OPTIONS.split(), f"--user-data-dir={folder}/profile", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, f"the page never came to its end: {done.stderr[-2000:]}"
    return Opened(done.stdout, **json.loads(unescape(found[1])))
