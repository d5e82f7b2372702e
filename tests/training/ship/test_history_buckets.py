"""Bucket tables in place of events: equal scores from every kind of artifact, and tables that are refused."""

import base64
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from features.bucket_tables import BUCKET_PRECISIONS
from features.rows import MissingColumnError, RowError
from features.unknown_values import ValueTally
from tests.stand_ins.bucket_artifacts import (
    DEVICES,
    VISITS,
    first_events,
    make_rows,
    with_tables,
    write_bucket_artifacts,
)
from training.config import TablePrecision
from training.fit.run import Run
from training.ship.export import export
from training.ship.predict import Predictor


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bucket_artifacts(tmp_path_factory.mktemp("buckets"))


@pytest.fixture(scope="module")
def predictor(artifacts: Path) -> Predictor:
    return Predictor.load(artifacts / "float32")


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
    head, _, data = good[name].rpartition(".")
    bad = base64.b64encode(np.full(len(base64.b64decode(data)) // 4, np.nan, "<f4").tobytes()).decode()
    cases: list[tuple[dict[str, Any], str]] = [
        ({name: foreign[name]}, "the bucket table is of model '.{16}' and not of '.{16}': make it again with the"),
        ({name: quantized[name]}, "the bucket table is of model .* make it again with the model that scores"),
        ({name: good["visits__buckets"]}, r"the bucket table has \d+ bytes where \d+ are due: make it again"),
        ({name: good[name][:-4]}, r"the bucket table has \d+ bytes where \d+ are due"),
        ({name: f"{head}."}, "is no MODEL.PRECISION.DATA of a bucket table"),
        ({name: ""}, "is no MODEL.PRECISION.DATA of a bucket table"),
        ({name: good[name].replace("float32", "float64")}, "is no MODEL.PRECISION.DATA of a bucket table"),
        ({name: good[name][:-1] + "é"}, "the bucket table is no base64"),
        ({name: f"{head}.{bad}"}, "the bucket table has numbers that are not finite"),
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
