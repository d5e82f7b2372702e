"""Raw histories -> ids: each event has the ids that its part's feature gives the same values, newest first."""

import datetime
import json
from bisect import bisect_right
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.dwell import dwell_ids
from features.encode import finish, prepare
from features.encode_rows import FEW_ROWS, FeatureEncoder
from features.history import History
from features.learnt import Learnt
from features.ragged import Ragged
from features.raw_block import RawBlock, Slices
from features.rows import MissingColumnError, RowError
from features.schema import (
    BoundariesEncoding,
    FeatureSchema,
    HashEncoding,
    LogSquaredEncoding,
    SequenceFeature,
    SparseFeature,
    Timestamp,
    Values,
    VocabularyEncoding,
)
from features.sequences import read_events
from features.values import ColumnError

SPARSE = (
    SparseFeature("cate", HashEncoding(9)),
    SparseFeature("item", VocabularyEncoding(), table="things"),
    SparseFeature("price", BoundariesEncoding((1.0, 2.5))),
    SparseFeature("dwell", LogSquaredEncoding()),
)
CLICKS = SequenceFeature(
    "clicks", ("item", "cate"), 3, gaps=(60, 3600), columns={"item": "bought"}, newest="last", separator=","
)
BUYS = SequenceFeature("buys", ("price", "dwell"), 2, newest="first")
SCHEMA = FeatureSchema("click", SPARSE, sequence=(CLICKS, BUYS), timestamp=Timestamp("t"))
LEARNT = Learnt({"item": ["p", "q", "r"], "dwell": ["1", "2", "4"]})
NOW = 1_000_000


def row(events: list[tuple[Any, Any, int]] = (), buys: list[tuple[Any, Any]] = ()) -> dict[str, Any]:
    """A row as JSON would have it; ``events``: item, cate and seconds before the row, oldest first."""
    return {
        "cate": "c",
        "item": "q",
        "price": 2.0,
        "dwell": 9,
        "t": NOW,
        "bought": [item for item, _, _ in events],
        "clicks__cate": [cate for _, cate, _ in events],
        "clicks__time": [NOW - before for _, _, before in events],
        "buys__price": [price for price, _ in buys],
        "buys__dwell": [dwell for _, dwell in buys],
    }


def as_text(raw: dict[str, Any]) -> dict[str, Any]:
    """The same row, its lists as text to split; None for no list, as a log's empty cell."""
    separators = {"bought": ",", "clicks__cate": ",", "clicks__time": ",", "buys__price": " ", "buys__dwell": " "}
    return raw | {
        name: separator.join("" if v is None else str(v) for v in raw[name]) or None
        for name, separator in separators.items()
    }


SINGLE = FeatureEncoder(replace(SCHEMA, sequence=()), LEARNT)


@cache
def id_of(feature: str, value: Any) -> int:
    """Id of a value in a row of its own."""
    return int(SINGLE.encode([{**row(), feature: value}])[feature][0])


def naive(raw: dict[str, Any]) -> dict[str, list[int]]:
    """Ids of one row's sequences: each value encoded as a row of its own feature, event by event."""
    events = zip(raw["bought"], raw["clicks__cate"], raw["clicks__time"], strict=True)
    clicks = [e for e in events if e[0] is not None or e[1] is not None][::-1][:3]
    buys = [e for e in zip(raw["buys__price"], raw["buys__dwell"], strict=True) if e != (None, None)][:2]
    return {
        "clicks__item": [id_of("item", item) for item, _, _ in clicks],
        "clicks__cate": [id_of("cate", cate) for _, cate, _ in clicks],
        "clicks__gap": [1 + bisect_right((60, 3600), NOW - time) for _, _, time in clicks],
        "buys__price": [id_of("price", price) for price, _ in buys],
        "buys__dwell": [id_of("dwell", dwell) for _, dwell in buys],
    }


MAYBE = st.none()
EVENTS = st.lists(
    st.tuples(MAYBE | st.sampled_from("pqrs"), MAYBE | st.sampled_from("ab"), st.sampled_from([0, 59, 60, 3600, 9999])),
    max_size=5,
)
BOUGHT = st.lists(st.tuples(MAYBE | st.sampled_from([0.5, 2, 3]), MAYBE | st.integers(0, 9)), max_size=4)
ROWS = st.lists(st.builds(row, EVENTS, BOUGHT), min_size=1, max_size=6)


