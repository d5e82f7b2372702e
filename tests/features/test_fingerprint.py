"""Fingerprints: they change with every key that decides an id or a float, and with nothing else."""

import json
from dataclasses import field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

import features.schema
from features.disk.dataset import DATASET_FORMAT, DatasetError, DatasetManifest
from features.disk.trained_on import TrainedOn
from features.disk.window import Partition, join
from features.fingerprint import departures, is_model_choice
from features.learnt import Learnt
from features.schema import (
    BoundariesEncoding,
    DenseFeature,
    FeatureSchema,
    HashEncoding,
    LogEncoding,
    LogSquaredEncoding,
    QuantilesEncoding,
    SparseFeature,
    Timestamp,
    VocabularyEncoding,
)
from pipeline.build.dataset import load_base
from tests.stand_ins.tiny_dataset import tiny_schema, write_tiny_dataset

SHIPPED_VERSION_1 = {
    "avazu": "1af5ae15ee84",
    "bench": "afe1270467ea",
    "criteo": "f7e9000b0d84",
    "demo": "7a6f3957d2e1",
    "frappe": "07975fbfa687",
    "movielens_1m": "ea8e63c2c30a",
}
"""Beginnings of the fingerprints that the shipped configs had when version 1 was in use."""

SHIPPED = {
    "avazu": "999262d49560",
    "bench": "e01a6a1a05d8",
    "criteo": "aa44e53176ed",
    "demo": "efcfcc56e2ea",
    "frappe": "4a62cf603716",
    "movielens_1m": "65bc8e985411",
}

NAMES = st.text("abcxyz_", min_size=1, max_size=4)
SIZES = st.integers(2, 1000)
TEXT_ENCODINGS = st.builds(HashEncoding, SIZES, st.none() | NAMES) | st.builds(
    VocabularyEncoding, SIZES, st.none() | SIZES
)
NUMBER_ENCODINGS = (
    st.builds(BoundariesEncoding, st.sets(st.floats(-9, 9), min_size=1, max_size=3).map(lambda b: tuple(sorted(b))))
    | st.builds(QuantilesEncoding, SIZES)
    | st.builds(LogEncoding, st.integers(2, 40), st.floats(1.5, 4))
    | st.builds(LogSquaredEncoding, SIZES, st.none() | SIZES)
)
SPARSE = st.builds(
    lambda encoding, columns, separator, max_length, pooling: SparseFeature(
        "x", encoding, columns, separator if encoding.kind in features.schema.TEXT_KINDS else None, max_length, pooling
    ),
    TEXT_ENCODINGS | NUMBER_ENCODINGS,
    st.just(()) | st.tuples(NAMES),
    st.sampled_from([None, "|"]),
    st.integers(1, 30),
    st.sampled_from(["mean", "sum"]),
)
DENSE = st.builds(
    DenseFeature,
    st.just("y"),
    st.none() | NAMES,
    st.floats(-9, 9),
    st.none() | st.just((-1.0, 2.0)),
    st.booleans(),
    st.booleans(),
)


def _named(parts: list[Any], head: str) -> tuple[Any, ...]:
    return tuple(replace(part, name=f"{head}{i}") for i, part in enumerate(parts))


SCHEMAS = st.builds(
    lambda label, sparse, dense, weight, group_id, timestamp, carry: FeatureSchema(
        label, _named(sparse, "s"), _named(dense, "d"), (), weight, group_id, timestamp, carry
    ),
    st.sampled_from(["click", "rating >= 4"]),
    st.lists(SPARSE, min_size=1, max_size=3),
    st.lists(DENSE, max_size=2),
    st.none() | NAMES,
    st.none() | NAMES,
    st.none() | st.builds(Timestamp, NAMES, st.sampled_from(["unix", "yyMMdd"])),
    st.just(()) | st.just(("kept",)),
)


# -------------------------------------------------------------------------------------------------------- what changes


def _classes() -> list[type]:
    """Every dataclass that features.schema declares."""
    found = [c for c in vars(features.schema).values() if isinstance(c, type) and is_dataclass(c)]
    assert {"FeatureSchema", "SparseFeature", "DenseFeature", "Label", "Timestamp", "HashEncoding"} <= {
        c.__name__ for c in found
    }
    return found


