"""Spark and Python turn the same raw row into the same ids and floats, whatever the row and the file format."""

import csv
import json
import random

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from features.log_format import LogFormat
from features.schema import FeatureSchema
from jobs.cli.config import parse_config
from tests.oracles.row_encoder import RowEncoder
from tests.oracles.row_reader import read_rows

ROWS = 400

SPARSE = [
    {"name": "user", "encoding": {"kind": "hash", "num_buckets": 101}},
    {"name": "user_salted", "columns": ["user"], "encoding": {"kind": "hash", "num_buckets": 50, "salt": "ä!"}},
    {"name": "user_city", "columns": ["user", "city", "site"], "encoding": {"kind": "hash", "num_buckets": 1000}},
    {"name": "city", "encoding": {"kind": "vocabulary", "min_count": 3}},
    {"name": "site", "encoding": {"kind": "vocabulary", "max_size": 3}},
    {"name": "tags", "separator": "|", "max_length": 3, "encoding": {"kind": "hash", "num_buckets": 31}},
    {
        "name": "genres",
        "columns": ["tags"],
        "separator": "|",
        "max_length": 4,
        "encoding": {"kind": "vocabulary", "min_count": 5},
    },
    {"name": "few", "columns": ["price"], "encoding": {"kind": "boundaries", "boundaries": [-1.5, 0, 2.5, 10]}},
    {"name": "quantile", "columns": ["price"], "encoding": {"kind": "quantiles", "num_buckets": 7}},
    {"name": "octave", "columns": ["price"], "encoding": {"kind": "log", "num_buckets": 12}},
    {"name": "criteo", "columns": ["price"], "encoding": {"kind": "log_squared", "min_count": 2}},
]
DENSE = [
    {"name": "plain", "column": "price"},
    {"name": "filled", "column": "age", "fill": -3.5},
    {"name": "clipped", "column": "price", "clip": [-2.0, 100.0], "log1p": True},
    {"name": "scaled", "column": "age", "fill": 7.0, "standardise": True},
    {"name": "all", "column": "price", "clip": [-50.0, 1e6], "log1p": True, "standardise": True},
]
FEATURES = {"label": "click", "sparse": SPARSE, "dense": DENSE, "carry": ["row"]}

USERS = [
    "u1",
    "u2",
    " u1",
    "ü",
    "日本語",
    "a,b",
    'quo"te',
    '"',
    "x" * 100,
    "-",
    "0",
    "00",
    "true",
    "NaN",
    "1.50",
    "2.0",
]
PRICES = ["", "0", "-0", "1", "2", "3", "2.5", " 4 ", "+.5", "1e3", "-1.5", "-1.50", "1E-3", "7.", "123456789", "1000"]
TAGS = ["", "a", "a|b", "|", "a||b|", "c|c|c|c|c", "a|b|c|d|é", "b"]


def raw_rows(seed: int) -> list[dict]:
    rng = random.Random(seed)
    rows = []
    for number in range(ROWS):
        rows.append(
            {
                "row": str(number),
                "click": rng.choice(["0", "1", "1.0", "true"]),
                "user": rng.choice([*USERS, "", f"u{rng.randrange(60)}"]),
                "city": rng.choice(["", "Oslo", "Paris", "Rome", "null", f"c{rng.randrange(90)}"]),
                "site": rng.choice(["s1", "s1", "s2", "s3", "s4", ""]),
                "tags": rng.choice(TAGS),
                "price": rng.choice([*PRICES, f"{rng.gauss(0, 30):.3f}", str(rng.randrange(70_000))]),
                "age": rng.choice(["", "18", "33.25", "false", str(rng.randrange(99))]),
            }
        )
    return rows


def write_csv(rows, path):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(rows, path):
    """Typed where JSON has types: numbers, booleans, null and arrays."""
    rng = random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            row = dict(row)
            row["click"] = rng.choice([row["click"], row["click"] != "0"])
            if row["tags"] and rng.random() < 0.5:
                row["tags"] = [tag or None for tag in row["tags"].split("|")]
            if row["user"] == "0":
                row["user"] = 0
            if row["user"] == "":
                row["user"] = None
            text = json.dumps(row, ensure_ascii=rng.random() < 0.5)
            if row["price"].strip(" ").replace("-", "", 1).isdigit() and not row["price"].startswith(" "):
                text = text.replace(f'"price": "{row["price"]}"', f'"price": {row["price"]}')  # a bare number
            if row["user"] in ("1.50", "2.0"):  # a bare number as a category keeps its digits
                text = text.replace(f'"user": "{row["user"]}"', f'"user": {row["user"]}')
            file.write(text + "\n")


