"""Time patterns against what Spark 4.0 reads: the numbers are its ``try_to_timestamp``'s, in UTC."""

import pyarrow as pa
import pytest

from features import times
from features.times import TimePattern, TimePatternError, check_time_format

SPARK = {
    "yyyy-MM-dd HH:mm:ss": {
        "2017-12-01 10:20:30": 1512123630,
        "2017-12-01 10:20:3": None,
        "2017-12-01 24:00:00": None,
        "2017-02-29 00:00:00": None,
        "2016-02-29 23:59:59": 1456790399,
        "2017-12-01 10:20:60": None,
        "2017-12-01 10:20:30 ": None,
        "2017-12-01T10:20:30": None,
        "1969-12-31 23:59:59": -1,
        "0001-01-01 00:00:00": -62135596800,
        "0000-01-01 00:00:00": -62167219200,
        "9999-12-31 23:59:59": 253402300799,
        "17-12-01 10:20:30": None,
        "+2017-12-01 10:20:30": None,
        "12017-12-01 10:20:30": None,
        "2017-13-01 10:20:30": None,
        "2017-00-01 10:20:30": None,
        "": None,
        "x": None,
        "٢017-12-01 10:20:30": None,
        "2017-12-01 10:2a:30": None,
    },
    "yyMMddHH": {
        "14102100": 1413849600,
        "14102124": None,
        "14102123": 1413932400,
        "99123123": 4102441200,
        "00010100": 946684800,
        "1410210": None,
        "141021000": None,
        "14022900": None,
        "14-02100": None,
        " 14102100": None,
        "69010100": 3124224000,
        "70010100": 3155760000,
    },
    "yyyyMMdd": {
        "20171201": 1512086400,
        "20170229": None,
        "2017120": None,
        "201712011": None,
        "+20171201": None,
        "00000101": -62167219200,
        "2017-2-1": None,
    },
    "yyyyMMddHHmmss": {
        "20171201102030": 1512123630,
        "20171201102060": None,
        "2017120110203": None,
    },
    "yyyy-MM-dd": {
        "2017-12-01": 1512086400,
        "2017-2-1": None,
        "2017-12-01 00:00:00": None,
        "1970-01-01": 0,
    },
    "yyyy-M-d": {
        "2017-12-01": 1512086400,
        "2017-2-1": 1485907200,
        "2017-02-1": 1485907200,
        "2017-002-1": 1485907200,
        "2017-0-1": None,
        "2017--2-1": None,
        "2017-+2-1": None,
    },
    "yyyy/MM/dd HH:mm": {
        "2017/12/01 10:20": 1512123600,
        "2017/12/01 10:20:30": None,
    },
    "yyyy-MM-dd'T'HH:mm:ss[.SSS][XXX]": {
        "2017-12-01T10:20:30": 1512123630,
        "2017-12-01T10:20:30.123": 1512123630,
        "2017-12-01T10:20:30.1": 1512123630,
        "2017-12-01T10:20:30.1234": None,
        "2017-12-01T10:20:30Z": 1512123630,
        "2017-12-01T10:20:30z": 1512123630,
        "2017-12-01t10:20:30Z": 1512123630,
        "2017-12-01T10:20:30.5+02:00": 1512116430,
        "2017-12-01T10:20:30-05:30": 1512143430,
        "2017-12-01T10:20:30+0200": None,
        "2017-12-01T10:20:30+02": None,
        "2017-12-01T10:20:30+18:00": 1512058830,
        "2017-12-01T10:20:30+18:01": None,
        "2017-12-01T10:20:30+19:00": None,
        "2017-12-01T10:20:30-00:00": 1512123630,
        "2017-12-01T10:20:30.": None,
        "2017-12-01T10:20:30+02:60": None,
        "1969-12-31T23:59:59.999": -1,
    },
    "yyyy-MM-dd HH:mm:ss.SSSSSS": {
        "2017-12-01 10:20:30.123456": 1512123630,
        "2017-12-01 10:20:30.1": 1512123630,
        "2017-12-01 10:20:30": None,
        "2017-12-01 10:20:30.1234567": None,
        "1969-12-31 23:59:59.5": -1,
    },
    "yyyy-MM-dd HH:mm:ssX": {
        "2017-12-01 10:20:30Z": 1512123630,
        "2017-12-01 10:20:30+02": 1512116430,
        "2017-12-01 10:20:30+0230": 1512114630,
        "2017-12-01 10:20:30+02:30": None,
        "2017-12-01 10:20:30+2": None,
        "2017-12-01 10:20:30": None,
    },
    "yyyy-MM-dd HH:mm:ssXX": {
        "2017-12-01 10:20:30Z": 1512123630,
        "2017-12-01 10:20:30+02": None,
        "2017-12-01 10:20:30+0230": 1512114630,
        "2017-12-01 10:20:30+02:30": None,
    },
    "yyyy-MM-dd HH:mm:ssXXXX": {
        "2017-12-01 10:20:30Z": 1512123630,
        "2017-12-01 10:20:30+023015": 1512114615,
        "2017-12-01 10:20:30+0230": 1512114630,
        "2017-12-01 10:20:30+02:30": None,
    },
    "yyyy-MM-dd HH:mm:ssXXXXX": {
        "2017-12-01 10:20:30Z": 1512123630,
        "2017-12-01 10:20:30+02:30:15": 1512114615,
        "2017-12-01 10:20:30+02:30": 1512114630,
    },
    "yyyy-MM-dd HH:mm:ssx": {
        "2017-12-01 10:20:30Z": None,
        "2017-12-01 10:20:30+00": 1512123630,
        "2017-12-01 10:20:30+02": 1512116430,
        "2017-12-01 10:20:30+0230": 1512114630,
    },
    "yyyy-MM-dd HH:mm:ssxxx": {
        "2017-12-01 10:20:30Z": None,
        "2017-12-01 10:20:30+00:00": 1512123630,
        "2017-12-01 10:20:30+02:30": 1512114630,
    },
    "yyyy-MM-dd HH:mm:ss Z": {
        "2017-12-01 10:20:30 +0230": 1512114630,
        "2017-12-01 10:20:30 +0000": 1512123630,
        "2017-12-01 10:20:30 Z": None,
        "2017-12-01 10:20:30 +02:30": None,
    },
    "dd/MMM/yyyy:HH:mm:ss Z": {
        "01/Dec/2017:10:20:30 +0100": 1512120030,
        "01/dec/2017:10:20:30 +0100": 1512120030,
        "01/DEC/2017:10:20:30 -0000": 1512123630,
        "1/Dec/2017:10:20:30 +0100": None,
        "01/December/2017:10:20:30 +0100": None,
    },
    "MMMM d, yyyy h:mm a": {
        "December 1, 2017 10:20 PM": 1512166800,
        "december 1, 2017 1:05 am": 1512090300,
        "December 1, 2017 12:05 AM": 1512086700,
        "December 1, 2017 12:05 pm": 1512129900,
        "December 1, 2017 13:05 PM": None,
        "Dec 1, 2017 1:05 PM": None,
        "December 1, 2017 0:05 PM": None,
    },
    "yyyy-MM-dd hh:mm:ss a": {
        "2017-12-01 10:20:30 PM": 1512166830,
        "2017-12-01 00:20:30 PM": None,
        "2017-12-01 12:20:30 AM": 1512087630,
        "2017-12-01 12:20:30 Am": 1512087630,
    },
    "yyyy-MM-dd hh:mm": {
        "2017-12-01 10:20": 1512123600,
        "2017-12-01 12:20": 1512087600,
    },
    "yyyy-MM-dd KK:mm a": {
        "2017-12-01 10:20 PM": 1512166800,
        "2017-12-01 00:20 PM": 1512130800,
        "2017-12-01 12:20 AM": None,
    },
    "yyyy-MM-dd kk:mm": {
        "2017-12-01 10:20": 1512123600,
        "2017-12-01 24:20": 1512087600,
        "2017-12-01 00:20": None,
    },
    "yyyy-DDD": {
        "2017-001": 1483228800,
        "2017-365": 1514678400,
        "2017-366": None,
        "2016-366": 1483142400,
        "2017-1": None,
    },
    "yyyy-D": {
        "2017-001": 1483228800,
        "2017-365": 1514678400,
        "2017-1": 1483228800,
        "2017-0": None,
    },
    "yyyy": {
        "2017": 1483228800,
        "17": None,
    },
    "yy": {
        "17": 1483228800,
        "2017": None,
    },
    "yyy": {
        "017": -61630675200,
        "2017": 1483228800,
    },
    "HH:mm": {
        "10:20": 37200,
    },
    "a": {
        "PM": 43200,
        "AM": 0,
    },
    "MM-dd": {
        "12-01": 28857600,
        "02-29": None,
    },
    "yyyy-MM-dd[ HH[:mm[:ss]]]": {
        "2017-12-01": 1512086400,
        "2017-12-01 10": 1512122400,
        "2017-12-01 10:20": 1512123600,
        "2017-12-01 10:20:30": 1512123630,
        "2017-12-01 10:20:": None,
    },
    "yyyy''MM'at'dd": {
        "2017'12at01": 1512086400,
        "2017'12AT01": 1512086400,
        "2017''12at01": None,
    },
    "Hmm": {
        "1020": 37200,
        "920": 33600,
        "20": None,
    },
    "yyyy-MM-dd HH:mm:ss SS": {
        "2017-12-01 10:20:30 5": 1512123630,
    },
    "SSS": {
        "5": 0,
    },
    "yyyy-MM-dd  HH": {
        "2017-12-01  10": 1512122400,
        "2017-12-01 10": None,
    },
    "ZZZZZ yyyy": {
        "+01:00 2017": 1483225200,
        "Z 2017": 1483228800,
    },
    "DD yyyy": {
        "12 2017": 1484179200,
        "123 2017": 1493769600,
    },
    "HH h a yyyy": {
        "13 1 PM 2017": 1483275600,
        "13 2 PM 2017": None,
    },
    "yyyy-MM-dd HHmmssSSS": {
        "2017-12-01 102030123": 1512123630,
        "2017-12-01 10203012": 1512123630,
    },
    "yyyy年MM月dd日": {
        "2017年12月01日": 1512086400,
    },
    "s": {
        "59": 59,
        "60": None,
        "7": 7,
        "007": 7,
    },
    "yyyy-MM-dd'T'HH:mm:ss.SSS'Z'": {
        "2017-12-01T10:20:30.123Z": 1512123630,
        "2017-12-01T10:20:30.12Z": 1512123630,
        "2017-12-01T10:20:30.123z": 1512123630,
    },
    "yyyy-MM-dd HH:mm:ss[.SSS] a": {
        "2017-12-01 10:20:30 AM": 1512123630,
        "2017-12-01 10:20:30 PM": None,
    },
}
"""Pattern -> text -> Unix seconds; None: Spark reads no time."""


