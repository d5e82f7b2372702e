"""jobs.generate_logs: its summary against the files, and what it refuses to overwrite."""

import json
from pathlib import Path

import numpy as np
import pytest

from features.log_format import LogFormat
from jobs.demos.generated_logs import LOGS_SUMMARY_NAME, generate
from pipeline.synthetic.generate import LogSpec
from tests.oracles.row_reader import expand_paths, read_rows


def naive_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    pairs = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    return float((pairs > 0).mean() + (pairs == 0).mean() / 2)


def test_summary_tells_what_the_files_hold(tmp_path: Path):
    summary = generate(tmp_path / "logs", LogSpec(rows=3_000, days=2, seed=3))
    rows = [row for path in expand_paths(str(tmp_path / "logs")) for row in read_rows(path, LogFormat())]
    labels = np.array([int(row["click"]) for row in rows])
    probability = np.array([float(row["click_probability"]) for row in rows])
    loss = -np.mean(labels * np.log(probability) + (1 - labels) * np.log(1 - probability))
    assert len(rows) == summary["rows"] == 3_000
    assert summary["click_rate"] == labels.mean()
    assert summary["oracle"]["auc"] == pytest.approx(naive_auc(labels, probability), abs=1e-12)
    assert summary["oracle"]["logloss"] == pytest.approx(loss, abs=1e-12)
    assert json.loads((tmp_path / "logs" / LOGS_SUMMARY_NAME).read_text()) == summary


def test_older_logs_are_replaced_and_nothing_else(tmp_path: Path):
    generate(tmp_path, LogSpec(rows=40, days=4))
    generate(tmp_path, LogSpec(rows=40, days=2))
    assert len(expand_paths(str(tmp_path))) == 2
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"diary\.txt"):
        generate(tmp_path, LogSpec(rows=40, days=3))
    assert len(expand_paths(str(tmp_path))) == 3
    assert (tmp_path / "diary.txt").read_text() == "mine"
