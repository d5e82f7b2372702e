"""Reader of raw logs row by row, for scoring."""

import bz2
import csv
import glob
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from features.log_format import MAX_LINE, TOO_LONG, LogError, LogFormat, Lookup
from features.rows import RowError
from tests.oracles.row_encoder import to_text

if TYPE_CHECKING:  # not needed for text logs
    import pyarrow

csv.field_size_limit(2**31 - 1)  # Spark has no limit of its own either


def expand_paths(patterns: str | tuple[str, ...]) -> list[str]:
    """Files that paths, folders or globs stand for, sorted, each once.

    Raises:
        LogError: a pattern matches nothing; the message names it.
    """
    found: list[str] = []
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = [str(p) for p in path.rglob("*") if p.is_file() and not p.name.startswith(("_", "."))]
        else:
            matches = [pattern] if path.is_file() else glob.glob(pattern, recursive=True)
        if not matches:
            raise LogError(f"no input file matches {pattern!r}")
        found += matches
    return sorted(dict.fromkeys(found))


def find_lookup(lookup: Lookup, log_file: str) -> str:
    """Path of a lookup's file: as given, else beside ``log_file``.

    Raises:
        LogError: it is in neither place.
    """
    beside = Path(log_file).parent / Path(lookup.path).name
    for path in (Path(lookup.path), beside):
        if path.is_file():
            return str(path)
    raise LogError(f"lookup {lookup.path!r} (key {lookup.key!r}) is neither there nor beside the log at {beside}")


def open_text(path: str, encoding: str, errors: str = "strict"):
    """Open a plain, gzip or bzip2 text file for reading; both ``\\n`` and ``\\r\\n`` end a line."""
    opener = {".gz": gzip.open, ".bz2": bz2.open}.get(Path(path).suffix, open)
    # A byte order mark is no part of the first column's name.
    codec = "utf-8-sig" if encoding == "UTF-8" else encoding
    return opener(path, "rt", encoding=codec, errors=errors, newline=None)


def bounded_lines(file: TextIO) -> Iterator[str]:
    """Read the lines of a text file; a line that ``is_too_long`` is cut to its first characters."""
    while line := file.readline(MAX_LINE + 1):
        rest = line
        while is_too_long(line) and rest and not rest.endswith("\n"):
            rest = file.readline(MAX_LINE)
        yield line


def is_too_long(line: str) -> bool:
    """Tell whether a line, without its end, exceeds ``MAX_LINE`` characters."""
    return len(line) > MAX_LINE and len(line.rstrip("\n")) > MAX_LINE


def read_rows(path: str, log_format: LogFormat, lookups: tuple[Lookup, ...] = ()) -> Iterator[dict[str, Any]]:
    """Read raw rows one by one, joined to their lookups; a missing value is None.

    Raises:
        LogError: the file is absent or truncated, or a line is malformed; names the file and the line.
    """
    for number, row in read_lines(path, log_format, lookups):
        if isinstance(row, LogError):
            raise LogError(f"{path} line {number}: {row}")
        yield row


def read_lines(
    path: str, log_format: LogFormat, lookups: tuple[Lookup, ...] = ()
) -> Iterator[tuple[int, "dict[str, Any] | LogError"]]:
    """Read lines as ``read_rows`` does, each with its number from 1, and a malformed line as its error.

    Raises:
        LogError: the file is absent or truncated, or a lookup cannot be used.
    """
    tables = [(lookup.key, read_lookup(find_lookup(lookup, path), lookup)) for lookup in lookups]
    nulls = {"", *log_format.null_values}
    try:
        for number, row in _read_raw(path, log_format):
            if isinstance(row, LogError):
                yield number, row
                continue
            row = {k: None if isinstance(v, str) and v in nulls else v for k, v in row.items()}
            try:
                for key, (columns, rows) in tables:
                    if key not in row:
                        raise LogError(f"{path}: column {key!r}, the key of a lookup, is missing")
                    row.update(rows.get(to_text(row[key])) or dict.fromkeys(columns))
            except RowError as error:
                row = LogError(f"column {key!r}, the key of a lookup: {error}")
            yield number, row
    except (OSError, EOFError, zlib.error) as error:
        raise LogError(f"{path} cannot be read: {error}") from error


def read_lookup(path: str, lookup: Lookup) -> tuple[list[str], dict[str | None, dict[str, Any]]]:
    """Read a side table: its columns besides the key, and text of the key -> row.

    Raises:
        LogError: the table cannot be read, or a key is missing or there twice.
    """
    rows: dict[str | None, dict[str, Any]] = {}
    columns: list[str] = []
    for row in read_rows(path, lookup.format):
        if lookup.key not in row:
            raise LogError(f"{path} has no column {lookup.key!r} (the lookup's key); it has: {', '.join(row)}")
        try:
            key = to_text(row.pop(lookup.key))
        except RowError as error:
            raise LogError(f"{path}: key {lookup.key!r}: {error}") from error
        if key is None or key in rows:
            raise LogError(f"{path}: key {lookup.key!r} is missing or twice: {key!r}")
        columns = columns or list(row)
        rows[key] = row
    return columns, rows


_BATCH_ROWS = 4_096
"""Rows of a columnar log that are converted to Python objects at a time."""

