"""Rows of a csv file with quotes: lines -> rows, joined where a quoted value has a line break, and plainly written.

The rule is that of Python's strict ``csv.reader``, line by line: a value is quoted if it begins with a quote; within it
a doubled quote is one, and behind its last quote comes a separator or the row's end. A quote within any other value
is an ordinary character. A line that ends inside quotes is joined with those that follow, up to ``MAX_LINE`` characters
and ``MAX_JOINED_LINES``; where that gives no row of the right width, the first line alone is badly quoted.

Nearly all lines are seen to be well quoted by looking at the neighbours of every quote, in NumPy. The others are read
one by one here and written anew, so that one parser can read them all.
"""

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.log_format import MAX_LINE, LogFormat
from features.read.lines import MAX_BYTES_A_CHARACTER, LineBlock, Positions

MAX_JOINED_LINES = 10_000
"""Lines of one row at most: a stray quote must not swallow a file."""
BADLY_QUOTED = "badly quoted"
NO_ESCAPE = "badly quoted: a backslash before a quote (set pipeline.input.format.escape)"
"""Reason for a line that is no row, though it might be one if a backslash were the escape."""
_LINE_ENDS = b"\r\n"
_BLOCK_BYTES = 1 << 20
"""Bytes whose quotes are looked at together: all of a step would leave the cache."""
_CHARACTER = rb"(?:[\x00-\x7f]|[\xc0-\xff][\x80-\xbf]*+)"


@dataclass(frozen=True)
class Dialect:
    """Dialect: the characters of a csv file, as UTF-8.

    Attributes:
        separator: one character or more.
        quote: one character; empty for none.
        escape: one character; empty for none.
        forbids_quotes: whether a line with a quote has no clear meaning: the separator has several characters.
    """

    separator: bytes
    quote: bytes = b""
    escape: bytes = b""
    forbids_quotes: bool = False

    @classmethod
    def of(cls, log_format: LogFormat) -> "Dialect":
        """Return the dialect of a format."""
        parts = (log_format.delimiter, log_format.quote_character, log_format.escape or "")
        has_long_separator = len(log_format.delimiter) > 1 and bool(log_format.quote_character)
        return cls(*(part.encode() for part in parts), forbids_quotes=has_long_separator)

    @property
    def has_quotes(self) -> bool:
        """Whether values may be quoted."""
        return bool(self.quote) and not self.forbids_quotes

    @cached_property
    def inside(self) -> re.Pattern[bytes]:
        """Pattern of what stands between the quotes of a value; it never gives back what it took."""
        quote, escape = re.escape(self.quote), re.escape(self.escape)
        first = quote[:1] if quote[:1] != b"\\" else quote[:2]
        not_escape = b""
        if escape:
            first += escape[:1] if escape[:1] != b"\\" else escape[:2]
            not_escape = b"|" + escape + _CHARACTER + b"|(?!" + quote + b"|" + escape + b")[" + first + b"]"
        elif len(self.quote) > 1:
            not_escape = b"|(?!" + quote + b")" + first
        return re.compile(b"(?:[^" + first + b"]++|" + quote + quote + not_escape + b")*+", re.DOTALL)

    @cached_property
    def special(self) -> re.Pattern[bytes]:
        """Pattern of a doubled quote, or of an escape with what it escapes; a group is what it stands for."""
        quote = re.escape(self.quote)
        escaped = b"|" + re.escape(self.escape) + b"(" + _CHARACTER + b")" if self.escape else b""
        return re.compile(quote + b"(" + quote + b")" + escaped, re.DOTALL)

    @cached_property
    def outside(self) -> re.Pattern[bytes]:
        """Pattern of a value without quotes, up to a separator or the line's end."""
        first = re.escape(self.separator[:1])
        others = b"" if len(self.separator) == 1 else b"|(?!" + re.escape(self.separator) + b")" + first
        return re.compile(b"(?:[^\r\n" + first + b"]++" + others + b")*+")

    def row(self, num_columns: int, is_whole: bool = False) -> re.Pattern[bytes]:
        """Pattern of a row of up to ``num_columns`` values, or of so many, up to a separator or the line's end."""
        return _row_pattern(self, num_columns, is_whole)

    def unquote(self, text: bytes) -> bytes:
        """Return what the text between two quotes stands for."""
        if self.quote not in text and not (self.escape and self.escape in text):
            return text
        return self.special.sub(lambda match: match[1] or match[2], text)


@lru_cache
def _row_pattern(dialect: Dialect, num_columns: int, is_whole: bool) -> re.Pattern[bytes]:
    quote = re.escape(dialect.quote)
    quoted = quote + dialect.inside.pattern + quote
    field = b"(?:" + quoted + b"|(?!" + quote + b")" + dialect.outside.pattern + b")"
    others = (
        b"(?:" + re.escape(dialect.separator) + field + b"){%d,%d}+" % (is_whole * (num_columns - 1), num_columns - 1)
    )
    return re.compile(field + others, re.DOTALL)


