"""Bucket tables in place of events: equal scores from every kind of artifact, and tables that are refused."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch.distributed as dist

from features.bucket_tables import BUCKET_PRECISIONS
from features.rows import MissingColumnError, RowError
from features.schema import FeatureSchema, SequenceFeature, Timestamp
from features.unknown_values import ValueTally
from tests.stand_ins.tiny_dataset import tiny_schema, write_tiny_dataset
from tests.training.fit.test_run import make_config
from tests.training.fit.test_vectors import write_vectors
from tests.training.fit.test_warm_start import finish
from training.config import DINHistory, SDIMHistory, TablePrecision, VectorsConfig
from training.fit.run import Run
from training.fit.vectors import settle_vectors
from training.ship.export import export
from training.ship.predict import Predictor

SEQUENCES = {
    "visits": SDIMHistory(num_hashes=8, bits=2, length=30, short=DINHistory(hidden_units=(4,), length=2)),
    "devices": SDIMHistory(num_hashes=6),
    "liked": DINHistory(hidden_units=(4,)),
}
VISITS = ("visits__user", "visits__device", "visits__time")
DEVICES = ("devices__device", "devices__time")


def bucket_schema() -> FeatureSchema:
    """The tiny schema with long histories of two parts and of one, and with a short one that has no bucket table."""
    return replace(
        tiny_schema(),
        sequence=(
            SequenceFeature("visits", ("user", "device"), 40, gaps=(60, 3600), newest="first"),
            SequenceFeature("devices", ("device",), 30, gaps=(60, 600), newest="last"),
            SequenceFeature("liked", ("user",), 3, newest="first"),
        ),
        timestamp=Timestamp("time"),
    )


def make_rows(num_rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with histories of up to 50 visits, lists and texts; every fourth one without events."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(num_rows):
        visits, devices = (0, 0) if number % 4 == 3 else rng.integers(1, 50, 2).tolist()
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


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder with the artifacts of one run in all precisions, and ``other``, of another run."""
    folder = tmp_path_factory.mktemp("buckets")
    dataset = write_tiny_dataset(folder / "dataset", number_rows=True, schema=bucket_schema())
    write_vectors(folder / "users.parquet", [f"u{n}" for n in range(20)], 5)
    text = VectorsConfig(path=str(folder / "users.parquet"), feature="user")
    log = folder / "log.csv"
    rows = make_rows(12)
    texts = [",".join(" ".join(map(str, v)) if isinstance(v, list) else str(v) for v in row.values()) for row in rows]
    log.write_text("\n".join([",".join(rows[0]), *texts]) + "\n")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        for seed, tables in ((0, get_args(TablePrecision)), (1, ("float32",))):
            config = make_config(dataset.path, seed=seed, max_epochs=1)
            config = replace(config, model=replace(config.model, sequences=SEQUENCES, vectors={"text": text}))
            run = finish(folder / f"run-{seed}", replace(config, model=settle_vectors(config.model)))
            for precision in tables:
                export(run, folder / ("other" if seed else precision), str(log), precision)
    finally:
        dist.destroy_process_group()
    yield folder


@pytest.fixture(scope="module")
def predictor(artifacts: Path) -> Predictor:
    return Predictor.load(artifacts / "float32")


