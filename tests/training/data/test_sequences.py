"""Sequences on their road from files to batches: ragged all the way, whole rows, checked where they are read."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from features.encode_rows import FEW_ROWS, FeatureEncoder
from features.kinds import ids_of
from features.learnt import Learnt
from features.ragged import Ragged
from features.rows import RowError
from tests.stand_ins.tiny_dataset import TinyDataset, describe_file, tiny_columns, tiny_sequences
from tests.training.data.test_reader import global_steps, make_reader, rows_of
from training.config import ReaderConfig, TrainingConfig
from training.data.batch import Batch, to_batch
from training.data.columns import read_columns
from training.data.file_checker import ReaderError
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.data.row_buffer import Rows

SCHEMA = tiny_sequences()
KEYS = ("clicks__device", "clicks__user", "clicks__gap", "views__user")


@pytest.fixture
def dataset(make_dataset: Callable[..., TinyDataset]) -> TinyDataset:
    return make_dataset(train=((7, 5), (0, 9)), valid=((8,),), test=(), schema=SCHEMA)


def events_of(batch: Batch) -> dict[str, list[list[int]]]:
    """Ids of the sequences, by key and row, after checking that padding has none."""
    found = {}
    for key in KEYS:
        jagged = batch.sparse_features[key]
        ids = [row.tolist() for row in jagged.to_dense()]
        assert not any(ids[batch.num_rows :])
        found[key] = ids[: batch.num_rows]
    return found


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_arrives_once_with_its_events(dataset: TinyDataset, shuffle: bool) -> None:
    columns, seen = dataset.columns["train"], []
    lists = {key: columns[key].tolist() for key in KEYS}
    reader = make_reader(dataset, batch_size=8, shuffle=shuffle)
    for epoch in range(3):
        for batch in reader.batches(epoch):
            assert batch.sparse_features.keys() == [*SCHEMA.sparse_names, *KEYS]
            assert batch.sparse_features.values().dtype == torch.int64
            rows = rows_of(batch)
            seen += rows
            events = events_of(batch)
            for key in KEYS:
                assert events[key] == [lists[key][row] for row in rows], key
            for name in ("user", "device", "age"):
                found = batch.sparse_features[name].values()[: len(rows)].tolist()
                assert found == columns[name][rows].tolist()
    assert sorted(seen) == sorted(list(range(21)) * 3)


def test_batches_do_not_depend_on_the_world_size_or_on_where_an_epoch_began(dataset: TinyDataset) -> None:
    one = global_steps(dataset, 1)
    assert one == global_steps(dataset, 2) == global_steps(dataset, 4)
    whole = list(make_reader(dataset).batches(0))
    later = list(make_reader(dataset).batches(0, 1))
    for a, b in zip(whole[1:], later, strict=True):
        torch.testing.assert_close(a.sparse_features.values(), b.sparse_features.values(), rtol=0, atol=0)
        torch.testing.assert_close(a.sparse_features.lengths(), b.sparse_features.lengths(), rtol=0, atol=0)


def test_rows_have_the_order_that_they_have_without_sequences(make_dataset: Callable[..., TinyDataset]) -> None:
    plain = make_dataset(train=((7, 5), (9,)), valid=(), test=(), name="plain")
    assert global_steps(make_dataset(train=((7, 5), (9,)), schema=SCHEMA), 1) == global_steps(plain, 1)


def test_columns_come_back(dataset: TinyDataset) -> None:
    found = read_columns(make_reader(dataset, split="valid", shuffle=False), 5)
    kept = np.arange(5) * 8 // 5
    for key in KEYS:
        assert found[key].tolist() == dataset.columns["valid"][key][kept].tolist()


def test_windows_take_the_memory_of_their_ids() -> None:
    """A window's memory follows its ids, not ``max_length``, and is used again."""
    schema = tiny_sequences(max_length=4000)
    rng = np.random.default_rng(0)
    columns = tiny_columns(tiny_sequences(max_length=3), 1000, rng)
    memory = Rows.allocate(
        schema, {n: (c.dtype, () if isinstance(c, Ragged) else c.shape[1:]) for n, c in columns.items()}, 2000
    )
    scratch = np.empty(memory.scratch_bytes, np.uint8)
    assert memory.scratch_bytes < 200_000
    first = memory.fill([columns, columns], rng.permutation(2000), scratch)
    held = {name: ragged.values for name, ragged in first.others.items() if isinstance(ragged, Ragged)}
    assert sum(values.nbytes for values in held.values()) < 2000 * 4 * (3 * 4 + 3)
    again = memory.fill([columns], rng.permutation(1000), scratch)
    for name, values in held.items():
        assert np.shares_memory(again.others[name].values, values)


# ---------------------------------------------------------------------------------------------------------------- files


def damage(dataset: TinyDataset, change: Callable[[pa.Table], pa.Table]) -> TinyDataset:
    """Change the first training file, and the manifest so that it fits."""
    split = dataset.manifest.splits["train"]
    path = dataset.path / split.files[0].path
    table = change(pq.read_table(path, partitioning=None))
    with pq.ParquetWriter(path, table.schema) as writer:
        for start, size in ((0, 7), (7, 5)):
            writer.write_table(table.slice(start, size))
    files = (describe_file(dataset.path, path), *split.files[1:])
    return replace(dataset, manifest=replace(dataset.manifest, splits={"train": replace(split, files=files)}))


IDS = pa.list_(pa.int32())


def with_column(name: str, lists: list[Any], type_: pa.DataType = IDS) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, [pa.array(lists, type_)])


ONES = [[1]] * 12


