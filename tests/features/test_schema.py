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


def with_sequences(*sequences, **changes):
    sparse = [
        {"name": "item", "encoding": {"kind": "vocabulary", "min_count": 2}, "table": "things", "embedding_dim": 4},
        {"name": "cate", "encoding": {"kind": "hash", "num_buckets": 9}},
        {"name": "tags", "encoding": {"kind": "hash", "num_buckets": 9}, "separator": "|"},
        {"name": "both", "encoding": {"kind": "hash", "num_buckets": 9}, "columns": ["item", "cate"]},
        {"name": "age", "encoding": {"kind": "quantiles", "num_buckets": 4}},
    ]
    tree = {"sparse": sparse, "timestamp": {"column": "t"}, "sequence": sequences, **changes}
    return schema(**tree)


CLICKS = {"name": "clicks", "parts": ["item", "cate"], "max_length": 5, "newest": "last"}


def test_a_sequence_of_the_log():
    found = with_sequences({**CLICKS, "gaps": [60, 3600], "columns": {"item": "bought"}})
    [clicks] = found.sequence
    assert clicks.part_columns == {"item": "clicks__item", "cate": "clicks__cate"}
    assert (clicks.gap_column, clicks.time_column) == ("clicks__gap", "clicks__time")
    assert clicks.keys == tuple(part.name for part in found.parts) == ("clicks__item", "clicks__cate", "clicks__gap")
    assert clicks.raw_lists == ("bought", "clicks__cate", "clicks__time") and not clicks.is_newest_first
    assert found.feature_columns[-3:] == ("clicks__time", "price", "t")
    assert set(clicks.raw_lists) < set(found.raw_columns)
    item, cate, gap = found.parts
    assert (item.table_name, item.learnt_name, item.embedding_dim, item.columns) == ("things", "item", 4, ("bought",))
    assert (cate.table_name, cate.salt, gap.table_name, gap.learnt_name) == ("cate", "cate", *["clicks__gap"] * 2)
    assert gap.encoding.boundaries == (60.0, 3600.0)
    assert [c.name for c in found.columns][-4:] == ["clicks__item", "clicks__cate", "clicks__gap", "price"]
    assert list(found.jagged) == [2, 5, 6, 7] and hash(found) == hash(with_sequences(*found.sequence))


def test_a_built_history_is_in_rows_to_score_and_not_in_the_log():
    history = {"of": "person", "where": "event == 2", "lag": "30m"}
    found = with_sequences({**CLICKS, "newest": "first", "history": history}, {**CLICKS, "name": "seen"})
    assert [part.sequence for part in found.logged if part in found.parts] == ["seen", "seen"]
    assert {"clicks__item", "clicks__cate"} <= set(found.feature_columns)
    assert {"person", "event", "seen__item"} <= set(found.raw_columns) and "clicks__item" not in found.raw_columns


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ["itm"]}, "part 'itm', which is no sparse feature; there are: item, cate"),
        ({"parts": ["price"]}, "part 'price', which is no sparse feature"),
        ({"parts": ["tags"]}, "part 'tags', which is multi-valued"),
        ({"parts": ["both"]}, "part 'both', which is a cross"),
        ({"parts": ["age"]}, "quantiles are learnt for each feature alone: use a boundaries encoding"),
        ({"parts": []}, "at least 1 item"),
        ({"parts": ["item", "item"]}, "has parts twice: item"),
        ({"max_length": 0}, "greater than or equal to 1"),
        ({"gaps": [60, 60]}, "gaps must rise strictly"),
        ({"gaps": [0, 60]}, "greater than or equal to 1"),
        ({"separator": ""}, "separator is empty"),
        ({"columns": {"cat": "x"}}, "columns names cat, which are none of its parts"),
        ({"columns": {"item": "x", "cate": "x"}}, "two things from one raw column: x"),
        ({"columns": {"item": "clicks__time"}, "gaps": [1]}, "two things from one raw column: clicks__time"),
        ({"newest": None}, 'say with newest = "first" or "last"'),
        ({"history": {"of": "user", "where": "a b"}}, "history.where is a rule as labels have: label must be"),
        ({"history": {"of": "user"}}, "newest event of a built history is first"),
        ({"history": {"of": "user"}, "newest": None, "columns": {"item": "x"}}, "leave its columns out"),
        ({"name": "item"}, "names used twice or reserved .*: item"),
        ({"name": "a-b"}, "must be letters, digits"),
        ({"column": "x"}, "Unexpected keyword argument"),
    ],
)
def test_sequences_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        with_sequences({**CLICKS, **changes})


def test_sequences_that_do_not_fit_the_rest():
    for key, value in (("gaps", [60]), ("history", {"of": "user"})):
        with pytest.raises(ValueError, match=f"'clicks' has {key}, which need the rows' time: set timestamp"):
            with_sequences({**CLICKS, "newest": "first", key: value}, timestamp=None)
    with pytest.raises(ValueError, match="names used twice or reserved"):
        with_sequences(CLICKS, CLICKS)
    with pytest.raises(ValueError, match=r"names used twice or reserved .*: clicks__item"):
        with_sequences(CLICKS, carry=["clicks__item"])
    sparse = [
        {"name": "item", "encoding": {"kind": "vocabulary"}, "table": "clicks__gap"},
        {"name": "cate", "encoding": {"kind": "vocabulary"}},
    ]
    with pytest.raises(ValueError, match="table 'clicks__gap' is that of the gaps of sequence 'clicks'"):
        with_sequences({**CLICKS, "gaps": [9]}, sparse=sparse)


def test_sequences_are_in_the_fingerprint():
    plain = with_sequences()
    changes = (
        {"max_length": 6},
        {"gaps": [60]},
        {"parts": ["cate", "item"]},
        {"columns": {"item": "x"}},
        {"separator": ","},
        {"newest": "first"},
        {"name": "buys"},
        {"newest": None, "history": {"of": "user"}},
        {"newest": None, "history": {"of": "user", "where": "event == 2"}},
        {"newest": None, "history": {"of": "user", "lag": "2h"}},
    )
    found = [plain, with_sequences(CLICKS), *(with_sequences({**CLICKS, **change}) for change in changes)]
    assert len({one.fingerprint for one in found}) == len(found)
    assert with_sequences({**CLICKS, "columns": {"item": "clicks__item"}}).fingerprint == found[1].fingerprint
    built = {**CLICKS, "newest": "first", "history": {"of": "user", "where": "label"}}
    assert with_sequences(built).fingerprint == found[-3].fingerprint
    for one in found:
        tree = TypeAdapter(FeatureSchema).dump_python(one, mode="json")
        assert TypeAdapter(FeatureSchema).validate_python(tree).fingerprint == one.fingerprint


def test_settings_of_values_are_in_the_fingerprint():
    plain = schema()
    assert schema(values={}).fingerprint == schema(values={"null_tokens": [""]}).fingerprint == plain.fingerprint
    for change in ({"strip": True}, {"null_tokens": ["NA"]}, {"whole_floats": True}, {"list_literals": True}):
        assert schema(values=change).fingerprint != plain.fingerprint
    one, other = ({"null_tokens": tokens} for tokens in (["a", "b"], ["b", "a", "a"]))
    assert schema(values=one).fingerprint == schema(values=other).fingerprint
    assert schema(label="y == a").fingerprint == schema(label="y in a,a").fingerprint
