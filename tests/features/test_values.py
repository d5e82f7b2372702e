"""Raw values of every Arrow type -> texts, numbers, tokens and times."""

import datetime
import decimal
import math
import random

import numpy as np
import pyarrow as pa
import pytest

from features.schema import HashEncoding, SparseFeature, Values
from features.values import ColumnError, loose_texts, numbers, seconds, texts, tokens

DAY = datetime.date(2017, 12, 1)
TIME = datetime.datetime(2017, 12, 1, 10, 20, 30)
PARIS = pa.timestamp("ms", "Europe/Paris")


def decimals(values, precision=20, scale=3):
    return pa.array([None if v is None else decimal.Decimal(v) for v in values], pa.decimal128(precision, scale))


BAD = "bad"


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array(["a", "", None, " a ", "1.50", "日"]), ["a", None, None, " a ", "1.50", "日"]),
        (pa.array(["a", "", None], pa.large_string()), ["a", None, None]),
        (pa.array([b"a", b"", None, "ü".encode()]), ["a", None, None, "ü"]),
        (pa.array([b"a", b"\xff", None]), ["a", BAD, None]),
        (pa.array([b"ab", None], pa.binary(2)), ["ab", None]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array([7, -7, None], pa.int8()), ["7", "-7", None]),
        (pa.array([2**64 - 1, None], pa.uint64()), ["18446744073709551615", None]),
        (pa.array([-(2**63)], pa.int64()), ["-9223372036854775808"]),
        (pa.array([7.0, -0.0, math.nan, None, 2.0**53]), ["7", "0", None, None, "9007199254740992"]),
        (pa.array([0.5, math.inf, 2.0**53 + 2, 3.0]), [BAD, BAD, BAD, "3"]),
        (pa.array([2.0, None, 0.1], pa.float32()), ["2", None, BAD]),
        (pa.array([np.float16(2), None, np.float16(0.5)], pa.float16()), ["2", None, BAD]),
        (decimals(["3", "-12.000", None, "0"]), ["3", "-12", None, "0"]),
        (decimals(["3.5", "4"]), [BAD, "4"]),
        (decimals(["0", "1"], 30, 20), ["0", "1"]),
        (pa.array([DAY, None], pa.date32()), ["2017-12-01", None]),
        (pa.array([DAY, None], pa.date64()), ["2017-12-01", None]),
        (pa.array([TIME, None], pa.timestamp("s")), ["2017-12-01 10:20:30", None]),
        (pa.array([TIME.replace(microsecond=120_000)], pa.timestamp("ns")), ["2017-12-01 10:20:30.12"]),
        (pa.array([TIME], pa.timestamp("us")), ["2017-12-01 10:20:30"]),
        (pa.array([1512123630500], PARIS), ["2017-12-01 10:20:30.5"]),
        (pa.array([None, None]), [None, None]),
        (pa.array(["a", "b", None]).dictionary_encode(), ["a", "b", None]),
        (pa.chunked_array([["a"], ["b"]]), ["a", "b"]),
        (pa.array([], pa.string()), []),
    ],
    ids=str,
)
def test_texts(array, expected):
    found, bad = texts(array)
    assert found.type == pa.string()
    assert found.to_pylist() == [None if value is BAD else value for value in expected]
    assert (bad is None) == (BAD not in expected)
    assert bad is None or bad.tolist() == [value is BAD for value in expected]


@pytest.mark.parametrize("array", [pa.array([[1]]), pa.array([{"a": 1}]), pa.array([1], pa.duration("s"))], ids=str)
def test_no_texts(array):
    with pytest.raises(ColumnError, match="is no text"):
        texts(array)


@pytest.mark.parametrize(
    ("settings", "raw", "expected"),
    [
        (Values(strip=True), [" a\t", " ", "a b", None], ["a", None, "a b", None]),
        (Values(null_tokens=("\\N", "NULL")), ["\\N", "NULL", "null", " NULL"], [None, None, "null", " NULL"]),
        (Values(null_tokens=("NULL",), strip=True), [" NULL "], [None]),
        (
            Values(whole_floats=True),
            ["3.0", "3", "-3.00", "-0.0", "3.10", "3.", "a.0", "1.2.0", "007.0", "1e3", ".0"],
            ["3", "3", "-3", "0", "3.10", "3.", "a.0", "1.2.0", "007", "1e3", ".0"],
        ),
        (Values(whole_floats=True, null_tokens=("-1",)), ["-1.0", "-1", "1.0"], [None, None, "1"]),
        (Values(null_tokens=("-1.0",), whole_floats=True), ["-1.0", "-1"], [None, "-1"]),
    ],
)
def test_settings_of_texts(settings, raw, expected):
    assert texts(pa.array(raw, pa.string()), settings)[0].to_pylist() == expected


