"""Blocks of rows: checked, prepared and encoded; and the same rows one by one and as Python mappings."""

import datetime
import json
import math
import random
from bisect import bisect_right
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from features.encode import Finisher, finish, prepare, squared_tokens
from features.encode_rows import FEW_ROWS, FeatureEncoder
from features.hashing import hash_text, hash_to_id
from features.learnt import Learnt, LearntError
from features.rows import MissingColumnError, RowError
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
    Values,
    VocabularyEncoding,
)
from features.times import TimePatternError
from features.values import ColumnError

SCHEMA = FeatureSchema(
    label="click",
    sparse=(
        SparseFeature("h", HashEncoding(50)),
        SparseFeature("x", HashEncoding(50, salt="s"), columns=("a", "b")),
        SparseFeature("v", VocabularyEncoding()),
        SparseFeature("m", VocabularyEncoding(), separator="|", max_length=3),
        SparseFeature("k", HashEncoding(31), columns=("m",), separator="|", max_length=2),
        SparseFeature("p", BoundariesEncoding((0.0, 1.5)), columns=("n",)),
        SparseFeature("q", QuantilesEncoding(4), columns=("n",)),
        SparseFeature("l", LogEncoding(4), columns=("n",)),
        SparseFeature("c", LogSquaredEncoding(), columns=("n",)),
    ),
    dense=(
        DenseFeature("d", column="n", fill=-2.0),
        DenseFeature("e", column="n", clip=(-1.0, 3.0), log1p=True),
        DenseFeature("f", column="n", fill=1.0, standardise=True),
        DenseFeature("g", column="n", standardise=True),
    ),
    weight="w",
    group_id="h",
    timestamp=Timestamp("t"),
    carry=("note",),
)
LEARNT = Learnt(
    {"v": ["p", "q"], "m": ["k", "l"], "c": ["-3", "1", "47"]}, {"q": [1.0, 2.0]}, {"f": (2.0, 4.0), "g": (1.0, 0.0)}
)
ROW = {"h": "u", "a": "1", "b": "2", "v": "p", "m": "k|l", "n": "1", "click": "1", "w": "2", "t": "60", "note": "x"}

GOLDEN_ROWS = [
    {},
    {"h": None, "a": "", "b": None, "v": None, "m": None, "n": None},
    {"h": "日本語", "a": "1", "b": "", "v": "q", "m": "l||z|k|k", "n": "1000"},
    {"h": " u", "a": "", "b": "2", "v": "P", "m": "|", "n": "-3.7"},
    {"h": "x" * 100, "a": "a", "b": "bc", "v": "r", "m": "ü", "n": " 1e2 "},
    {"h": "7", "a": "ab", "b": "c", "v": "p ", "m": "l", "n": "true"},
]
GOLDEN = json.loads(
    """
{
"h": [25, 0, 30, 6, 3, 37],
"x": [30, 0, 17, 44, 23, 46],
"v": [1, 3, 2, 3, 3, 3],
"m": [[1, 2, 0], [0, 0, 0], [2, 3, 1], [0, 0, 0], [3, 0, 0], [2, 0, 0]],
"m__length": [2, 0, 3, 0, 1, 1],
"k": [[23, 21], [0, 0], [21, 4], [0, 0], [1, 0], [21, 0]],
"k__length": [2, 0, 2, 0, 1, 1],
"p": [2, 0, 3, 1, 3, 2],
"q": [2, 0, 3, 1, 3, 2],
"l": [2, 0, 4, 1, 4, 2],
"c": [2, 4, 3, 1, 4, 2],
"d": [1.0, -2.0, 1000.0, -3.700000047683716, 100.0, 1.0],
"e": [0.6931471824645996, 0.0, 1.3862943649291992, -0.6931471824645996, 1.3862943649291992, 0.6931471824645996],
"f": [-0.25, -0.25, 249.5, -1.4249999523162842, 24.5, -0.25],
"g": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
}
"""
)
"""Columns of GOLDEN_ROWS, computed once by the encoder of version 0.1 (one row at a time)."""


def rows(changes=GOLDEN_ROWS):
    return [{**ROW, **change} for change in changes]


def arrays(rows_):
    return {name: pa.array([row[name] for row in rows_], pa.string()) for name in rows_[0]}


