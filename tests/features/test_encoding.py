"""RowEncoder: each encoding against values worked out by hand."""

import math

import numpy as np
import pytest

from features.hashing import hash_to_id
from features.learnt import Learnt, LearntError
from features.rows import RowError
from features.schema import (
    BoundariesEncoding,
    DenseFeature,
    FeatureSchema,
    HashEncoding,
    LogEncoding,
    LogSquaredEncoding,
    QuantilesEncoding,
    SparseFeature,
    VocabularyEncoding,
)
from tests.oracles.row_encoder import RowEncoder, log_squared_token, to_number, to_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ("", None),
        (float("nan"), None),
        (" a ", " a "),
        (True, "true"),
        (np.bool_(False), "false"),
        (7, "7"),
        (np.int64(-7), "-7"),
        (7.0, "7"),
        (-0.0, "0"),
        (np.float32(2.0), "2"),
    ],
)
def test_text(value, text):
    assert to_text(value) == text


@pytest.mark.parametrize("value", [0.5, float("inf"), 1e19, [1], {"a": 1}, b"x"])
def test_no_text(value):
    with pytest.raises(RowError):
        to_text(value)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (None, None),
        ("", None),
        ("  ", None),
        (float("nan"), None),
        (" 1.5 ", 1.5),
        ("+.5", 0.5),
        ("7.", 7.0),
        ("-1e-3", -0.001),
        ("true", 1.0),
        (False, 0.0),
        (3, 3.0),
    ],
)
def test_number(value, number):
    assert to_number(value) == number


@pytest.mark.parametrize(
    "value", ["x", "1,5", "0x10", "nan", "inf", "1e999", "1_000", "٣", "1f", "--1", float("inf"), "."]
)
def test_no_number(value):
    with pytest.raises(RowError):
        to_number(value)


def test_log_squared_is_the_spec():
    """As the Criteo benchmark's preprocessing does."""
    values = [-2, -1, 0, 1, 2, 3, 4, 5, 8, 10, 100, 1000, 10000, 65535]
    tokens = [-2, -1, 0, 1, 2, 1, 1, 2, 4, 5, 21, 47, 84, 122]
    assert [log_squared_token(float(v)) for v in values] == [str(t) for t in tokens]
    assert log_squared_token(None) == "0"


SCHEMA = FeatureSchema(
    label="click",
    sparse=(
        SparseFeature("h", HashEncoding(50)),
        SparseFeature("x", HashEncoding(50, salt="s"), columns=("a", "b")),
        SparseFeature("v", VocabularyEncoding()),
        SparseFeature("m", VocabularyEncoding(), separator="|", max_length=3),
        SparseFeature("b", BoundariesEncoding((0.0, 1.5)), columns=("n",)),
        SparseFeature("q", QuantilesEncoding(4), columns=("n",)),
        SparseFeature("l", LogEncoding(4), columns=("n",)),
        SparseFeature("c", LogSquaredEncoding(), columns=("n",)),
    ),
    dense=(
        DenseFeature("d", column="n", fill=-2.0),
        DenseFeature("e", column="n", clip=(-1.0, 3.0), log1p=True),
        DenseFeature("f", column="n", fill=1.0, standardise=True),
    ),
)
LEARNT = Learnt({"v": ["p", "q"], "m": ["k", "l"], "c": ["1", "47"]}, {"q": [1.0, 2.0]}, {"f": (2.0, 4.0)})


def row(**values):
    return {"h": "u", "a": "1", "b": "2", "v": "p", "m": "k|l", "n": "1", **values}


def ids(name, **values):
    encoder = RowEncoder(SCHEMA, LEARNT)
    return list(encoder.ids(next(f for f in SCHEMA.sparse if f.name == name), row(**values)))


def test_hashed():
    assert ids("h") == [hash_to_id(["u"], 50, "h")]
    assert ids("h", h=None) == [0]
    assert ids("x") == [hash_to_id(["1", "2"], 50, "s")]
    assert ids("x", b="") == [hash_to_id(["1", ""], 50, "s")]
    assert ids("x", a=None, b="") == [0]


def test_vocabulary():
    assert [ids("v", v=v) for v in ("p", "q", "r", None)] == [[1], [2], [3], [3]]
    assert ids("m", m="l||z|k|k") == [2, 3, 1]
    assert ids("m", m=["k", None, ""]) == [1]
    assert ids("m", m="") == []


@pytest.mark.parametrize(("value", "id_"), [(None, 0), ("-1", 1), ("0", 2), ("1.4", 2), ("1.5", 3), ("9", 3)])
def test_boundaries(value, id_):
    assert ids("b", n=value) == [id_]


def test_other_buckets():
    assert [ids("q", n=n) for n in ("0", "1", "2")] == [[1], [2], [3]]
    assert [ids("l", n=n) for n in ("0.5", "1", "2", "3.9", "4", "999")] == [[1], [2], [3], [3], [4], [4]]
    assert [ids("c", n=n) for n in ("1", "1000", "0", None, "7")] == [[1], [2], [3], [3], [3]]


def test_dense():
    encoder = RowEncoder(SCHEMA, LEARNT)
    d, e, f = SCHEMA.dense
    assert [encoder.dense_value(d, row(n=n)) for n in (None, "4")] == [-2.0, 4.0]
    assert [encoder.dense_value(e, row(n=n)) for n in ("9", "-9")] == [math.log1p(3), -math.log1p(1)]
    assert [encoder.dense_value(f, row(n=n)) for n in (None, "6")] == [-0.25, 1.0]


def test_columns_are_those_of_the_parquet_files():
    columns = RowEncoder(SCHEMA, LEARNT).encode([row(), row(m=None)])
    assert list(columns) == ["h", "x", "v", "m", "m__length", "b", "q", "l", "c", "d", "e", "f"]
    assert columns["m"].tolist() == [[1, 2, 0], [0, 0, 0]] and columns["m__length"].tolist() == [2, 0]
    assert {str(v.dtype) for k, v in columns.items() if k not in "def"} == {"int32"}
    assert columns["d"].dtype == np.float32


def test_errors_name_row_and_column():
    encoder = RowEncoder(SCHEMA, LEARNT)
    with pytest.raises(RowError, match=r"row 2: column 'n'.*'x' is not a number"):
        encoder.encode([row(), row(n="x")])
    incomplete = row()
    del incomplete["a"]
    with pytest.raises(RowError, match="column 'a' is missing from the row; it has: h, b"):
        encoder.encode([incomplete])
    with pytest.raises(LearntError, match="'q' has no learnt quantiles"):
        RowEncoder(SCHEMA, Learnt(LEARNT.vocabularies, {}, LEARNT.moments))
