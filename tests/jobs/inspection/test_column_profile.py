"""Profiles of columns: missing values, lists, times, amounts, and how many distinct values a whole log has."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.inspection.column_profile import ColumnProfile, find_value_settings, profile_lists, profile_texts
from jobs.inspection.feature_choice import choose_encoding, is_amount, share_of_label

RANDOM = np.random.default_rng(5)


def profiled(name: str, values: list[Any], total_rows: int | None = None) -> ColumnProfile:
    texts = pa.array([None if value is None else str(value) for value in values], pa.string())
    return profile_texts(name, texts, total_rows or len(values))


@pytest.mark.parametrize(
    ("cells", "separator", "num_tokens"),
    [
        (["a|b", "b", "a", "a|b|c"] * 30, "|", 3),
        (["a, b", "b", "c, a", "a, b, c", "c"] * 30, ",", 3),
        ([f"{i % 40} {i % 37}" + f" {i % 7}" * (i % 2) for i in range(900)], " ", 40),
        (["[3, 7]", "[3]", "[]"] * 30, ",", 2),
        (["['a', 'b']", "['c']"] * 30, ",", 3),
        (["Not in universe", "Private", "Never worked"] * 30, None, 0),
        ([f"Film {i % 50} (1994), a tale" for i in range(500)], None, 0),
        (["3,5", "4,25", "7,0"] * 30, None, 0),
        (["2014-10-21 10:00:00", "2014-10-22 11:30:00"] * 30, None, 0),
        ([" a", "a", "b"] * 30, None, 0),
    ],
)
def test_lists(cells: list[str], separator: str | None, num_tokens: int):
    found = profiled("cells", cells)
    assert found.separator == separator
    if separator is not None:
        assert found.num_distinct == num_tokens
        assert find_value_settings([found]).list_literals == cells[0].startswith("[")


def test_lists_of_the_file():
    found = profile_lists("tags", pa.array([["a", "b"], [], ["b"]] * 40, pa.list_(pa.string())), 120)
    assert found.is_list and found.num_distinct == 2 and found.missing == pytest.approx(1 / 3)
    assert found.lengths is not None and found.lengths.max() == 2


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("t", [1_700_000_000 + 60 * i for i in range(50)], "unix"),
        ("t", [1_700_000_000_123 + 60_000 * i for i in range(50)], "unix_ms"),
        ("hour", [14102100 + i % 24 for i in range(50)], "yyMMddHH"),
        ("day", [20141001 + i % 30 for i in range(50)], "yyyyMMdd"),
        ("t", [f"2014-10-21 {i % 24}:05" for i in range(50)], "yyyy-MM-dd H:mm"),
        ("t", [f"11/{1 + i % 28}/2019 2:14:46 PM" for i in range(50)], "M/d/yyyy h:mm:ss a"),
        ("t", [f"{1 + i % 28}/11/2019 02:14:46" for i in range(50)], "d/M/yyyy H:mm:ss"),
        ("hour", [i % 24 for i in range(50)], None),
        ("item", list(range(900_000_000, 1_700_000_000, 20_000_000)), None),
        ("t", ["soon", "2014-10-21"], None),
    ],
)
def test_times(name: str, values: list[Any], expected: str | None):
    assert profiled(name, values).time_format == expected


def test_texts_that_mean_missing():
    found = profiled("price", [1.5, 2.5, "n/a", " NULL ", None, ""] * 30)
    assert found.is_number and found.missing == pytest.approx(4 / 6)
    settings = find_value_settings([found, profiled("user", ["a ", "b", 3])])
    assert settings.null_tokens == ("NULL", "n/a") and settings.strip
    country = profiled("country", ["NA", "DE", "FR"] * 30)
    assert country.missing == 0 and find_value_settings([country]).null_tokens == ()


def test_whole_numbers_with_a_point_are_the_same_ones():
    found = profiled("user", ["3", "3.0", "4.0", "5"] * 30)
    assert found.num_distinct == 3 and find_value_settings([found]).whole_floats
    assert not find_value_settings([profiled("price", ["3", "3.5", "4.0"])]).whole_floats


def test_distinct_values_of_a_log_that_is_sorted_by_them():
    found = profiled("user", np.repeat(np.arange(400), 100).tolist(), 400_000)
    assert 3_000 < found.num_distinct < 5_000


@pytest.mark.parametrize("num_users", [50, 5_000, 200_000])
def test_distinct_values_of_a_log_of_which_a_part_was_read(num_users: int):
    users = RANDOM.zipf(1.2, 400_000) % num_users
    part = profiled("user", users[:40_000].tolist(), len(users))
    truth = len(np.unique(users))
    assert truth / 2 < part.num_distinct < 2 * truth
    _, size = choose_encoding(truth, len(users))
    assert size > truth and (size == truth + 2 or 2 * truth <= size <= 5 * truth)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("x", RANDOM.normal(0, 1, 500).round(3), True),
        ("x", RANDOM.lognormal(3, 2, 3_000).astype(int), True),
        ("x", RANDOM.permutation(100_000)[:400][RANDOM.integers(0, 400, 3_000)], False),
        ("x", [-1] * 500 + (100_000 + RANDOM.integers(0, 300, 500)).tolist(), False),
        ("user_id", RANDOM.lognormal(3, 2, 3_000).astype(int), False),
        ("item_count", RANDOM.integers(0, 90, 3_000), True),
        ("age", RANDOM.integers(1, 90, 3_000), True),
        ("age", RANDOM.integers(1, 7, 3_000), False),
        ("x", RANDOM.integers(0, 9, 3_000), False),
    ],
)
def test_amounts_and_codes(name: str, values: Any, expected: bool):
    assert is_amount(profiled(name, list(values))) is expected


def test_share_of_the_label_that_a_column_tells():
    labels = (RANDOM.random(20_000) < 0.02).astype(float)
    noise = RANDOM.integers(0, 5_000, 20_000)
    assert share_of_label(profiled("noise", noise.tolist()), labels) < 0.1
    later = [f"t{i}" if label else None for i, label in enumerate(labels.tolist())]
    assert share_of_label(profiled("time_of_click", later), labels) > 0.95
    count = np.where(labels > 0, RANDOM.integers(1, 4, 20_000), 0)
    assert share_of_label(profiled("count", count.tolist()), labels) == pytest.approx(1, abs=0.02)
