"""LogReader: reads raw logs of one format, each row joined to its lookups; builds and scoring read by it."""

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from features.log_files import STORE, find_splits
from features.log_format import LogError, LogFormat, Lookup
from features.raw_block import RawBlock, Wanted
from features.read.candidates import CandidateReader, check_made_columns, wanted_of_lists
from features.read.delta import FoundTables, find_delta_files
from features.read.lines import STEP_BYTES
from features.read.lookup import load_lookup
from features.read.portions import Portion, PortionEnd, Reading, check_file, read_portion
from features.schema import FeatureSchema, Values
from features.values import text_fault, texts


@dataclass(frozen=True)
class LogReader:
    """Reader of raw logs that look alike.

    Attributes:
        log_format: what the files look like.
        lookups: side tables that are joined to each row.
        wanted: columns that rows need, from files, paths and lookups.
        values: the schema's rules for raw values.
    """

    log_format: LogFormat
    lookups: tuple[Lookup, ...]
    wanted: Wanted
    values: Values

    def find_files(self, patterns: Mapping[str, str | Sequence[str]]) -> FoundTables:
        """Find the files of each split: those that paths, folders and globs stand for, or Delta tables' current ones.

        Raises:
            LogError, StorageError: as ``find_splits`` and ``find_delta_files``.
        """
        if self.log_format.kind == "delta":
            return find_delta_files({split: (p,) if isinstance(p, str) else p for split, p in patterns.items()})
        return FoundTables(find_splits(patterns), {})

    def find_tables(self, file: str) -> tuple[str, ...]:
        """Find the lookups' tables for a raw file: as given, else beside it.

        Args:
            file: its ``LogFile.real``.

        Returns:
            Absolute path of each.

        Raises:
            LogError: one is in neither place.
        """
        return tuple(_find_table(lookup, file) for lookup in self.lookups)

    def wanted_of_file(self, tables: tuple[str, ...], declared: frozenset[str] = frozenset()) -> Wanted:
        """Return the wanted columns that no lookup brings, and the keys of the lookups, and where lists are.

        Args:
            tables: as ``find_tables`` returns them.
            declared: columns of the file's Delta table, which the file may lack (``FoundTables.columns``).

        Raises:
            LogError: a table cannot be read, or has a column that is made of lists of candidates.
        """
        brought: set[str] = set()
        keys: list[str] = []
        for lookup, table in zip(self.lookups, tables, strict=True):
            if lookup.key not in brought:
                keys.append(lookup.key)
            columns = load_lookup(table, lookup, self.wanted.lists).columns
            if self.log_format.candidates is not None:
                check_made_columns(table, self.log_format.candidates, columns.keys())
            brought.update(columns)
        columns = tuple(dict.fromkeys([*(c for c in self.wanted.columns if c not in brought), *keys]))
        numbers = (self.wanted.numbers & set(columns)) - set(keys)
        lists, optional = self.wanted.lists & set(columns), self.wanted.optional | declared
        wanted = replace(self.wanted, columns=columns, numbers=numbers, lists=lists, optional=optional)
        return wanted if self.log_format.candidates is None else wanted_of_lists(self.log_format.candidates, wanted)

    def read(
        self,
        portion: Portion,
        wanted: Wanted,
        tables: tuple[str, ...],
        partition: Mapping[str, str | None],
        matched: Counter[str] | None = None,
        step: int = STEP_BYTES,
        name: str | None = None,
    ) -> Reading:
        """Read a portion of a file.

        Args:
            portion: what to read.
            wanted: columns of its file, as ``wanted_of_file`` returns them.
            tables: the lookups' tables of its file.
            partition: columns of its path.
            matched: counts, by table, the rows whose key it has.
            step: bytes of text to read at a time.
            name: lasting name of the file, which ids of lists are made of; None: the path of the portion.

        Raises:
            LogError: as ``read_portion``, or a table cannot be read. Raised while blocks are taken.
        """
        reading = read_portion(portion, self.log_format, wanted, step, partition)
        lists = None
        if self.log_format.candidates is not None:
            check_file(portion.file, self.log_format, wanted, partition)
            lists = CandidateReader(self.log_format, self.values, self.wanted.columns, name or portion.file)
        return Reading(self._read(reading, lists, tables, Counter() if matched is None else matched))

    def _read(
        self, reading: Reading, lists: CandidateReader | None, tables: tuple[str, ...], matched: Counter[str]
    ) -> Generator[RawBlock, None, PortionEnd]:
        for raw in reading:
            for block in (raw,) if lists is None else lists.rows(raw):
                for lookup, table in zip(self.lookups, tables, strict=True):
                    block = self._join(block, lookup, table, matched)
                yield block
        return reading.end if lists is None else replace(reading.end, lists=lists.counts)

    def _join(self, block: RawBlock, lookup: Lookup, table: str, matched: Counter[str]) -> RawBlock:
        """Join a table to rows; rows whose key is no category are rejected."""
        keys, bad = texts(block.columns[lookup.key], self.values)
        if bad is not None:
            if self.log_format.candidates is not None:
                bad = np.isin(block.numbers, block.numbers[bad])  # a list is rejected whole
            fault = text_fault(lookup.key, block.columns[lookup.key].type)
            reason = f"column {lookup.key!r}, the key of a lookup: {fault}"
            block = block.take(~bad, [block.reject(row, reason) for row in np.flatnonzero(bad).tolist()])
            keys = keys.filter(pa.array(~bad))
        joined, count = load_lookup(table, lookup, self.wanted.lists).join(block, keys)
        matched[table] += count
        return joined


def places_of_table(lookup: Lookup, file: str) -> list[Path]:
    """List the places where a lookup's table is looked for, in order; none is in a store, where no table is read.

    Args:
        lookup: the lookup.
        file: raw file that it is joined to, ``LogFile.real`` or ``LogFile.absolute``.
    """
    path = Path(lookup.path)
    given = [] if lookup.path.startswith(STORE) else [path.absolute()]
    return given if file.startswith(STORE) else [*given, Path(file).absolute().parent / path.name]


def _find_table(lookup: Lookup, file: str) -> str:
    places = places_of_table(lookup, file)
    for path in places:
        if path.is_file():
            return str(path)
    beside = "" if file.startswith(STORE) else f" nor beside the log at {places[-1]}"
    cure = ", and a table in a store is not read: copy it to a disk" if lookup.path.startswith(STORE) else ""
    raise LogError(f"lookup {lookup.path!r} (key {lookup.key!r}) is neither there{beside}{cure}")


def wanted_of_features(
    schema: FeatureSchema,
    columns: tuple[str, ...] | None = None,
    used_as_text: frozenset[str] = frozenset(),
    used_as_number: frozenset[str] = frozenset(),
    optional: tuple[str, ...] = (),
) -> Wanted:
    """List the raw columns that a schema's features need, and others, with what each is used as.

    Args:
        schema: the schema.
        columns: all columns to read; None: those of the features.
        used_as_text: columns that something else than a feature uses as text.
        used_as_number: columns that something else than a feature uses as a number.
        optional: columns that a file may lack.
    """
    lists = frozenset(f.columns[0] for f in schema.id_features if f.kind.takes_lists)
    used_as_text |= {c for f in schema.sparse if f.encoding.kind in ("hash", "vocabulary") for c in f.columns}
    used_as_text |= {c for part in schema.parts for c in part.columns}  # numbers of a list are split as text
    numbers = used_as_number | {c for f in schema.sparse for c in f.columns} | {f.source for f in schema.dense}
    return Wanted(columns or schema.feature_columns, numbers - used_as_text, lists, frozenset(optional))
