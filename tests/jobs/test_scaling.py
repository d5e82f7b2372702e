"""jobs.scaling as a user runs it."""

import json
from pathlib import Path

import pytest

from jobs import scaling
from tests.stand_ins.tiny_dataset import TINY_FEATURES

SHEET = Path(__file__).parents[2] / "jobs/configs/machines/h100.toml"
CONFIG = TINY_FEATURES.replace(
    'encoding = { kind = "vocabulary" }', 'encoding = { kind = "hash", num_buckets = 9 }'
) + ('[pipeline]\noutput = "unused"\n[training]\ndataset = "none"\nglobal_batch_size = 64\nmodel.embedding_dim = 8\n')


def test_predictions(tmp_path: Path, run_here):
    (tmp_path / "config.toml").write_text(CONFIG)
    given = ("--config", tmp_path / "config.toml", "--machine", SHEET, "--output", tmp_path / "found.json")
    sizes = ("--world-sizes", 2, 4, "--local-world-size", 2, "--batch-per-rank", 1024)
    code, out, error = run_here(scaling.main, *given, *sizes)
    assert code == 0, error
    found = json.loads((tmp_path / "found.json").read_text())["predictions"]
    assert len(found) == 2 * 2 * len(scaling.SHARDINGS) and all(row["fits"] for row in found)
    for row in found:
        assert sum(row["shares"].values()) == pytest.approx(1.0)
        assert row["rows_per_second"] == pytest.approx(1e3 * row["batch_size"] / max(row["ms"], row["reading_ms"]))
        assert row["rows_per_second_overlapped"] >= row["rows_per_second"]
    assert out.count("\n| ") == len(found)


def test_a_plan_that_does_not_fit_says_so(tmp_path: Path, run_here):
    (tmp_path / "config.toml").write_text(CONFIG)
    given = ("--config", tmp_path / "config.toml", "--machine", SHEET, "--output", tmp_path / "found.json")
    few = ("--world-sizes", 2, "--local-world-size", 2, "--device-memory", "1KiB", "--shardings", "auto", "2d")
    assert run_here(scaling.main, *given, *few)[0] == 0
    found = json.loads((tmp_path / "found.json").read_text())["predictions"]
    assert found and not any(row["fits"] for row in found)


def test_a_sheet_with_a_wrong_key(tmp_path: Path, run_here):
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "sheet.toml").write_text("flops = 1.0\nmemory_bandwidth = 1.0\nhbm = 3\n")
    given = ("--config", tmp_path / "config.toml", "--machine", tmp_path / "sheet.toml")
    code, _, error = run_here(scaling.main, *given)
    assert code == 1 and "sheet.toml: hbm" in error
