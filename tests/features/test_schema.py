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


@pytest.mark.parametrize(
    ("rule", "parsed"),
    [
        ("behavior == buy", Label("behavior", "in", texts=("buy",))),
        ("behavior==buy", Label("behavior", "in", texts=("buy",))),
        ("behavior != buy", Label("behavior", "not in", texts=("buy",))),
        ("behavior in cart, buy,buy", Label("behavior", "in", texts=("buy", "cart"))),
        ("behavior not in view", Label("behavior", "not in", texts=("view",))),
        ('a == "add to, cart"', Label("a", "in", texts=("add to, cart",))),
        ("a in 'b c', d e", Label("a", "in", texts=("b c", "d e"))),
        ('rating == "4"', Label("rating", "in", texts=("4",))),
        ("rating == 4", Label("rating", "==", 4.0)),
        ("rating in 5, 4", Label("rating", "in", numbers=(4.0, 5.0))),
        ("bought in 1, yes", Label("bought", "in", texts=("1", "yes"))),
        ("in", Label("in")),
    ],
)
def test_labels_of_texts(rule, parsed):
    assert Label.parse(rule) == parsed
    assert parsed.is_text == bool(parsed.texts)


@pytest.mark.parametrize(
    "rule", ["a >= x", "a ==", "a in", "a in b,", "a == b, c", "a = b", "a in b >= 3", "a == 'b", "a in ,b", ""]
)
def test_labels_that_are_refused(rule):
    with pytest.raises(ValueError, match="behavior in buy, cart") as error:
        Label.parse(rule)
    assert len(str(error.value)) < 200


def test_settings_of_values_are_in_the_fingerprint():
    plain = schema()
    assert schema(values={}).fingerprint == schema(values={"null_tokens": [""]}).fingerprint == plain.fingerprint
    for change in ({"strip": True}, {"null_tokens": ["NA"]}, {"whole_floats": True}, {"list_literals": True}):
        assert schema(values=change).fingerprint != plain.fingerprint
    one, other = ({"null_tokens": tokens} for tokens in (["a", "b"], ["b", "a", "a"]))
    assert schema(values=one).fingerprint == schema(values=other).fingerprint
    assert schema(label="y == a").fingerprint == schema(label="y in a,a").fingerprint
