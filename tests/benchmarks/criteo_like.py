"""Logs and datasets of Criteo's shape for the benchmarks: a label, 13 counts I1..I13, 26 categories C1..C26.

Categories are eight hexadecimal digits drawn from a power law, so a few values make up most rows and most values are
rare; a tenth of the values is missing. The label follows from the row, so that a model has something to learn.

A dataset can be had without logs and without Spark, for measurements that only read it: its ids are drawn, not hashed.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from tqdm import tqdm

from features.disk.dataset import MANIFEST_NAME, DataFile, DatasetManifest, FeatureStatistics, Rejected, Split
from features.disk.digest import file_sha256
from features.learnt import Learnt
from features.schema import DenseFeature, FeatureSchema, HashEncoding, SparseFeature
from pipeline.build.write import num_files
from pipeline.config import WriteConfig

NUM_COUNTS, NUM_CATEGORIES = 13, 26
COLUMNS = (
    "label",
    *(f"I{i}" for i in range(1, NUM_COUNTS + 1)),
    *(f"C{i}" for i in range(1, NUM_CATEGORIES + 1)),
)
ROWS_PER_FILE = 250_000
MISSING = 0.1
CARDINALITY = 2_000_000
"""Values a category can have; at a skew of 1.05 about a third of them turn up in five million rows."""


def write_logs(folder: Path, num_rows: int, seed: int = 0) -> list[Path]:
    """Tab-separated files without a header, as Criteo's; those that are there already are kept.

    Args:
        folder: made if absent.
        num_rows: in all.
        seed: of the first file; each file has its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, start in enumerate(range(0, num_rows, ROWS_PER_FILE)):
        rows = min(ROWS_PER_FILE, num_rows - start)
        path = folder / f"part-{number:04d}-{rows}.tsv"
        if not path.exists():
            temporary = path.with_suffix(".partial")
            options = pa.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
            pa.csv.write_csv(draw(np.random.default_rng([seed, number]), rows), temporary, options)
            temporary.rename(path)
        paths.append(path)
    return paths


def draw(rng: np.random.Generator, rows: int) -> pa.Table:
    """(rows,) columns named ``COLUMNS``; counts are int64 with nulls, categories text with nulls."""
    columns: dict[str, pa.Array] = {}
    effects = np.zeros(rows)
    for name, ids in _draw_categories(rng, rows):
        effects += ((ids * 2654435761) % 1_000 / 1_000 - 0.5) / 2
        columns[name] = pa.array(_hexadecimal(ids), pa.string(), mask=rng.random(rows) < MISSING)
    for i in range(1, NUM_COUNTS + 1):
        counts = np.floor(rng.lognormal(2.0, 1.5, rows)).astype(np.int64)
        effects += (np.log1p(counts) - 2) * (0.1 if i % 2 else -0.1)
        columns[f"I{i}"] = pa.array(counts, mask=rng.random(rows) < MISSING)
    labels = rng.random(rows) < 1 / (1 + np.exp(1.2 - effects))
    columns["label"] = pa.array(labels.astype(np.int8))
    return pa.table({name: columns[name] for name in COLUMNS})


def _draw_categories(rng: np.random.Generator, rows: int) -> Iterator[tuple[str, np.ndarray]]:
    """Ids of a power law by inversion: rank = cardinality ** u."""
    for i in range(1, NUM_CATEGORIES + 1):
        ranks = np.exp(rng.random(rows) * np.log(CARDINALITY)).astype(np.int64)
        yield f"C{i}", (ranks * 2_246_822_519 + i * 3_266_489_917) % (1 << 32)


def _hexadecimal(ids: np.ndarray) -> np.ndarray:
    """(rows,) eight digits each, as fixed-width text."""
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    shifts = np.arange(28, -1, -4, dtype=np.int64)
    return digits[(ids[:, None] >> shifts) & 15].view("S8").ravel().astype("U8")