def _grown(class_: type) -> type:
    """The class of a later version: one more key, with a default."""
    body = {"__annotations__": {"younger": str | None, "youngest": tuple[int, ...]}}
    return dataclass(frozen=True)(
        type(class_.__name__, (class_,), {**body, "younger": None, "youngest": field(default_factory=tuple)})
    )


GROWN = {class_: _grown(class_) for class_ in _classes()}


def _grow(part: Any) -> Any:
    """A schema as the classes of a later version would read it."""
    if is_dataclass(part):
        grown = GROWN[type(part)]
        made = object.__new__(grown)
        for f in fields(grown):
            default = None if f.name == "younger" else ()
            value = default if f.name in ("younger", "youngest") else _grow(getattr(part, f.name))
            object.__setattr__(made, f.name, value)
        return made
    return tuple(map(_grow, part)) if isinstance(part, tuple) else part


@given(SCHEMAS)
def test_a_younger_key_with_its_default_changes_no_fingerprint(schema: FeatureSchema):
    later = _grow(schema)
    assert type(later) is not FeatureSchema and type(later.sparse[0].encoding) is not type(schema.sparse[0].encoding)
    assert later.fingerprint == schema.fingerprint
    assert later.fingerprint_of_version(1) == schema.fingerprint_of_version(1)
    for part in (later, *later.sparse, *(f.encoding for f in later.sparse), *later.dense):
        object.__setattr__(part, "younger", "set")
        assert later.fingerprint != schema.fingerprint
        object.__setattr__(part, "younger", None)


@pytest.mark.parametrize("class_", _classes())
def test_every_dataclass_leaves_its_defaults_out(class_: type):
    required = {f.name: "1" for f in fields(class_) if "younger" not in f.name}
    part = object.__new__(GROWN[class_])
    for f in fields(GROWN[class_]):
        value = {"younger": None, "youngest": ()}.get(f.name, required.get(f.name))
        object.__setattr__(part, f.name, value)
    assert set(departures(part)) == {f.name for f in fields(class_) if not is_model_choice(f)}


@given(SCHEMAS)
def test_what_is_written_and_read_again_has_the_same_fingerprint(schema: FeatureSchema):
    tree = json.loads(TypeAdapter(FeatureSchema).dump_json(schema))
    assert TypeAdapter(FeatureSchema).validate_python(tree).fingerprint == schema.fingerprint


BASE = FeatureSchema(
    label="click",
    sparse=(
        SparseFeature("user", HashEncoding(10)),
        SparseFeature("tags", HashEncoding(20), separator="|"),
        SparseFeature("device", VocabularyEncoding()),
        SparseFeature("age", BoundariesEncoding((1.0, 2.0))),
        SparseFeature("height", QuantilesEncoding(8)),
        SparseFeature("width", LogEncoding()),
        SparseFeature("count", LogSquaredEncoding()),
    ),
    dense=(DenseFeature("price"), DenseFeature("cost")),
    timestamp=Timestamp("hour"),
    carry=("id", "site"),
)


def _sparse(name: str, /, **changes: Any) -> FeatureSchema:
    encoding = changes.pop("encoding", {})
    swapped = [
        replace(f, encoding=replace(f.encoding, **encoding), **changes) if f.name == name else f for f in BASE.sparse
    ]
    return replace(BASE, sparse=tuple(swapped))


def _dense(**changes: Any) -> FeatureSchema:
    return replace(BASE, dense=(replace(BASE.dense[0], **changes), BASE.dense[1]))


