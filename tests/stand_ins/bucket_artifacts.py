"""Artifacts of small models with long histories, whose bucket tables may stand in place of events."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import numpy as np
import torch.distributed as dist

from features.schema import FeatureSchema, SequenceFeature, Timestamp
from tests.stand_ins.tiny_dataset import tiny_schema, write_tiny_dataset
from tests.training.fit.test_run import MODEL, make_config
from tests.training.fit.test_vectors import write_vectors
from tests.training.fit.test_warm_start import finish
from training.config import DINHistory, HistoryConfig, ModelConfig, SDIMHistory, TablePrecision, VectorsConfig
from training.fit.vectors import settle_vectors
from training.ship.export import export
from training.ship.predict import Predictor

SEQUENCES: dict[str, HistoryConfig] = {
    "visits": SDIMHistory(num_hashes=8, bits=2, length=30, short=DINHistory(hidden_units=(4,), length=2)),
    "devices": SDIMHistory(num_hashes=6),
    "liked": DINHistory(hidden_units=(4,)),
}
VISITS = ("visits__user", "visits__device", "visits__time")
DEVICES = ("devices__device", "devices__time", "devices__dwell")


def bucket_schema(longest: int = 40) -> FeatureSchema:
    """The tiny schema with long histories of two parts and of one, and with a short one that has no bucket table."""
    return replace(
        tiny_schema(),
        sequence=(
            SequenceFeature("visits", ("user", "device"), longest, gaps=(60, 3600), newest="first"),
            SequenceFeature("devices", ("device",), longest, gaps=(60, 600), newest="last", dwell_weights=True),
            SequenceFeature("liked", ("user",), 3, newest="first"),
        ),
        timestamp=Timestamp("time"),
    )


def make_rows(num_rows: int, seed: int = 0, longest: int = 50) -> list[dict[str, Any]]:
    """Rows with histories of fewer than ``longest`` visits, lists and texts; every fourth one without events."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(num_rows):
        visits, devices = (0, 0) if number % 4 == 3 else rng.integers(1, longest, 2).tolist()
        users = [f"u{n}" for n in rng.integers(0, 30, visits)]
        seen = rng.choice(["mobile", "tablet", "watch", "new"], visits + devices).tolist()
        rows.append(
            {
                "user": f"u{rng.integers(30)}",
                "genres": "a|b",
                "device": "mobile" if number % 2 else "tablet",
                "age": "33",
                "row": 0.25,
                "price": float(rng.normal()),
                "time": 10_000,
                "visits__user": users if number % 2 else " ".join(users),
                "visits__device": seen[:visits],
                "visits__time": rng.integers(1, 10_000, visits).tolist(),
                "devices__device": seen[visits:],
                "devices__dwell": [None if n % 5 == 4 else n % 7 for n in range(devices)],
                "devices__time": " ".join(map(str, rng.integers(1, 10_000, devices))),
                "liked__user": users[:2],
            }
        )
    return rows


def first_events(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The row with as many of its newest visits."""
    found = dict(row)
    for name in VISITS:
        values = row[name].split() if isinstance(row[name], str) else row[name]
        found[name] = values[:number]
    return found


def write_bucket_artifacts(
    folder: Path,
    longest: int = 40,
    model: ModelConfig = MODEL,
    sequences: Mapping[str, HistoryConfig] = MappingProxyType(SEQUENCES),
) -> Path:
    """Folder with the artifacts of one run in all precisions, and ``other``, of another run."""
    dataset = write_tiny_dataset(folder / "dataset", number_rows=True, schema=bucket_schema(longest))
    write_vectors(folder / "users.parquet", [f"u{n}" for n in range(20)], 5)
    text = VectorsConfig(path=str(folder / "users.parquet"), feature="user")
    log = folder / "log.csv"
    rows = make_rows(12)
    texts = [",".join(" ".join(map(str, v)) if isinstance(v, list) else str(v) for v in row.values()) for row in rows]
    log.write_text("\n".join([",".join(rows[0]), *texts]) + "\n")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        for seed in (0, 1):
            config = make_config(dataset.path, seed=seed, max_epochs=1)
            config = replace(config, model=replace(model, sequences=dict(sequences), vectors={"text": text}))
            run = finish(folder / f"run-{seed}", replace(config, model=settle_vectors(config.model)))
            if seed:
                export(run, folder / "other", str(log))
            for precision in () if seed else get_args(TablePrecision):
                export(run, folder / precision, str(log), precision)
    finally:
        dist.destroy_process_group()
    return folder


def with_tables(predictor: Predictor, rows: list[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
    """Rows with tables in place of events, but for the two newest visits, which ``short`` reads."""
    return [{**row, **of} for row, of in zip(without_events(rows), predictor.buckets.make(rows, **more), strict=True)]


def without_events(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as they are sent beside tables."""
    return [{k: v for k, v in first_events(row, 2).items() if k not in DEVICES} for row in rows]