def write_dataset(folder: Path, num_rows: Mapping[str, int], num_buckets: int, seed: int = 0) -> DatasetManifest:
    """A dataset of 40 columns as a build would leave it, in files and row groups of the default sizes.

    Ids follow the same power law, cut to the table; a tenth is missing, id 0. A row group is in memory at a time.

    Args:
        folder: made if absent; one that holds a dataset is left as it is.
        num_rows: split -> its rows.
        num_buckets: rows of each of the 26 tables.
    """
    if not (folder / MANIFEST_NAME).exists():
        schema = FeatureSchema(
            label="label",
            sparse=tuple(SparseFeature(f"C{i}", HashEncoding(num_buckets)) for i in range(1, NUM_CATEGORIES + 1)),
            dense=tuple(DenseFeature(f"I{i}", log1p=True) for i in range(1, NUM_COUNTS + 1)),
        )
        learnt = Learnt()
        learnt.save(folder / "learnt")
        # A manifest says more of each feature; nobody who trains reads it.
        statistics = {name: FeatureStatistics(0, MISSING, 0.0, 0.0, num_buckets - 1) for name in schema.sparse_names}
        DatasetManifest(
            schema=schema,
            schema_fingerprint=schema.fingerprint,
            learnt_fingerprint=learnt.fingerprint,
            learnt_path="learnt",
            splits={
                name: Split(_write_split(folder, name, rows, num_buckets, [seed, i]), 0.25, statistics)
                for i, (name, rows) in enumerate(num_rows.items())
            },
            rejected=Rejected(0, {}, None),
            num_input_rows=sum(num_rows.values()),
            num_duplicates=0,
            inputs={},
            config={},
        ).write(folder)
    return DatasetManifest.load(folder)


def _write_split(folder: Path, split: str, num_rows: int, num_buckets: int, seed: list[int]) -> tuple[DataFile, ...]:
    (folder / split).mkdir(parents=True, exist_ok=True)
    config = WriteConfig()
    count = num_files(num_rows, config)
    files = []
    for number in tqdm(range(count), disable=None, desc=f"{folder.name}: {split}"):
        rng = np.random.default_rng([*seed, number])
        path, left = folder / split / f"part-{number:05d}.parquet", num_rows // count + (number < num_rows % count)
        groups = [min(config.row_group_rows, left - start) for start in range(0, left, config.row_group_rows)]
        with pq.ParquetWriter(path, draw_encoded(rng, 0, num_buckets).schema, compression=config.compression) as writer:
            for rows in groups:
                writer.write_table(draw_encoded(rng, rows, num_buckets))
        relative = path.relative_to(folder).as_posix()
        files.append(DataFile(relative, path.stat().st_size, tuple(groups), file_sha256(path)))
    return tuple(files)


def draw_encoded(rng: np.random.Generator, rows: int, num_buckets: int) -> pa.Table:
    """(rows,) columns as a built dataset has them: ids int32, the label and the logs of the counts float32."""
    columns: dict[str, np.ndarray] = {}
    effects = np.zeros(rows, np.float32)
    for i in range(1, NUM_CATEGORIES + 1):
        ranks = np.exp(rng.random(rows, np.float32) * np.float32(np.log(CARDINALITY))).astype(np.int64)
        ids = (1 + (ranks * 2_246_822_519 + i * 3_266_489_917) % (num_buckets - 1)).astype(np.int32)
        effects += (ids % 1_000 / np.float32(1_000) - np.float32(0.5)) / 2
        ids[rng.random(rows, np.float32) < MISSING] = 0
        columns[f"C{i}"] = ids
    for i in range(1, NUM_COUNTS + 1):
        counts = np.log1p(np.floor(np.exp(2 + 1.5 * rng.standard_normal(rows, np.float32))))
        effects += (counts - 2) * np.float32(0.1 if i % 2 else -0.1)
        columns[f"I{i}"] = counts
    columns["label"] = (rng.random(rows) < 1 / (1 + np.exp(1.2 - effects))).astype(np.float32)
    return pa.table(columns)