def test_every_key_that_decides_an_id_or_a_float_changes_the_fingerprint():
    changed = [
        BASE,
        replace(BASE, label="click > 0"),
        replace(BASE, label="click > 1"),
        replace(BASE, label="click >= 1"),
        replace(BASE, label="clicked"),
        replace(BASE, sparse=BASE.sparse[::-1]),
        replace(BASE, dense=BASE.dense[::-1]),
        replace(BASE, sparse=BASE.sparse[1:]),
        replace(BASE, weight="w"),
        replace(BASE, group_id="w"),
        replace(BASE, timestamp=None),
        replace(BASE, timestamp=Timestamp("minute")),
        replace(BASE, timestamp=Timestamp("hour", "unix_ms")),
        replace(BASE, carry=()),
        replace(BASE, carry=BASE.carry[::-1]),
        _sparse("user", name="person", columns=("user",), encoding={"salt": "user"}),
        _sparse("user", columns=("person",)),
        _sparse("user", columns=("user", "tags")),
        _sparse("user", columns=("tags", "user")),
        _sparse("user", separator="|"),
        _sparse("user", encoding={"num_buckets": 11}),
        _sparse("user", encoding={"salt": "x"}),
        _sparse("user", table="x"),
        _sparse("device", table="x"),
        _sparse("tags", separator=","),
        _sparse("tags", max_length=17),
        _sparse("device", encoding={"min_count": 2}),
        _sparse("device", encoding={"max_size": 2}),
        _sparse("age", encoding={"boundaries": (1.0, 3.0)}),
        _sparse("height", encoding={"num_buckets": 9}),
        _sparse("width", encoding={"num_buckets": 9}),
        _sparse("width", encoding={"base": 3.0}),
        _sparse("count", encoding={"min_count": 2}),
        _sparse("count", encoding={"max_size": 2}),
        replace(BASE, sparse=(*BASE.sparse[:6], SparseFeature("count", VocabularyEncoding()))),
        _dense(name="fee", column="price"),
        _dense(column="fee"),
        _dense(fill=1.0),
        _dense(clip=(0.0, 1.0)),
        _dense(log1p=True),
        _dense(standardise=True),
    ]
    assert len({schema.fingerprint for schema in changed}) == len(changed)


def test_an_encoding_version_changes_every_fingerprint(monkeypatch: pytest.MonkeyPatch):
    before = (BASE.fingerprint, BASE.fingerprint_of_version(1))
    monkeypatch.setattr(features.schema, "ENCODING_VERSION", features.schema.ENCODING_VERSION + 1)
    assert not set(before) & {BASE.fingerprint, BASE.fingerprint_of_version(1)}


@pytest.mark.parametrize(
    "same",
    [
        _sparse("tags", pooling="sum"),
        _sparse("user", embedding_dim=4),
        _sparse("device", table="device"),
        _sparse("user", max_length=3),
        _sparse("user", encoding={"salt": "user"}),
        _sparse("user", columns=("user",)),
        _dense(column="price"),
        _dense(fill=0.0),
    ],
)
def test_what_decides_neither_id_nor_float_does_not(same: FeatureSchema):
    assert same.fingerprint == BASE.fingerprint


def test_one_label_rule_in_two_spellings():
    assert replace(BASE, label="a >= 4").fingerprint == replace(BASE, label=" a>=4.0 ").fingerprint


def test_model_choices_are_named_by_their_config_key():
    before, after = BASE.model_choices, _sparse("tags", pooling="sum").model_choices
    assert {name for name in before if before[name] != after[name]} == {"features.sparse.tags.pooling"}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs(name: str):
    from jobs.cli.config import load_config

    schema = load_config([f"jobs/configs/{name}.toml"], ["training.dataset=x", "pipeline.output=y"]).features
    assert schema.fingerprint_of_version(1)[:12] == SHIPPED_VERSION_1[name]
    assert schema.fingerprint[:12] == SHIPPED[name]


# ------------------------------------------------------------------------------------------------- what exists already

TINY_VERSION_1 = "2b2cb7abe9659a54e76daea32bd2289745300e1e0d366f1d6cc3be2930dd2a1e"


def age(dataset: Path) -> DatasetManifest:
    """Make a dataset one of an earlier version; its manifest as it was written then."""
    path = dataset / "manifest.json"
    tree = json.loads(path.read_text())
    schema = TypeAdapter(FeatureSchema).validate_python(tree["schema"])
    tree |= {"version": 1, "schema_fingerprint": schema.fingerprint_of_version(1)}
    path.write_text(json.dumps(tree, indent=1, sort_keys=True))
    return TypeAdapter(DatasetManifest).validate_python(tree)