def encoded(schema, learnt, rows_):
    prepared = prepare(schema, arrays(rows_))
    assert prepared.reason is None
    return finish(schema, learnt, prepared)


def assert_golden(columns, repeats=1):
    assert list(columns) == [column.name for column in SCHEMA.columns]
    for column in SCHEMA.columns:
        found = columns[column.name]
        assert found.dtype == column.dtype
        expected = np.array(GOLDEN[column.name] * repeats).astype(column.dtype)
        np.testing.assert_array_equal(found, expected, err_msg=column.name)


@pytest.mark.parametrize("repeats", [1, 7, FEW_ROWS, 4000])
def test_golden(repeats):
    many = rows() * repeats
    assert_golden(encoded(SCHEMA, LEARNT, many), repeats)
    assert_golden(FeatureEncoder(SCHEMA, LEARNT).encode(many), repeats)
    columns, prepared = FeatureEncoder(SCHEMA, LEARNT).encode_columns(arrays(many))
    assert_golden(columns, repeats)
    assert prepared.is_good.all()


def test_one_row_at_a_time():
    encoder = FeatureEncoder(SCHEMA, LEARNT)
    alone = [encoder.encode([row]) for row in rows()]
    assert_golden({name: np.concatenate([columns[name] for columns in alone]) for name in alone[0]})


def test_no_rows():
    columns = FeatureEncoder(SCHEMA, LEARNT).encode([])
    assert {name: len(values) for name, values in columns.items()} == dict.fromkeys(GOLDEN, 0)
    empty = {name: array[:0] for name, array in arrays(rows()).items()}
    prepared = prepare(SCHEMA, empty, with_own=True)
    assert prepared.num_rows == 0 and prepared.reason is None
    assert {len(values) for values in finish(SCHEMA, LEARNT, prepared).values()} == {0}


def test_learnt_state_is_checked():
    with pytest.raises(LearntError, match="'q' has no learnt quantiles"):
        Finisher(SCHEMA, replace(LEARNT, boundaries={}))


def test_the_criteo_rule():
    """As the Criteo benchmark's preprocessing does."""
    values = [-2, -1, 0, 1, 2, 3, 4, 5, 8, 10, 100, 1000, 10000, 65535, math.nan, -2.7, -1e30, 3e38]
    expected = [-2, -1, 0, 1, 2, 1, 1, 2, 4, 5, 21, 47, 84, 122, 0, -2, -(2**62), 7849]
    assert squared_tokens(np.array(values, np.float64)).tolist() == expected


def test_the_criteo_rule_on_every_small_number():
    values = np.arange(1, 70_000) / 8
    expected = [math.floor(math.log(v) * math.log(v)) if v > 2 else int(v) for v in values.tolist()]
    assert squared_tokens(values).tolist() == expected


def test_dense_floats_are_those_of_python():
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(0, 100, 5000), rng.lognormal(0, 20, 5000), [0.0, -0.0]])
    values = values[np.abs(values) < 3e38]
    feature = DenseFeature("z", clip=(-1e30, 1e37), log1p=True, standardise=True)
    schema = FeatureSchema("y", (SparseFeature("h", HashEncoding(9)),), (feature,))
    learnt = Learnt(moments={"z": (1.234, 5.678)})

    def expected(value):
        value = min(max(value, -1e30), 1e37)
        return (math.copysign(math.log1p(abs(value)), value) - 1.234) / 5.678

    block = {"h": pa.array(["a"] * len(values)), "z": pa.array(values)}
    found = finish(schema, learnt, prepare(schema, block))["z"]
    assert found.tobytes() == np.array([expected(v) for v in values.tolist()], np.float32).tobytes()
    few = FeatureEncoder(schema, learnt).encode([{"h": "a", "z": v} for v in values[:50].tolist()])["z"]
    assert few.tobytes() == found[:50].tobytes()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 100, 9_999])
