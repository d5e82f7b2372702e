"""Unknown and missing values: counted alike in blocks and in rows, as a naive count has them; and what is told."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from features.encode import BlockTexts
from features.encode_rows import FeatureEncoder, MappingTexts
from features.learnt import Learnt
from features.schema import (
    BoundariesEncoding,
    FeatureSchema,
    HashEncoding,
    LogSquaredEncoding,
    SequenceFeature,
    SparseFeature,
    Timestamp,
    VocabularyEncoding,
)
from features.unknown_values import ValueCounter, ValueReport, ValueTally, name_unknown
from features.values import Values

SCHEMA = FeatureSchema(
    label="click",
    sparse=(
        SparseFeature("item", VocabularyEncoding()),
        SparseFeature("tags", VocabularyEncoding(), separator="|", max_length=3),
        SparseFeature("user", HashEncoding(100)),
        SparseFeature("words", HashEncoding(50), separator=" ", max_length=2),
        SparseFeature("age", BoundariesEncoding((10.0, 20.0))),
        SparseFeature("price", LogSquaredEncoding()),
    ),
)
LEARNT = Learnt({"item": ["7", "8", "a"], "tags": ["x", "y"], "price": ["1", "2", "5"]})
COUNTER = ValueCounter(SCHEMA, LEARNT)


def rows(num_rows: int, seed: int = 0) -> list[dict[str, object]]:
    rng = random.Random(seed)
    return [
        {
            "item": rng.choice([7, "8", "a", "7.0", "z", None, ""]),
            "tags": rng.choice(["x", "x|y", "x|q", "q|r|x|y", "", None]),
            "user": rng.choice(["u1", None, ""]),
            "words": rng.choice(["a b c", "", None]),
            "age": rng.choice([5, None, 30.5]),
            "price": rng.choice([1, 2, 1000.0, 0, None]),
        }
        for _ in range(num_rows)
    ]


def naive(given: list[dict[str, object]]) -> ValueTally:
    """Counts value by value."""
    tally = ValueTally(len(given))
    for row in given:
        for name in ("item", "user", "age", "price"):
            tally.missing[name] += row[name] in (None, "")
        for name, most in (("tags", 3), ("words", 2)):
            found = [t for t in str(row[name] or "").split("|" if name == "tags" else " ") if t][:most]
            tally.tokens[name] += len(found)
            tally.missing[name] += not found
            if name == "tags":
                tally.unknown[name] += sum(token not in ("x", "y") for token in found)
        tally.unknown["item"] += str(row["item"]) not in ("7", "8", "a") and row["item"] not in (None, "")
        tally.unknown["price"] += row["price"] in (1000.0, 0)
    return tally


def of_rows(given: list[dict[str, object]]) -> ValueTally:
    tally = ValueTally()
    encoder = FeatureEncoder(SCHEMA, LEARNT)
    COUNTER.count(encoder.encode(given), MappingTexts(given, SCHEMA), tally)
    return tally


def of_block(given: list[dict[str, object]]) -> ValueTally:
    tally = ValueTally()
    columns = {
        name: pa.array([None if row[name] in (None, "") else str(row[name]) for row in given]) for name in given[0]
    }
    encoded, prepared = FeatureEncoder(SCHEMA, LEARNT).encode_columns(columns)
    for part in np.array_split(np.arange(len(given)), 3):
        if len(part):
            part_columns = {name: values[part] for name, values in encoded.items()}
            COUNTER.count(part_columns, BlockTexts(prepared, part), tally)
    return tally


@pytest.mark.parametrize("num_rows", [1, 2, 50, 700])
def test_counts_are_those_of_a_naive_count(num_rows: int) -> None:
    for seed in range(20 if num_rows < 10 else 2):
        given = rows(num_rows, seed)
        expected = naive(given)
        for tally in (of_rows(given), of_block(given)):
            for what in ("missing", "unknown", "tokens"):
                assert +getattr(tally, what) == +getattr(expected, what), what
            assert tally.rows == num_rows
            assert tally.examples.keys() == (+expected.unknown).keys()


def test_tallies_are_added() -> None:
    parts, whole = [of_rows(rows(30, seed)) for seed in (1, 2)], naive(rows(30, 1) + rows(30, 2))
    total = ValueTally()
    for part in parts:
        total.add(part)
    assert (total.rows, +total.missing, +total.unknown) == (60, +whole.missing, +whole.unknown)


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ("7.0", "the vocabulary has '7'"),
        ("007", "the vocabulary has '7'"),
        (" 7", "the vocabulary has '7'"),
        ("A", "the vocabulary has 'a'"),
        ("'a'", "the vocabulary has 'a'"),
        ("NULL", "it looks like a missing value, for which null or an empty text stands"),
        ("zzz", "the vocabulary has values such as '7'"),
    ],
)
def test_an_example_has_its_likely_cause(value: str, cause: str) -> None:
    tally = ValueTally()
    given = [{**rows(1)[0], "item": value}]
    counter = ValueCounter(SCHEMA, LEARNT)
    counter.count(FeatureEncoder(SCHEMA, LEARNT).encode(given), MappingTexts(given, SCHEMA), tally)
    assert tally.examples["item"] == (value, cause)


def test_the_other_way_round_too() -> None:
    learnt = replace(LEARNT, vocabularies={**LEARNT.vocabularies, "item": ["7.0", "007"]})
    for value, cause in (("7", "the vocabulary has '7.0'"), ("07", "the vocabulary has '007'")):
        given, tally = [{**rows(1)[0], "item": value}], ValueTally()
        ValueCounter(SCHEMA, learnt).count(
            FeatureEncoder(SCHEMA, learnt).encode(given), MappingTexts(given, SCHEMA), tally
        )
        assert tally.examples["item"].cause == cause


def test_null_tokens_of_the_schema_are_missing() -> None:
    schema = replace(SCHEMA, values=Values(null_tokens=("NA",), strip=True))
    given, tally = [{**rows(1)[0], "item": " NA "}], ValueTally()
    ValueCounter(schema, LEARNT).count(FeatureEncoder(schema, LEARNT).encode(given), MappingTexts(given, schema), tally)
    assert tally.missing["item"] == 1 and not tally.unknown["item"]


def report(rate: float, unknown: int, num_rows: int = 1000, missing: int = 0) -> ValueReport:
    tally = ValueTally(num_rows, Counter(user=missing), Counter(item=unknown))
    expected = {"train": {"item": {"missing": 0.0, "unknown": rate}, "user": {"missing": 0.01}}}
    return ValueReport(tally, expected, SCHEMA)


@pytest.mark.parametrize(
    ("rate", "unknown", "is_told"),
    [(0.0, 1000, True), (0.0, 150, True), (0.0, 90, False), (0.3, 350, False), (0.3, 450, True), (0.97, 1000, False)],
)
def test_what_is_far_above_the_training_split_is_told(rate: float, unknown: int, is_told: bool) -> None:
    warnings = report(rate, unknown).warnings()
    assert list(warnings) == (["item: unknown"] if is_told else [])
    if is_told:
        share = f"{unknown / 1000:.1%}"
        expected = f"feature 'item': {share} of values are not in its vocabulary, where training had {rate:.1%}"
        assert warnings["item: unknown"].startswith(expected)


def test_a_few_rows_say_nothing_and_many_missing_values_do() -> None:
    assert report(0.0, 1, num_rows=2).warnings() == {}
    [sentence] = report(0.0, 0, missing=600).warnings().values()
    assert sentence == "feature 'user': 60.0% of rows have no value, where training had 1.0%"


def test_validation_counts_as_expected_too() -> None:
    found = report(0.0, 300)
    both = {**found.expected, "valid": {"item": {"missing": 0.0, "unknown": 0.28}}}
    assert ValueReport(found.tally, both, SCHEMA).warnings() == {}
    [sentence] = ValueReport(ValueTally(1000, Counter(), Counter(item=900)), both, SCHEMA).warnings().values()
    assert "where training had 0.0% (validation 28.0%)" in sentence


def test_an_artifact_that_does_not_say_gets_shares_without_a_comparison() -> None:
    found = ValueReport(report(0.0, 900).tally, {}, SCHEMA)
    assert found.warnings() == {}
    assert found.to_json()["item"] == {"values": 1000, "missing": 0.0, "unknown": 0.9}
    assert name_unknown(found.to_json()) == "unknown values: item 90.0%"
    assert name_unknown(report(0.1, 900).to_json()) == "unknown values: item 90.0% (training 10.0%)"
    assert name_unknown(report(0.1, 0).to_json()) == ""


VISITS = SequenceFeature("visits", ("item", "user"), 3, newest="first")
WITH_HISTORY = replace(SCHEMA, sequence=(VISITS,))


def test_values_of_histories_are_counted() -> None:
    """Alike in rows and in blocks, those that are kept; of what was made of other rows there is no example."""
    draw, given = random.Random(0), rows(400)
    for row in given:
        items = draw.choices(["7", "8", "z"], k=draw.randrange(6))
        row |= {"visits__item": " ".join(items) or None, "visits__user": " ".join("u" for _ in items) or None}
    kept = [str(row["visits__item"] or "").split()[:3] for row in given]
    unknown = sum(item == "z" for items in kept for item in items)
    encoder, counter = FeatureEncoder(WITH_HISTORY, LEARNT), ValueCounter(WITH_HISTORY, LEARNT)
    columns = {name: pa.array([str(row[name] or "") or None for row in given]) for name in given[0]}
    encoded, prepared = encoder.encode_columns(columns)
    made = {name: encoded[name] for name in VISITS.keys}
    tallies = [ValueTally(), ValueTally(), ValueTally()]
    counter.count(encoder.encode(given), MappingTexts(given, WITH_HISTORY), tallies[0])
    counter.count(encoded, BlockTexts(prepared, np.arange(400)), tallies[1])
    timed = replace(WITH_HISTORY, timestamp=Timestamp("time"))
    rest = {name: values for name, values in columns.items() if not name.startswith("visits")}
    again, alone = FeatureEncoder(timed, LEARNT).encode_columns({**rest, "time": pa.array([1] * 400)}, None, made)
    ValueCounter(WITH_HISTORY, LEARNT).count(again, BlockTexts(alone, np.arange(400)), tallies[2])
    for tally in tallies:
        for name in VISITS.keys:
            assert (tally.tokens[name], tally.missing[name]) == (sum(map(len, kept)), sum(not items for items in kept))
        assert tally.unknown["visits__item"] == unknown > 100 and not tally.unknown["visits__user"]
    assert [tally.examples.get("visits__item") for tally in tallies] == [
        ("z", "the vocabulary has values such as '7'")
    ] * 2 + [None]


def test_rows_that_lack_their_history_are_told() -> None:
    tally = ValueTally(1_000, Counter({"visits__item": 900, "visits__user": 900}), Counter({"visits__item": 5}))
    tally.tokens.update({"visits__item": 100, "visits__user": 100})
    rates = {"train": {"visits__item": {"missing": 0.25, "unknown": 0.05}, "visits__user": {}}}
    report = ValueReport(tally, rates, WITH_HISTORY)
    assert report.warnings() == {
        "visits__item: missing": "sequence 'visits': 90.0% of rows have no events, where training had 25.0%"
    }
    assert report.to_json()["visits__item"]["unknown"] == 0.05
