"""Portion: the part of a raw log that one task reads, and how a file is cut into them and read.

Results do not depend on the cuts. A portion takes its first byte for a row's beginning and reads on behind its end up
to the end of its last row; where the next one began too early, inside that row, ``misplaced`` says so, and it is read
again from where it should have begun. Lines are numbered from 1 in every portion: each says how many it had.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from features.log_format import LogError, LogFormat
from features.raw_block import RawBlock, Wanted
from features.read.candidates import ListCounts, check_made_columns
from features.read.columnar import cut_groups, find_columns, open_groups, read_groups
from features.read.delimited import DelimitedReader, read_header
from features.read.json_lines import JsonReader, parse_object
from features.read.libffm import LibffmReader
from features.read.lines import STEP_BYTES, LineReader, has_plain_line_ends
from features.read.streams import STREAM_ERRORS, compression_of, open_stream
from features.values import numbers

PORTION_BYTES = 16 << 20
"""Bytes of a portion: a constant, so that the cluster's size changes no result."""
_BLOCK_BYTES = 1 << 20
_KEY_LINES = 100
"""JSON lines whose keys are held against the columns that are made of lists."""


@dataclass(frozen=True)
class Portion:
    """Portion: the lines, or row groups, that one task reads.

    Attributes:
        file: path of the raw file.
        start: first byte (Parquet and ORC: first row group or stripe), where a line begins.
        end: byte behind the last line, where another begins; None: the file's end.
    """

    file: str
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class PortionEnd:
    """End of a reading: which part of the file it covered.

    Attributes:
        begin: its first byte (Parquet and ORC: row group or stripe).
        end: where the next portion of the file has to begin.
        num_lines: lines (rows) in between, rows or not; the numbers of the next portion's lines begin behind them.
        lists: counts of their lists of candidates; None: a line is a row.
    """

    begin: int
    end: int
    num_lines: int
    lists: ListCounts | None = None


class Reading(Iterator[RawBlock]):
    """Reading: blocks of a portion's rows, one after the other; ``end`` is there when the last one has been taken."""

    def __init__(self, blocks: Generator[RawBlock, None, PortionEnd]) -> None:
        self._blocks = blocks
        self._end: PortionEnd | None = None

    def __next__(self) -> RawBlock:
        try:
            return next(self._blocks)
        except StopIteration as stop:
            if stop.value is not None:
                self._end = stop.value
            raise

    @property
    def end(self) -> PortionEnd:
        """End of the reading."""
        if self._end is None:
            raise ValueError("a portion's end is known when all of its blocks have been read")
        return self._end


def plan_portions(file: str, size: int, log_format: LogFormat, num_bytes: int = PORTION_BYTES) -> list[Portion]:
    """Cut a raw file into portions of about ``num_bytes``.

    What is compressed, or in an encoding whose ends of lines cannot be told from bytes alone, is one portion.

    Args:
        file: its path.
        size: its bytes.
        log_format: its format.
        num_bytes: bytes of a portion.

    Raises:
        LogError: the file cannot be read or is no text; names it.
    """
    if not log_format.is_text:
        runs = cut_groups(open_groups(file, log_format), num_bytes)
        return [Portion(file, start, end) for start, end in runs]
    try:
        if compression_of(file) is not None or not has_plain_line_ends(log_format.encoding):
            return [Portion(file)]
        with Path(file).open("rb") as stream:
            starts = [0]
            for target in range(num_bytes, size, num_bytes):
                if target > starts[-1] and (start := next_line_start(stream, target)) < size:
                    starts.append(start)
    except OSError as error:
        raise LogError(f"{file} cannot be read: {error}") from error
    return [Portion(file, start, end) for start, end in zip(starts, [*starts[1:], size], strict=True)]


def next_line_start(stream: BinaryIO, target: int) -> int:
    """Find the start of the first line whose preceding line feed is at ``target`` or after; else the end of the file.

    A line feed always ends a line, and a carriage return before it is then no end of its own.
    """
    position = stream.seek(target)
    while block := stream.read(_BLOCK_BYTES):
        found = block.find(b"\n")
        if found >= 0:
            return position + found + 1
        position += len(block)
    return position


def count_lines(portion: Portion, log_format: LogFormat) -> int:
    """Count the lines of a portion as far as its bytes alone tell; of a columnar file, its rows.

    Raises:
        LogError: the file cannot be read, or has become shorter.
    """
    if not log_format.is_text:
        groups = open_groups(portion.file, log_format)
        end = groups.num_groups if portion.end is None else portion.end
        return groups.first_row(end) - groups.first_row(portion.start)
    count, last = 0, b""
    try:
        with open_stream(portion.file, portion.start) as stream:
            rest = portion.end and portion.end - portion.start
            while block := stream.read(_BLOCK_BYTES if rest is None else min(rest, _BLOCK_BYTES)):
                rest = rest and rest - len(block)
                count += block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n")
                count -= last == b"\r" and block.startswith(b"\n")
                last = block[-1:]
    except STREAM_ERRORS as error:
        raise LogError(f"{portion.file} cannot be read: {error}") from error
    return count


def misplaced(portions: Sequence[Portion], ends: Sequence[PortionEnd]) -> dict[int, Portion]:
    """Find portions that began inside a row of the one before.

    Call it again with the new ends, until it finds none.

    Args:
        portions: all portions of one file, in order, as they were read last.
        ends: what each reading ended with.

    Returns:
        Index -> the portion as it has to be read instead; its earlier rows and lines do not count.
    """
    found = {}
    for index in range(1, len(portions)):
        begin = ends[index - 1].end
        if begin != ends[index].begin:
            found[index] = replace(portions[index], start=begin)
    return found


