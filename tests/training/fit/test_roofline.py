"""Shares of limits against counts by hand; limits are what the machine gives."""

import pytest
import torch

from training.config import TrainingConfig
from training.data.opened_dataset import Dataset
from training.fit.roofline import Limits, measure_limits, shares_of_limits
from training.fit.run import build_model


def test_shares_are_work_over_limit_over_seconds(make_dataset) -> None:
    dataset = Dataset.open(make_dataset().path)
    model = build_model(dataset, TrainingConfig(str(dataset.path)), torch.device("meta"))
    ids = {name: 10.0 * (i + 1) for i, name in enumerate(dataset.manifest.schema.sparse_names)}
    seconds = {"dense forward": 1.0, "dense backward": 3.0, "lookup": 2.0, "table backward": 5.0, "optimizer": 0.0}
    found = shares_of_limits(Limits(flops=1e6, bytes_per_second=1e3), model, rows=7, ids=ids, seconds=seconds)
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    assert found["dense"] == pytest.approx(7 * 6 * weights / 1e6 / 4.0)
    # Widths 16 and 8, both multiples of 4: 24 numbers of 4 bytes an id, and each is read once and written once.
    assert found["lookup"] == pytest.approx(2 * 4 * 24 * sum(ids.values()) / 1e3 / 2.0)
    assert found["table backward"] == pytest.approx(3 * 4 * 24 * sum(ids.values()) / 1e3 / 5.0)
    assert "optimizer" not in found  # it took no time


def test_limits_are_of_this_machine() -> None:
    limits = measure_limits(256, 64, TrainingConfig("unused"), torch.device("cpu"))
    assert 1e8 < limits.flops < 1e14
    assert 1e8 < limits.bytes_per_second < 1e13
