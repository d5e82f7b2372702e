"""Logs and datasets of Criteo's shape for the benchmarks: a label, 13 counts I1..I13, 26 categories C1..C26.

Categories are eight hexadecimal digits drawn from a power law, so a few values make up most rows and most values are
rare; a tenth of the values is missing. The label follows from the row, so that a model has something to learn.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

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
