"""history.parquet: events come back by sequence and user; a damaged, foreign or newer file is refused by name."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from features.disk.dataset import DatasetError
from features.disk.user_histories import USER_HISTORIES_NAME, UserHistories, write_histories
from features.history import History
from features.schema import FeatureSchema, HashEncoding, SequenceFeature, SparseFeature, Timestamp

LARGEST = (1 << 64) - 1


def schema_of(*names: str) -> FeatureSchema:
    """A schema with built histories of these names."""
    return FeatureSchema(
        label="click",
        timestamp=Timestamp("time"),
        sparse=(SparseFeature("item", HashEncoding(num_buckets=10)),),
        sequence=tuple(SequenceFeature(name, ("item",), 3, history=History("user")) for name in names),
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "date=2014-10-29" / USER_HISTORIES_NAME
    path.parent.mkdir()
    with write_histories(path, schema_of("clicks", "buys"), newest=77) as writer:
        for name, users in (("clicks", [0, 5, 5, LARGEST]), ("buys", [5])):
            n = len(users)
            own = {"user": pa.array(users, pa.uint64()), "time": pa.array(range(n), pa.int64())}
            own |= {"is_dropped": pa.array([False] * n), f"{name}__item": pa.array(range(1, n + 1), pa.int32())}
            writer.write(name, own)
    return path


def test_events_are_read_by_sequence_and_user(written: Path) -> None:
    state = UserHistories(written, schema_of("clicks", "buys"))
    assert (state.newest, state.num_events) == (77, 5)
    assert state.read("clicks")["user"].to_numpy().tolist() == [0, 5, 5, LARGEST]
    assert state.read("clicks", 5, 6)["clicks__item"].to_pylist() == [2, 3]
    assert state.read("clicks", 6)["time"].to_pylist() == [3]
    assert state.read("buys").column_names == ["user", "time", "is_dropped", "clicks__item", "buys__item"]
    assert state.read("buys")["clicks__item"].null_count == 1


def test_other_files_are_refused(written: Path) -> None:
    with pytest.raises(DatasetError, match="has not the columns"):
        UserHistories(written, schema_of("clicks"))
    with pytest.raises(DatasetError, match="cannot be read"):
        UserHistories(written.with_name("absent"), schema_of("clicks"))
    table = pyarrow.parquet.read_table(written)
    newer = {**(table.schema.metadata or {}), b"twinfocus:version": b"9"}
    pyarrow.parquet.write_table(table.drop_columns([]).replace_schema_metadata(newer), written)
    with pytest.raises(DatasetError, match="newer version of twinfocus"):
        UserHistories(written, schema_of("clicks", "buys"))
    pyarrow.parquet.write_table(pa.table({"user": np.arange(3)}), written)
    with pytest.raises(DatasetError, match="cannot be read"):
        UserHistories(written, schema_of("clicks", "buys"))