@pytest.mark.parametrize(
    ("name", "lists", "message"),
    [
        ("views__user", [*ONES[:11], None], "'views__user' of .* has 1 missing values"),
        ("views__user", [*ONES[:11], [1, None]], "'views__user' of .* has 1 missing values"),
        ("views__user", [*ONES[:11], [50]], "'views__user' of .* holds 50, outside 0 to 49"),
        ("views__user", [*ONES[:11], [-1]], "'views__user' of .* holds -1, outside 0 to 49"),
        ("views__user", [*ONES[:11], [1] * 21], "'views__user' of .* has a list of 21 events, more than max_length 20"),
        ("clicks__gap", ONES, "'clicks__device' and 'clicks__gap' of .* have lists of different lengths"),
        ("clicks__gap", [[4]] * 12, "'clicks__gap' of .* holds 4, outside 0 to 3"),
    ],
)
def test_files_that_are_refused(dataset: TinyDataset, name: str, lists: list[Any], message: str) -> None:
    with pytest.raises(ReaderError, match=message):
        list(make_reader(damage(dataset, with_column(name, lists))).batches(0))


@pytest.mark.parametrize("type_", [pa.list_(pa.int64()), pa.list_(pa.float32()), pa.int32()])
def test_columns_of_other_types_are_refused(dataset: TinyDataset, type_: pa.DataType) -> None:
    lists = [1] * 12 if type_ == pa.int32() else ONES
    with pytest.raises(ReaderError, match=r"'views__user' of .* must hold lists of int32, got"):
        list(make_reader(damage(dataset, with_column("views__user", lists, type_))).batches(0))


def test_later_ids_of_a_vocabulary_become_unknown_in_histories_too(make_dataset: Callable[..., TinyDataset]) -> None:
    later = make_dataset(train=((30,),), valid=(), test=(), devices=("tv", "watch"), schema=SCHEMA)
    short = Learnt({"device": ["mobile", "tablet"]})
    assert max(later.columns["train"]["clicks__device"].flat) > short.oov_id("device")
    opened = Dataset(later.path, later.manifest, later.learnt).seen_by(short)
    config = TrainingConfig(str(later.path), reader=ReaderConfig(num_streams=2), global_batch_size=8)
    reader = Reader(opened, "train", config)
    ids = [batch.sparse_features["clicks__device"].values().tolist() for batch in reader.batches(0)]
    assert sorted(chain(*ids)) == sorted(min(i, 3) for i in later.columns["train"]["clicks__device"].flat.tolist())


# -------------------------------------------------------------------------------------------------------------- batches


def raw_rows(number: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(5)
    rows = []
    for row in range(number):
        size = int(rng.integers(0, 7))
        rows.append(
            {
                "user": f"u{row}",
                "genres": "a|b",
                "device": "tablet",
                "age": 30,
                "row": row,
                "price": 1.5,
                "time": 10_000,
            }
            | {"clicks__device": rng.choice(["mobile", "tablet", "tv"], size).tolist()}
            | {"clicks__user": [f"u{u}" for u in rng.integers(0, 9, size)]}
            | {"clicks__time": (10_000 - np.sort(rng.integers(0, 9000, size))[::-1]).tolist()}
            | {"views__user": " ".join(f"u{u}" for u in rng.integers(0, 9, size)) or None}
        )
    return rows


def test_a_request_makes_the_batch_that_a_log_makes(dataset: TinyDataset) -> None:
    encoder, rows = FeatureEncoder(SCHEMA, dataset.learnt), raw_rows(FEW_ROWS + 5)
    few = to_batch(encoder.encode(rows[:9]), SCHEMA, 12)
    many = to_batch(encoder.encode(rows), SCHEMA)
    arrays = {n: pa.array([row[n] for row in rows]) for n in rows[0]}
    block, prepared = encoder.encode_columns(arrays)
    assert prepared.reason is None
    one, other, first = events_of(many), events_of(to_batch(block, SCHEMA)), events_of(few)
    json_rows = json.loads(json.dumps(rows))
    for key in KEYS:
        assert one[key] == other[key] and one[key][:9] == first[key]
        assert events_of(to_batch(encoder.encode(json_rows[:3]), SCHEMA))[key] == first[key][:3]
    user = many.sparse_features["user"].values().tolist()
    assert one["clicks__user"][3] == [user[int(v[1:])] for v in rows[3]["clicks__user"]][::-1][:4]


def test_to_batch_refuses_what_is_not_ragged_or_of_two_lengths(dataset: TinyDataset) -> None:
    columns = dataset.columns["train"]
    with pytest.raises(RowError, match="column 'views__user' must be ragged rows"):
        to_batch({**columns, "views__user": np.zeros((21, 3), np.int32)}, SCHEMA)
    with pytest.raises(RowError, match="column 'user' must not be ragged rows"):
        to_batch({**columns, "user": columns["views__user"]}, SCHEMA)
    with pytest.raises(RowError, match="clicks__device, clicks__user, clicks__gap have lists of different lengths"):
        to_batch({**columns, "clicks__gap": columns["views__user"]}, SCHEMA)
    with pytest.raises(RowError, match="column 'clicks__gap' is missing"):
        to_batch({n: c for n, c in columns.items() if n != "clicks__gap"}, SCHEMA)


def test_ids_and_columns_are_each_others_way_back() -> None:
    part = SCHEMA.parts[0]
    ids, lengths = np.array([4, 9, 2], np.int32), np.array([2, 0, 1])
    found = part.kind.to_columns(ids, lengths, part)
    for value, expected in zip(ids_of(found, part), (ids, lengths), strict=True):
        np.testing.assert_array_equal(value, expected)
