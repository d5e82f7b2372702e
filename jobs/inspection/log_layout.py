"""Layout of a raw log, told from its first bytes: format, encoding, separator, quotes, header and names of columns.

What the user gives of ``pipeline.input.format`` is taken as it is; the rest is found.
"""

import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from features.log_files import show
from features.log_format import LogError, LogFormat
from features.raw_block import Wanted
from features.read.portions import Portion, column_names, read_portion
from features.read.streams import compression_of, open_stream
from features.values import NUMBER_PATTERN
from jobs.cli.errors import ConfigError

FORMAT_KEY = "pipeline.input.format"
"""Config key of a log's format."""
_HEAD_BYTES = 1 << 20
_HEAD_ROWS = 300
_TRIED_ROWS = 5_000
"""Rows that are read with each way of quoting."""
_SEPARATORS = (",", "\t", ";", "|", "::", "\x01")
_MIN_SHARE = 0.8
"""Share of the first rows that must have one number of columns."""
_LIBFFM = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[ \t]+\d+(?::[^:\s]+){1,2})+\s*")
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks; a longer one comes before the one that it begins with."""
_NAME = re.compile(r"[A-Za-z_][\w .-]{0,40}")
_MIN_HIGH_RUN = 2.5
"""Mean length of runs of bytes beyond ASCII from which on words are written in them, and not single letters."""

Cells = list[list[str]]


@dataclass(frozen=True)
class LogLayout:
    """Layout of a log file.

    Attributes:
        format: as the config says it.
        notes: what is a guess, a sentence each.
    """

    format: LogFormat
    notes: tuple[str, ...] = ()


def find_layout(file: str, given: Mapping[str, Any]) -> LogLayout:
    """Find the layout of one file, which is on disk and not empty.

    Args:
        file: its path.
        given: keys of ``LogFormat`` that are known.

    Raises:
        LogError: the file cannot be read, or is nothing that a build reads; names it and the cure.
        ConfigError: what is given is no format.
    """
    kind = given.get("kind") or _columnar_kind(file)
    if kind in ("parquet", "orc", "delta"):
        return LogLayout(make_format({**given, "kind": kind}))
    head = _read_head(file)
    encoding, notes = given.get("encoding"), []
    if encoding is None:
        encoding, is_guess = _find_encoding(head)
        if is_guess:
            notes.append(f'{show(file)} is no UTF-8 text; "{encoding}" is a guess: see {FORMAT_KEY}.encoding')
    known = {"encoding": encoding} if encoding != "UTF-8" or "encoding" in given else {}
    text = head.decode(make_format(known).encoding, "replace").removeprefix("\ufeff")
    lines = [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    if not lines:
        raise LogError(f"{show(file)} has no line with more than white space")
    kind = kind or _line_kind(file, lines)
    if kind in ("jsonl", "libffm"):
        return LogLayout(make_format({**known, **given, "kind": kind}), tuple(notes))
    known |= _find_columns(file, text, given)
    found = make_format({**known, **given})
    found, more = _find_quotes(file, found, text, given)
    return LogLayout(found, (*notes, *more))


def make_format(given: Mapping[str, Any]) -> LogFormat:
    """Check a format.

    Raises:
        ConfigError: names the key.
    """
    try:
        return TypeAdapter(LogFormat).validate_python(dict(given))
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join([FORMAT_KEY, *map(str, detail["loc"])])
        raise ConfigError(f"config key {key!r}: {detail['msg'].removeprefix('Value error, ')}") from error


# ---------------------------------------------------------------------------------------------------------------- bytes


def _columnar_kind(file: str) -> str | None:
    with Path(file).open("rb") as stream:
        head = stream.read(4)
        stream.seek(-min(4, stream.seek(0, 2)), 2)
        tail = stream.read(4)
    if head == b"PAR1":
        return "parquet"
    return "orc" if head.startswith(b"ORC") and tail.startswith(b"ORC") else None


def _read_head(file: str) -> bytes:
    """Read the first whole lines, unpacked."""
    compression_of(file)  # refuses archives
    found = b""
    with open_stream(file) as stream:
        while len(found) < _HEAD_BYTES and (more := stream.read(_HEAD_BYTES - len(found))):
            found += more
    if len(found) < _HEAD_BYTES:
        return found
    return found[: found.rfind(b"\n") + 1] or found


def _find_encoding(head: bytes) -> tuple[str, bool]:
    """Find the encoding, and tell whether it is a guess."""
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name, False
    for name, zeros in (("UTF-16-LE", head[1::2]), ("UTF-16-BE", head[::2])):
        if zeros.count(0) > _MIN_SHARE * len(zeros):
            return name, True
    lines = head.split(b"\n")
    damaged = [line for line in lines if not _is_text(line, "UTF-8")]
    if not damaged or sum(not line.isascii() for line in lines) > 2 * len(damaged):
        return "UTF-8", False
    runs = re.findall(rb"[\x80-\xff]+", head)
    even = sum(len(run) % 2 == 0 for run in runs) / len(runs)
    leads = [byte for run in runs for byte in run[::2]]
    tried = []
    if even > 0.95:
        is_korean = sum(0xB0 <= byte <= 0xC8 for byte in leads) > 0.98 * len(leads)
        is_chinese = sum(0xA1 <= byte <= 0xD7 for byte in leads) > 0.7 * len(leads)
        tried = ["EUC-KR"] * is_korean + ["GBK"] * is_chinese
    if sum(map(len, runs)) / len(runs) > _MIN_HIGH_RUN:
        tried.append("cp1251")
    return next((name for name in [*tried, "cp1252"] if _is_text(head, name)), "latin-1"), True


def _is_text(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------- lines


def _line_kind(file: str, lines: list[str]) -> str | None:
    first = lines[0].lstrip()
    if first.startswith("{"):
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            raise LogError(
                f"{show(file)} begins like JSON, but its first line is no whole object: write one object a line"
            ) from None
        return "jsonl"
    if first.startswith("[") and first[1:].lstrip()[:1] in ("{", "", "["):
        raise LogError(f"{show(file)} looks like one JSON array: write one object a line")
    head = lines[:_HEAD_ROWS]
    return "libffm" if sum(_LIBFFM.fullmatch(line) is not None for line in head) >= _MIN_SHARE * len(head) else None


def _find_columns(file: str, text: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Find separator, header and columns of a csv or tsv file."""
    separator = given.get("separator") or {"tsv": "\t"}.get(given.get("kind", ""))
    if separator is None:
        separator = _find_separator(file, text)
    rows = _split(text, separator)
    found: dict[str, Any] = {"kind": "tsv"} if separator == "\t" else {}
    if separator not in (",", "\t"):
        found["separator"] = separator
    if given.get("columns"):
        return found | {"header": False}
    if given.get("header") is None and not has_header(rows):
        found["header"] = False
    if not given.get("header", found.get("header", True)):
        found["columns"] = _name_columns(rows)
    return found


