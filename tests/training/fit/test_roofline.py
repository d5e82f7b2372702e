"""Shares of limits against counts by hand; limits are what the machine gives."""

import timeit

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
    found = shares_of_limits(Limits(flops=1e8, bytes_per_second=1e5), model, rows=7, ids=ids, seconds=seconds)
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    assert found["dense"] == pytest.approx(7 * 6 * weights / 1e8 / 4.0)
    # Widths 16 and 8, both multiples of 4: 24 numbers of 4 bytes an id, and each is read once and written once.
    assert found["lookup"] == pytest.approx(2 * 4 * 24 * sum(ids.values()) / 1e5 / 2.0)
    assert found["table backward"] == pytest.approx(3 * 4 * 24 * sum(ids.values()) / 1e5 / 5.0)
    assert "optimizer" not in found  # it took no time


def test_a_part_that_was_faster_than_the_roofline_is_left_out(make_dataset) -> None:
    dataset = Dataset.open(make_dataset().path)
    model = build_model(dataset, TrainingConfig(str(dataset.path)), torch.device("meta"))
    ids = dict.fromkeys(dataset.manifest.schema.sparse_names, 10.0)
    seconds = dict.fromkeys(("dense forward", "dense backward", "lookup", "table backward", "optimizer"), 1.0)
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    flops = 7 * 6 * weights / 2.0
    for limit, is_told in ((flops * 1.01, True), (flops * 0.99, False)):
        found = shares_of_limits(Limits(limit, 1e9), model, rows=7, ids=ids, seconds=seconds)
        assert ("dense" in found) == is_told and "optimizer" in found


@pytest.mark.parametrize(("hidden", "rows"), [(8, 4096), (1, 64), (16, 1)])
def test_a_narrow_net_is_not_faster_than_the_roofline(hidden: int, rows: int) -> None:
    """Its layers have many inputs; a square layer of its width would be slower than they are."""
    limits = measure_limits(rows, hidden, TrainingConfig("unused"), torch.device("cpu"))
    inputs, weight = torch.ones(4096, 400), torch.ones(400, hidden)
    seconds = timeit.repeat(lambda: torch.mm(inputs, weight), number=3, repeat=5)
    assert 3 * 2 * 4096 * 400 * hidden / min(seconds) < 1.5 * limits.flops


def test_limits_are_of_this_machine() -> None:
    limits = measure_limits(256, 64, TrainingConfig("unused"), torch.device("cpu"))
    assert 1e8 < limits.flops < 1e14
    assert 1e8 < limits.bytes_per_second < 1e13