def with_tables(predictor: Predictor, rows: list[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
    """Rows with tables in place of events, but for the two newest visits, which ``short`` reads."""
    kept = [{k: v for k, v in first_events(row, 2).items() if k not in DEVICES} for row in rows]
    return [{**row, **table} for row, table in zip(kept, predictor.buckets.make(rows, **more), strict=True)]


@pytest.mark.parametrize("tables", get_args(TablePrecision))
def test_scores_are_those_of_the_events(artifacts: Path, tables: TablePrecision) -> None:
    predictor = Predictor.load(artifacts / tables)
    rows = make_rows(40)
    expected = predictor.predict(rows)
    given = with_tables(predictor, rows)
    np.testing.assert_allclose(predictor.predict(given), expected, rtol=0, atol=1e-6)
    mixed = [row if number % 3 else other for number, (row, other) in enumerate(zip(rows, given, strict=True))]
    np.testing.assert_allclose(predictor.predict(mixed), expected, rtol=0, atol=1e-6)
    halves = with_tables(predictor, rows, precision="float16")
    differences = np.abs(predictor.predict(halves) - expected)
    assert 0 < differences.max() < 1e-3
    without = predictor.predict([{**row, **dict.fromkeys((*VISITS, *DEVICES))} for row in rows])
    assert np.abs(without - expected).max() > 1e-3, "nothing would show that a table is read"


def test_a_users_table_serves_all_candidates(predictor: Predictor) -> None:
    user, *others = make_rows(300, seed=2)
    histories = {name: user[name] for name in (*VISITS, *DEVICES)}
    rows = [{**row, **histories} for row in others]
    [table] = predictor.buckets.make([histories])
    kept = {name: first_events(user, 2)[name] for name in VISITS}
    given = [{**{k: v for k, v in row.items() if k not in DEVICES}, **kept, **table} for row in others]
    np.testing.assert_allclose(predictor.predict(given), predictor.predict(rows), rtol=0, atol=1e-6)


def test_a_table_depends_on_its_row_and_its_model_alone(artifacts: Path, predictor: Predictor) -> None:
    rows = make_rows(9)
    together = predictor.buckets.make(rows)
    assert together == [predictor.buckets.make([row])[0] for row in rows]
    lists = [{name: row[name] for name in (*VISITS, *DEVICES) if "time" not in name} for row in rows]
    assert predictor.buckets.make(lists) == together, "neither targets nor times are read"
    assert Predictor.load(artifacts / "float32").buckets.make(rows) == together
    assert list(together[0]) == ["visits__buckets", "devices__buckets"]
    ids = {Predictor.load(artifacts / name).buckets.model_id for name in (*get_args(TablePrecision), "other")}
    assert len(ids) == 4
    export(Run(artifacts / "run-0"), artifacts / "again", str(artifacts / "log.csv"))
    assert Predictor.load(artifacts / "again").buckets.model_id == predictor.buckets.model_id
    assert predictor.buckets.make([]) == []


def test_lengths_of_texts(predictor: Predictor) -> None:
    [row] = make_rows(1)
    for precision in BUCKET_PRECISIONS:
        [table] = predictor.buckets.make([row], precision)
        for column in predictor.buckets.made:
            assert len(table[column.name]) == column.num_characters(precision)


def test_what_is_refused(artifacts: Path, predictor: Predictor) -> None:
    [good] = with_tables(predictor, make_rows(1))
    [foreign] = with_tables(Predictor.load(artifacts / "other"), make_rows(1))
    [quantized] = with_tables(Predictor.load(artifacts / "int8"), make_rows(1))
    name = "devices__buckets"
    head, _, data = good[name].rpartition(":")
    bad = base64.b64encode(np.full(len(base64.b64decode(data)) // 4, np.nan, "<f4").tobytes()).decode()
    cases: list[tuple[dict[str, Any], str]] = [
        ({name: foreign[name]}, "the bucket table is of model '.{16}' and not of '.{16}': make it again with the"),
        ({name: quantized[name]}, "the bucket table is of model .* make it again with the model that scores"),
        ({name: good["visits__buckets"]}, r"the bucket table has \d+ bytes where \d+ are due: make it again"),
        ({name: good[name][:-4]}, r"the bucket table has \d+ bytes where \d+ are due"),
        ({name: f"{head}:"}, "is no MODEL:PRECISION:DATA of a bucket table"),
        ({name: ""}, "is no MODEL:PRECISION:DATA of a bucket table"),
        ({name: good[name].replace("float32", "float64")}, "is no MODEL:PRECISION:DATA of a bucket table"),
        ({name: good[name][:-1] + "é"}, "the bucket table is no base64"),
        ({name: f"{head}:{bad}"}, "the bucket table has numbers that are not finite"),
        ({name: [1, 2]}, "a bucket table is a text, not list"),
        ({name: 7}, "a bucket table is a text, not int"),
        ({"devices__device": ["mobile"]}, "stands for the events, and 'devices__device' has some too: leave one out"),
        ({"devices__time": "900"}, "stands for the events, and 'devices__time' has some too"),
        ({"liked__buckets": good[name]}, "the encoder of sequence 'liked' is 'din', and only 'sdim' reads"),
    ]
    rows = make_rows(2)
    for change, message in cases:
        column = "liked__buckets" if "liked__buckets" in change else name
        with pytest.raises(RowError, match=f"^row 2: column '{column}': .*{message}"):
            predictor.predict([rows[0], {**good, **change}])
        found = predictor.find_error({**good, **change})
        assert found is not None and found.startswith(f"column '{column}': ")
    assert predictor.find_error(good) is None
    empty = {"devices__device": [], "devices__time": ""}
    assert predictor.predict([{**good, **empty}]) == predictor.predict([good])
    whole = {**rows[0], name: None, "visits__buckets": None}
    assert predictor.predict([whole]) == predictor.predict(rows[:1]), "null is no table"
    with pytest.raises(MissingColumnError, match="visits__user"):  # which short reads
        predictor.predict([{k: v for k, v in good.items() if k != "visits__user"}])


def test_histories_that_no_table_can_be_made_of(predictor: Predictor) -> None:
    rows = make_rows(2)
    with pytest.raises(RowError, match=r"row 2: .*columns 'visits__user', 'visits__device' have lists of different"):
        predictor.buckets.make([rows[0], {**rows[1], "visits__user": ["u1"], "visits__device": []}])
    with pytest.raises(MissingColumnError, match="row 2: column 'devices__device' is missing"):
        predictor.buckets.make([rows[0], {k: v for k, v in rows[1].items() if k != "devices__device"}])

    tables = {s: np.full(shape, 1e6) for s, shape in predictor.buckets.made[0].shapes.items()}
    with pytest.raises(RowError, match="is no finite float16: take float32"):
        predictor.buckets.made[0].write("m", tables, "float16")


def test_counts_of_values_know_where_the_events_are(predictor: Predictor) -> None:
    rows = make_rows(40)
    events, tables = ValueTally(), ValueTally()
    predictor.predict(rows, events)
    predictor.predict(with_tables(predictor, rows), tables)
    for part in ("visits__user", "visits__device", "devices__device"):
        assert tables.missing[part] == events.missing[part] == 10, part
    assert tables.tokens["devices__device"] == 0 and tables.tokens["visits__user"] == 60
    assert tables.missing["liked__user"] == events.missing["liked__user"]