def test_buckets_are_those_of_a_bisection(size):
    rng = np.random.default_rng(size)
    boundaries = sorted(set(rng.integers(-50_000, 50_000, size).tolist()) | {0.5})
    schema = FeatureSchema("y", (SparseFeature("b", BoundariesEncoding(tuple(map(float, boundaries)))),))
    values = np.concatenate([rng.integers(-51_000, 51_000, 20_000), boundaries, [np.nan, 1e38, -1e38]]).astype(float)
    found = finish(schema, Learnt(), prepare(schema, {"b": pa.array(values)}))["b"]
    assert found.tolist() == [0 if v != v else 1 + bisect_right(boundaries, v) for v in values.tolist()]
    few = FeatureEncoder(schema, Learnt()).encode([{"b": v} for v in values[-5:].tolist()])["b"]
    assert few.tolist() == found[-5:].tolist()


# --------------------------------------------------------------------------------------------------------- build's rows


def own(rows_, schema=SCHEMA):
    return prepare(schema, arrays(rows_), with_own=True)


def reasons(prepared):
    if prepared.reason is None:
        return [None] * prepared.num_rows
    return [None if i < 0 else prepared.reasons[i] for i in prepared.reason.tolist()]


def test_the_rows_own_columns():
    prepared = own(rows([{}, {"click": "0", "w": "0.5", "h": None, "t": "-1.5", "note": ""}, {"click": "True"}]))
    assert prepared.reason is None and prepared.reasons == []
    assert {name: values.dtype for name, values in prepared.own.items()} == {
        "label": np.float32,
        "weight": np.float32,
        "group_id": np.int64,
        "timestamp": np.int64,
    }
    assert {name: values.tolist() for name, values in prepared.own.items()} == {
        "label": [1.0, 0.0, 1.0],
        "weight": [2.0, 0.5, 2.0],
        "group_id": [hash_text(["u"]), 0, hash_text(["u"])],
        "timestamp": [60, -2, 60],
    }
    assert prepared.carried["note"].to_pylist() == ["x", None, "x"]


def test_reasons_in_order():
    changes = [
        ({"n": "x", "click": "x", "w": "-1"}, "column 'n' is not a number"),
        ({"click": "x"}, "column 'click' is not a number"),
        ({"w": "x"}, "column 'w' is not a number"),
        ({}, None),
        ({"click": ""}, "label 'click' is missing"),
        ({"click": "2", "w": ""}, "label 'click' is not 0 or 1"),
        ({"w": None, "t": None}, "weight 'w' is missing"),
        ({"w": "-1", "t": "x"}, "weight 'w' is negative"),
        ({"t": "x"}, "timestamp 't' is missing or unreadable"),
        ({"t": ""}, "timestamp 't' is missing or unreadable"),
    ]
    prepared = own(rows([change for change, _ in changes]))
    assert reasons(prepared) == [reason for _, reason in changes]
    assert len(set(prepared.reasons)) == len(prepared.reasons)
    good = prepared.take(prepared.is_good)
    assert good.num_rows == 1 and good.reason is None
    expected = encoded(SCHEMA, LEARNT, rows([{}]))
    for name, values in finish(SCHEMA, LEARNT, good).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_values_that_are_no_categories():
    columns = {
        **arrays(rows([{}] * 4)),
        "h": pa.array([1.0, 0.5, None, 2.0**60]),
        "v": pa.array([b"p", b"p", b"\xff", b"q"]),
        "m": pa.array([[1.0], [2.0], None, [2.0, 0.5]]),
    }
    prepared = prepare(SCHEMA, columns, with_own=True)
    fraction = "column '{}' has a fraction or is beyond 2^53: it cannot be a category"
    assert reasons(prepared) == [None, fraction.format("h"), "column 'v' is not UTF-8 text", fraction.format("h")]
    assert prepared.own["group_id"].tolist()[0] == hash_text(["1"])


def test_types_without_a_reading_are_errors_that_name_the_column():
    columns = arrays(rows([{}]))
    times = pa.array([datetime.datetime(2017, 12, 1)])
    for name, array, message in (
        ("n", times, "column 'n': the type .* is no number"),
        ("v", pa.array([["a"]]), "column 'v': the type .* is no text"),
        ("m", pa.array([{"a": 1}]), "column 'm': the type .* is no text"),
        ("t", pa.array([["a"]]), "timestamp 't': the type .* is no number"),
    ):
        with pytest.raises(ColumnError, match=message):
            prepare(SCHEMA, {**columns, name: array}, with_own=True)
    with pytest.raises(MissingColumnError, match="column 'v' is missing; there are: h, a"):
        prepare(SCHEMA, {name: array for name, array in columns.items() if name != "v"})
    with pytest.raises(TimePatternError, match="'z' cannot be read"):
        prepare(replace(SCHEMA, timestamp=Timestamp("t", "yyyy z")), columns, with_own=True)


