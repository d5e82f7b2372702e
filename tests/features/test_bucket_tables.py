"""Texts of bucket tables: what is written is read, and whatever else is sent is a row's error."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.bucket_tables import BUCKET_PRECISIONS, BucketColumn, BucketPrecision, has_bucket_column
from features.rows import RowError
from tests.stand_ins.tiny_dataset import tiny_sequences

CLICKS, VIEWS = tiny_sequences().sequence
SHAPES = {"easy": (2, 4, 3), "hard": (2, 4, 5)}
COLUMN = BucketColumn.of(CLICKS, "sdim", SHAPES)
MODEL = "0123456789abcdef"
TABLES = {s: np.random.default_rng(7).normal(size=shape).astype(np.float32) for s, shape in SHAPES.items()}


@pytest.mark.parametrize("precision", BUCKET_PRECISIONS)
def test_what_is_written_is_read(precision: BucketPrecision) -> None:
    text = COLUMN.write(MODEL, TABLES, precision)
    assert len(text) == COLUMN.num_characters(precision)
    found = COLUMN.read(text, MODEL)
    assert list(found) == list(SHAPES)
    for stream, table in TABLES.items():
        assert found[stream].dtype == np.float32
        np.testing.assert_array_equal(found[stream], table.astype(precision).astype(np.float32))


def test_columns() -> None:
    assert COLUMN.name == "clicks__buckets"
    assert COLUMN.lists == ("clicks__device", "clicks__user"), "a table is made without times"
    assert COLUMN.replaces == (*COLUMN.lists, "clicks__time")
    beside = BucketColumn.of(VIEWS, "sdim", SHAPES, keeps_events=True)
    assert (beside.lists, beside.replaces) == (("views__user",), ())
    schema = tiny_sequences()
    assert has_bucket_column(schema, CLICKS)
    taken = replace(schema.dense[0], column="clicks__buckets")
    schema = replace(schema, dense=(taken,))
    assert not has_bucket_column(schema, CLICKS) and has_bucket_column(schema, VIEWS)


@given(st.text() | st.integers() | st.lists(st.text()) | st.dictionaries(st.text(), st.text()) | st.binary())
def test_anything_else_is_an_error_that_names_the_column(value: object) -> None:
    for sent in (value, f"{MODEL}.float32.{value}", f"{MODEL}.{value}"):
        with pytest.raises(RowError, match=r"^column 'clicks__buckets': .*make it again"):
            COLUMN.read(sent, MODEL)


@given(st.integers(0, COLUMN.num_characters() - 1), st.characters())
def test_a_changed_character_is_an_error_or_other_numbers(place: int, character: str) -> None:
    text = COLUMN.write(MODEL, TABLES, "float32")
    changed = text[:place] + character + text[place + 1 :]
    try:
        found = COLUMN.read(changed, MODEL)
    except RowError as error:
        assert changed != text and str(error).startswith("column 'clicks__buckets': ")
        return
    assert place > len(MODEL) + len(".float32") or changed == text
    assert {stream: table.shape for stream, table in found.items()} == SHAPES
    assert all(np.isfinite(table).all() for table in found.values())
