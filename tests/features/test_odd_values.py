"""Odd values: what is counted, what is told, and that the told setting cures it."""

import tomllib
from typing import Any

import pyarrow as pa
import pytest
from pydantic import TypeAdapter

from features.odd_values import NULL_TOKENS, count_odd_values, tell_odd_values
from features.schema import (
    FeatureSchema,
    HashEncoding,
    SequenceFeature,
    SparseFeature,
    Values,
    VocabularyEncoding,
)
from features.values import texts, tokens


def schema(**values):
    return FeatureSchema(
        "y",
        (
            SparseFeature("user", VocabularyEncoding()),
            SparseFeature("cross", HashEncoding(9), columns=("user", "item")),
            SparseFeature("tags", HashEncoding(9), separator=","),
        ),
        values=Values(**values),
    )


def told(columns, schema_=None, lists=None):
    schema_ = schema_ or schema()
    return tell_odd_values(count_odd_values(schema_, columns, lists), schema_)


def column(*values):
    return pa.array(values, pa.string())


PLAIN = [
    {"user": column("u1", None, "3", "")},
    {"user": column("1.5", "2.0", "3")},  # versions
    {"user": column("2.5", "2.0")},
    {"user": column("3.", "1e3", "a b")},
    {"user": pa.array([3.0, 4.0]), "item": pa.array([True, None])},
    {"tags": column("a,b", "c", "[", "x[1]")},
    {"tags": pa.array([["a"]])},
    {"other": column("NULL")},
    {},
]


@pytest.mark.parametrize("columns", PLAIN, ids="-".join)
def test_nothing_is_odd(columns):
    assert told(columns) == []


ODD = {
    "null": (
        {"user": column("\\N", "u", "NULL", "u"), "item": column("a")},
        "'\\N' or 'NULL' is 50.0% of 'user': such",
    ),
    "dotted": ({"user": column("3.0", "3", "4", "5")}, "'user': 25.0% of values are whole numbers with a point"),
    "all dotted": ({"user": column("3.0", "4.00", None)}, "'user': 100.0% of values are whole numbers with a point"),
    "blank": ({"user": column("a ", "b", "\tc", "d")}, "'user': 50.0% of values have spaces or tabs around them"),
    "blank tokens": ({"tags": column("a, b", "c, d")}, "'tags': 50.0% of values have spaces or tabs around them"),
    "list": ({"tags": column("[3, 7]", "['a']", "x", "y")}, "'tags': 50.0% of values are printed lists"),
    "null token": ({"tags": column("a,NA", "b")}, "'NA' is 33.3% of 'tags'"),
    "cross": ({"item": column("None", "x")}, "'None' is 50.0% of 'item'"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_odd_is_told_once_and_its_setting_cures_it(case):
    columns, start = ODD[case]
    [message] = told(columns)
    assert message.startswith(start)
    setting = message.split(" write ")[1].split(" below [features.values]")[0]
    values = tomllib.loads(f"[features.values]\n{setting}")["features"]["values"]
    cured = TypeAdapter(Values).validate_python(values)
    assert told(columns, schema(**values)) == []
    for name, array in columns.items():
        feature = next((f for f in schema().sparse if f.kind.takes_lists), None)
        found = tokens(array, None, feature, cured).texts if name == "tags" else texts(array, cured)[0]
        assert not {*found.to_pylist()} & {*NULL_TOKENS, "3.0", "a ", " b", "[3"}


def test_a_list_in_one_value_needs_a_separator_too():
    [message] = told({"user": column("[1, 2]", "a")})
    assert 'separator = ","' in message and "list_literals = true" in message


def test_known_null_tokens_stay_in_the_cure():
    [message] = told({"user": column("NA", "?", "x")}, schema(null_tokens=["?"]))
    assert "null_tokens = ['?', 'NA']" in message and "50.0%" in message


def test_samples_are_added_and_rare_things_are_not_told():
    one, other = ({"user": column(*texts_)} for texts_ in (["3"] * 10, ["3.0"] * 10))
    counts = count_odd_values(schema(), one) + count_odd_values(schema(), other)
    assert "'user': 50.0%" in tell_odd_values(counts, schema())[0]
    assert told({"user": column(*["a"] * 2000, "NULL")}) == []


def test_lists_of_json():
    lists = pa.array([None, ["a ", "b"]], pa.list_(pa.string()))
    assert "'tags': 33.3% of values have spaces" in told({"tags": column("x", None)}, lists={"tags": lists})[0]


def test_many_columns_are_one_sentence():
    wide = FeatureSchema("y", tuple(SparseFeature(f"c{i}", HashEncoding(9)) for i in range(8)))
    [message] = told({f"c{i}": column("NULL", "a") for i in range(8)}, wide)
    assert "3 columns more" in message and len(message) < 500


def test_items_of_histories_are_looked_at_as_values_of_their_features_are() -> None:
    """A list that lacks a value is one of floats to pandas: its 3.0 is no 3 of the row."""
    user, _, _ = schema().sparse
    clicks = SequenceFeature("clicks", ("user",), 5, columns={"user": "seen"}, separator=";", newest="last")

    def told_of(array: pa.Array, lists: pa.Array | None = None, **values: Any) -> list[str]:
        of_clicks = FeatureSchema("y", (user,), sequence=(clicks,), values=Values(**values))
        return told({"seen": array}, of_clicks, None if lists is None else {"seen": lists})

    assert told_of(column("3;4", "a b", "", None, "[")) == []
    assert "'seen': 50.0% of values are whole numbers with a point" in told_of(column("3.0;4", "5;6.0"))[0]
    assert "'seen': 50.0% of values" in told_of(column(None, "4;5.0"), pa.array([["3.0", None, "7"], None]))[0]
    assert "'seen': 50.0% of values have spaces" in told_of(column("3; 4"))[0]
    assert "'NULL' is 50.0% of 'seen'" in told_of(column("3;NULL"))[0]
    assert "'seen': 100.0% of values are printed lists" in told_of(column("[3, 4]"))[0]
    cured = {"null_tokens": ("NULL",), "strip": True, "whole_floats": True, "list_literals": True}
    assert told_of(column("3.0;4", " 5;NULL", "[3, 4]"), **cured) == []