def test_only_what_is_needed_is_returned():
    prepared = prepare(SCHEMA, arrays(rows([{}, {"n": "x"}])), needed={"v", "q", "f", "m"})
    assert prepared.hashed == {} and set(prepared.coded) == {"v", "m"} and set(prepared.numbers) == {"q", "f"}
    assert reasons(prepared) == [None, "column 'n' is not a number"]


def test_prepared_values():
    prepared = prepare(SCHEMA, arrays(rows()))
    coded = prepared.coded["v"]
    assert coded.tokens.to_pylist() == ["p", "q", "P", "r", "p "] and coded.codes.tolist() == [0, -1, 1, 2, 3, 4]
    bag = prepared.coded["m"]
    assert [bag.tokens[i].as_py() for i in bag.codes.tolist()] == ["k", "l", "l", "z", "k", "ü", "l"]
    assert bag.lengths.tolist() == [2, 0, 3, 0, 1, 1] and bag.dropped.tolist() == [0, 0, 1, 0, 0, 0]
    assert prepared.hashed["k"].dropped.tolist() == [0, 0, 2, 0, 0, 0]
    assert prepared.hashed["x"].is_missing.tolist() == [False, True, False, False, False, False]
    hashes = prepared.hashed["x"].hashes.view(np.int64).tolist()
    assert hashes[0] == hash_text(["s", "1", "2"]) and hashes[2] == hash_text(["s", "1", ""])
    numbers = prepared.numbers["d"].tolist()
    assert math.isnan(numbers[1]) and [n for n in numbers if n == n] == [1.0, 1000.0, -3.7, 100.0, 1.0]


def test_parts_of_a_block_are_the_block():
    whole = own(rows() * 50)
    mask = np.arange(300) % 7 < 3
    part, taken = own([row for row, keep in zip(rows() * 50, mask, strict=True) if keep]), whole.take(mask)
    one, other = finish(SCHEMA, LEARNT, part), finish(SCHEMA, LEARNT, taken)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    for name in part.own:
        np.testing.assert_array_equal(part.own[name], taken.own[name], err_msg=name)
    assert part.carried["note"].equals(taken.carried["note"])


def test_tables_that_are_shared():
    schema = FeatureSchema(
        "y",
        (
            SparseFeature("a", VocabularyEncoding(), table="t"),
            SparseFeature("b", VocabularyEncoding(), table="t", separator=" "),
        ),
    )
    learnt = Learnt({"a": ["p", "q"], "b": ["p", "q"]}, out_of_vocabulary={"a": 2, "b": 2})
    columns = encoded(schema, learnt, [{"a": "q", "b": "p q r"}, {"a": "r", "b": ""}])
    assert columns["a"].tolist() == [3, 2] and columns["b"][0, :4].tolist() == [1, 3, 2, 0]
    found = FeatureEncoder(schema, learnt).encode([{"a": "q", "b": "p q r"}, {"a": "r", "b": ""}])
    assert found["a"].tolist() == [3, 2] and found["b"].tolist() == columns["b"].tolist()