def test_a_dataset_of_version_1_has_the_fingerprints_of_now(tmp_path: Path):
    new = write_tiny_dataset(tmp_path).manifest
    old = age(tmp_path)
    assert old.schema_fingerprint == TINY_VERSION_1 and old.fingerprint != new.fingerprint
    loaded = DatasetManifest.load(tmp_path)
    assert loaded == DatasetManifest.load(tmp_path) and loaded.version == DATASET_FORMAT.version
    assert (loaded.schema_fingerprint, loaded.fingerprint) == (new.schema_fingerprint, new.fingerprint)
    # What was stored of it then, by a leaderboard or a search, is known to be its.
    assert loaded.has_fingerprint(old.fingerprint) and loaded.has_fingerprint(new.fingerprint)
    assert not loaded.has_fingerprint(TINY_VERSION_1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "another version of the encoding rules"),
        ({"schema_fingerprint": TINY_VERSION_1}, "another version of the encoding rules"),
        ({"version": DATASET_FORMAT.version + 1, "younger": []}, "was made by a newer version"),
    ],
)
def test_a_manifest_is_of_the_version_that_it_says(tmp_path: Path, change: dict[str, Any], message: str):
    write_tiny_dataset(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DatasetError, match=message):
        DatasetManifest.load(tmp_path)


def test_a_base_of_version_1(tmp_path: Path):
    write_tiny_dataset(tmp_path)
    age(tmp_path)
    assert load_base(str(tmp_path), tiny_schema()) == Learnt({"device": ["mobile", "tablet"]})


def test_a_window_of_old_and_new_partitions_is_the_window_that_was(tmp_path: Path):
    days = [tmp_path / "a", tmp_path / "b"]
    for seed, day in enumerate(days):
        write_tiny_dataset(day, valid=(), test=(), seed=seed)
        age(day)
    made = join({"train": days}, tmp_path / "window")
    age(tmp_path / "window")
    write_tiny_dataset(days[1], valid=(), test=(), seed=1)  # built again, by this version
    assert json.loads((days[1] / "manifest.json").read_text())["version"] == DATASET_FORMAT.version
    assert join({"train": days}, tmp_path / "window").fingerprint == made.fingerprint
    assert Partition.open(days[0]).manifest.schema_fingerprint == made.schema_fingerprint


def test_a_run_of_version_1(tmp_path: Path):
    manifest = write_tiny_dataset(tmp_path).manifest
    old = {
        "dataset": "d",
        "schema_fingerprint": TINY_VERSION_1,
        "learnt_fingerprint": manifest.learnt_fingerprint,
    }
    found = TrainedOn.from_json(old, manifest.schema)
    assert found.schema_fingerprint == manifest.schema_fingerprint and found.rows == {}
    assert found.difference(manifest) is None  # it does not say
    assert found.describe(manifest, "test")["is_own"] is None
    for wrong in ({"schema_fingerprint": "0"}, {"fingerprint_version": 2}):
        with pytest.raises(DatasetError, match=r"another feature schema than config\.json"):
            TrainedOn.from_json({**old, **wrong}, manifest.schema)
    newer = r"dataset\.json was made by a newer version of twinfocus \(fingerprint version 3; .* reads up to 2"
    with pytest.raises(DatasetError, match=newer):
        TrainedOn.from_json({**old, "fingerprint_version": 3, "rows": "of another shape"}, manifest.schema)
    with pytest.raises(DatasetError, match="fingerprint version '2', and there is no such version"):
        TrainedOn.from_json({**old, "fingerprint_version": "2"}, manifest.schema)
    with pytest.raises(DatasetError, match=r"not understood: .*dataset"):
        TrainedOn.from_json({}, manifest.schema)


def test_a_run_says_how_a_dataset_differs(tmp_path: Path):
    before, after = (write_tiny_dataset(tmp_path / n, test=((rows,),)).manifest for n, rows in (("a", 20), ("b", 9)))
    trained_on = TrainedOn.from_json(json.loads(json.dumps(TrainedOn.of("a", before).to_json())), before.schema)
    assert trained_on == TrainedOn.of("a", before) and trained_on.difference(before) is None
    words = cast(str, trained_on.difference(after))
    assert words.startswith("test has 9 rows (fingerprint ") and "where the run's dataset had 20 rows" in words
    assert "train" not in words
    described = trained_on.describe(after, "test")
    assert (described["rows"], described["trained_on"]["rows"], described["is_own"]) == (9, 20, False)
    assert trained_on.describe(before, "test")["is_own"] is True