class Scan(NamedTuple):
    """One row, as far as it could be read.

    Attributes:
        fields: its values; None: it is badly quoted.
        end: byte behind it; without fields, whatever was reached.
        is_open: whether it ran to the limit inside quotes.
    """

    fields: list[bytes] | None
    end: int
    is_open: bool = False


def scan_row(data: bytes, start: int, limit: int, dialect: Dialect, line_end: int = 0, most: int = 1 << 31) -> Scan:
    """Read one row.

    Args:
        data: text.
        start: first byte of the row.
        limit: end of the last line that it may go on to.
        dialect: the file's.
        line_end: end of its first line.
        most: number of values, beyond which a row that goes on behind ``line_end`` is none.
    """
    fields: list[bytes] = []
    separator, quote = dialect.separator, dialect.quote
    at = start
    while True:
        if quote and data.startswith(quote, at, limit):
            at += len(quote)
            match = dialect.inside.match(data, at, limit)
            assert match is not None
            end = match.end()
            if not data.startswith(quote, end, limit):
                return Scan(None, end, is_open=True)
            fields.append(dialect.unquote(data[at:end]))
            at = end + len(quote)
        else:
            match = dialect.outside.match(data, at, limit)
            assert match is not None
            fields.append(match[0])
            at = match.end()
        if at >= limit or data[at] in _LINE_ENDS:
            return Scan(fields, at)
        if at > line_end and len(fields) >= most:
            return Scan(None, at)
        if not data.startswith(separator, at, limit):
            return Scan(None, at)
        at += len(separator)


@dataclass(frozen=True)
class LineRows:
    """Rows of some lines.

    Attributes:
        first: (n,) index of each row's first line.
        last: (n,) index of its last one.
        rewritten: index of a row's first line -> its values, of rows that were read one by one.
        rejected: index -> reason, of lines that are no rows.
        num_lines: lines that were looked at; a row begins behind them that goes on behind the last line.
    """

    first: Positions
    last: Positions
    rewritten: dict[int, list[bytes]]
    rejected: dict[int, str]
    num_lines: int


def find_rows(lines: LineBlock, dialect: Dialect, num_columns: int) -> LineRows:
    """Find the rows of some lines; empty lines are none."""
    is_row = lines.lengths > 0
    rejected = dict(lines.damaged)
    rewritten: dict[int, list[bytes]] = {}
    last = np.arange(len(lines))
    num_lines = min(lines.num_own, len(lines))
    if dialect.forbids_quotes:
        for index in _lines_with(lines, dialect.quote).tolist():
            rejected.setdefault(index, BADLY_QUOTED)
    elif dialect.quote:
        suspects = find_suspects(lines, dialect)
        if len(suspects):
            num_lines = _read_suspects(lines, dialect, num_columns, suspects, is_row, last, rewritten, rejected)
    for index in [index for index in rejected if index >= num_lines]:
        del rejected[index]
    if rejected:
        is_row[list(rejected)] = False
    first = np.flatnonzero(is_row[:num_lines])
    return LineRows(first, last[first], rewritten, rejected, num_lines)


def _read_suspects(
    lines: LineBlock,
    dialect: Dialect,
    num_columns: int,
    suspects: Positions,
    is_row: NDArray[np.bool_],
    last: Positions,
    rewritten: dict[int, list[bytes]],
    rejected: dict[int, str],
) -> int:
    """Read suspicious lines one by one; returns the number of lines that are decided."""
    damaged = np.array(sorted(lines.damaged), np.int64)
    ends = lines.starts + lines.lengths
    free = 0  # lines before it belong to rows
    own = lines.num_own
    for index in suspects.tolist():
        if index < free or index in lines.damaged:
            continue
        if index >= max(own, free):
            break
        stop = min(len(lines), index + MAX_JOINED_LINES)
        if len(damaged):
            behind = int(np.searchsorted(damaged, index))
            stop = min(stop, int(damaged[behind])) if behind < len(damaged) else stop
        start, line_end, limit = int(lines.starts[index]), int(ends[index]), int(ends[stop - 1])
        end = _plain_end(lines.data, start, limit, dialect, num_columns)
        scan = None
        if end is None:
            scan = scan_row(lines.data, start, limit, dialect, line_end, num_columns)
            if scan.is_open and stop == len(lines) and not lines.is_last and not _is_long(lines.data, start, scan.end):
                return index
            end = scan.end
        is_alone = end <= line_end
        if scan is None:
            is_good = is_alone or dialect.row(num_columns, is_whole=True).match(lines.data, start, end) is not None
        else:
            is_good = scan.fields is not None and (is_alone or len(scan.fields) == num_columns)
        if not is_good or _has_nul(lines.data, start, end) or (not is_alone and _is_long(lines.data, start, end)):
            rejected[index] = reason_with(BADLY_QUOTED, lines.bytes_of(index), dialect)
            continue
        if scan is not None and scan.fields is not None:
            rewritten[index] = scan.fields
        if not is_alone:
            final = int(np.searchsorted(lines.starts, end, side="right")) - 1
            last[index] = final
            is_row[index + 1 : final + 1] = False
            free = final + 1
    return max(own, free)


