"""Csv and tsv files: the readers against the line-by-line reader in Python, whatever the portions and steps."""

import csv
import gzip
import io
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from features.log_format import LogError, LogFormat
from features.raw_block import Wanted
from features.read import lines as lines_module
from features.read import quotes
from features.read.delimited import WRONG_COLUMNS
from features.read.quotes import BADLY_QUOTED
from features.rows import RowError
from tests.features.read.whole import CUTS, read_blocks, read_whole
from tests.oracles.row_encoder import to_number
from tests.oracles.row_reader import read_lines, split_line

ABC = ("a", "b", "c")
SAME_FOLDER = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PIECES = st.sampled_from(
    [
        "a",
        "b1",
        "7",
        "1.5",
        " ",
        "",
        '"',
        '""',
        ",",
        ",",
        ",",
        "\n",
        "\n",
        "\r\n",
        "\r",
        "\0",
        "é",
        "\U0001f600",
        "\ufeff",
    ]
)
TEXTS = st.lists(PIECES, max_size=60).map("".join)
DAMAGE = st.sampled_from([b"", b"", b"\xff", b"\xed\xa0\x80", b"\xc3"])


def split_lines(text: str) -> list[str]:
    """Lines with their ends, as Python's universal newlines have them."""
    return list(io.StringIO(text, newline=""))


def expect(text: str, log_format: LogFormat) -> tuple[list[tuple[int, dict[str, Any]]], list[tuple[int, str]]]:
    """Rows and rejected lines of a text without damaged bytes, by the rule, line by line."""
    lines = split_lines(text)
    columns, header, rows, rejected = log_format.columns, None, [], []
    i = 0
    while i < len(lines):
        line = lines[i].rstrip("\r\n")
        number, i = i + 1, i + 1
        if not line:
            continue
        values, taken = None, 1
        joined = ""
        for j in range(number - 1, min(len(lines), number - 1 + quotes.MAX_JOINED_LINES)):
            text = joined + lines[j].rstrip("\r\n")
            joined += lines[j]
            try:
                values, taken = split_line(text, log_format), j - number + 2
            except LogError:
                break
            except csv.Error as error:
                if "unexpected end" not in str(error):
                    break
                continue
            break
        if values is not None and taken > 1 and columns and len(values) != len(columns):
            values = None
        if values is None:
            rejected.append((number, BADLY_QUOTED))
            continue
        row = "".join(lines[number - 1 : number - 1 + taken]).rstrip("\r\n") if taken == 1 else text
        i = number - 1 + taken
        if not columns:
            columns, header = tuple(values), row
        elif row != header:
            if len(values) == len(columns):
                rows.append((number, {c: v or None for c, v in zip(columns, values, strict=True)}))
            else:
                rejected.append((number, WRONG_COLUMNS))
    return rows, rejected


def short(found) -> tuple[list, list]:
    rows, rejected = found
    return [(number, values) for number, _, _, values in rows], [(number, reason) for number, _, _, reason in rejected]


@SAME_FOLDER
@given(text=TEXTS, quote=st.sampled_from(['"', "", "'"]), is_headed=st.booleans())
@example(text='"\n"\n"",b,', quote='"', is_headed=False)
@example(text='x","a\n,"\n",', quote='"', is_headed=False)
def test_rows_are_those_of_python_whatever_the_cuts(tmp_path: Path, text: str, quote: str, is_headed: bool) -> None:
    path = tmp_path / "a.csv"
    if is_headed:
        log_format = LogFormat(quote=quote)
        text = "a,b,c\n" + text
    else:
        log_format = LogFormat(quote=quote, header=False, columns=ABC)
    path.write_bytes(text.encode())
    expected = expect(text.removeprefix("\ufeff"), log_format)
    found = read_whole(path, log_format, Wanted(ABC))
    assert short(found) == expected
    data = path.read_bytes()
    for number, offset, line, _ in found[0]:
        assert data[offset:].startswith(line.encode()), (number, offset)
    for cut in CUTS[1:]:
        assert read_whole(path, log_format, Wanted(ABC), *cut) == found


