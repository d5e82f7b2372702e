"""Golden rows of a log with histories: they go through JSON and give the ids that the log's rows give."""

import datetime
import json

import numpy as np
import pyarrow as pa
import pytest

from features.encode_rows import FeatureEncoder
from features.history import DwellFilter, History
from features.learnt import Learnt
from features.raw_block import RawBlock, Slices
from features.schema import FeatureSchema, HashEncoding, SequenceFeature, SparseFeature, Timestamp
from training.ship.export import _python_rows, _with_histories

DAY = datetime.datetime(2026, 11, 30, 12, 0, 0, 250_000)


@pytest.mark.parametrize("time_format", ["unix", "unix_ms"])
@pytest.mark.parametrize("zone", [None, "UTC"])
def test_times_of_a_typed_log_are_numbers(time_format: str, zone: str | None) -> None:
    clicks = SequenceFeature("clicks", ("item",), 5, gaps=(60, 3600), newest="first")
    sparse = (SparseFeature("item", HashEncoding(50)),)
    schema = FeatureSchema("click", sparse, sequence=(clicks,), timestamp=Timestamp("time", time_format))
    before = [[DAY - datetime.timedelta(seconds=s) for s in seconds] for seconds in ([0, 61], [], [4000])]
    type_ = pa.timestamp("us", zone)
    columns = {
        "item": pa.array(["a", None, "b"]),
        "clicks__item": pa.array([["a", "b"], [], ["c"]]),
        "clicks__time": pa.array(before, pa.list_(type_)),
        "time": pa.array([DAY] * 3, type_),
    }
    nothing = np.zeros(3, np.int64)
    block = RawBlock(columns, nothing, nothing, Slices(np.empty(0, np.uint8), nothing, nothing))
    rows = json.loads(json.dumps(_python_rows(block, np.arange(3), schema)))
    assert [row["time"] for row in rows] == [int(1_796_040_000.25 * (1000 if time_format == "unix_ms" else 1))] * 3
    encoder = FeatureEncoder(schema, Learnt())
    found, expected = encoder.encode(rows), encoder.encode_columns(columns)[0]
    assert found["clicks__gap"].tolist() == expected["clicks__gap"].tolist() == [[1, 2], [], [3]]
    assert found["clicks__item"].tolist() == expected["clicks__item"].tolist()


def test_a_built_history_is_made_of_the_row() -> None:
    history = History("user", dwell=DwellFilter("stayed", 0))
    clicks = SequenceFeature("clicks", ("item",), 2, gaps=(60,), history=history, dwell_weights=True)
    seen = SequenceFeature("seen", ("item",), 2, newest="first")
    sparse = (SparseFeature("item", HashEncoding(50), columns=("product",)),)
    schema = FeatureSchema("click", sparse, sequence=(clicks, seen), timestamp=Timestamp("time"))
    row = {"product": "a", "time": 90, "clicks__item": None, "clicks__time": None, "seen__item": ["b"]}
    rows = [_with_histories(row, number, schema) for number in range(4)]
    assert [len(one["clicks__item"]) for one in rows] == [0, 1, 2, 2] and row["clicks__item"] is None
    found = FeatureEncoder(schema, Learnt()).encode(rows)
    assert found["clicks__gap"].tolist() == [[], [1], [1, 1], [1, 1]]
    stayed = found["clicks__dwell"].tolist()
    assert stayed[1] == stayed[2][:1] and 0 < stayed[2][0] < stayed[2][1]
    assert found["clicks__item"].tolist()[1] == [found["item"][1]] and set(found["seen__item"].lengths) == {1}