def _plain_end(data: bytes, start: int, limit: int, dialect: Dialect, num_columns: int) -> int | None:
    """Find the end of a row that pyarrow reads as it is; None where it may not."""
    if len(dialect.quote) > 1 or len(dialect.separator) > 1:
        return None
    match = dialect.row(num_columns).match(data, start, limit)
    if match is None:
        return None
    end = match.end()
    if end < limit and data[end] not in _LINE_ENDS:
        return None
    return None if dialect.escape and data.find(dialect.escape, start, end) >= 0 else end


def reason_with(reason: str, line: bytes, dialect: Dialect) -> str:
    """Return the reason for rejecting a line, or the setting that may be missing."""
    is_escaped = dialect.has_quotes and not dialect.escape and b"\\" + dialect.quote in line
    return NO_ESCAPE if is_escaped else reason


def _has_nul(data: bytes, start: int, end: int) -> bool:
    return data.find(b"\0", start, end) >= 0


def _is_long(data: bytes, start: int, end: int) -> bool:
    if end - start <= MAX_LINE:
        return False
    return end - start > MAX_BYTES_A_CHARACTER * MAX_LINE or len(data[start:end].decode("utf-8", "replace")) > MAX_LINE


def find_suspects(lines: LineBlock, dialect: Dialect) -> Positions:
    """Find the lines with quotes that are not plainly well quoted, or whose quotes need to be read one by one."""
    if dialect.quote not in lines.data:
        return np.zeros(0, np.int64)
    if len(dialect.quote) > 1 or len(dialect.separator) > 1 or b"\0" in lines.data:
        return _lines_with(lines, dialect.quote)
    values = np.frombuffer(lines.data, np.uint8)
    borders = np.searchsorted(lines.starts, np.arange(0, len(values), _BLOCK_BYTES))
    borders = np.unique(np.append(borders, len(lines))).tolist()
    blocks = [_find_badly_quoted(values, lines, dialect, low, high) for low, high in pairwise(borders)]
    suspects = np.concatenate(blocks)
    if dialect.escape and dialect.escape in lines.data:
        both = np.intersect1d(_lines_with(lines, dialect.escape), _lines_with(lines, dialect.quote))
        suspects = np.union1d(suspects, both)
    return suspects


def _lines_with(lines: LineBlock, text: bytes) -> Positions:
    """Find the lines that hold a text."""
    data = lines.data
    if len(text) == 1:
        found = np.flatnonzero(np.frombuffer(data, np.uint8) == text[0])
    else:
        found = np.array([match.start() for match in re.finditer(re.escape(text), data)], np.int64)
    return np.unique(np.searchsorted(lines.starts, found, side="right") - 1)


def _neighbours(dialect: Dialect) -> NDArray[np.bool_]:
    """(256,) whether a byte may stand outside a pair of quotes, next to one of them."""
    table = np.zeros(256, np.bool_)
    table[list(b"\r\n" + dialect.separator + dialect.quote)] = True
    return table


def _find_badly_quoted(values: NDArray[np.uint8], lines: LineBlock, dialect: Dialect, low: int, high: int) -> Positions:
    """Find, from line ``low`` to before ``high``, the lines whose own quotes are no pairs around whole values."""
    starts = lines.starts[low:high]
    base = int(starts[0])
    ends = starts + lines.lengths[low:high]
    # One byte more at either side, the end of a line: every quote has two neighbours then.
    padded = np.full(int(ends[-1]) - base + 2, 10, np.uint8)
    padded[1:-1] = values[base : int(ends[-1])]
    quotes = np.flatnonzero(padded == dialect.quote[0])
    if not len(quotes):
        return np.zeros(0, np.int64)
    table = _neighbours(dialect)
    first = np.searchsorted(quotes, starts - (base - 1))  # the number of quotes before each line
    in_pairs = not len(quotes) % 2 and not (first % 2).any()
    if in_pairs and table[padded[quotes[0::2] - 1]].all() and table[padded[quotes[1::2] + 1]].all():
        return np.zeros(0, np.int64)
    counts = np.diff(first, append=len(quotes))
    line = np.repeat(np.arange(len(starts)), counts)
    is_closing = (np.arange(len(quotes)) - first[line]) % 2 == 1
    is_good = np.where(is_closing, table[padded[quotes + 1]], table[padded[quotes - 1]])
    return low + np.union1d(line[~is_good], np.flatnonzero(counts % 2))


def write_row(fields: list[bytes], separator: bytes, quote: bytes) -> bytes:
    """Write a row so that every csv parser reads the same values."""
    return separator.join(_write_field(field, separator, quote) for field in fields)


def _write_field(field: bytes, separator: bytes, quote: bytes) -> bytes:
    if not field or separator in field or quote in field or b"\n" in field or b"\r" in field:
        return quote + field.replace(quote, quote + quote) + quote
    return field
