"""What is learnt and counted, against naive Python over the same rows."""

import math
import random
from collections import Counter

import pytest

from features.disk.dataset import FeatureStatistics
from features.hashing import hash_text, hash_to_id
from features.log_format import LogError
from jobs.cli.errors import ConfigError
from pipeline.build.quality import beyond_limits
from pipeline.config import QualityConfig, QualityLimits

SPARSE = [
    {"name": "user", "encoding": {"kind": "hash", "num_buckets": 40}},
    {"name": "city", "encoding": {"kind": "vocabulary", "min_count": 4, "max_size": 5}},
    {"name": "tags", "separator": "|", "max_length": 2, "encoding": {"kind": "vocabulary", "min_count": 80}},
    {"name": "size", "encoding": {"kind": "quantiles", "num_buckets": 5}},
    {"name": "kilo", "columns": ["size"], "encoding": {"kind": "log_squared", "min_count": 3}},
]
FEATURES = {
    "label": "click",
    "group_id": "user",
    "weight": "w",
    "timestamp": {"column": "t"},
    "carry": ["row"],
    "sparse": SPARSE,
    "dense": [{"name": "price", "fill": 2.0, "clip": [0.0, 50.0], "log1p": True, "standardise": True}],
}


def make_rows(count, seed):
    rng = random.Random(seed)
    return [
        {
            "row": str(i),
            "user": rng.choice(["", *(f"u{int(rng.paretovariate(0.7))}" for _ in range(9))]),
            "city": rng.choice(["", "é", *(f"c{int(rng.expovariate(0.3))}" for _ in range(8))]),
            "tags": "|".join(rng.choice("aaaabbbccdefg") for _ in range(rng.randrange(4))),
            "size": rng.choice(["", "0", str(rng.randrange(50)), f"{rng.gauss(0, 99):.2f}"]),
            "price": rng.choice(["", f"{rng.expovariate(0.05):.3f}"]),
            "w": rng.choice(["1", "0.5", "0"]),
            "t": str(1_700_000_000 + rng.randrange(1000)),
            "click": str(int(rng.random() < 0.3)),
        }
        for i in range(count)
    ]


def write_csv(path, rows):
    path.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def built(build, tmp_path):
    train, valid = make_rows(700, 1), make_rows(200, 2)
    inputs = {"train": write_csv(tmp_path / "t.csv", train), "valid": write_csv(tmp_path / "v.csv", valid)}
    manifest, dataset = build(FEATURES, {"input": inputs})
    return manifest, dataset, train, valid


def test_a_dataset_equals_a_naive_one(built, read_split):
    manifest, dataset, train, valid = built
    check_learnt_and_statistics(manifest, dataset, train, valid, read_split)
    check_row_columns(read_split(manifest, dataset), train)