@SAME_FOLDER
@given(parts=st.lists(st.tuples(TEXTS, DAMAGE), max_size=5))
def test_damaged_bytes_are_found_line_by_line_as_by_the_old_reader(tmp_path: Path, parts) -> None:
    path = tmp_path / "a.tsv"
    log_format = LogFormat("tsv", separator=",", header=False, columns=ABC)
    path.write_bytes(b"".join(text.encode() + damage for text, damage in parts))
    rows, errors = [], []
    for number, row in read_lines(str(path), log_format):
        if isinstance(row, LogError):
            errors.append((number, str(row) if "not UTF-8" in str(row) else WRONG_COLUMNS))
        else:
            rows.append((number, row))
    found = read_whole(path, log_format, Wanted(ABC))
    assert short(found) == (rows, errors)
    for cut in CUTS[1:]:
        assert read_whole(path, log_format, Wanted(ABC), *cut) == found


@SAME_FOLDER
@given(text=TEXTS, separator=st.sampled_from(["::", "§", "\x01", "\t", ", "]), quote=st.sampled_from(["", '"', "«"]))
def test_any_separator_and_quote(tmp_path: Path, text: str, separator: str, quote: str) -> None:
    path = tmp_path / "a.csv"
    text = text.replace(",", separator).replace('"', quote or '"').lstrip("\ufeff")
    log_format = LogFormat(separator=separator, quote=quote, header=False, columns=ABC)
    path.write_bytes(text.encode())
    found = read_whole(path, log_format, Wanted(ABC))
    assert short(found) == expect(text, log_format)
    for cut in CUTS[1:]:
        assert read_whole(path, log_format, Wanted(ABC), *cut) == found


NUMBER_TEXTS = st.one_of(
    st.text(alphabet="0123456789.+-eE xn\t", max_size=7),
    st.floats().map(repr),
    st.sampled_from(["nan", "inf", "-inf", "NaN", "Infinity", "0x10", "1e400", "3.5e38", "3.4e38", "1_0", "1,5"]),
    st.sampled_from(["\u0661", "true", "false", "+", "-", ".", "+-5", "++5", "NA", "nan(1)"]),
    st.integers().map(str),
)


@SAME_FOLDER
@given(values=st.lists(NUMBER_TEXTS, min_size=1, max_size=12))
def test_floats_are_given_where_all_values_are_numbers(tmp_path: Path, values: list[str]) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("".join(f"{value};x\n" for value in values), encoding="utf-8")
    log_format = LogFormat(separator=";", header=False, columns=("n", "t"), null_values=("NA",))
    [(_, block)] = read_blocks(path, log_format, Wanted(("n", "t"), numbers=frozenset("n")))
    found = block.columns["n"]
    texts = [None if value in ("", "NA") else value for value in values]
    if pa.types.is_floating(found.type):
        assert found.to_pylist() == [None if text is None else to_number(text.strip("\t ")) for text in texts]
    else:
        assert found.to_pylist() == texts

    def is_plain(text: str | None) -> bool:
        try:
            return text is None or (to_number(text) is not None and text not in ("true", "false"))
        except RowError:
            return False

    if all(map(is_plain, texts)):
        assert pa.types.is_floating(found.type) or any("+" in (text or "") for text in texts)


def test_a_number_column_that_is_none_is_text_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("n,m\n" + "1,2\n" * 20 + "x,2\n" + "1,2\n" * 20)
    blocks = read_blocks(path, LogFormat(), Wanted(("n", "m"), numbers=frozenset(["n", "m"])), step=40)
    kinds = [str(block.columns["n"].type) for _, block in blocks]
    assert kinds[0] == "double" and kinds[-1] == "string" and sorted(kinds) == kinds
    assert {str(block.columns["m"].type) for _, block in blocks} == {"double"}


ESCAPED = [
    ('"a\\"b",2,3\n', ['a"b', "2", "3"]),
    ('"a\\\\",2,3\n', ["a\\", "2", "3"]),
    ('"a""b\\",",2,3\n', ['a"b",', "2", "3"]),
    ('a\\"b,2\\,3\n', ['a\\"b', "2\\", "3"]),
    ('"a\\\nb",2,3\n', ["a\nb", "2", "3"]),
    ('"a\\é",2,"x"\n', ["aé", "2", "x"]),
]


@pytest.mark.parametrize("escape", ["\\", "^", "§"])
@pytest.mark.parametrize(("text", "values"), ESCAPED)
def test_escapes_inside_quotes(tmp_path: Path, escape: str, text: str, values: list[str]) -> None:
    path = tmp_path / "a.csv"
    text, values = text.replace("\\", escape), [value.replace("\\", escape) for value in values]
    path.write_text("1,2,3\n" + text + "4,5,6\n", encoding="utf-8")
    log_format = LogFormat(escape=escape, header=False, columns=ABC)
    for cut in CUTS:
        rows, rejected = read_whole(path, log_format, Wanted(ABC), *cut)
        assert not rejected
        assert [list(row.values()) for *_, row in rows] == [["1", "2", "3"], values, ["4", "5", "6"]]