def write_parquet(rows, path):
    def number(text):
        text = text.strip(" ")
        return None if not text else {"true": 1.0, "false": 0.0}.get(text) if text in ("true", "false") else float(text)

    columns = {name: [row[name] for row in rows] for name in rows[0]}
    arrays = {name: pyarrow.array(values, pyarrow.string()) for name, values in columns.items()}
    arrays["price"] = pyarrow.array([number(v) for v in columns["price"]], pyarrow.float64())
    arrays["age"] = pyarrow.array([number(v) for v in columns["age"]], pyarrow.float32())
    arrays["click"] = pyarrow.array([number(v) == 1 for v in columns["click"]], pyarrow.bool_())
    arrays["site"] = pyarrow.array([int(v[1]) if v else None for v in columns["site"]], pyarrow.int16())
    arrays["city"] = pyarrow.array([float(i % 9) if i % 4 else float("nan") for i in range(len(rows))])
    tags = [value.split("|") if i % 7 else None for i, value in enumerate(columns["tags"])]
    arrays["tags"] = pyarrow.array(tags, pyarrow.list_(pyarrow.string()))
    pyarrow.parquet.write_table(pyarrow.table(arrays), path)


FORMATS = {
    "csv": (write_csv, {"kind": "csv", "null_values": ["null"]}),
    "jsonl": (write_jsonl, {"kind": "jsonl", "null_values": ["null", "-"]}),
    "parquet": (write_parquet, {"kind": "parquet"}),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_build_and_the_row_encoder_agree(kind, build, read_split, tmp_path):
    write, log_format = FORMATS[kind]
    rows = raw_rows(seed=5)
    write(rows[:300], tmp_path / f"train.{kind}")
    write(rows[300:], tmp_path / f"valid.{kind}")
    paths = {name: str(tmp_path / f"{name}.{kind}") for name in ("train", "valid")}
    manifest, dataset = build(FEATURES, {"input": {**paths, "format": log_format}, "write": {"min_files": 2}})
    assert manifest.rejected.num_rows == 0, manifest.rejected.reasons
    encoder = RowEncoder(manifest.schema, manifest.load_learnt(dataset))
    for split, path in paths.items():
        raw = {row["row"]: row for row in read_rows(path, LogFormat(**log_format))}
        table = read_split(manifest, dataset, split)
        expected = encoder.encode([raw[number] for number in table["row"].to_pylist()])
        assert len(raw) == table.num_rows == manifest.split(split).num_rows
        for name, values in expected.items():
            found = np.array(table[name].to_pylist(), dtype=values.dtype)
            if values.dtype == np.float32:
                np.testing.assert_allclose(found, values, rtol=1e-6, atol=1e-7, err_msg=name)
            else:
                np.testing.assert_array_equal(found, values, err_msg=name)
            assert len(np.unique(values)) > 2, f"{name} is too easy"


def test_spec_values_of_the_criteo_rule(build, read_split, tmp_path):
    """Values and strings of the toy, with codes found by running the official code."""
    numbers = ["", "0", "0", "1", "2", "3", "1000", "-1"]
    texts = ["a", "a", "b", "", "", "a", "b", "c"]
    lines = [f"{i},{n},{t},1" for i, (n, t) in enumerate(zip(numbers, texts, strict=True))]
    (tmp_path / "toy.csv").write_text("\n".join(["row,I,C,label", *lines]) + "\n")
    features = {
        "label": "label",
        "carry": ["row"],
        "sparse": [
            {"name": "I", "encoding": {"kind": "log_squared"}},
            {"name": "C", "encoding": {"kind": "vocabulary"}},
        ],
    }
    manifest, dataset = build(features, {"input": {"train": str(tmp_path / "toy.csv")}})
    learnt = manifest.load_learnt(dataset)
    assert learnt.vocabularies == {"I": ["-1", "1", "2", "47"], "C": ["a", "b", "c"]}
    table = read_split(manifest, dataset).sort_by("row")
    assert table["I"].to_pylist() == [5, 5, 5, 2, 3, 2, 4, 1]
    assert table["C"].to_pylist() == [1, 1, 2, 4, 4, 1, 2, 3]
    assert [learnt.num_embeddings(f) for f in manifest.schema.sparse] == [6, 5]


def test_schema_of_the_test_uses_every_encoding():
    schema = parse_config({"features": FEATURES, "pipeline": {"output": "x"}, "training": {"dataset": "x"}}).features
    assert isinstance(schema, FeatureSchema)
    kinds = {f.encoding.kind for f in schema.sparse}
    assert kinds == {"hash", "vocabulary", "boundaries", "quantiles", "log", "log_squared"}
