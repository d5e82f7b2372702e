"""A tiny real dataset (Parquet files, manifest, learnt state) for every test that reads one."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.disk.dataset import (
    DataFile,
    DatasetManifest,
    DenseStatistics,
    FeatureStatistics,
    Rejected,
    SequenceStatistics,
    Split,
)
from features.dwell import NUM_DWELL_IDS
from features.learnt import Learnt
from features.ragged import Ragged
from features.rows import Columns
from features.schema import (
    BoundariesEncoding,
    DenseFeature,
    FeatureSchema,
    HashEncoding,
    SequenceFeature,
    SparseFeature,
    Timestamp,
    VocabularyEncoding,
)

RowGroups = Sequence[Sequence[int]]
"""Rows of each row group of each file."""


TINY_FEATURES = """
[features]
label = "click"
weight = "importance"
group_id = "user"
[[features.sparse]]
name = "user"
encoding = { kind = "hash", num_buckets = 50 }
[[features.sparse]]
name = "genres"
encoding = { kind = "hash", num_buckets = 20 }
separator = "|"
max_length = 3
[[features.sparse]]
name = "device"
encoding = { kind = "vocabulary" }
[[features.sparse]]
name = "age"
encoding = { kind = "boundaries", boundaries = [18.0, 30.0, 50.0] }
[[features.dense]]
names = ["row", "price"]
"""
"""The tiny dataset's schema, as a config file has it."""

TINY_SEQUENCES = (
    TINY_FEATURES.replace("[features]\n", '[features]\ntimestamp = { column = "time" }\n')
    + """
[[features.sequence]]
name = "clicks"
parts = ["device", "user"]
max_length = 4
gaps = [60, 3600]
newest = "last"
[[features.sequence]]
name = "views"
parts = ["user"]
max_length = 20
newest = "first"
"""
)
"""``tiny_sequences()``, as a config file has it."""


@dataclass(frozen=True)
class TinyDataset:
    """A dataset on disk, and what its files hold."""

    path: Path
    manifest: DatasetManifest
    learnt: Learnt
    columns: dict[str, Columns]
    """Split -> its columns, all files laid end to end. The dense feature ``row`` numbers a split's rows from 0."""

    @property
    def schema(self) -> FeatureSchema:
        return self.manifest.schema

    @property
    def num_embeddings(self) -> dict[str, int]:
        return {f.name: self.learnt.num_embeddings(f) for f in self.schema.id_features}


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., TinyDataset]:
    """``make_dataset(train=..., valid=..., test=..., weight=..., group_id=..., seed=..., name=...)``.

    Four sparse features (``genres`` is multi-valued) and two dense ones; the label can be learnt from ``user`` and
    ``genres``. Splits are given as the row groups of their files.
    """

    def make(*row_groups: RowGroups, name: str = "dataset", **options: Any) -> TinyDataset:
        return write_tiny_dataset(tmp_path / name, *row_groups, **options)

    return make


def write_tiny_dataset(
    path: Path,
    train: RowGroups = ((24, 24, 16), (40, 24), (64,)),
    valid: RowGroups = ((32, 8),),
    test: RowGroups = ((20,),),
    *,
    weight: bool = True,
    group_id: bool = True,
    seed: int = 0,
    number_rows: bool = False,
    devices: Sequence[str] = (),
    schema: FeatureSchema | None = None,
) -> TinyDataset:
    """Write a dataset folder; see ``make_dataset``.

    Args:
        number_rows: the training rows' group ids number them from 0, and the dense feature ``row`` is below 1: large
            numbers leave float32 few digits for the rest, and training multiplies what is lost.
        devices: more tokens of the device's vocabulary, as of a dataset that goes on with one without them.
        schema: features called as the tiny schema's, of the same kinds, and any more multi-valued ones; None: the tiny
            schema.
    """
    schema = schema or tiny_schema(weight=weight, group_id=group_id)
    learnt = Learnt({"device": ["mobile", "tablet", *devices]}, out_of_vocabulary={"device": 3} if devices else {})
    learnt.save(path / "v1" / "learnt")
    rng = np.random.default_rng(seed)
    columns, splits = {}, {}
    given = {"train": train, "valid": valid, "test": test}
    for split, row_groups in given.items():
        if not row_groups:
            continue
        columns[split] = tiny_columns(schema, sum(map(sum, row_groups)), rng, 4 + len(devices))
        if number_rows:
            columns[split]["row"] /= len(columns[split]["row"])
            if split == "train":
                columns[split]["group_id"] = np.arange(len(columns[split]["label"]))
        files = write_files(path, f"v1/{split}", columns[split], row_groups)
        splits[split] = Split(files, *statistics(schema, columns[split]))
    manifest = DatasetManifest(
        schema=schema,
        schema_fingerprint=schema.fingerprint,
        learnt_fingerprint=learnt.fingerprint,
        learnt_path="v1/learnt",
        splits=splits,
        rejected=Rejected(0, {}, None),
        num_input_rows=sum(s.num_rows for s in splits.values()),
        num_duplicates=0,
        inputs={"train": ["made.csv"]},
        config={},
    )
    manifest.write(path)
    return TinyDataset(path, manifest, learnt, columns)


def tiny_schema(*, weight: bool = True, group_id: bool = True) -> FeatureSchema:
    """A feature of each kind."""
    return FeatureSchema(
        label="click",
        sparse=(
            SparseFeature("user", HashEncoding(num_buckets=50)),
            SparseFeature("genres", HashEncoding(num_buckets=20), separator="|", max_length=3),
            SparseFeature("device", VocabularyEncoding()),
            SparseFeature("age", BoundariesEncoding((18.0, 30.0, 50.0))),
        ),
        dense=(DenseFeature("row"), DenseFeature("price")),
        weight="importance" if weight else None,
        group_id="user" if group_id else None,
    )


