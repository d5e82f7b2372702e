"""Templates: every one is filled, a missing name is an error, and they are found inside a zip; values as they look."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from jobs.pages.template import LONG, fill
from jobs.pages.values import Mark, Table, percent, shown
from tests.jobs.test_report import Page

DASH = "\N{EN DASH}"
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, DASH),
        (True, "yes"),
        (False, ""),
        (1234567, "1,234,567"),
        (0.123456789, "0.123457"),
        (12345.678, "12,346"),
        (["a", 1], "a, 1"),
        (percent(0.12345), "12.35 %"),
        ("<b>", "<b>"),
    ],
)
def test_values_as_they_are_shown(value: Any, text: str) -> None:
    assert shown(value) == text


def test_a_table() -> None:
    """Columns with a number are aligned to the right, long texts are broken, and a mark has its tone."""
    rows = [[1, "x" * LONG, Mark("late", "fair"), percent(0.5)], [None, "x" * (LONG + 1), "", None]]
    board = {"models": Table(("n", "text", "mark", "share"), rows), "figures": {}, "split": "", "compared": None}
    page = Page(
        fill(
            "leaderboard.html", title="", subtitle="", library="", sections={"a": ""}, boards={"a": board}, reference=""
        )
    )
    cells = [attributes.get("class") for tag, attributes in page.tags if tag in ("th", "td")]
    assert cells == ["number", None, None, "number"] * 2 + ["number", "long", None, "number"]
    assert ("span", {"class": "mark fair"}) in page.tags
    assert page.rows[1:] == [["1", "x" * LONG, "late", "50.00 %"], [DASH, "x" * (LONG + 1), "", DASH]]
    with pytest.raises(ValueError, match="does not have the 2 columns a, b"):
        Table(("a", "b"), [[1, 2], [1]])


def test_a_missing_name_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'description' is undefined"):
        fill("score_api.html")


def test_templates_are_found_in_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "package.zip"
    files = [*ROOT.glob("jobs/__init__.py"), *ROOT.glob("jobs/pages/*.py"), *ROOT.glob("jobs/pages/templates/*")]
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(ROOT))
    code = (
        "import jobs.pages.score_api_page as page; print(page.__file__); "
        "print(page.render_score_api({'info': {'description': 'found'}, 'paths': {}}, ['a']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(path)},
        check=True,
    )
    assert done.stdout.startswith(f"{path}/jobs/pages/score_api_page.py\n") and "<p>found</p>" in done.stdout
