"""What the memory benchmark stands on: its datasets and its slopes."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.config import WriteConfig
from tests.benchmarks.criteo_like import write_dataset
from tests.benchmarks.memory import memory, slope
from training.config import TrainingConfig
from training.data.opened_dataset import Dataset
from training.data.reader import Reader


def test_a_dataset_without_spark_is_read_as_any_other(tmp_path: Path):
    rows = {"train": 9_000, "valid": 1_000}
    manifest = write_dataset(tmp_path, rows, num_buckets=1_000)
    assert {name: manifest.split(name).num_rows for name in rows} == rows
    assert len(manifest.split("train").files) == WriteConfig().min_files
    batches = list(Reader(Dataset.open(tmp_path), "train", TrainingConfig(dataset=str(tmp_path))).batches(0))
    assert sum(batch.num_rows for batch in batches) == 9_000
    ids = np.concatenate([batch.sparse_features.values().numpy() for batch in batches])
    assert len(ids) == 26 * 9_000 and ids.max() < 1_000
    assert np.mean(ids == 0) == pytest.approx(0.1, abs=0.01)
    labels = np.concatenate([batch.labels[: batch.num_rows].numpy() for batch in batches])
    assert 0.1 < labels.mean() < 0.5


def test_a_slope_and_its_error():
    x = np.arange(40.0)
    y = 3 * x + np.random.default_rng(0).standard_normal(40)
    (expected, _), covariance = np.polyfit(x, y, 1, cov=True)
    found = slope(list(y))
    assert found["slope"] == pytest.approx(expected)
    assert found["standard_error"] == pytest.approx(np.sqrt(covariance[0, 0]))
    assert slope(list(y), list(2 * x))["slope"] == pytest.approx(expected / 2)


def test_the_kernels_peak_is_at_least_what_is_there():
    held = np.ones(20_000_000, np.uint8)
    assert 20 < memory("VmRSS") <= memory("VmHWM") and held.any()
    assert memory("VmRSS", 2**22 + 1) == 0.0  # no such process