@settings(deadline=None, max_examples=40)
@given(ROWS, st.booleans(), st.booleans())
def test_rows_have_the_ids_of_their_events(rows: list[dict[str, Any]], is_text: bool, are_many: bool) -> None:
    raw = [as_text(one) if is_text else one for one in rows]
    if is_text:  # a text of one empty value is no value: nothing tells it from no event
        rows = [
            one | {n: [] for n in ("bought", "clicks__cate", "clicks__time") if one["bought"] == [None]}
            for one in rows
            if not (one["bought"] == [None] or one["clicks__cate"] == [None] or len(one["buys__price"]) == 1)
        ]
        raw = [as_text(one) for one in rows]
    repeats = FEW_ROWS // max(len(raw), 1) + 1 if are_many else 1
    if not raw:
        return
    found = FeatureEncoder(SCHEMA, LEARNT).encode(raw * repeats)
    assert [name for name in found if "__" in name] == [*CLICKS.keys, *BUYS.keys]
    expected = [naive(one) for one in rows]
    for name in (*CLICKS.keys, *BUYS.keys):
        assert isinstance(found[name], Ragged) and found[name].dtype == np.int32
        assert found[name].tolist() == [one[name] for one in expected] * repeats, name


def typed(rows: list[dict[str, Any]]) -> dict[str, pa.Array]:
    """Columns as a Parquet file has them: lists of text, whole numbers, floats and times."""
    second = pa.timestamp("s")
    types = {"buys__price": pa.float64(), "buys__dwell": pa.int32(), "clicks__time": second}
    lists = {"bought", "clicks__cate", *types}
    columns = {
        n: pa.array([r[n] for r in rows], pa.list_(types.get(n, pa.string())) if n in lists else None) for n in rows[0]
    }
    return columns | {"t": columns["t"].cast(second)}


@settings(deadline=None, max_examples=40)
@given(ROWS)
def test_columns_of_a_file_have_them_too(rows: list[dict[str, Any]]) -> None:
    prepared = prepare(SCHEMA, typed(rows))
    assert prepared.reason is None
    found, expected = finish(SCHEMA, LEARNT, prepared), [naive(one) for one in rows]
    for name in (*CLICKS.keys, *BUYS.keys):
        assert found[name].tolist() == [one[name] for one in expected], name
    keep = np.arange(len(rows)) % 2 == 0
    taken = finish(SCHEMA, LEARNT, prepared.take(keep))
    for name in (*CLICKS.keys, *BUYS.keys):
        assert taken[name].tolist() == [one[name] for one in expected[::2]], name


def test_what_was_cut_is_counted() -> None:
    prepared = prepare(SCHEMA, typed([row([("p", "a", 9)] * 5, [(1, 1)]), row([("p", "a", 9)])]))
    assert prepared.coded["clicks__item"].dropped.tolist() == [2, 0]
    assert prepared.listed["clicks__gap"].dropped.tolist() == [2, 0]
    assert prepared.listed["buys__price"].dropped.tolist() == [0, 0]