@pytest.mark.parametrize(
    ("rule", "array", "expected"),
    [
        ("y == buy", pa.array(["buy", "cart", None, "", "buy "]), [1, 0, None, None, 0]),
        ("y != buy", pa.array(["buy", "cart", None]), [0, 1, None]),
        ("y in buy, cart", pa.array(["buy", "cart", "x"]), [1, 1, 0]),
        ("y not in buy, cart", pa.array(["buy", "cart", "x", None]), [0, 0, 1, None]),
        ('y == "add to, cart"', pa.array(["add to, cart", "add"]), [1, 0]),
        ('y == "4"', pa.array(["4", "4.0"]), [1, 0]),
        ('y == "4"', pa.array([4, 5]), [1, 0]),
        ("y in 4, 5", pa.array(["4.0", "5", "6", None]), [1, 1, 0, None]),
        ("y == 4", pa.array(["4.0", "5", None]), [1, 0, None]),
        ("y >= 4", pa.array([3.5, 4.0, None]), [0, 1, None]),
        ("y < 4", pa.array([3, 4, None]), [1, 0, None]),
        ("y", pa.array(["True", "False", "TRUE", "", "0", "1.0"]), [1, 0, 1, None, 0, 1]),
        ("y", pa.array([True, False, None]), [1, 0, None]),
        ("y == true", pa.array([True, False, None]), [1, 0, None]),
    ],
)
def test_labels(rule, array, expected):
    schema = FeatureSchema(rule, (SparseFeature("h", HashEncoding(9)),))
    prepared = prepare(schema, {"h": pa.array(["a"] * len(array)), "y": array}, with_own=True)
    missing = [None if reason is None else reason for reason in reasons(prepared)]
    assert missing == ["label 'y' is missing" if value is None else None for value in expected]
    labels = prepared.own["label"].tolist()
    assert [v for v, e in zip(labels, expected, strict=True) if e is not None] == [e for e in expected if e is not None]


def test_a_feature_may_share_its_column_with_a_text_label():
    schema = FeatureSchema("m == a", (SparseFeature("m", HashEncoding(9), separator="|"),))
    prepared = prepare(schema, {"m": pa.array(["a", "a|b"])}, with_own=True)
    assert prepared.own["label"].tolist() == [1.0, 0.0] and prepared.hashed["m"].lengths.tolist() == [1, 2]


def test_settings_hold_in_blocks_and_rows():
    settings = Values(null_tokens=("NA",), strip=True, whole_floats=True, list_literals=True)
    schema = replace(SCHEMA, values=settings)
    odd = rows(
        [{"h": "NA"}, {"h": " u "}, {"v": "NA", "n": "NA"}, {"m": "['k', 'l']"}, {"m": "k |NA| l"}, {"a": "1.0"}]
    )
    plain = rows([{"h": None}, {}, {"v": None, "n": None}, {}, {}, {}])
    expected = encoded(SCHEMA, LEARNT, plain)
    encoder = FeatureEncoder(schema, LEARNT)
    for found in (encoded(schema, LEARNT, odd), encoder.encode(odd), encoder.encode(odd * 100)):
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name][:6], values, err_msg=name)


# ----------------------------------------------------------------------------------------------------------------- rows


def test_rows_of_python_values():
    encoder = FeatureEncoder(SCHEMA, LEARNT)
    typed = [
        {"h": 7, "n": 1.5, "m": ["k", None, ""], "v": True},
        {"h": 7.0, "n": 3, "m": ("k", "l"), "v": np.str_("p")},
        {"h": np.int64(7), "n": np.float32(0.5), "m": np.array(["k"]), "v": None},
        {"h": True, "n": True, "m": 5, "v": float("nan")},
        {"h": "7", "n": float("nan"), "m": [7, 7.0], "v": "p"},
        {"h": 10**30, "n": " 2 ", "m": "", "v": "q"},
    ]
    texts = [
        {"h": "7", "n": "1.5", "m": "k", "v": "true"},
        {"h": "7", "n": "3", "m": "k|l", "v": "p"},
        {"h": "7", "n": "0.5", "m": "k", "v": None},
        {"h": "true", "n": "1", "m": "5", "v": None},
        {"h": "7", "n": None, "m": "7|7", "v": "p"},
        {"h": str(10**30), "n": "2", "m": None, "v": "q"},
    ]
    expected = encoded(SCHEMA, LEARNT, rows(texts))
    for repeats in (1, 2 * FEW_ROWS):
        found = encoder.encode(rows(typed) * repeats)
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name][:6], values, err_msg=name)
    for i, change in enumerate(typed):
        for name, values in encoder.encode(rows([change])).items():
            np.testing.assert_array_equal(values[0], expected[name][i], err_msg=name)