def test_null_tokens_hold_for_every_type():
    settings = Values(null_tokens=("-1", "true"))
    for array in (pa.array([-1, 2]), pa.array([-1.0, 2.0]), pa.array(["-1", "2"]), decimals(["-1", "2"])):
        assert texts(array, settings)[0].to_pylist() == [None, "2"]
        assert math.isnan(numbers(array, settings)[0][0]) and numbers(array, settings)[0][1] == 2
    assert texts(pa.array([True, False]), settings)[0].to_pylist() == [None, "false"]
    assert math.isnan(numbers(pa.array([True, False]), settings)[0][0])


def test_parts_of_arrays():
    assert texts(pa.array(["x", "", "a", None])[1:])[0].to_pylist() == [None, "a", None]
    assert texts(pa.array([0.5, 1.0])[1:])[0].to_pylist() == ["1"]
    raw = [["x", "", "aé", None, "NA", "0", " NA", "3.0"] * 3][0]
    settings = Values(null_tokens=("NA",), strip=True, whole_floats=True)
    for at in range(len(raw)):
        whole = texts(pa.array(raw), settings)[0].to_pylist()
        assert texts(pa.array(raw)[at:], settings)[0].to_pylist() == whole[at:]
        part = ["1", "", None, " 2", "x"] * 3
        found, bad = numbers(pa.array(part)[at % 10 :])
        assert bad.tolist() == [value == "x" for value in part[at % 10 :]]
        assert np.nan_to_num(found, nan=-1).tolist() == [{"1": 1, " 2": 2}.get(v, -1) for v in part[at % 10 :]]


NUMBERS = {
    "": None,
    "  \t": None,
    " 1.5 ": 1.5,
    "+.5": 0.5,
    "7.": 7.0,
    "-1e-3": -0.001,
    "007": 7.0,
    "-0": 0.0,
    "3.4028234663852886e38": 3.4028234663852886e38,
    "1e-400": 0.0,
    "true": 1.0,
    "True": 1.0,
    "TRUE": 1.0,
    "false": 0.0,
    "False": 0.0,
    " FALSE ": 0.0,
    "123456789012345678901234567890": 1.2345678901234568e29,
}
NO_NUMBERS = [
    "x",
    "1,5",
    "0x10",
    "nan",
    "inf",
    "-inf",
    "Infinity",
    "NaN",
    "1e999",
    "1_000",
    "٣",
    "1f",
    "--1",
    ".",
    "1e",
]
NO_NUMBERS += ["1e39", "-1e39", "+", "tRue", "1 2", "+-1", "\u00a01", "1\n"]


def test_numbers_in_text():
    array = pa.array([*NUMBERS, None], pa.string())
    found, bad = numbers(array)
    assert bad is None
    assert [None if math.isnan(v) else v for v in found] == [*NUMBERS.values(), None]


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_alone(text):
    found, bad = numbers(pa.array([text]))
    assert bad is None and (math.isnan(found[0]) if NUMBERS[text] is None else found[0] == NUMBERS[text])


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_no_number(text):
    for others in ([], ["1", None, "2.5"]):
        found, bad = numbers(pa.array([text, *others], pa.string()))
        assert bad is not None and bad.tolist() == [True] + [False] * len(others)
        assert np.isnan(found).tolist() == [True] + [v is None for v in others]


def test_numbers_are_those_of_python():
    rng = random.Random(8)
    raw = [f"{rng.gauss(0, 1) * 10 ** rng.randrange(-30, 30)!r}" for _ in range(3000)]
    raw += [f"{rng.randrange(10**18)}.{rng.randrange(10**18)}e{rng.randrange(-40, 5)}" for _ in range(3000)]
    assert numbers(pa.array(raw))[0].tolist() == [float(text) for text in raw]
    assert numbers(pa.array([*raw, "true"]))[0].tolist() == [*(float(text) for text in raw), 1.0]