def parse_escaped(text: str) -> list[str] | None:
    """Values of one row, character by character; None if it is badly quoted."""
    fields: list[str] = []
    at = 0
    while True:
        value = ""
        if text[at : at + 1] == '"':
            at += 1
            while True:
                one, two = text[at : at + 1], text[at : at + 2]
                if not one or two == "\\":
                    return None
                if one == "\\":
                    value, at = value + text[at + 1], at + 2
                elif two == '""':
                    value, at = value + '"', at + 2
                elif one == '"':
                    at += 1
                    break
                else:
                    value, at = value + one, at + 1
        else:
            while at < len(text) and text[at] != ",":
                value, at = value + text[at], at + 1
        fields.append(value)
        if at == len(text):
            return fields
        if text[at] != ",":
            return None
        at += 1


@SAME_FOLDER
@given(rows=st.lists(st.text(alphabet='a",\\é\n', max_size=8), max_size=6))
def test_escapes_are_read_as_character_by_character(tmp_path: Path, rows: list[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("\n".join(rows).encode())
    lines, expected, i = "\n".join(rows).split("\n"), [], 0
    while i < len(lines):
        first, i = i, i + 1
        if not lines[first]:
            continue
        whole = next(
            (j for j in range(i, len(lines) + 1) if parse_escaped("\n".join(lines[first:j])) is not None), None
        )
        fields = whole and parse_escaped("\n".join(lines[first:whole]))
        if fields and (whole == i or len(fields) == 2):
            i = whole
            expected.append((first + 1, [field or None for field in fields] if len(fields) == 2 else WRONG_COLUMNS))
        else:
            expected.append((first + 1, BADLY_QUOTED))
    log_format = LogFormat(escape="\\", header=False, columns=("a", "b"))
    for cut in CUTS:
        good, bad = read_whole(path, log_format, Wanted(("a", "b")), *cut)
        found = [(number, list(row.values())) for number, _, _, row in good]
        assert sorted([*found, *((number, reason) for number, _, _, reason in bad)], key=lambda row: row[0]) == expected


def test_rows_that_an_escape_would_make_are_told_from_others(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b\n"5\\" pipe",1\n"x\\", y",2\n"z,3\nw\\,4\n5\n')
    for cut in CUTS:
        rows, rejected = read_whole(path, LogFormat(), Wanted(("a", "b")), *cut)
        assert [row["a"] for *_, row in rows] == ["w\\"]
        reasons = [reason for *_, reason in rejected]
        assert reasons == [quotes.NO_ESCAPE, quotes.NO_ESCAPE, BADLY_QUOTED, WRONG_COLUMNS]


@pytest.mark.parametrize(
    "encoding", ["ISO-8859-1", "cp1252", "GBK", "gb18030", "Shift_JIS", "EUC-KR", "UTF-16", "utf-32-le", "utf-8-sig"]
)
def test_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv"
    word = {"ISO-8859-1": "é", "cp1252": "€", "EUC-KR": "한", "Shift_JIS": "表"}.get(encoding, "一")
    text = f'a,b,c\r\n{word},2,"x\r\n{word}"\r\n\r\n5,{word},7\n'
    path.write_bytes(text.encode(encoding))
    log_format = LogFormat(encoding=encoding)
    found = read_whole(path, log_format, Wanted(ABC))
    assert short(found) == expect(text, log_format) and len(found[0]) == 2
    for cut in CUTS[1:]:
        assert read_whole(path, log_format, Wanted(ABC), *cut) == found


@pytest.mark.parametrize(
    ("encoding", "damage"), [("GBK", b"\x81"), ("ascii", b"\xe9"), ("UTF-16-LE", b"\x00\xd8"), ("cp1252", b"\x81")]
)
def test_what_is_no_text_of_the_encoding(tmp_path: Path, encoding: str, damage: bytes) -> None:
    path = tmp_path / "a.csv"
    parts = [text.encode(encoding) for text in ("a,b,c\r\n1,2,", '\r\n"x\r\ny",5,6\n')]
    path.write_bytes(damage.join(parts))
    for cut in CUTS:
        rows, rejected = read_whole(path, LogFormat(encoding=encoding), Wanted(ABC), *cut)
        assert [(number, list(row.values())) for number, _, _, row in rows] == [(3, ["x\r\ny", "5", "6"])]
        assert [(number, reason) for number, _, _, reason in rejected] == [(2, f"not {encoding.upper()} text")]
        assert rejected[0][2].startswith("1,2,")


def test_header_lines_that_repeat_are_left_out_and_others_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbf\n"a ""x"", y","b\nc"\n1,2\n"a ""x"", y","b\nc"\n3,4\n')
    for cut in CUTS:
        rows, rejected = read_whole(path, LogFormat(), Wanted(("b\nc", 'a "x", y')), *cut)
        assert [row["b\nc"] for *_, row in rows] == ["2", "4"] and not rejected


@pytest.mark.parametrize(
    ("text", "wanted", "message"),
    [
        ("a,b\n1,2\n", Wanted(("c",)), r"x\.csv has no column 'c'; it has: a, b; .*input\.format\.optional"),
        ("a,a\n1,2\n", Wanted(("a",)), r"x\.csv has column 'a' twice"),
        ('a,"b\n1,2\n', Wanted(("a",)), r"x\.csv: the header is badly quoted"),
        ('a,"b"c\n1,2\n', Wanted(("a",)), r"x\.csv: the header is badly quoted"),
    ],
)
def test_headers_that_are_refused(tmp_path: Path, text: str, wanted: Wanted, message: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(LogError, match=message):
        read_whole(path, LogFormat(), wanted)


def test_optional_columns_are_missing_and_said(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    wanted = Wanted(("c", "b", "n"), numbers=frozenset("n"), optional=frozenset(["c", "n"]))
    [(_, block)] = read_blocks(path, LogFormat(), wanted)
    assert list(block.columns) == ["c", "b", "n"] and block.absent == ("c", "n")
    assert [values.to_pylist() for values in block.columns.values()] == [[None], ["2"], [None]]


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_empty_files_have_no_rows(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(data)
    assert read_whole(path, LogFormat(), Wanted(ABC)) == ([], [])
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(data))
    assert read_whole(path, LogFormat(), Wanted(ABC)) == ([], [])


def test_lines_that_are_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MAX_LINE", 20)
    monkeypatch.setattr(quotes, "MAX_LINE", 20)
    path = tmp_path / "a.csv"
    line_ends = ["\n", "\r\n", "\r"]
    for size in (17, 18, 19, 80, 81, 100, 1000):
        for end in line_ends:
            texts = [
                "a,b",
                "1,2",
                "é," + size * "x",
                "3,4",
                size * "é",
                '"' + "5\n" * 5 + '",6',
                '"' + "5\n" * 10 + '",6',
            ]
            path.write_bytes(end.join(texts).encode())
            for cut in CUTS:
                rows, rejected = read_whole(path, LogFormat(), Wanted(("a", "b")), *cut)
                assert [row["a"] for *_, row in rows][:2] == ["1", "é" if size <= 18 else "3"], (size, end, cut)
                assert (rejected[0][0], rejected[0][3]) == (
                    (3, lines_module.TOO_LONG) if size > 18 else (5, WRONG_COLUMNS)
                )
                assert all(len(text) <= 20 for _, _, text, _ in rejected)
                assert [row["a"] for *_, row in rows][-1] == "5\n" * 5, "joined up to 20 characters"
                assert (12, BADLY_QUOTED) in [(number, reason) for number, _, _, reason in rejected]


def test_an_endless_line_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"a,b\n1,2\n")
        for _ in range(300):
            file.write(b"x" * (1 << 20))
        file.write(b"\n3,4\n")
    tracemalloc.start()
    rows, rejected = read_whole(path, LogFormat(), Wanted(("a", "b")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [row["a"] for *_, row in rows] == ["1", "3"]
    assert [(number, offset, len(text)) for number, offset, text, _ in rejected] == [(3, 8, 1 << 24)]
    assert peak < 280 << 20


def test_rows_of_many_lines_stop_at_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotes, "MAX_JOINED_LINES", 4)
    path = tmp_path / "a.csv"
    path.write_text('a,b\n"1\n2\n3\n",4\n"1\n2\n3\n\n",5\n')
    for cut in CUTS:
        rows, rejected = read_whole(path, LogFormat(), Wanted(("a", "b")), *cut)
        assert [(number, row["a"]) for number, _, _, row in rows] == [(2, "1\n2\n3\n")]
        assert [(number, reason) for number, _, _, reason in rejected] == [
            (6, BADLY_QUOTED),
            (7, WRONG_COLUMNS),
            (8, WRONG_COLUMNS),
            (10, BADLY_QUOTED),
        ]