def _find_separator(file: str, text: str) -> str:
    best, score = None, (0.0, 0)
    for separator in _SEPARATORS:
        widths = Counter(map(len, _split(text, separator)))
        width, count = max(widths.items(), key=lambda item: (item[1], item[0]))
        share = round(count / sum(widths.values()), 2)
        if width > 1 and share >= _MIN_SHARE and (share, width) > score:
            best, score = separator, (share, width)
    if best is None:
        raise LogError(
            f"{show(file)} is no JSON, libffm, Parquet or ORC, and no separator cuts its lines into columns: give it, "
            f'as in {FORMAT_KEY}.separator="^"'
        )
    return best


def _split(text: str, separator: str) -> Cells:
    """Cut the first rows into cells, line breaks inside quotes included."""
    if separator == "\t" or len(separator) > 1:
        rows = (line.split(separator) for line in re.split(r"\r\n|\n|\r", text) if line)
        return list(islice(rows, _HEAD_ROWS))
    csv.field_size_limit(2**31 - 1)
    lines = [f"{line}\n" for line in re.split(r"\r\n|\n|\r", text)]
    ways = [None, "\\"] if '\\"' in text else [None]
    found = []
    for escape in ways:
        rows = (row for row in csv.reader(lines, delimiter=separator, escapechar=escape) if row)
        found.append(list(islice(rows, _HEAD_ROWS)))
    return min(found, key=lambda rows: len({len(row) for row in rows}))


