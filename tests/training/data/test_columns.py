"""Columns of a split against what was written."""

from collections.abc import Callable
from typing import Any

import numpy as np

from training.config import TrainingConfig
from training.data.columns import read_columns
from training.data.opened_dataset import Dataset
from training.data.reader import Reader


def test_columns_come_back_as_they_were_written(make_dataset: Callable[..., Any]):
    tiny = make_dataset(valid=((150, 50), (100,)))

    def reader() -> Reader:
        return Reader(Dataset.open(tiny.path), "valid", TrainingConfig(str(tiny.path), evaluation_batch_size=64))

    columns = read_columns(reader(), 300)
    written = tiny.columns["valid"]
    order = columns["row"].astype(int)
    assert sorted(order) == list(range(300))
    assert columns.keys() == written.keys()
    for name, column in columns.items():
        np.testing.assert_array_equal(column, written[name][order])

    some = read_columns(reader(), 120)
    kept = [i * 300 // 120 for i in range(120)]
    for name, column in some.items():
        np.testing.assert_array_equal(column, columns[name][kept])
