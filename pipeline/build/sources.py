"""Sources: the files of each split, their columns and lookups, found on the driver before Spark starts.

A missing file, column or lookup ends the job here, in a second, and not an hour into it.
"""

import csv
import json
import zlib
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow

from features.rawlog import (
    COLUMNAR,
    KEEP_BYTES,
    TOO_LONG,
    LogError,
    LogFormat,
    bounded_lines,
    expand_paths,
    find_lookup,
    is_text,
    is_too_long,
    open_text,
    read_lookup,
    split_line,
)
from features.schema import FeatureSchema
from pipeline.config import HashSplit, PipelineConfig

_JSON_SAMPLE = 1_000
"""Lines of a JSON log that are looked at for keys before every line is."""


@dataclass(frozen=True)
class Source:
    """Files of one split that are read alike."""

    split: str
    files: tuple[str, ...]
    columns: tuple[str, ...]
    """Raw columns: in file order for csv and tsv, else the needed ones."""
    header: str | None = None
    """csv and tsv: the line to leave out."""
    lookups: tuple[str, ...] = ()
    """Path of each lookup's table."""
    unseen: tuple[str, ...] = ()
    """JSON lines: needed keys that the first lines do not have; Spark looks for them in all lines."""


@dataclass(frozen=True)
class LookupTable:
    """A lookup's side table in memory: its columns besides the key, and key -> row."""

    columns: tuple[str, ...]
    rows: dict[str | None, dict[str, object]]


@dataclass(frozen=True)
class InputPlan:
    """Plan: all sources and lookup tables of a build."""

    sources: tuple[Source, ...]
    tables: dict[tuple[int, str], LookupTable]
    """(number of the lookup in the config, path) -> its table."""

    def inputs(self) -> dict[str, list[str]]:
        """Map each split and lookup to its files, for the manifest."""
        files: dict[str, list[str]] = defaultdict(list)
        for source in self.sources:
            files[source.split] += source.files
        for number, path in sorted(self.tables):
            files[f"lookup {number}"].append(path)
        return {name: sorted(paths) for name, paths in files.items()}

    def num_bytes(self) -> int:
        """Sum the sizes of the logs in bytes, a gzip file counted five times."""
        files = [Path(file) for source in self.sources for file in source.files]
        return sum(file.stat().st_size * (5 if file.suffix in (".gz", ".bz2") else 1) for file in files)


def wanted_columns(config: PipelineConfig, schema: FeatureSchema) -> tuple[str, ...]:
    """List the raw columns that a build needs, from files and lookups."""
    split = (config.split.column,) if isinstance(config.split, HashSplit) and config.split.column else ()
    return tuple(dict.fromkeys([*schema.raw_columns, *split, *config.dedupe]))


def plan_sources(config: PipelineConfig, schema: FeatureSchema) -> InputPlan:
    """Find every file, its columns and its lookups.

    Raises:
        LogError: names the pattern, file, column or lookup that is missing.
    """
    log_format = config.input.format
    wanted = wanted_columns(config, schema)
    groups: dict[tuple, list[str]] = defaultdict(list)
    tables: dict[tuple[int, str], LookupTable] = {}
    owner: dict[str, str] = {}
    for split, patterns in config.inputs().items():
        for file in expand_paths(patterns):
            file = str(Path(file).absolute())
            if owner.setdefault(file, split) != split:
                raise LogError(f"{file} is given for both {owner[file]!r} and {split!r}")
            if Path(file).name.startswith(("_", ".")):
                raise LogError(f"{file}: Spark skips files whose name starts with '_' or '.': rename it")
            lookups = tuple(str(Path(find_lookup(one, file)).absolute()) for one in config.input.lookups)
            for number, path in enumerate(lookups):
                if (number, path) not in tables:
                    columns, rows = read_lookup(path, config.input.lookups[number])
                    tables[number, path] = LookupTable(tuple(columns), rows)
            needed = _needed_from_file(wanted, config, [tables[n, p] for n, p in enumerate(lookups)])
            groups[split, lookups, *_look_into(file, log_format, needed)].append(file)
    sources = [
        Source(split, tuple(files), columns, header, lookups, unseen)
        for (split, lookups, columns, header, unseen, _types), files in groups.items()
    ]
    return InputPlan(tuple(sources), tables)


