"""FeatureSchema: what is refused, and what is made of names and label rules."""

import pytest
from pydantic import TypeAdapter

from features.schema import FeatureSchema, Label, LogEncoding, expand_names

BASE = {
    "label": "click",
    "sparse": [{"name": "user", "encoding": {"kind": "hash", "num_buckets": 10}}],
    "dense": [{"name": "price"}],
}


def schema(**changes):
    return TypeAdapter(FeatureSchema).validate_python({**BASE, **changes})


def sparse(**changes):
    return schema(sparse=[{**BASE["sparse"][0], **changes}])


def test_names_expand():
    assert expand_names(["C{9..11}", "x"]) == ("C9", "C10", "C11", "x")


@pytest.mark.parametrize(
    ("rule", "parsed"),
    [("click", Label("click")), ("rating >= 4", Label("rating", ">=", 4.0)), ("r<-1.5", Label("r", "<", -1.5))],
)
def test_label_rules(rule, parsed):
    assert Label.parse(rule) == parsed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "a b"}, "label must be"),
        ({"sparse": []}, "at least one sparse"),
        ({"dense": [{"name": "user"}]}, "names used twice"),
        ({"dense": [{"name": "label"}]}, "reserved"),
        ({"carry": ["a-b"]}, "letters, digits"),
        ({"dense": [{"name": "p", "clip": [2, 1]}]}, "low < high"),
        ({"sequence": [{"name": "h", "column": "h", "table": "user", "max_length": 3}]}, "not built yet"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        schema(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": ["a", "b"], "encoding": {"kind": "vocabulary"}}, "cross is hashed"),
        ({"columns": ["a", "b"], "separator": "|"}, "single-valued"),
        ({"separator": "|", "encoding": {"kind": "log"}}, "multi-valued"),
        ({"encoding": {"kind": "boundaries", "boundaries": [2, 1]}}, "rise strictly"),
        ({"encoding": {"kind": "hash", "num_buckets": 1}}, "greater than or equal to 2"),
        ({"encoding": {"kind": "hash", "num_buckets": 9, "seed": 1}}, "seed"),
    ],
)
def test_refused_sparse(changes, message):
    with pytest.raises(ValueError, match=message):
        sparse(**changes)


def test_raw_columns_come_once_each_in_order():
    found = schema(label="rating >= 4", weight="w", group_id="user", timestamp={"column": "t"}, carry=["id"])
    assert found.feature_columns == ("user", "price")
    assert found.raw_columns == ("user", "price", "rating", "w", "t", "id")


def test_log_boundaries():
    assert LogEncoding(num_buckets=5, base=2.0).boundaries == (1.0, 2.0, 4.0, 8.0)