def test_what_is_odd_may_be_anywhere():
    rng = random.Random(3)
    made = [rng.choice([str(i), str(i), None, f"{i}.5"]) for i in range(20_000)]
    odd = {7: "x", 8: "", 5000: " 3\t", 5001: "true", 12_000: "1e39", 12_001: "+1", 19_999: "nan"}
    for at, text in odd.items():
        made[at] = text
    found, bad = numbers(pa.array(made, pa.string()))
    assert np.flatnonzero(bad).tolist() == [7, 12_000, 19_999]
    expected = [math.nan if text is None or i in odd else float(text) for i, text in enumerate(made)]
    expected[5000], expected[5001], expected[12_001] = 3.0, 1.0, 1.0
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([1.5, None, math.nan, math.inf, -1e300]), [1.5, None, None, BAD, BAD]),
        (pa.array([1.5, None], pa.float32()), [1.5, None]),
        (pa.array([np.float16(1.5), None], pa.float16()), [1.5, None]),
        (pa.array([3, None], pa.int16()), [3.0, None]),
        (pa.array([2**64 - 1], pa.uint64()), [2.0**64]),
        (pa.array([True, False, None]), [1.0, 0.0, None]),
        (decimals(["3.125", None, "-7"]), [3.125, None, -7.0]),
        (pa.array([b" 1.5", b"", None, b"x", b"\xff"]), [1.5, None, None, BAD, BAD]),
        (pa.array([None, None]), [None, None]),
        (pa.array([], pa.string()), []),
    ],
    ids=str,
)
def test_numbers_of_types(array, expected):
    found, bad = numbers(array)
    assert found.dtype == np.float64
    assert [None if math.isnan(v) else v for v in found] == [None if v is BAD else v for v in expected]
    assert (bad is None) == (BAD not in expected)
    assert bad is None or bad.tolist() == [v is BAD for v in expected]


def test_times_are_no_numbers():
    with pytest.raises(ColumnError, match="is no number"):
        numbers(pa.array([TIME]))


# --------------------------------------------------------------------------------------------------------------- tokens


def bag(separator="|", max_length=3):
    return SparseFeature("m", HashEncoding(9), separator=separator, max_length=max_length)


def rows_of(found):
    flat, rows, at = found.texts.to_pylist(), [], 0
    for size in found.lengths.tolist():
        rows.append(flat[at : at + size])
        at += size
    return rows


def test_tokens_of_text():
    raw = ["a|b", "", None, "|", "a||b|", "a|b|c|d|é", "é"]
    found = tokens(pa.array(raw), None, bag())
    assert rows_of(found) == [["a", "b"], [], [], [], ["a", "b"], ["a", "b", "c"], ["é"]]
    assert found.dropped.tolist() == [0, 0, 0, 0, 0, 2, 0] and found.bad is None
    assert rows_of(tokens(pa.array(raw)[4:], None, bag("||"))) == [["a", "b|"], ["a|b|c|d|é"], ["é"]]


def test_tokens_of_lists():
    raw = [["a", None, ""], None, [], ["a", "b", "c", "d", ""]]
    for type_ in (pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.large_string())):
        found = tokens(pa.array(raw, type_), None, bag())
        assert rows_of(found) == [["a"], [], [], ["a", "b", "c"]] and found.dropped.tolist() == [0, 0, 0, 1]
    assert rows_of(tokens(pa.array([[1, 2], None], pa.list_(pa.int64(), 2)), None, bag())) == [["1", "2"], []]
    assert rows_of(tokens(pa.array(raw)[2:], None, bag())) == [[], ["a", "b", "c"]]


def test_a_fraction_in_a_list_is_bad():
    found = tokens(pa.array([[1.0, 2.0], [0.5], None, [3.0, math.nan]]), None, bag())
    assert found.bad is not None and found.bad.tolist() == [False, True, False, False]
    assert rows_of(found) == [["1", "2"], [], [], ["3"]]
    with pytest.raises(ColumnError, match="is no text"):
        tokens(pa.array([[[1]]]), None, bag())


def test_json_has_text_in_some_rows_and_lists_in_others():
    lists = pa.array([None, ["x", "", None, "y"], []], pa.list_(pa.string()))
    assert rows_of(tokens(pa.array(["a|b", None, None]), lists, bag())) == [["a", "b"], ["x", "y"], []]


def test_other_types_are_one_token():
    assert rows_of(tokens(pa.array([3, None]), None, bag())) == [["3"], []]


