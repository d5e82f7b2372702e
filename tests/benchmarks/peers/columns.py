"""The first rows of a dataset's splits as NumPy columns: what the peers, which keep everything in memory, train on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

Rows = dict[str, np.ndarray]


def read_columns(dataset: Path, num_rows: int, num_test: int) -> tuple[dict[str, Any], Rows, Rows]:
    """Returns ``{"sparse": {name: rows of its table}, "dense": [name, ...]}``, training rows and validation rows."""
    manifest = json.loads((dataset / "manifest.json").read_text())
    sparse = {feature["name"]: feature["encoding"]["num_buckets"] for feature in manifest["schema"]["sparse"]}
    schema = {"sparse": sparse, "dense": [feature["name"] for feature in manifest["schema"]["dense"]]}
    return schema, _read(dataset, manifest, "train", num_rows), _read(dataset, manifest, "valid", num_test)


def read_split(dataset: Path, split: str) -> tuple[dict[str, Any], pa.Table]:
    """Returns the dataset's manifest and all rows of a split."""
    manifest = json.loads((dataset / "manifest.json").read_text())
    tables = [pa.parquet.read_table(dataset / file["path"]) for file in manifest["splits"][split]["files"]]
    return manifest, pa.concat_tables(tables)


def _read(dataset: Path, manifest: dict[str, Any], split: str, num_rows: int) -> Rows:
    tables, found = [], 0
    for file in manifest["splits"][split]["files"]:
        if found < num_rows:
            tables.append(pa.parquet.read_table(dataset / file["path"]))
            found += tables[-1].num_rows
    if found < num_rows:
        raise ValueError(f"{dataset} has {found} rows in its {split} split, not {num_rows}")
    table = pa.concat_tables(tables).slice(0, num_rows)
    return {name: table[name].to_numpy() for name in table.column_names}
