"""Layouts told from the first bytes: each is written and must be found again."""

import json
from pathlib import Path
from typing import Any

import pytest

from features.log_format import LogError, LogFormat
from jobs.inspection.log_layout import find_layout, has_header

ROWS = [("user", "item", "city", "click"), *((f"u{i % 9}", f"i{i % 7}", "Köln", str(i % 3 // 2)) for i in range(200))]


def written(folder: Path, rows: list[tuple[str, ...]], separator: str = ",", encoding: str = "UTF-8") -> str:
    path = folder / "log"
    path.write_bytes("".join(separator.join(row) + "\n" for row in rows).encode(encoding))
    return str(path)


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16", "UTF-32", "UTF-16-LE", "UTF-16-BE", "cp1252"])
@pytest.mark.parametrize("separator", [",", "\t", ";", "|", "::", "\x01"])
def test_separators_and_encodings(tmp_path: Path, separator: str, encoding: str):
    found = find_layout(written(tmp_path, ROWS, separator, encoding), {})
    assert (found.format.delimiter, found.format.encoding, found.format.header) == (separator, encoding, True)
    assert (found.format.kind == "tsv") == (separator == "\t")
    is_guess = encoding in ("UTF-16-LE", "UTF-16-BE", "cp1252")
    assert ["is a guess" in note for note in found.notes] == [True] * is_guess


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("GBK", ("北京", "上海市", "广州")),
        ("EUC-KR", ("서울", "부산시", "대구")),
        ("cp1251", ("Москва", "Казань", "Уфа")),
        ("cp1252", ("Málaga", "Köln", "Orléans")),
    ],
)
def test_guesses_of_older_encodings(tmp_path: Path, encoding: str, words: tuple[str, ...]):
    rows = [("user", "city", "click"), *((f"u{i % 9}", words[i % 3], str(i % 2)) for i in range(300))]
    assert find_layout(written(tmp_path, rows, encoding=encoding), {}).format.encoding == encoding


def test_some_damaged_lines_leave_it_utf8(tmp_path: Path):
    path = Path(written(tmp_path, ROWS))
    path.write_bytes(path.read_bytes() + b"u1,i1,K\xf6ln,1\n")
    assert find_layout(str(path), {}).format == LogFormat()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([["user", "price"], ["a", "1.5"], ["b", "2"]], True),
        ([["user", "item"], ["a", "x"], ["a", "y"], ["b", "x"], ["b", "y"]], True),
        ([["a", "x"], ["a", "y"], ["b", "x"]], False),
        ([["1", "x"], ["2", "y"]], False),
        ([["", "user", "n"], ["0", "a", "1"], ["1", "b", "2"]], True),
        ([["a", "a", "n"], ["x", "y", "1"], ["x", "y", "2"]], True),
        ([["user", "item"]], True),
        ([["http://a/b?c", "http://d/e"], ["http://f/g", "http://h/i"]], False),
    ],
)
def test_headers(rows: list[list[str]], expected: bool):
    assert has_header(rows) is expected


@pytest.mark.parametrize(
    ("kind", "title", "quote", "escape"),
    [
        ("csv", '"size 5\\" pipe, long"', '"', "\\"),
        ("csv", '"a ""b"", c"', '"', None),
        ("csv", '5" pipe', '"', None),  # a quote inside a plain cell is text
        ("tsv", '"a, b"', '"', None),
    ],
)
def test_quotes(tmp_path: Path, kind: str, title: str, quote: str, escape: str | None):
    rows = [(f"u{i % 9}", title if i % 3 else '"x"', str(i % 2)) for i in range(200)]
    path = written(tmp_path, [("user", "title", "click"), *rows], "\t" if kind == "tsv" else ",")
    found = find_layout(path, {}).format
    assert (found.kind, found.quote_character, found.escape) == (kind, quote, escape)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"separator": "-"}, {"delimiter": "-"}),
        ({"separator": "-", "columns": ["a", "b", "c", "d"]}, {"header": False, "columns": ("a", "b", "c", "d")}),
        ({"separator": "-", "header": False}, {"columns": ("c1", "c2", "c3", "c4")}),
        ({"separator": "-", "encoding": "cp1252"}, {"encoding": "cp1252"}),
    ],
)
def test_what_is_given_is_taken(tmp_path: Path, given: dict[str, Any], expected: dict[str, Any]):
    found = find_layout(written(tmp_path, ROWS, "-"), given).format
    assert {name: getattr(found, name) for name in expected} == expected


def test_lines_of_other_kinds(tmp_path: Path):
    path = tmp_path / "log"
    path.write_text("".join(json.dumps({"user": i, "click": i % 2}) + "\n" for i in range(9)))
    assert find_layout(str(path), {}).format.kind == "jsonl"
    path.write_text("1 0:3:1 1:7:0.5\n0 0:4:1\n" * 9)
    assert find_layout(str(path), {}).format.kind == "libffm"
    path.write_text('{"click": 1,\n "user": 2}\n')
    with pytest.raises(LogError, match="its first line is no whole object: write one object a line"):
        find_layout(str(path), {})