def tiny_sequences(*, max_length: int = 20) -> FeatureSchema:
    """The tiny schema with two sequences: one of two parts with gaps, and one of up to ``max_length`` events."""
    clicks = SequenceFeature("clicks", ("device", "user"), 4, gaps=(60, 3600), newest="last")
    views = SequenceFeature("views", ("user",), max_length, newest="first")
    return replace(tiny_schema(), sequence=(clicks, views), timestamp=Timestamp("time"))


def tiny_columns(schema: FeatureSchema, num_rows: int, rng: np.random.Generator, num_devices: int = 4) -> Columns:
    """Random rows, named and typed as in the Parquet files; device ids are below ``num_devices``."""
    lengths = rng.integers(0, 4, num_rows).astype(np.int32)
    genres = np.where(np.arange(3) < lengths[:, None], rng.integers(1, 20, (num_rows, 3)), 0).astype(np.int32)
    user = rng.integers(0, 50, num_rows).astype(np.int32)
    logit = np.where(user % 2, 1.5, -1.5) + np.where(genres[:, 0] > 10, 1.0, -0.5)
    columns: Columns = {
        "user": user,
        "genres": genres,
        "genres__length": lengths,
        "device": rng.integers(1, num_devices, num_rows).astype(np.int32),
        "age": rng.integers(0, 5, num_rows).astype(np.int32),
        "row": np.arange(num_rows, dtype=np.float32),
        "price": rng.standard_normal(num_rows).astype(np.float32),
        "label": (rng.random(num_rows) < 1 / (1 + np.exp(-logit))).astype(np.float32),
    }
    if schema.weight:
        columns["weight"] = rng.choice(np.array([0.5, 1.0, 2.0], np.float32), num_rows)
    if schema.group_id:
        columns["group_id"] = user.astype(np.int64) * 2**40 - 2**44
    for feature in schema.sparse:
        if feature.name not in columns:
            lengths = rng.integers(0, feature.max_length + 1, num_rows).astype(np.int32)
            ids = rng.integers(1, 20, (num_rows, feature.max_length)).astype(np.int32)
            columns[feature.name] = np.where(np.arange(feature.max_length) < lengths[:, None], ids, 0).astype(np.int32)
            columns[f"{feature.name}__length"] = lengths
    highs = {"device": num_devices, "user": 50, "": 4}
    for sequence in schema.sequence:
        counts = rng.integers(0, sequence.max_length + 1, num_rows)
        for part in schema.parts:
            if part.sequence == sequence.name:
                first, high = (0, NUM_DWELL_IDS) if part.is_dwell else (1, highs[part.part])
                ids = rng.integers(first, high, counts.sum()).astype(np.int32)
                columns[part.name] = Ragged.of(ids, counts)
    if schema.timestamp:
        columns["timestamp"] = np.arange(num_rows, dtype=np.int64) + 1_000_000
    return columns


def write_files(dataset: Path, folder: str, columns: Columns, row_groups: RowGroups) -> tuple[DataFile, ...]:
    """Write columns as Parquet files with the given row groups."""
    (dataset / folder).mkdir(parents=True, exist_ok=True)
    table = pa.table({n: _arrow(c) for n, c in columns.items()})
    files, start = [], 0
    for i, sizes in enumerate(row_groups):
        path = dataset / folder / f"part-{i:05d}.parquet"
        with pq.ParquetWriter(path, table.schema) as writer:
            for size in sizes:
                writer.write_table(table.slice(start, size))
                start += size
        files.append(describe_file(dataset, path))
    return tuple(files)


def _arrow(column: Any) -> pa.Array:
    if isinstance(column, Ragged):
        return column.to_arrow()
    return pa.array(list(column) if column.ndim == 2 else column)


def describe_file(dataset: Path, path: Path) -> DataFile:
    """What the manifest says of a file."""
    footer = pq.read_metadata(path)
    row_groups = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return DataFile(path.relative_to(dataset).as_posix(), path.stat().st_size, row_groups, digest)


def statistics(
    schema: FeatureSchema, columns: Columns
) -> tuple[float, dict[str, FeatureStatistics], dict[str, DenseStatistics], dict[str, SequenceStatistics]]:
    """Label rate and the statistics of each feature that a reader of the manifest may look at."""
    sparse = {
        f.name: FeatureStatistics(
            cardinality=len(np.unique(columns[f.name])),
            null_rate=0.0,
            oov_rate=0.0,
            head_share=0.0,
            max_id=int(columns[f.name].max(initial=0)),
        )
        for f in schema.sparse
    }
    dense = {}
    for f in schema.dense:
        column = columns[f.name]
        dense[f.name] = DenseStatistics(
            0.0, float(column.mean()), float(column.std()), float(column.min()), float(column.max())
        )
    sequences = {}
    for sequence in schema.sequence:
        lengths = columns[sequence.keys[0]].lengths
        largest = {key: int(columns[key].flat.max(initial=0)) for key in sequence.keys}
        dwell = columns[sequence.dwell_column].flat if sequence.dwell_column else []
        counts = np.bincount(dwell).tolist() if len(dwell) else []
        sequences[sequence.name] = SequenceStatistics(
            float(lengths.mean()), float((lengths == 0).mean()), largest, dwell_counts=tuple(counts)
        )
    return float(columns["label"].mean()), sparse, dense, sequences
