"""Portion: the part of a raw log that one task reads, a file or a range of its bytes, lines numbered as in the file.

``features.rawlog.read_lines`` reads every portion: a second parser could only give other rows or reasons. Plain text
alone is cut: what is compressed has no place to begin but its start. A columnar file is one portion too.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from features.disk.place import temporary_folder
from features.log_format import LogError, LogFormat, Lookup
from features.rawlog import (
    KEEP_BYTES,
    bounded_lines,
    find_lookup,
    is_text,
    is_too_long,
    open_text,
    read_lines,
    split_line,
)
from features.read.portions import next_line_start

PORTION_BYTES = 16 << 20
"""Bytes of a portion of a plain file: a constant, so that the cluster's size changes no result."""

_TABLES_A_PORTION = 4
"""Every task reads the lookups' tables anew: a portion is as many times larger than them, at least."""
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Portion:
    """Portion: the lines that one task reads."""

    file: str
    """Path of the raw file as the user gave it."""
    path: str
    """Path of the file on every executor."""
    lookups: tuple[str, ...] = ()
    """Path of each lookup's table."""
    start: int = 0
    end: int | None = None
    """Bytes from ``start`` to before ``end``, whole lines; None: the whole file."""
    header: str | None = None
    """csv and tsv that begin with one: the header line, for bytes that do not hold it."""
    first_line: int = 1
    """Number of the first line in the file."""


def plan_portions(
    files: Sequence[str], log_format: LogFormat, lookups: tuple[Lookup, ...] = (), num_bytes: int = PORTION_BYTES
) -> list[Portion]:
    """Cut raw files into portions, file by file; lines are not numbered yet.

    Raises:
        LogError: a lookup is missing.
        OSError: a file cannot be read.
    """
    portions = []
    for file in files:
        path = Path(file).absolute()
        tables = tuple(str(Path(find_lookup(lookup, file)).absolute()) for lookup in lookups)
        whole = Portion(file, str(path), tables)
        size = max(num_bytes, _TABLES_A_PORTION * sum(Path(table).stat().st_size for table in tables))
        is_plain = log_format.is_text and path.suffix not in (".gz", ".bz2")
        portions += _cut(whole, log_format, size) if is_plain and path.stat().st_size > size else [whole]
    return portions


def _cut(whole: Portion, log_format: LogFormat, num_bytes: int) -> list[Portion]:
    """Portions of about ``num_bytes`` each; the file in one where its header is not in the first."""
    header = None
    if log_format.has_header:
        header = _find_header(whole.path, log_format, num_bytes)
        if header is None:
            return [whole]
    with Path(whole.path).open("rb") as file:
        size = file.seek(0, 2)
        starts = [0]
        for target in range(num_bytes, size, num_bytes):
            if target > starts[-1] and (start := next_line_start(file, target)) < size:
                starts.append(start)
    if len(starts) == 1:
        return [whole]
    ends = [*starts[1:], size]
    return [replace(whole, start=s, end=e, header=header) for s, e in zip(starts, ends, strict=True)]


def _find_header(path: str, log_format: LogFormat, num_bytes: int) -> str | None:
    """The line that ``read_lines`` takes the columns from; None if it does not surely end within ``num_bytes``."""
    bound = 3  # a byte order mark
    with open_text(path, log_format.encoding, errors=KEEP_BYTES) as lines:
        for line in bounded_lines(lines):
            bound += 4 * len(line) + 1  # as many bytes at most, and a carriage return
            if bound > num_bytes or is_too_long(line):
                return None
            text = line.rstrip("\n")
            if not text:
                continue
            if not is_text(text):
                return None
            try:
                split_line(text, log_format)
            except (csv.Error, LogError):
                continue  # a row with an error, and the next line is the header
            return text
    return None


def count_lines(portion: Portion) -> int:
    """Count the ends of lines in a portion's bytes: ``\\n``, ``\\r\\n`` and ``\\r`` alone."""
    count, last = 0, b""
    for block in _blocks(portion):
        count += block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n")
        count -= last == b"\r" and block.startswith(b"\n")
        last = block[-1:]
    return count


def number_lines(portions: Sequence[Portion], counts: Sequence[int]) -> list[Portion]:
    """Set the first line of each portion from the number of lines in each."""
    lines: dict[str, int] = defaultdict(lambda: 1)
    numbered = []
    for portion, count in zip(portions, counts, strict=True):
        numbered.append(replace(portion, first_line=lines[portion.file]))
        lines[portion.file] += count
    return numbered


def read_portion(
    portion: Portion, log_format: LogFormat, lookups: tuple[Lookup, ...]
) -> Iterator[tuple[int, dict[str, Any] | LogError]]:
    """Read the rows of a portion, as ``read_lines`` gives them for the whole file.

    Raises:
        LogError: as ``read_lines``, or the file has changed since it was cut.
    """
    tables = tuple(replace(one, path=path) for one, path in zip(lookups, portion.lookups, strict=True))
    if portion.end is None:
        yield from _read(portion.path, portion, log_format, tables)
        return
    # The reader takes a file: these lines as one of their own, below what they need of the whole file's start. A blank
    # line is no row, and keeps the first characters from being taken for a byte order mark.
    preamble = [] if portion.start == 0 else [""] if portion.header is None else ["", portion.header]
    with temporary_folder() as folder:
        path = folder / "lines"
        with path.open("wb") as file:
            file.write("".join(f"{line}\n" for line in preamble).encode(log_format.encoding))
            for block in _blocks(portion):
                file.write(block)
        offset = portion.first_line - 1 - len(preamble)
        for number, row in _read(str(path), portion, log_format, tables):
            yield number + offset, row


def _read(path: str, portion: Portion, log_format: LogFormat, tables: tuple[Lookup, ...]):
    try:
        yield from read_lines(path, log_format, tables)
    except LogError as error:
        raise LogError(str(error).replace(path, portion.file)) from error


def _blocks(portion: Portion) -> Iterator[bytes]:
    assert portion.end is not None
    rest = portion.end - portion.start
    try:
        with Path(portion.path).open("rb") as file:
            file.seek(portion.start)
            while rest and (block := file.read(min(rest, _BLOCK_BYTES))):
                rest -= len(block)
                yield block
    except OSError as error:
        raise LogError(f"{portion.file} cannot be read: {error}") from error
    if rest:
        raise LogError(f"{portion.file} has become shorter while it was read")