PAGES = st.lists(
    st.tuples(
        st.builds(row, EVENTS, BOUGHT)
        | st.sampled_from([row([("p", "a", -5)]), row([("p", "a", 9)]) | {"bought": ["p", "q"]}]),
        st.lists(st.sampled_from([0, 0, 0, 90]), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=60)
@given(PAGES, st.integers(0, 2))
def test_rows_that_share_a_history_have_what_each_would_read(
    pages: list[tuple[dict[str, Any], list[int]]], at: int
) -> None:
    rows = [page | {"t": page["t"] + later} for page, delays in pages for later in delays]
    numbers = np.repeat(np.arange(len(pages)), [len(delays) for _, delays in pages])
    columns = typed(rows)
    lines = Slices(np.empty(0, np.uint8), numbers, numbers)
    block = RawBlock(columns, numbers, numbers, lines, of_lines=frozenset(columns) - {"item", "cate", "t"})
    alone, shared = prepare(SCHEMA, columns), prepare(SCHEMA, columns, repeats=block.repeats)
    assert (alone.reasons, alone.is_good.tolist()) == (shared.reasons, shared.is_good.tolist())
    for keep in (np.ones(len(rows), np.bool_), np.arange(len(rows)) % 3 == at):
        first, second = alone.take(keep), shared.take(keep)
        expected, found = finish(SCHEMA, LEARNT, first), finish(SCHEMA, LEARNT, second)
        for name in (*CLICKS.keys, *BUYS.keys):
            assert found[name].tolist() == expected[name].tolist(), name
        for name, part in first.coded.items():
            other = second.coded[name]
            assert (other.tokens.to_pylist(), other.codes.tolist()) == (part.tokens.to_pylist(), part.codes.tolist())
            if part.lengths is not None:
                assert np.array_equal(other.lengths, part.lengths) and np.array_equal(other.dropped, part.dropped)


def test_a_history_that_rows_share_is_read_once() -> None:
    columns = typed([FINE] * 3) | {"t": pa.array([NOW, NOW, NOW + 1], pa.timestamp("s"))}
    numbers, names = np.array([1, 1, 2]), frozenset(columns)
    repeats = RawBlock(
        columns, numbers, numbers, Slices(np.empty(0, np.uint8), numbers, numbers), of_lines=names
    ).repeats
    assert repeats is not None
    times = np.array([NOW, NOW, NOW + 1])
    events = read_events(SCHEMA, CLICKS, columns.__getitem__, {}, times, repeats)
    assert events.lengths.tolist() == [2, 2] and events.places is not None and events.places.tolist() == [0, 0, 1]
    apart = np.array([NOW, NOW + 1, NOW + 1])  # a table gave each candidate a time of its own: gaps differ
    assert read_events(SCHEMA, CLICKS, columns.__getitem__, {}, apart, repeats).places is None
    joined = repeats._replace(columns=names - {"bought"})  # a table gave each candidate a history of its own
    assert read_events(SCHEMA, CLICKS, columns.__getitem__, {}, times, joined).places is None


FINE = row([("p", "a", 70), ("q", "b", 10)], [(1, 1)])
FAULTS = [
    ({"bought": ["p"]}, "sequence 'clicks': columns 'bought', 'clicks__cate', 'clicks__time' have lists of different"),
    ({"clicks__time": []}, "lists of different lengths"),
    ({"clicks__time": [NOW, NOW + 1]}, "sequence 'clicks' has an event that is later than its row"),
    ({"clicks__time": [NOW, "noon"]}, "column 'clicks__time' has a time that is unreadable"),
    ({"t": None}, "timestamp 't' is missing or unreadable"),
    ({"buys__price": ["cheap"]}, "column 'buys__price' has a value that is not a number"),
    ({"bought": ["p", 1.5]}, "fraction"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
@pytest.mark.parametrize("are_many", [False, True])
def test_rows_that_are_refused(change: dict[str, Any], message: str, are_many: bool) -> None:
    rows = [FINE] * (FEW_ROWS if are_many else 1) + [FINE | change]
    with pytest.raises(RowError, match=f"row {len(rows)}: .*{message}"):
        FeatureEncoder(SCHEMA, LEARNT).encode(rows)


def test_only_the_bad_rows_of_a_block_are_rejected() -> None:
    rows = [FINE | {"bought": ["p"]}, FINE, FINE | {"clicks__time": [NOW, NOW + 5]}, row()]
    prepared = prepare(SCHEMA, typed(rows))
    assert prepared.is_good.tolist() == [False, True, False, True]
    found = finish(SCHEMA, LEARNT, prepared.take(prepared.is_good))
    assert found["clicks__item"].tolist() == [naive(FINE)["clicks__item"], []]
    assert [prepared.reasons[i] for i in prepared.reason.tolist() if i >= 0] == [
        "sequence 'clicks': columns 'bought', 'clicks__cate', 'clicks__time' have lists of different lengths",
        "sequence 'clicks' has an event that is later than its row",
    ]


def test_a_missing_time_is_the_missing_bucket() -> None:
    one = FINE | {"clicks__time": [None, NOW]}
    assert FeatureEncoder(SCHEMA, LEARNT).encode([one])["clicks__gap"].tolist() == [[1, 0]]


STAYED = replace(
    CLICKS, columns={"item": "bought", "dwell": "stayed", "time": "when"}, max_length=2, dwell_weights=True
)


@pytest.mark.parametrize("are_many", [False, True])
def test_dwell_times_go_beside_their_events(are_many: bool) -> None:
    schema = replace(SCHEMA, sequence=(STAYED, BUYS))
    assert STAYED.raw_lists == ("bought", "clicks__cate", "when", "stayed")
    one = row([("p", "a", 70), ("q", "b", 10), (None, None, 9), ("r", "a", 5)])
    one = {**one, "when": one.pop("clicks__time"), "stayed": [3, 12.5, 99, None]}
    text = {**one, "bought": "p,q,,r", "clicks__cate": "a,b,,a", "stayed": "3,12.5,99,"}
    text["when"] = ",".join(map(str, one["when"]))
    rows = [one, text, one | {n: [] for n in STAYED.raw_lists}]
    repeats = FEW_ROWS if are_many else 1
    found = FeatureEncoder(schema, LEARNT).encode(rows * repeats)
    ids = [0, int(dwell_ids(np.array([12.5]))[0])]
    assert found["clicks__dwell"].tolist() == [ids, ids, []] * repeats
    assert found["clicks__gap"].tolist() == [[1, 1], [1, 1], []] * repeats
    columns = typed([{n: values for n, values in one.items() if n not in ("when", "stayed")}])
    columns["when"] = pa.array([one["when"]])
    for type_ in (pa.float32(), pa.float64(), pa.string()):
        columns["stayed"] = pa.array([one["stayed"]]).cast(pa.list_(type_))
        assert finish(schema, LEARNT, prepare(schema, columns))["clicks__dwell"].tolist() == [ids], type_
    for none in (None, "", []):
        unknown = FeatureEncoder(schema, LEARNT).encode([*rows, one | {"stayed": none}, text] * repeats)
        assert unknown["clicks__dwell"].tolist() == [ids, ids, [], [0, 0], ids] * repeats
    for bad in ("long", -1, "-0.5"):
        worse = one | {"stayed": [3, bad, 99, None]}
        with pytest.raises(RowError, match="column 'stayed' has a dwell time that is no number of seconds from 0 on"):
            FeatureEncoder(schema, LEARNT).encode([*rows * repeats, worse])
    with pytest.raises(RowError, match="'when', 'stayed' have lists of different lengths"):
        FeatureEncoder(schema, LEARNT).encode([one | {"stayed": [3]}])


def test_times_have_the_schemas_format() -> None:
    schema = replace(SCHEMA, timestamp=Timestamp("t", "yyMMddHH"))
    times = {"t": 26113012, "clicks__time": [26113010, "26113012"]}
    assert FeatureEncoder(schema, LEARNT).encode([FINE | times])["clicks__gap"].tolist() == [[1, 3]]
    assert FeatureEncoder(schema, LEARNT).encode([FINE | times] * 999)["clicks__gap"].tolist() == [[1, 3]] * 999
    day = datetime.datetime(2026, 11, 30)
    columns = typed([FINE]) | {"t": pa.array([day]), "clicks__time": pa.array([[day, day]])}
    assert finish(schema, LEARNT, prepare(schema, columns))["clicks__gap"].tolist() == [[1, 1]]


def test_settings_of_values_apply_to_each_item() -> None:
    schema = replace(SCHEMA, values=Values(null_tokens=("NA",), strip=True, whole_floats=True))
    one = FINE | {"bought": "NA, q", "clicks__cate": " 3.0 ,3"}
    [item], [cate] = (FeatureEncoder(schema, LEARNT).encode([one])[f"clicks__{n}"].tolist() for n in ("item", "cate"))
    assert item == [2, LEARNT.oov_id("item")] and cate[0] == cate[1]
    gone = FINE | {"bought": "NA", "clicks__cate": None, "clicks__time": ""}
    assert FeatureEncoder(schema, LEARNT).encode([gone])["clicks__item"].tolist() == [[]]


def test_what_a_printed_list_lacks_keeps_its_place() -> None:
    schema = replace(SCHEMA, values=Values(list_literals=True))
    encoder = FeatureEncoder(schema, LEARNT)
    lists = {"bought": [None, "p", "q"], "clicks__cate": ["a", None, "b"], "clicks__time": [NOW - 70, NOW - 9, None]}
    expected = encoder.encode([FINE | lists])
    assert expected["clicks__item"].tolist() == [[2, 1, LEARNT.oov_id("item")]]
    times = f"[{NOW - 70}. {NOW - 9}. nan]"
    for printed in (
        {name: str(values) for name, values in lists.items()},
        {name: json.dumps(values) for name, values in lists.items()},
        {"bought": "[, p, q]", "clicks__cate": "[a, , b]", "clicks__time": times},
        {**lists, "clicks__time": times},
    ):
        for count in (1, FEW_ROWS + 1):
            found = encoder.encode([FINE | printed] * count)
            for name in CLICKS.keys:
                assert found[name].tolist() == expected[name].tolist() * count, (name, printed)


def test_a_built_history_is_read_from_rows_and_not_from_a_log() -> None:
    built = replace(CLICKS, columns={}, newest=None, history=History("user"))
    schema = replace(SCHEMA, sequence=(built, BUYS))
    one = FINE | {"clicks__item": ["q", "p"], "clicks__time": [NOW, NOW - 70], "click": "1"}
    found = FeatureEncoder(schema, LEARNT).encode([one])
    assert (found["clicks__item"].tolist(), found["clicks__gap"].tolist()) == ([[2, 1]], [[1, 2]])
    columns = typed([one]) | {"click": pa.array(["1"])}
    for name in ("clicks__item", "clicks__time", "clicks__cate"):
        del columns[name]
    prepared = prepare(schema, columns, with_own=True)
    assert "buys__price" in prepared.listed and "clicks__item" not in prepared.coded
    with pytest.raises(MissingColumnError, match="clicks__item"):
        prepare(schema, columns)


def test_types_without_a_reading_are_named() -> None:
    with pytest.raises(ColumnError, match="column 'buys__price': the type timestamp"):
        prepare(SCHEMA, typed([FINE]) | {"buys__price": pa.array([[datetime.datetime(2026, 1, 1)]])})
    nested = pa.array([[["a"], ["b"]]])
    with pytest.raises(ColumnError, match="column 'bought': the type list"):
        prepare(SCHEMA, typed([FINE]) | {"bought": nested})
