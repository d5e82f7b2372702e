"""Sequences of a log on their road through a build: ragged files, newest first, one vocabulary with the feature."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.build.write
from features.disk.dataset import DatasetManifest
from features.disk.window import join
from features.encode_rows import FeatureEncoder
from pipeline.build.write import write_table
from pipeline.config import WriteConfig

FEATURES = {
    "label": "click",
    "sparse": [
        {"name": "item", "encoding": {"kind": "vocabulary", "min_count": 2}},
        {"name": "cate", "encoding": {"kind": "hash", "num_buckets": 20}},
        {"name": "dwell", "encoding": {"kind": "log_squared"}},
    ],
    "sequence": [
        {
            "name": "clicks",
            "parts": ["item", "cate"],
            "max_length": 3,
            "gaps": [60, 600],
            "dwell_weights": True,
            "columns": {"item": "bought"},
            "newest": "last",
        },
        {"name": "views", "parts": ["dwell"], "max_length": 2, "newest": "first", "separator": "|"},
    ],
    "timestamp": {"column": "t"},
    "carry": ["row"],
}
KEYS = ("clicks__item", "clicks__cate", "clicks__gap", "clicks__dwell", "views__dwell")


def log_row(number: int, rng: np.random.Generator) -> dict[str, Any]:
    """A row as a CSV file has it: text, lists split at their separators."""
    size, views = int(rng.integers(0, 6)), int(rng.integers(0, 4))
    items, cates = (rng.integers(0, high, size).tolist() for high in (12, 5))
    before = sorted(rng.integers(0, 2000, size).tolist(), reverse=True)
    return {
        "row": str(number),
        "click": str(int(rng.integers(0, 2))),
        "t": str(1_000_000 + number),
        "item": f"i{rng.integers(0, 12)}",
        "cate": f"c{rng.integers(0, 5)}",
        "dwell": str(int(rng.integers(0, 30))),
        "bought": " ".join(f"i{v}" for v in items),
        "clicks__cate": " ".join(f"c{v}" for v in cates),
        "clicks__time": " ".join(str(1_000_000 + number - b) for b in before),
        "views__dwell": "|".join(str(v) for v in rng.integers(0, 30, views)),
        "clicks__dwell": " ".join(str(v) if v < 500 else "" for v in rng.integers(0, 600, size)),
    }


def write_csv(path: Any, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]) + "\n")


def config(path: Any, kind: str = "csv", **more: Any) -> dict[str, Any]:
    split = {"kind": "time", "valid_from": "1970-01-12T13:49:10"}
    return {"input": {"train": str(path), "format": {"kind": kind}}, "split": split, "write": {"min_files": 2}, **more}


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    return [log_row(number, rng) for number in range(200)]


def test_files_hold_what_the_encoder_makes_of_each_row(build, read_split, tmp_path, rows):
    write_csv(tmp_path / "log.csv", rows)
    manifest, dataset = build(FEATURES, config(tmp_path / "log.csv"))
    learnt = manifest.load_learnt(dataset)
    assert sorted(learnt.vocabularies) == ["dwell", "item"]
    train, valid = (read_split(manifest, dataset, split).to_pylist() for split in ("train", "valid"))
    assert (len(train), len(valid)) == (150, 50)
    encoder = FeatureEncoder(manifest.schema, learnt)
    for found in (train, valid):
        expected = encoder.encode([rows[int(row["row"])] for row in found])
        for name in ("item", "cate", "dwell"):
            assert [row[name] for row in found] == expected[name].tolist()
        for name in KEYS:
            assert [row[name] for row in found] == expected[name].tolist(), name
        for row in found:
            assert len({len(row[name]) for name in KEYS[:4]}) == 1
    # Newest first, cut on the side of the oldest.
    number = int(train[0]["row"])
    times = [int(t) for t in rows[number]["clicks__time"].split()][::-1][:3]
    gaps = [1 + sum(1_000_000 + number - t >= bound for bound in (60, 600)) for t in times]
    assert train[0]["clicks__gap"] == gaps


def test_the_items_of_histories_are_learnt_with_the_feature(build, tmp_path, rows):
    one = {
        **rows[0],
        "item": "lone",
        "bought": "seen seen",
        "clicks__cate": "a b",
        "clicks__time": "1 2",
        "clicks__dwell": "3 4",
    }
    write_csv(tmp_path / "log.csv", [one, {**rows[1], "item": "once"}, *rows[2:]])
    manifest, dataset = build(FEATURES, config(tmp_path / "log.csv"))
    vocabulary = manifest.load_learnt(dataset).vocabularies["item"]
    assert "seen" in vocabulary and not {"lone", "once"} & set(vocabulary)


def test_the_manifest_describes_the_sequences(build, read_split, tmp_path, rows):
    write_csv(tmp_path / "log.csv", rows)
    manifest, dataset = build(FEATURES, config(tmp_path / "log.csv"))
    assert DatasetManifest.load(dataset) == manifest
    for name, split in manifest.splits.items():
        found = read_split(manifest, dataset, name).to_pylist()
        for sequence, keys, raw, bound in (("clicks", KEYS[:4], "bought", 3), ("views", KEYS[4:], "views__dwell", 2)):
            lengths = [len(row[keys[0]]) for row in found]
            described = split.sequences[sequence]
            assert described.mean_length == pytest.approx(np.mean(lengths))
            assert described.empty_rate == pytest.approx(np.mean([n == 0 for n in lengths]))
            assert described.max_ids == {k: max(max(row[k], default=0) for row in found) for k in keys}
            raws = [rows[int(row["row"])][raw].replace("|", " ").split() for row in found]
            ids = [i for row in found for i in row[f"{sequence}__dwell"]] if sequence == "clicks" else []
            assert described.dwell_counts == tuple(np.bincount(ids) if ids else ())
            assert described.num_truncated == sum(max(len(r) - bound, 0) for r in raws)


def test_rows_with_lists_of_different_lengths_are_rejected(build, tmp_path, rows):
    rows[7]["bought"] += " extra"
    rows[9] |= {"bought": "i1", "clicks__cate": "c1", "clicks__time": str(1_000_010), "clicks__dwell": "1"}
    write_csv(tmp_path / "log.csv", rows)
    manifest, _ = build(FEATURES, config(tmp_path / "log.csv", quality={"max_rejected_fraction": 0.5}))
    columns = "'bought', 'clicks__cate', 'clicks__time', 'clicks__dwell'"
    assert manifest.rejected.reasons == {
        f"sequence 'clicks': columns {columns} have lists of different lengths": 1,
        "sequence 'clicks' has an event that is later than its row": 1,
    }


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_lists_are_taken_as_they_are(build, read_split, tmp_path, rows, kind):
    write_csv(tmp_path / "log.csv", rows)
    spaced = dict.fromkeys(("bought", "clicks__cate", "clicks__time", "clicks__dwell"), " ")
    separators = spaced | {"views__dwell": "|"}
    lists = [row | {n: row[n].split(s) if row[n] else [] for n, s in separators.items()} for row in rows]
    for row in lists:
        row |= {"clicks__time": [int(t) for t in row["clicks__time"]]}
    if kind == "jsonl":
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lists))
    else:
        pq.write_table(pa.Table.from_pylist(lists), tmp_path / "log.parquet")
    found = []
    for path, form in ((tmp_path / "log.csv", "csv"), (tmp_path / f"log.{kind}", kind)):
        manifest, dataset = build(FEATURES, config(path, form))
        table = read_split(manifest, dataset).to_pylist()
        found.append(sorted(table, key=lambda row: int(row["row"])))
    assert found[0] == found[1]


def test_days_go_on_with_each_other_and_join_to_a_window(build, tmp_path, rows):
    paths = []
    for number, part in enumerate((rows[:100], rows[100:])):
        write_csv(tmp_path / f"{number}.csv", part)
        pipeline = {"input": {"train": str(tmp_path / f"{number}.csv"), "format": {"kind": "csv"}}}
        build(FEATURES, pipeline | ({"base": paths[0]} if paths else {}), f"day{number}")
        paths.append(str(tmp_path / f"day{number}"))
    joined = join({"train": [Path(path) for path in paths]}, tmp_path / "window")
    days = [DatasetManifest.load(path).splits["train"].sequences["clicks"] for path in paths]
    clicks = joined.splits["train"].sequences["clicks"]
    assert clicks.mean_length == pytest.approx(np.mean([day.mean_length for day in days]))
    assert clicks.max_ids["clicks__item"] == max(day.max_ids["clicks__item"] for day in days)
    joined.check_ids(joined.load_learnt(tmp_path / "window"))


def test_row_groups_are_sized_by_the_ids_in_them(tmp_path, monkeypatch):
    lists = pa.array([[1] * 50] * 100, pa.list_(pa.int32()))
    table = pa.table({"a": lists, "b": lists, "c": pa.array(np.arange(100, dtype=np.int32))})
    assert write_table(table, tmp_path / "a", WriteConfig()) == (100,)
    monkeypatch.setattr(pipeline.build.write, "MAX_LIST_BYTES", 400 * 30)
    assert write_table(table, tmp_path / "a", WriteConfig()) == (30, 30, 30, 10)
    assert write_table(table, tmp_path / "a", WriteConfig(row_group_rows=20)) == (20,) * 5
    assert write_table(table.select(["c"]), tmp_path / "a", WriteConfig()) == (100,)
    monkeypatch.setattr(pipeline.build.write, "MAX_LIST_BYTES", 1)
    assert write_table(table.slice(0, 3), tmp_path / "a", WriteConfig()) == (1, 1, 1)
