"""Rows of csv and tsv files: whole lines -> columns, by ``pyarrow.csv``; what that misreads is read row by row.

It is given plain rows alone: lines that are none are taken out before, and rows that ``features.read.quotes`` read one
by one are written anew. Where its rows then differ in number from those that are there, a step goes the exact way.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from features.log_format import LogError, LogFormat
from features.raw_block import RawBlock, Slices, Wanted
from features.read.arrays import are_numbers, join_arrays
from features.read.lines import LineBlock, LineReader, Positions
from features.read.quotes import BADLY_QUOTED, Dialect, LineRows, find_rows, reason_with, scan_row, write_row
from features.read.streams import open_stream

WRONG_COLUMNS = "wrong number of columns"
_HEADER_STEP = 1 << 16
_MOST_RETRIES = 3
"""Parses of a step that may fail because one column holds more than numbers, before all columns are read as text."""
_BAD_NUMBER = re.compile(r"CSV column #(\d+)")
_BLOCK_BYTES = 1 << 19
"""Bytes that pyarrow parses at a time: a step at once leaves the cache and takes more than twice as long."""
_BLOCK_ROWS = 1_000
"""Rows that it parses at a time at least, up to ``_MOST_BYTES``: each block costs something for each column."""
_MOST_BYTES = 1 << 22
_SPARE = bytes([*range(1, 9), *range(14, 32)])
"""Bytes that stand in for a separator or quote that pyarrow cannot take, where a step is free of them."""


class Header(NamedTuple):
    """Columns of a csv or tsv file, in its order, and the text that names them (UTF-8; empty where the config does)."""

    columns: tuple[str, ...]
    text: bytes = b""


def read_header(file: str, log_format: LogFormat) -> Header:
    """Read which columns a csv or tsv file has; an empty file has none.

    Raises:
        LogError: the first line that is not empty cannot be read; names the file.
    """
    if not log_format.header:
        return Header(log_format.columns)
    dialect = Dialect.of(log_format)
    with open_stream(file) as source:
        reader = LineReader(source, file, log_format.encoding, step=_HEADER_STEP)
        while lines := reader.read():
            filled = [
                *np.flatnonzero(lines.lengths)[:1].tolist(),
                *lines.damaged,
            ]  # a damaged line may have no bytes left
            if not filled:
                continue
            index = min(filled)
            if index in lines.damaged:
                raise LogError(f"{file}: the header is {lines.damaged[index]}")
            start = int(lines.starts[index])
            scan = scan_row(lines.data, start, int(lines.starts[-1] + lines.lengths[-1]), dialect)
            if scan.is_open and not lines.is_last:
                reader.keep_from(index)
                continue
            if scan.fields is None or (dialect.forbids_quotes and dialect.quote in lines.bytes_of(index)):
                raise LogError(f"{file}: the header is {BADLY_QUOTED}: {lines.reject(index, '').text:.80}")
            return Header(tuple(field.decode() for field in scan.fields), lines.data[start : scan.end])
    return Header(())


def check_columns(file: str, present: tuple[str, ...], wanted: Wanted) -> None:
    """Refuse a file without a wanted column, or with one of them twice.

    Raises:
        LogError: names file, column and the cure.
    """
    missing = [name for name in wanted.columns if name not in present and name not in wanted.optional]
    if missing:
        names = ", ".join(map(repr, missing))
        raise LogError(f"{file} has no column {names}; it has: {', '.join(present)}; {_cure(missing, present)}")
    twice = [name for name in wanted.columns if present.count(name) > 1]
    if twice:
        raise LogError(f"{file} has column {', '.join(map(repr, twice))} twice")


def _cure(missing: list[str], present: tuple[str, ...]) -> str:
    """Say what to do about columns that a header lacks, by what the header looks like."""
    if any("\0" in name for name in present):
        return 'this looks like UTF-16: set pipeline.input.format.encoding = "UTF-16-LE" or "UTF-16-BE"'
    for separator in (",", ";", "\t", "|", " "):
        if len(present) == 1 and all(name in present[0].split(separator) for name in missing):
            return f"set pipeline.input.format.separator = {json.dumps(separator)}"
    alike = {name.strip().casefold(): name for name in present}
    for name in missing:
        if found := alike.get(name.strip().casefold()):
            return f"{found!r} is another name than {name!r}: write it as the file does"
    return "if older files may lack it, name it in pipeline.input.format.optional"


class DelimitedReader:
    """DelimitedReader: turns the lines of one csv or tsv file into rows."""

    def __init__(self, file: str, header: Header, log_format: LogFormat, wanted: Wanted) -> None:
        """Check the header.

        Raises:
            LogError: a wanted column is missing or there twice.
        """
        self._header = header
        self._dialect = Dialect.of(log_format)
        self._nulls = ["", *log_format.null_values]
        self._wanted = wanted
        if header.columns:
            check_columns(file, header.columns, wanted)
        self._places = {name: header.columns.index(name) for name in wanted.columns if name in header.columns}
        self._absent = tuple(name for name in wanted.columns if name not in self._places)
        self._texts: set[str] = set()
        """Number columns that held something else in an earlier step: they are read as text from then on."""

    def read(self, reader: LineReader) -> Iterator[RawBlock]:
        """Read blocks of rows up to the end of the reader's portion."""
        while lines := reader.read():
            rows = find_rows(lines, self._dialect, len(self._header.columns))
            if rows.num_lines < len(lines):
                reader.keep_from(rows.num_lines)
            block = self._to_block(lines, rows)
            if len(block) or block.rejected:
                yield block

    def _to_block(self, lines: LineBlock, rows: LineRows) -> RawBlock:
        starts = lines.starts[rows.first]
        lengths = lines.starts[rows.last] + lines.lengths[rows.last] - starts
        keep = ~_equal(lines.data, starts, lengths, self._header.text)
        if not keep.all():
            rows = LineRows(rows.first[keep], rows.last[keep], rows.rewritten, rows.rejected, rows.num_lines)
            starts, lengths = starts[keep], lengths[keep]
        columns, is_wrong = self._parse(lines, rows, starts, lengths)
        rejected = [lines.reject(index, reason) for index, reason in rows.rejected.items()]
        if is_wrong.any():
            rejected += [
                lines.reject(index, reason_with(WRONG_COLUMNS, lines.bytes_of(index), self._dialect))
                for index in rows.first[is_wrong].tolist()
            ]
            first, starts, lengths = rows.first[~is_wrong], starts[~is_wrong], lengths[~is_wrong]
        else:
            first = rows.first
        for name in self._absent:
            columns[name] = pa.nulls(len(first), pa.float64() if name in self._wanted.numbers else pa.string())
        return RawBlock(
            columns={name: columns[name] for name in self._wanted.columns},
            numbers=first + lines.number,
            offsets=lines.offsets[first],
            lines=Slices(np.frombuffer(lines.data, np.uint8), starts, lengths),
            rejected=sorted(rejected),
            absent=self._absent,
        )

    def _parse(
        self, lines: LineBlock, rows: LineRows, starts: Positions, lengths: Positions
    ) -> tuple[dict[str, pa.Array], NDArray[np.bool_]]:
        """(columns of the rows of the right width, mask of the others)."""
        if not len(starts):
            return {name: pa.nulls(0, self._type_of(name)) for name in self._places}, np.zeros(0, np.bool_)
        plain = self._write_plainly(lines, rows, starts, lengths)
        found = plain and self._parse_plain(plain, len(starts))
        return found or self._parse_exactly(lines, rows, starts, lengths)

    def _type_of(self, name: str) -> pa.DataType:
        return pa.float64() if name in self._wanted.numbers - self._texts else pa.string()

    def _write_plainly(
        self, lines: LineBlock, rows: LineRows, starts: Positions, lengths: Positions
    ) -> "_PlainText | None":
        """Write the rows alone, with a separator and a quote of one byte; None where no byte is free for them."""
        data, dialect = lines.data, self._dialect
        taken = dialect.separator + dialect.quote
        spare = (bytes([byte]) for byte in _SPARE if byte not in data and byte not in taken)
        separator = dialect.separator if _is_byte(dialect.separator) else next(spare, b"")
        quote = dialect.quote if not dialect.has_quotes or _is_byte(dialect.quote) else next(spare, b"")
        if not separator or (dialect.has_quotes and not quote):
            return None
        pieces, longest = [], int(lengths.max())
        for first, last in _runs(lines, rows):
            values = rows.rewritten.get(int(rows.first[first]))
            if values is None:
                piece = memoryview(data)[starts[first] : starts[last] + lengths[last]]
                if separator != dialect.separator:
                    piece = bytes(piece).replace(dialect.separator, separator)
            else:
                piece = write_row(values, separator, quote)
                longest = max(longest, len(piece))
            pieces += [piece, b"\n"]
        if pieces[0][:3] == codecs.BOM_UTF8:  # pyarrow would leave it out, but it is text here
            pieces.insert(0, b"\n")
        text = pieces[0] if len(pieces) == 2 else b"".join(pieces)
        has_breaks = bool((rows.last > rows.first).any())
        block = min(max(_BLOCK_BYTES, _BLOCK_ROWS * len(text) // len(starts)), _MOST_BYTES)
        shown_quote = quote.decode() if dialect.has_quotes else ""
        return _PlainText(text, separator.decode(), shown_quote, has_breaks, max(block, 2 * longest))

    def _parse_plain(self, plain: "_PlainText", num_rows: int) -> tuple[dict[str, pa.Array], NDArray[np.bool_]] | None:
        """Parse by pyarrow; None where it does not see the rows that are there."""
        numbers = [name for name in self._places if name in self._wanted.numbers]
        for retry in range(_MOST_RETRIES + 1):
            typed = {name for name in numbers if name not in self._texts} if retry < _MOST_RETRIES else set()
            wrong: list[int] = []
            try:
                table = self._read_csv(plain, typed, wrong)
            except pa.ArrowInvalid as error:
                place = _BAD_NUMBER.search(str(error))
                if not typed or not place:
                    return None
                self._texts |= {name for name in typed if self._places[name] == int(place[1])} or typed
                continue
            is_wrong = np.zeros(num_rows, np.bool_)
            if len(table) + len(wrong) != num_rows or (wrong and not 1 <= min(wrong) <= max(wrong) <= num_rows):
                return None
            is_wrong[np.array(wrong, np.int64) - 1] = True
            if np.count_nonzero(is_wrong) != len(wrong):
                return None
            table = table.combine_chunks()
            found = zip(self._places, table.columns, strict=False)  # by place: a look-up by name takes long
            columns = {name: join_arrays(values.chunks, values.type) for name, values in found}
            beyond = {name for name in typed if not are_numbers(columns[name])}
            if not beyond:
                return columns, is_wrong
            self._texts |= beyond
        return None

    def _read_csv(self, plain: "_PlainText", typed: set[str], wrong: list[int]) -> pa.Table:
        def note(row) -> str:
            wrong.append(row.number)
            return "skip"

        # Columns go by their places, because names may repeat.
        types = {str(place): pa.float64() if name in typed else pa.string() for name, place in self._places.items()}
        return pyarrow.csv.read_csv(
            pa.BufferReader(plain.text),
            pyarrow.csv.ReadOptions(
                use_threads=False,
                column_names=[str(place) for place in range(len(self._header.columns))],
                block_size=plain.block_bytes,
            ),
            pyarrow.csv.ParseOptions(
                delimiter=plain.separator,
                quote_char=plain.quote or False,
                double_quote=bool(plain.quote),
                newlines_in_values=plain.has_breaks,
                invalid_row_handler=note,
            ),
            pyarrow.csv.ConvertOptions(
                check_utf8=False,
                column_types=types,
                null_values=self._nulls,
                strings_can_be_null=True,
                include_columns=list(types) or ["0"],
            ),
        )

    def _parse_exactly(
        self, lines: LineBlock, rows: LineRows, starts: Positions, lengths: Positions
    ) -> tuple[dict[str, pa.Array], NDArray[np.bool_]]:
        """Parse row by row."""
        nulls = {text.encode() for text in self._nulls}
        is_wrong = np.zeros(len(starts), np.bool_)
        good: list[list[bytes | None]] = []
        places = zip(rows.first.tolist(), starts.tolist(), lengths.tolist(), strict=True)
        for row, (first, start, length) in enumerate(places):
            values = rows.rewritten.get(first)
            if values is None:
                values = scan_row(lines.data, start, start + length, self._dialect).fields
            if values is None or len(values) != len(self._header.columns):
                is_wrong[row] = True
            else:
                good.append([None if value in nulls else value for value in values])
        columns = {
            name: pa.array([values[place] for values in good], pa.binary()).cast(pa.string())
            for name, place in self._places.items()
        }
        return columns, is_wrong


class _PlainText(NamedTuple):
    """Text that pyarrow reads as we do."""

    text: bytes | memoryview
    separator: str
    quote: str
    has_breaks: bool
    block_bytes: int


def _is_byte(text: bytes) -> bool:
    return len(text) == 1 and text != b"\0"


def _runs(lines: LineBlock, rows: LineRows) -> list[tuple[int, int]]:
    """(first, last) of runs of rows with nothing but empty lines between them; a rewritten row is a run of its own."""
    is_part = np.zeros(len(lines) + 1, np.int64)  # lines that belong to rows, or are empty
    np.add.at(is_part, rows.first, 1)
    np.add.at(is_part, rows.last + 1, -1)
    is_gap = (np.cumsum(is_part[:-1]) == 0) & (lines.lengths > 0)
    gaps = np.cumsum(is_gap)
    begins = np.ones(len(rows.first), np.bool_)
    begins[1:] = gaps[rows.first[1:]] != gaps[rows.first[:-1]]
    if rows.rewritten:
        own = np.isin(rows.first, np.fromiter(rows.rewritten, np.int64, len(rows.rewritten)))
        begins |= own
        begins[1:] |= own[:-1]
    firsts = np.flatnonzero(begins)
    lasts = np.append(firsts[1:], len(begins)) - 1
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def _equal(data: bytes, starts: Positions, lengths: Positions, text: bytes) -> NDArray[np.bool_]:
    """(n,) whether each piece of ``data`` equals a text that is not empty."""
    values = np.frombuffer(data, np.uint8)
    found = np.flatnonzero(lengths == len(text)) if text else np.zeros(0, np.int64)
    for at in range(len(text)):
        if not len(found):
            break
        if at == 16:  # few are left
            found = np.array([i for i in found.tolist() if data.startswith(text, int(starts[i]))], np.int64)
            break
        found = found[values[starts[found] + at] == text[at]]
    is_equal = np.zeros(len(starts), np.bool_)
    is_equal[found] = True
    return is_equal