def read_portion(
    portion: Portion,
    log_format: LogFormat,
    wanted: Wanted,
    step: int = STEP_BYTES,
    partition: Mapping[str, str | None] | None = None,
) -> Reading:
    """Read a portion in steps.

    Args:
        portion: what to read.
        log_format: the file's.
        wanted: columns to return.
        step: bytes of text to read at a time.
        partition: columns that the file's path names, with their values; None is missing.

    Raises:
        LogError: the file is damaged, lacks a wanted column, or has one that its path names too; names it. Raised while
            blocks are taken.
    """
    constants = {name: value for name, value in (partition or {}).items() if name in wanted.columns}
    if not constants:
        return Reading(_read(portion, log_format, wanted, step))
    return Reading(_read_with(constants, portion, log_format, wanted, step))


def _read(portion: Portion, log_format: LogFormat, wanted: Wanted, step: int) -> Generator[RawBlock, None, PortionEnd]:
    if not log_format.is_text:
        return _read_columnar(portion, log_format, wanted)
    return _read_text(portion, log_format, wanted, step)


def check_file(file: str, log_format: LogFormat, wanted: Wanted, partition: Mapping[str, str | None]) -> None:
    """Check the columns that a file declares, without reading its rows; JSON lines declare none, but show some.

    Raises:
        LogError: the file is damaged, lacks a wanted column, or has one that is made of lists of candidates; names it.
    """
    own = replace(wanted, optional=wanted.optional | partition.keys())
    try:
        if log_format.is_text:
            _make_reader(file, log_format, own)
        else:
            find_columns(file, open_groups(file, log_format).schema, own)
        if log_format.candidates is not None:
            names = {*column_names(file, log_format, _KEY_LINES), *partition}
            check_made_columns(file, log_format.candidates, names)
    except STREAM_ERRORS as error:
        raise LogError(f"{file} cannot be read: {error}") from error


def _read_columnar(portion: Portion, log_format: LogFormat, wanted: Wanted) -> Generator[RawBlock, None, PortionEnd]:
    groups = open_groups(portion.file, log_format)
    end = groups.num_groups if portion.end is None else portion.end
    num_rows = yield from read_groups(portion.file, groups, portion.start, end, log_format, wanted)
    return PortionEnd(portion.start, end, num_rows)


def _read_text(
    portion: Portion, log_format: LogFormat, wanted: Wanted, step: int
) -> Generator[RawBlock, None, PortionEnd]:
    file = portion.file
    try:
        rows = _make_reader(file, log_format, wanted)
        with open_stream(file, portion.start) as source:
            reader = LineReader(source, file, log_format.encoding, portion.start, portion.end, step)
            yield from rows.read(reader)
            return PortionEnd(portion.start, reader.position, reader.number - 1)
    except STREAM_ERRORS as error:
        raise LogError(f"{file} cannot be read: {error}") from error


def _make_reader(file: str, log_format: LogFormat, wanted: Wanted) -> DelimitedReader | JsonReader | LibffmReader:
    if log_format.kind == "jsonl":
        return JsonReader(log_format, wanted)
    if log_format.kind == "libffm":
        return LibffmReader(file, log_format, wanted)
    return DelimitedReader(file, read_header(file, log_format), log_format, wanted)


def _read_with(
    constants: dict[str, str | None], portion: Portion, log_format: LogFormat, wanted: Wanted, step: int
) -> Generator[RawBlock, None, PortionEnd]:
    """Read a portion, and add the columns of its path."""
    if log_format.kind == "libffm":  # it says itself which columns it has
        looked_for = replace(wanted, columns=tuple(name for name in wanted.columns if name not in constants))
    else:
        looked_for = replace(wanted, optional=wanted.optional | constants.keys())
    blocks = _read(portion, log_format, looked_for, step)
    while True:
        try:
            block = next(blocks)
        except StopIteration as stop:
            return stop.value
        twice = [name for name in constants if name in block.columns and name not in block.absent]
        if twice:
            names = ", ".join(map(repr, twice))
            raise LogError(f"{portion.file} has column {names}, and so has its path: rename one of them")
        added = {name: _constant(name, value, len(block), log_format, wanted) for name, value in constants.items()}
        columns = {name: added.get(name, block.columns.get(name)) for name in wanted.columns}
        yield replace(block, columns=columns, absent=tuple(name for name in block.absent if name not in constants))


def _constant(name: str, value: str | None, num_rows: int, log_format: LogFormat, wanted: Wanted) -> pa.Array:
    text = None if value in ("", *log_format.null_values) else value
    if name in wanted.numbers:
        found, bad = numbers(pa.array([text], pa.string()))
        if bad is None:  # else whoever encodes it says what is wrong
            return pa.repeat(pa.scalar(None if np.isnan(found[0]) else found[0], pa.float64()), num_rows)
    return pa.repeat(pa.scalar(text, pa.string()), num_rows)


def column_names(file: str, log_format: LogFormat, num_lines: int | None = None) -> tuple[str, ...]:
    """List the columns of a file; of JSON lines, the keys of the first ``num_lines`` (None: of all).

    Raises:
        LogError: the file cannot be read; names it.
    """
    if not log_format.is_text:
        return tuple(open_groups(file, log_format).schema.names)
    if log_format.kind == "libffm":
        raise LogError(f"{file}: a libffm log has no names of columns")
    if log_format.kind != "jsonl":
        return read_header(file, log_format).columns
    names: dict[str, None] = {}
    with open_stream(file) as source:
        reader = LineReader(source, file, log_format.encoding, step=STEP_BYTES if num_lines is None else 1 << 16)
        while lines := reader.read():
            for index in range(len(lines)):
                names |= dict.fromkeys(parse_object(lines.bytes_of(index)) or ())
                if num_lines is not None and lines.number + index >= num_lines:
                    return tuple(names)
    return tuple(names)