BAD_VALUES = [
    ({"n": "x"}, "column 'n': 'x' is not a number"),
    ({"n": "1e39"}, "column 'n': '1e39' is not a finite number that float32 has room for"),
    ({"n": 10**400}, "column 'n': 1000.* is not a finite number"),
    ({"n": float("inf")}, "column 'n': inf is not a finite number"),
    ({"n": [1]}, r"column 'n': \[1\] \(list\) is neither text nor a number"),
    ({"n": "\ud800"}, "column 'n': .* is not a number"),
    ({"h": 0.5}, r"column 'h': 0.5 has a fraction \(or is beyond 2\^53\): it cannot be a category"),
    ({"h": 2.0**60}, "column 'h': .* beyond"),
    ({"b": [1]}, r"column 'a\+b': \[1\] \(list\) is neither text nor a number"),
    ({"h": b"x"}, r"column 'h': b'x' \(bytes\) is neither"),
    ({"h": "\ud800"}, "column 'h': .*surrogates"),
    ({"m": ["k", 0.5]}, "column 'm': 0.5 has a fraction"),
    ({"m": [["k"]]}, "column 'm': .* is neither text nor a number"),
    ({"v": datetime.date(2017, 12, 1)}, "column 'v': .* is neither text nor a number"),
]


@pytest.mark.parametrize(("change", "message"), BAD_VALUES, ids=str)
def test_errors_name_row_and_column(change, message):
    encoder = FeatureEncoder(SCHEMA, LEARNT)
    for before in (0, 1, FEW_ROWS + 3):
        with pytest.raises(RowError, match=rf"^row {before + 1}: {message}"):
            encoder.encode(rows([{}] * before + [change, change, {}]))
    with pytest.raises(RowError, match=f"^row 1: {message}"):
        encoder.encode(rows([change]))
    fault = encoder.find_error({**ROW, **change})
    with pytest.raises(RowError, match=f"^{message}"):
        raise RowError(fault)


def test_missing_columns():
    encoder = FeatureEncoder(SCHEMA, LEARNT)
    incomplete = {name: value for name, value in ROW.items() if name != "a"}
    for before in (0, 2, FEW_ROWS):
        with pytest.raises(
            MissingColumnError, match=rf"row {before + 1}: column 'a' is missing from the row; it has: h, b"
        ):
            encoder.encode([*rows([{}] * before), incomplete])
    with pytest.raises(MissingColumnError, match=r"^column 'a' is missing from the row; it has: h, b, "):
        encoder.find_error(incomplete)
    assert encoder.find_error(ROW) is None


def test_random_rows_alone_together_and_as_blocks():
    rng = random.Random(4)
    made = []
    for _ in range(FEW_ROWS + 100):
        texts = [
            rng.choice([None, "", "é", " ", "p", "q", str(rng.randrange(9)), "x" * rng.randrange(40)]) for _ in "habv"
        ]
        n = rng.choice([None, "", "0", "-0", "2.5", " 7", "1e3", "-4", str(rng.gauss(0, 50)), "false"])
        m = rng.choice([None, "", "k", "k|l", "|", "k||z|l|k|k"])
        made.append({**ROW, **dict(zip("habv", texts, strict=True)), "n": n, "m": m})
    block, encoder = encoded(SCHEMA, LEARNT, made), FeatureEncoder(SCHEMA, LEARNT)
    alone = [encoder.encode([row]) for row in made[:100]]
    for name, values in block.items():
        np.testing.assert_array_equal(encoder.encode(made)[name], values, err_msg=name)
        np.testing.assert_array_equal(encoder.encode(made[:100])[name], values[:100], err_msg=name)
        np.testing.assert_array_equal(np.concatenate([columns[name] for columns in alone]), values[:100], err_msg=name)
        assert name == "g" or len(np.unique(values)) > 1, f"{name} is too easy"


def test_hashes_of_features_are_those_of_one_text():
    schema = FeatureSchema("y", tuple(SparseFeature(f"C{i}", HashEncoding(1000 + i)) for i in range(26)))
    rng = random.Random(6)
    for num_rows in (1, 3, 300, 3000):
        made = [{f"C{i}": f"{rng.getrandbits(32):x}" for i in range(26)} for _ in range(num_rows)]
        found = [FeatureEncoder(schema, Learnt()).encode(made), encoded(schema, Learnt(), made)]
        for i in range(26):
            expected = [hash_to_id([row[f"C{i}"]], 1000 + i, f"C{i}") for row in made]
            assert [columns[f"C{i}"].tolist() for columns in found] == [expected, expected]