_Lines = Iterator[tuple[int, dict[str, Any] | LogError]]


def _read_raw(path: str, log_format: LogFormat) -> _Lines:
    if not Path(path).is_file():
        raise LogError(f"{path} does not exist")
    if not log_format.is_text:
        yield from _read_columnar(path, COLUMNAR[log_format.kind])
    elif log_format.kind == "jsonl":
        yield from _read_jsonl(path, log_format)
    else:
        yield from _read_delimited(path, log_format)


class Columnar(NamedTuple):
    """Reader of a columnar format; Spark has one of the same name.

    Attributes:
        read_schema: path -> names and types of the file's columns.
        read_parts: path -> its rows, in parts that fit in memory.
    """

    read_schema: Callable[[str], "pyarrow.Schema"]
    read_parts: Callable[[str], Iterator["pyarrow.Table"]]


def _parquet_schema(path: str) -> "pyarrow.Schema":
    import pyarrow.parquet

    return pyarrow.parquet.read_schema(path)


def _parquet_parts(path: str) -> Iterator["pyarrow.Table"]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    # Not iter_batches: in PyArrow 14 it ends the process where a damaged file has columns of different lengths.
    return map(file.read_row_group, range(file.num_row_groups))


COLUMNAR: Mapping[str, Columnar] = {"parquet": Columnar(_parquet_schema, _parquet_parts)}
"""Kind of log -> its reader, for files that hold columns with names and types."""


def _read_columnar(path: str, reader: Columnar) -> _Lines:
    import pyarrow

    number = 0
    try:
        for table in reader.read_parts(path):
            table.validate(full=True)
            for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise LogError(f"{path} cannot be read after row {number}: {error}") from error


def _read_jsonl(path: str, log_format: LogFormat) -> _Lines:
    with open_text(path, log_format.encoding, errors=KEEP_BYTES) as file:
        for number, line in enumerate(bounded_lines(file), start=1):
            if is_too_long(line):
                yield number, LogError(TOO_LONG)
                continue
            if not line.strip(" \t\n\v\f\r"):  # what Java takes for white space
                continue
            if not is_text(line):
                yield number, LogError("not UTF-8 text")
                continue
            try:
                # Numbers stay text, so that 1.50 hashes as it is written, here as in Spark.
                row = json.loads(
                    line, parse_float=str, parse_int=str, parse_constant=_refuse_constant, object_pairs_hook=JsonObject
                )
                if "\\ud" in line or "\\uD" in line:  # half a surrogate pair is a question mark, as in Java
                    row = _without_halves(row)
            except (ValueError, RecursionError):
                row = None
            yield number, row if isinstance(row, dict) else LogError("not a JSON object")


class JsonObject(dict):
    """An object as a dict, with all its keys as they came."""

    def __init__(self, pairs: Iterable[tuple[str, Any]]) -> None:
        pairs = list(pairs)
        super().__init__(pairs)
        self.all_keys = [key for key, _ in pairs]

    def is_twice(self, key: str) -> bool:
        return self.all_keys.count(key) > 1


def _without_halves(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return list(map(_without_halves, value))
    if isinstance(value, JsonObject):
        found = JsonObject((_without_halves(key), _without_halves(item)) for key, item in value.items())
        found.all_keys = list(map(_without_halves, value.all_keys))
        return found
    return value


KEEP_BYTES = "surrogateescape"
"""Decoding errors: undecodable bytes are kept instead of ending the reading; ``is_text`` finds their lines."""


def is_text(line: str) -> bool:
    """Tell whether a line read with ``KEEP_BYTES`` was text in the file's encoding."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _read_delimited(path: str, log_format: LogFormat) -> _Lines:
    with open_text(path, log_format.encoding, errors=KEEP_BYTES) as file:
        lines = enumerate((line.rstrip("\n") for line in bounded_lines(file)), start=1)
        columns = log_format.columns
        for number, line in lines:
            if not line:
                continue
            if is_too_long(line):
                if not columns:
                    raise LogError(f"{path}: the header is {TOO_LONG}")
                yield number, LogError(TOO_LONG)
                continue
            if not is_text(line):
                if not columns:
                    raise LogError(f"{path}: the header is not {log_format.encoding} text")
                yield number, LogError("not UTF-8 text")
                continue
            try:
                values = split_line(line, log_format)
            except (csv.Error, LogError) as error:
                yield number, LogError(f"badly quoted: {error}")
                continue
            if not columns:
                columns = tuple(values)
                continue
            if len(values) == len(columns):
                yield number, dict(zip(columns, values, strict=True))
            else:
                yield number, LogError(f"{len(values)} columns where {len(columns)} are expected")


def split_line(line: str, log_format: LogFormat) -> list[str]:
    """Cut one line of a csv or tsv file into its values."""
    quote = log_format.quote_character
    if not quote or quote not in line:
        return line.split(log_format.delimiter)
    if len(log_format.delimiter) > 1:
        raise LogError(f"a separator of several characters cannot be combined with quotes: {line[:80]!r}")
    if "\0" in line:
        raise LogError("a NUL character and quotes in one line")
    return next(csv.reader([line], delimiter=log_format.delimiter, quotechar=quote, strict=True))