def _needed_from_file(wanted: tuple[str, ...], config: PipelineConfig, tables: list[LookupTable]) -> tuple[str, ...]:
    """The wanted columns that no lookup brings, and the keys of the lookups."""
    brought: set[str] = set()
    keys: list[str] = []
    for lookup, table in zip(config.input.lookups, tables, strict=True):
        if lookup.key not in brought:
            keys.append(lookup.key)
        brought.update(table.columns)
    return tuple(dict.fromkeys([*(c for c in wanted if c not in brought), *keys]))


def _look_into(file: str, log_format: LogFormat, needed: tuple[str, ...]) -> tuple:
    """(columns, header, unseen, types) of one file."""
    try:
        if not log_format.is_text:
            schema = COLUMNAR[log_format.kind].read_schema(file)
            _require(file, needed, schema.names)
            # Files whose columns differ in type are read apart.
            return needed, None, (), tuple(str(schema.field(name).type) for name in needed)
        if log_format.kind == "jsonl":
            return needed, None, _unseen_keys(file, log_format, needed), ()
        columns, header = log_format.columns, None
        if log_format.has_header:
            columns, header = _read_header(file, log_format)
        _require(file, needed, columns)
        return columns, header, (), ()
    except (OSError, EOFError, zlib.error, csv.Error, pyarrow.ArrowException) as error:
        raise LogError(f"{file} cannot be read: {error}") from error


def _require(file: str, needed: tuple[str, ...], present) -> None:
    missing = [name for name in needed if name not in present]
    if missing:
        names = ", ".join(map(repr, missing))
        raise LogError(f"{file} has no column {names}; it has: {', '.join(map(str, present))}")
    twice = sorted({name for name in present if list(present).count(name) > 1} & set(needed))
    if twice:
        raise LogError(f"{file} has column {', '.join(map(repr, twice))} twice")


def _read_header(file: str, log_format: LogFormat) -> tuple[tuple[str, ...], str]:
    with open_text(file, log_format.encoding, errors=KEEP_BYTES) as lines:
        # As the reader of the rows does, skip empty lines before the header.
        line = next((line.rstrip("\n") for line in bounded_lines(lines) if line.rstrip("\n")), None)
    if line is None:
        raise LogError(f"{file} is empty: it has no header line")
    if is_too_long(line):
        raise LogError(f"{file}: the header is {TOO_LONG}")
    if not is_text(line):
        raise LogError(f"{file}: the header is not {log_format.encoding} text")
    return tuple(split_line(line, log_format)), line


def _unseen_keys(file: str, log_format: LogFormat, needed: tuple[str, ...]) -> tuple[str, ...]:
    seen: set[str] = set()
    with open_text(file, log_format.encoding, errors="replace") as lines:
        for line in islice(bounded_lines(lines), _JSON_SAMPLE):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue  # Spark rejects it with its line
            seen.update(row if isinstance(row, dict) else ())
    return tuple(name for name in needed if name not in seen)


def find_line(file: str, log_format: LogFormat, text: str, limit: int = 200_000) -> int | None:
    """Find the number (from 1) of the first line equal to ``text`` among the first ``limit``; None if there is none."""
    if not log_format.is_text:
        return None
    try:
        with open_text(file, log_format.encoding, errors="replace") as lines:
            for number, line in enumerate(islice(bounded_lines(lines), limit), start=1):
                if line.rstrip("\n") == text:
                    return number
    except (OSError, EOFError, zlib.error):
        return None
    return None