def check_learnt_and_statistics(manifest, dataset, train, valid, read_split):
    learnt = manifest.load_learnt(dataset)

    counts = Counter(row["city"] for row in train if row["city"])
    kept = sorted((c for c, n in counts.items() if n >= 4), key=lambda c: (-counts[c], c.encode()))[:5]
    assert learnt.vocabularies["city"] == sorted(kept, key=str.encode)
    tags = Counter(tag for row in train for tag in row["tags"].split("|")[:2] if tag)
    assert learnt.vocabularies["tags"] == sorted(tag for tag, n in tags.items() if n >= 80)
    assert 0 < len(learnt.vocabularies["tags"]) < 7

    sizes = sorted(float(row["size"]) for row in train if row["size"])
    assert learnt.boundaries["size"] == sorted({sizes[k * len(sizes) // 5] for k in range(1, 5)})
    assert "0" not in learnt.vocabularies["kilo"] and "1" in learnt.vocabularies["kilo"]

    prices = [min(max(float(row["price"] or 2.0), 0.0), 50.0) for row in train]
    logs = [math.log1p(price) for price in prices]
    mean = sum(logs) / len(logs)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in logs) / len(logs))
    assert learnt.moments["price"] == pytest.approx((mean, deviation), rel=1e-8)

    for name, rows in (("train", train), ("valid", valid)):
        split = manifest.split(name)
        assert split.label_rate == pytest.approx(sum(row["click"] == "1" for row in rows) / len(rows), rel=1e-8)
        users = Counter(row["user"] for row in rows if row["user"])
        found = split.sparse["user"]
        assert found.cardinality == len(users)
        assert found.null_rate == pytest.approx(1 - sum(users.values()) / len(rows))
        assert found.head_share == pytest.approx(max(users.values()) / sum(users.values()))
        ids = Counter(hash_to_id([user], 40, "user") for user in users)
        assert found.collision_rate == pytest.approx(sum(n for n in ids.values() if n > 1) / len(users))
        cities = [row["city"] for row in rows if row["city"]]
        unknown = sum(city not in learnt.vocabularies["city"] for city in cities) / len(cities)
        assert split.sparse["city"].oov_rate == pytest.approx(unknown) and unknown > 0
        assert split.sparse["city"].collision_rate is None
        lengths = [len([t for t in row["tags"].split("|") if t]) for row in rows]
        assert split.sparse["tags"].num_truncated == sum(max(0, n - 2) for n in lengths)
        assert split.sparse["tags"].null_rate == pytest.approx(lengths.count(0) / len(rows))
        raw = [float(row["price"]) for row in rows if row["price"]]
        dense = split.dense["price"]
        assert (dense.minimum, dense.maximum) == (min(raw), max(raw))
        assert dense.mean == pytest.approx(sum(raw) / len(raw), rel=1e-8)
        assert dense.null_rate == pytest.approx(1 - len(raw) / len(rows))
        table = read_split(manifest, dataset, name)
        for feature in manifest.schema.sparse:
            values = table[feature.name].to_pylist()
            largest = max(max(v) if isinstance(v, list) else v for v in values)
            assert split.sparse[feature.name].max_id == largest < learnt.num_embeddings(feature)


def check_row_columns(table, train):
    types = {name: str(table.schema.field(name).type) for name in table.column_names}
    assert types == {
        **{name: "int32" for name in ("user", "city", "size", "kilo", "tags__length")},
        "tags": "list<element: int32 not null>" if "not null" in types["tags"] else "list<element: int32>",
        "price": "float",
        "label": "float",
        "weight": "float",
        "group_id": "int64",
        "timestamp": "int64",
        "row": "string",
    }
    by_row = {row["row"]: row for row in train}
    for found in table.select(["label", "weight", "group_id", "timestamp", "row"]).to_pylist():
        row = by_row.pop(found["row"])
        assert found["label"] == float(row["click"]) and found["weight"] == float(row["w"])
        assert found["group_id"] == (hash_text([row["user"]]) if row["user"] else 0)
        assert found["timestamp"] == int(row["t"])
    assert not by_row


def test_duplicates_keep_the_earliest(build, read_split, tmp_path):
    features = {**FEATURES, "sparse": SPARSE[:1], "dense": [], "weight": None, "label": "click"}
    rows = [row for row in make_rows(300, 3) if row["user"]] + [dict(make_rows(1, 4)[0], click="9")]
    path = write_csv(tmp_path / "a.csv", rows)
    pipeline = {"input": {"train": path}, "dedupe": ["user"], "quality": {"max_rejected_fraction": 0.5}}
    manifest, dataset = build(features, pipeline)
    earliest = {}
    for row in rows[:-1]:
        earliest[row["user"]] = min(earliest.get(row["user"], row["t"]), row["t"])
    table = read_split(manifest, dataset)
    assert sorted(str(t) for t in table["timestamp"].to_pylist()) == sorted(earliest.values())
    assert manifest.num_duplicates == len(rows) - 1 - len(earliest) > 0
    assert manifest.rejected.num_rows == 1


def test_limits():
    values = FeatureStatistics(9, null_rate=0.3, oov_rate=0.2, head_share=0.1, max_id=3, collision_rate=None)
    config = QualityConfig(limits=QualityLimits(0.25, 0.1, 0.0), features={"b": QualityLimits(max_null_rate=0.5)})
    found = beyond_limits({"a": values, "b": values}, config)
    assert [line.split(" is beyond")[0] for line in found] == [
        "feature 'a': null_rate 0.3000",
        "feature 'a': oov_rate 0.2000",
        "feature 'b': oov_rate 0.2000",
    ]


def test_limits_fail_by_config_and_before_the_commit(build, tmp_path):
    path = write_csv(tmp_path / "a.csv", make_rows(200, 5))
    quality = {"action": "fail", "limits": {"max_collision_rate": 0.01}}
    with pytest.raises(LogError, match=r"'user': collision_rate 0\.\d+ is beyond max_collision_rate = 0\.01"):
        build({**FEATURES, "sparse": SPARSE[:1]}, {"input": {"train": path}, "quality": quality})
    assert not (tmp_path / "dataset" / "manifest.json").exists()
    with pytest.raises(ConfigError, match="no sparse feature has this name"):
        build(FEATURES, {"input": {"train": path}, "quality": {"features": {"usr": {}}}})