def read(pattern: str, texts: list[str | None]) -> list[int | None]:
    found, is_time = TimePattern.parse(pattern).seconds(pa.array(texts, pa.string()))
    assert not found[~is_time].any()
    return [int(value) if known else None for value, known in zip(found, is_time, strict=True)]


@pytest.mark.parametrize("pattern", SPARK)
def test_spark_reads_the_same(pattern: str) -> None:
    expected = SPARK[pattern]
    assert read(pattern, list(expected)) == list(expected.values())


@pytest.mark.parametrize("pattern", SPARK)
def test_one_by_one_and_together_are_the_same(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*SPARK[pattern], None, *SPARK[pattern]]
    together = read(pattern, texts)
    assert together[len(SPARK[pattern])] is None
    monkeypatch.setattr(times, "_layouts", lambda pattern: None)
    assert read(pattern, texts) == together


def test_parts_of_an_array_and_empty_ones() -> None:
    array = pa.array(["14102100", None, "14102101", "x"])
    found, is_time = TimePattern.parse("yyMMddHH").seconds(array[1:])
    assert found.tolist() == [0, 1413853200, 0] and is_time.tolist() == [False, True, False]
    assert read("yyMMddHH", []) == [] and read("yyMMddHH", [None]) == [None]


def test_more_than_spark_reads() -> None:
    """Digits side by side, which Java gives up on, and u, which Spark refuses."""
    assert read("yyyyMMddHHmmssSSS", ["20171201102030123"]) == [1512123630]
    assert read("yyyyMMddH", ["201712011", "2017120110"]) == [1512090000, 1512122400]
    assert read("uuuu-MM-dd", ["2017-12-01"]) == [1512086400]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("yyyy-MM-dd z", "'z' cannot be read"),
        ("yyyy-MM-dd E", "'E' cannot be read"),
        ("YYYY-ww", "'YYYY' cannot be read"),
        ("HHH", "'HHH' cannot be read"),
        ("MMMMM", "'MMMMM' cannot be read"),
        ("yyyy XXXXXX", "'XXXXXX' cannot be read"),
        ("yyyy[", r"\[ without a \]"),
        ("yyyy]", r"\] without a \["),
        ("yyyy'", "single quote without its second"),
        ("yyyy {", "single quotes"),
        ("yyyy yy", "year twice"),
        ("D MM yyyy", "month twice"),
    ],
)
def test_refused(pattern: str, message: str) -> None:
    with pytest.raises(TimePatternError, match=message):
        check_time_format(pattern)


def test_formats_that_are_no_patterns() -> None:
    check_time_format("unix")
    check_time_format("unix_ms")
