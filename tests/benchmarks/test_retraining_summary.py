"""What the retraining curve says of its days, against numbers worked out by hand."""

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.benchmarks.retraining_summary import compare, summarise


def day(number: int, warm: float, scratch: float, stale: float | None = None) -> dict[str, Any]:
    def scored(logloss: float, rows: int) -> dict[str, float]:
        return {"logloss": logloss, "auc": 1 - logloss, "calibration": 1.0, "rows": rows, "total_rows": rows * number}

    found = {"day": number, "warm": scored(warm, 10), "scratch": scored(scratch, 40), "oracle": scored(0.4, 0)}
    return found if stale is None else {**found, "stale": scored(stale, 0)}


DAYS = [day(1, 0.7, 0.7), day(2, 0.5, 0.6, 0.6), day(3, 0.5, 0.5, 0.7), day(4, 0.4, 0.6, 0.8)]


def test_means_are_over_the_days_of_full_windows() -> None:
    found = compare(DAYS, window=2)
    assert found["warm logloss"] == pytest.approx((0.5 + 0.5 + 0.4) / 3)
    assert found["stale AUC"] == pytest.approx((0.4 + 0.3 + 0.2) / 3)
    assert found["warm minus scratch"] == pytest.approx(-0.1)
    assert found["standard error"] == pytest.approx(0.1 / 3**0.5)
    assert found["share of rows"] == 0.25


def test_files(tmp_path: Path) -> None:
    text = summarise({1: DAYS, 2: DAYS[:2]}, {"window": 2}, tmp_path / "new" / "curve")
    assert "| 1 | 4 | 0.46667 | 0.56667 | 0.7 | 0.4 |" in text
    written = json.loads((tmp_path / "new" / "curve.json").read_text())
    assert list(written["seeds"]) == ["1"] and [len(days) for days in written["days"].values()] == [4, 2]
    with (tmp_path / "new" / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["logloss"] for row in rows if row["model"] == "warm" and row["seed"] == "1"] == [
        "0.7",
        "0.5",
        "0.5",
        "0.4",
    ]
    lines = ElementTree.parse(tmp_path / "new" / "curve.svg").getroot().findall("{*}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [4, 4, 3]