def has_header(rows: Cells) -> bool:
    """Tell whether the first row names the columns.

    It does if no cell of it is a number, and a column below has numbers alone, or values that come again and none of
    them is the name.
    """
    names, below = rows[0], rows[1:]
    if any(not name.strip() for name in names[1:]):
        return False
    if any(re.match(NUMBER_PATTERN, name.strip()) for name in names):
        return False
    if not below:
        return True
    is_told = False
    for place, name in enumerate(names):
        values = [row[place] for row in below if place < len(row) and row[place]]
        if not values:
            continue
        distinct = set(values)
        if name in distinct:
            return False
        numbers = sum(re.match(NUMBER_PATTERN, value.strip()) is not None for value in values)
        is_told |= numbers > 0.9 * len(values) or len(distinct) <= len(values) / 2
    return is_told or (len({*names}) == len(names) and all(map(_NAME.fullmatch, names)))


def _name_columns(rows: Cells) -> tuple[str, ...]:
    """Name the columns of a log without a header: Criteo's, a log of ratings, or ``c1``, ``c2``, ..."""
    width = Counter(map(len, rows)).most_common(1)[0][0]
    columns = list(zip(*(row for row in rows if len(row) == width), strict=True))
    is_number = [all(re.match(NUMBER_PATTERN, value) for value in column if value) for column in columns]
    if width == 40 and set(columns[0]) <= {"0", "1"} and all(is_number[:14]) and not any(is_number[14:]):
        return ("label", "I{1..13}", "C{1..26}")
    if width == 4 and all(is_number) and len({*columns[2]}) <= 11 and min(map(float, columns[3])) > 5e8:
        return ("user", "item", "rating", "time")
    return (f"c{{1..{width}}}",)


# --------------------------------------------------------------------------------------------------------------- quotes


def _find_quotes(file: str, found: LogFormat, text: str, given: Mapping[str, Any]) -> tuple[LogFormat, tuple[str, ...]]:
    """Find the quote and escape with which the fewest rows are rejected."""
    if '"' not in text or not {"quote", "escape"}.isdisjoint(given):
        return found, ()
    tried = [found]
    if found.kind == "tsv":
        cells = [cell for row in _split(text, "\t") for cell in row if '"' in cell]
        quoted = sum(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)
        if cells and quoted > 0.9 * len(cells):
            tried = [replace(found, quote='"'), found]
    if '\\"' in text and len(found.delimiter) == 1:
        tried.append(replace(found, quote=None if found.kind == "csv" else '"', escape="\\"))
    tried.append(replace(found, quote=""))
    rejected = [_count_rejected(file, one) if len(tried) > 1 else 0 for one in tried]
    best = tried[rejected.index(min(rejected))]
    if best == found:
        return found, ()
    said = ", ".join(f"{key} = {value!r}" for key, value in (("quote", best.quote), ("escape", best.escape)) if value)
    return best, (f"{said or 'no quotes'}: fewer rows are rejected than with a plain quote; see {FORMAT_KEY}",)


def _count_rejected(file: str, tried: LogFormat) -> int:
    rows = rejected = 0
    columns = column_names(file, tried)
    wanted = Wanted(tuple(name for name in columns if columns.count(name) == 1))
    for block in read_portion(Portion(file), tried, wanted, 1 << 18):
        rows, rejected = rows + len(block), rejected + len(block.rejected)
        if rows + rejected >= _TRIED_ROWS:
            break
    return rejected