def test_settings_of_tokens():
    settings = Values(strip=True, null_tokens=("NA",), whole_floats=True)
    raw = [" a | b", "NA|c", "NA", "1.0|2", " "]
    assert rows_of(tokens(pa.array(raw), None, bag(), settings)) == [["a", "b"], ["c"], [], ["1", "2"], []]
    lists = pa.array([["a ", "NA"], None], pa.list_(pa.string()))
    assert rows_of(tokens(pa.array([None, "b"]), lists, bag(), settings)) == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("[3, 7]", ["3", "7"]),
        ("[]", []),
        (" [3,7] ", ["3", "7"]),
        ("['a', 'b,c']", ["a", "b,c"]),
        ('["a", "it\'s"]', ["a", "it's"]),
        (r"['it\'s', 'b']", ["it's", "b"]),
        ("[3 7  8]", ["3", "7", "8"]),
        ("['a' 'b']", ["a", "b"]),
        ("['a']", ["a"]),
        ("[None, 3, nan]", ["3"]),
        ("[a b, c]", ["a b", "c"]),
        ("[3, 7", ["[3", "7"]),
        ("a, b", ["a", "b"]),
        ("['', 'x']", ["x"]),
    ],
)
def test_printed_lists(cell, expected):
    settings = Values(list_literals=True, strip=True)
    assert rows_of(tokens(pa.array([cell, None, "z"]), None, bag(","), settings)) == [expected, [], ["z"]]


def test_printed_lists_are_text_without_the_setting():
    assert rows_of(tokens(pa.array(["[3, 7]"]), None, bag(","))) == [["[3", " 7]"]]


# -------------------------------------------------------------------------------------------------------------- seconds


@pytest.mark.parametrize(
    ("array", "time_format", "expected"),
    [
        (
            pa.array(["1512123630", " 1.9", "-0.5", "x", "", None, "1e15", "1e17"]),
            "unix",
            [1512123630, 1, -1, None, None, None, 10**15, None],
        ),
        (pa.array(["1512123630999", "-1"]), "unix_ms", [1512123630, -1]),
        (pa.array([1512123630, None, 2**60, -1]), "unix", [1512123630, None, None, -1]),
        (pa.array([1512123630999, -1]), "unix_ms", [1512123630, -1]),
        (pa.array([1512123630], pa.uint64()), "unix", [1512123630]),
        (pa.array([1512123630.7, math.nan]), "unix", [1512123630, None]),
        (pa.array([TIME, None], pa.timestamp("ns")), "unix", [1512123630, None]),
        (pa.array([-1], pa.timestamp("us")), "yyyy", [-1]),
        (pa.array([1512123630999], PARIS), "unix", [1512123630]),
        (pa.array([DAY, None], pa.date32()), "unix", [1512086400, None]),
        (pa.array([DAY, None], pa.date64()), "unix", [1512086400, None]),
        (pa.array(["2017-12-01", "x"]), "yyyy-MM-dd", [1512086400, None]),
        (pa.array([14102100, None]), "yyMMddHH", [1413849600, None]),
        (pa.array([14102100.0, 0.5]), "yyMMddHH", [1413849600, None]),
        (pa.array([b"14102100"]), "yyMMddHH", [1413849600]),
    ],
    ids=str,
)
def test_seconds(array, time_format, expected):
    found, is_time = seconds(array, time_format)
    assert found.dtype == np.int64
    assert [int(v) if known else None for v, known in zip(found, is_time, strict=True)] == expected


def test_no_seconds():
    with pytest.raises(ColumnError):
        seconds(pa.array([[1]]), "unix")


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array(["a", "", None, " NA "]), ["a", None, None, " NA "]),
        (pa.array([1.0, 0.1, math.nan, None, math.inf, 1e300]), ["1", "0.1", None, None, "inf", "1e+300"]),
        (pa.array([0.1], pa.float32()), ["0.1"]),
        (decimals(["3.500", None]), ["3.500", None]),
        (pa.array([["a", None], None, []]), ['["a",null]', None, "[]"]),
        (pa.array([{"a": 1}]), ['{"a":1}']),
        (pa.array([b"\xff", None, b"a"]), ["\ufffd", None, "a"]),
        (pa.array([TIME]), ["2017-12-01 10:20:30"]),
        (pa.array([True]), ["true"]),
    ],
    ids=str,
)
def test_loose_texts(array, expected):
    assert loose_texts(array).to_pylist() == expected


def test_null_tokens_of_loose_texts():
    assert loose_texts(pa.array(["NA", "b"]), Values(null_tokens=("NA",))).to_pylist() == [None, "b"]
