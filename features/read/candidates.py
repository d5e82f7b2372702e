"""CandidateReader: makes rows of lists of candidates, such as the impressions of a page; builds and scoring use it.

A list is rejected whole or not at all, and never lies in two blocks. Its candidates have the line, the number and all
columns of the log's row, and an offset each, so that everything that tells rows apart tells candidates apart.
"""

import re
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.arrow import pc
from features.hashing import hash_array, salt_seed
from features.log_format import Candidates, LogError, LogFormat
from features.raw_block import RawBlock, RejectedLine, Wanted
from features.schema import Values
from features.values import NUMBER_PATTERN, RawLists, as_mask, list_items, loose_texts, texts

_POSITION_BITS = 14
MAX_CANDIDATES = 1 << _POSITION_BITS
"""Largest number of candidates in a list."""
MAX_ROWS_OF_LISTS = 1 << 26
"""Largest number of rows of a Parquet or ORC file whose rows are lists: offsets have bits for no more."""
MAX_EXPLODED_BYTES = 1 << 28
"""Largest size of a list's rows: each repeats all columns of the log's row."""
_BLOCK_BYTES, _BLOCK_ROWS = 1 << 25, 1 << 16
"""Bytes and rows of a block of candidates, about; a longer list is a block of its own."""


@dataclass
class ListCounts:
    """Counts of the lists that were read.

    Attributes:
        num_lists: lines whose candidates are rows.
        num_empty: lines without a candidate, which make no row.
        num_rejected: lines with a list that is no row's, each a rejected line.
        num_candidates: rows that were made.
        num_unseen: clicks on what is not in its list, which no row says.
        num_cut: lists of which labels were cut off that nobody had asked for, as of a log that is scored.
    """

    num_lists: int = 0
    num_empty: int = 0
    num_rejected: int = 0
    num_candidates: int = 0
    num_unseen: int = 0
    num_cut: int = 0

    def add(self, other: "ListCounts | None") -> None:
        """Add the counts of other lines."""
        for name, count in vars(other or ListCounts()).items():
            setattr(self, name, getattr(self, name) + count)

    @property
    def num_lines(self) -> int:
        """Number of lines that have a list, good or not."""
        return self.num_lists + self.num_empty + self.num_rejected


def wanted_of_lists(candidates: Candidates, wanted: Wanted) -> Wanted:
    """Return the columns to read of a file for those that rows need.

    Args:
        candidates: what lists look like.
        wanted: columns of rows, without those that lookups bring.
    """
    made = candidates.made_columns - {candidates.list_id}
    of_lists = [candidates.column, *([candidates.clicked] if _reads_clicked(candidates, wanted.columns) else [])]
    columns = [name for name in wanted.columns if name not in made]
    columns = tuple(dict.fromkeys([*columns, *of_lists, candidates.list_id]))
    return replace(
        wanted,
        columns=columns,
        numbers=(wanted.numbers & set(columns)) - {*of_lists, candidates.list_id},
        lists=(wanted.lists & set(columns)) | {*of_lists},
        optional=wanted.optional | {candidates.list_id},
    )


def _reads_clicked(candidates: Candidates, columns: tuple[str, ...]) -> bool:
    return candidates.clicked is not None and candidates.label in columns


def check_made_columns(file: str, candidates: Candidates, names: Set[str]) -> None:
    """Refuse a file that has a column which is to be made of its lists.

    Args:
        file: name of the file.
        candidates: what lists look like.
        names: columns of the file and of its path.

    Raises:
        LogError: names the column.
    """
    keys = {candidates.name: "name", candidates.label: "label", candidates.position: "position"}
    for name, key in keys.items():
        if name in names:
            raise LogError(
                f"{file} has a column {name!r}, and so would the candidates of {candidates.column!r}: give "
                f"pipeline.input.format.candidates.{key} another name"
            )


class _Found(NamedTuple):
    """Candidates of a block's lines, of which rejected lines keep theirs for now.

    Attributes:
        items: (V,) values of the candidates.
        labels: (V,) their labels; None: they are not asked for.
        lengths: (n,) number of candidates of each line.
        reason: (n,) index of the line's fault in ``reasons``, -1 for none.
        reasons: why lists are rejected.
        is_cut: (n,) lists of which labels were cut off that are not asked for; None: there are none.
    """

    items: pa.Array
    labels: pa.Array | None
    lengths: NDArray[np.int64]
    reason: NDArray[np.int32]
    reasons: list[str]
    is_cut: NDArray[np.bool_] | None = None


class CandidateReader:
    """Maker of rows from blocks of lists; ``counts`` says what it has seen."""

    def __init__(self, log_format: LogFormat, values: Values, columns: tuple[str, ...], file: str) -> None:
        """Prepare to read a portion.

        Args:
            log_format: the file's, with candidates.
            values: the schema's rules for raw values.
            columns: raw columns that rows need; labels are made if theirs is among them.
            file: name of the file, which ids of lists are made of.
        """
        assert log_format.candidates is not None
        self._lists, self._columns, self._is_text = log_format.candidates, frozenset(columns), log_format.is_text
        self._values, self._reading = values, replace(values, null_tokens=(), whole_floats=False)
        self._has_labels = self._lists.label in self._columns
        self._file = file
        self.counts = ListCounts()

    def rows(self, block: RawBlock) -> Iterator[RawBlock]:
        """Make blocks of rows of a block of lists; each has the rejected lines up to the next, and one comes always.

        Raises:
            LogError: a columnar file has too many rows.
        """
        if not self._is_text and len(block) and int(block.offsets[-1]) >= MAX_ROWS_OF_LISTS:
            raise LogError(f"{self._file} has more than {MAX_ROWS_OF_LISTS:,} rows that are lists: cut it into files")
        found = self._find(block)
        row_bytes = _row_bytes(block)
        _reject(found, found.lengths > MAX_CANDIDATES, f"more than {MAX_CANDIDATES:,} candidates")
        is_huge = found.lengths * row_bytes > MAX_EXPLODED_BYTES
        _reject(
            found, is_huge, f"rows of more than {MAX_EXPLODED_BYTES >> 20} MiB: fewer candidates, or shorter columns"
        )
        is_bad = found.reason >= 0
        is_good = ~is_bad & (found.lengths > 0)
        self.counts.num_lists += int(is_good.sum())
        self.counts.num_rejected += int(is_bad.sum())
        self.counts.num_empty += int((~is_bad & (found.lengths == 0)).sum())
        self.counts.num_candidates += int(found.lengths[is_good].sum())
        if found.is_cut is not None:
            self.counts.num_cut += int((found.is_cut & is_good).sum())
        bits = 0 if self._is_text else _POSITION_BITS
        rejected = [line._replace(offset=line.offset << bits) for line in block.rejected]
        for row in np.flatnonzero(is_bad).tolist():
            line = block.reject(row, found.reasons[found.reason[row]])
            rejected.append(line._replace(offset=line.offset << bits))
        rejected.sort(key=lambda line: line.offset)
        ids = self._list_ids(block)
        good = np.flatnonzero(is_good)
        starts = np.concatenate([[0], np.cumsum(found.lengths)])
        for lines in _runs(good, found.lengths, row_bytes):
            behind = good[np.searchsorted(good, lines[-1]) + 1 :] if len(lines) else good
            until = int(block.offsets[behind[0]]) << bits if len(behind) else None
            count = sum(1 for line in rejected if until is None or line.offset < until)
            yield self._repeat(block, found, ids, lines, starts, rejected[:count])
            del rejected[:count]

    def _find(self, block: RawBlock) -> _Found:
        """Find the candidates and labels of all lines, and what is wrong with them."""
        column, separator = self._lists.column, self._lists.separator
        raw = list_items(block.columns[column], block.lists.get(column), separator, self._reading)
        items, lengths = raw.items, raw.lengths
        found = _Found(items, None, lengths, np.full(len(block), -1, np.int32), [])
        if raw.bad is not None:
            _reject(found, raw.bad, f"column {column!r} is no list")
        if items.null_count:  # separators side by side, or an item of an array that is missing
            is_array = _array_rows(block, column)
            is_null = as_mask(items.is_null())
            lines = np.repeat(np.arange(len(block)), lengths)
            _reject(found, _any_of(lines, is_null, len(block)) & is_array, f"column {column!r}: {_NO_VALUE}")
            items = items.filter(pa.array(~is_null))
            found = found._replace(items=items, lengths=np.bincount(lines[~is_null], minlength=len(block)))
        if self._lists.label_separator is not None:
            return self._cut_labels(found)
        if self._has_labels:
            clicked = self._lists.clicked
            assert clicked is not None
            clicks = list_items(block.columns[clicked], block.lists.get(clicked), separator, self._reading)
            return found._replace(labels=self._labels_of(found, clicks))
        return found

    def _cut_labels(self, found: _Found) -> _Found:
        """Cut the labels off the candidates' texts; where labels are not asked for, a list may have none."""
        column, separator = self._lists.column, self._lists.label_separator
        assert separator is not None
        both = loose_texts(found.items)
        parts = pc.extract_regex(both, f"(?s)^(?P<value>.*){re.escape(separator)}(?P<label>.*)$")
        values, labels = (pc.struct_field(parts, [place]) for place in (0, 1))
        is_label = as_mask(pc.match_substring_regex(labels, NUMBER_PATTERN))
        size = len(found.lengths)
        lines = np.repeat(np.arange(size), found.lengths)
        lacks, has = _any_of(lines, ~is_label, size), _any_of(lines, is_label, size)
        if self._has_labels:
            _reject(found, lacks, f"column {column!r}: a candidate has no label behind {separator!r}")
        else:
            _reject(
                found, lacks & has, f"column {column!r}: some candidates have a label behind {separator!r}, others none"
            )
        if not has.all():
            values = pc.if_else(pa.array(has[lines]), values, both)
        is_empty = as_mask(pc.equal(values, ""))
        if is_empty.any():
            _reject(found, _any_of(lines, is_empty, size), f"column {column!r}: {_NO_VALUE}")
        if self._has_labels:
            return found._replace(items=values, labels=labels)
        return found._replace(items=values, is_cut=has)

    def _labels_of(self, found: _Found, clicks: RawLists) -> pa.Array:
        """Label the candidates that are among their line's clicks with 1, and count the clicks on others."""
        items, _ = texts(found.items, self._values)
        clicked, _ = texts(clicks.items, self._values)
        codes = pa.concat_arrays([items, clicked]).dictionary_encode()
        count = len(codes.dictionary) + 1
        keys = codes.indices.fill_null(count - 1).to_numpy(zero_copy_only=False).astype(np.int64)
        lines = [np.repeat(np.arange(len(lengths)), lengths) for lengths in (found.lengths, clicks.lengths)]
        keys += count * np.concatenate(lines)
        shown, chosen = keys[: len(items)], np.unique(keys[len(items) :][as_mask(clicked.is_valid())])
        self.counts.num_unseen += int((~np.isin(chosen, shown)).sum())
        return pa.array(np.isin(shown, chosen).astype(np.int8))

    def _list_ids(self, block: RawBlock) -> pa.Array:
        """Return the ids of the lists that the log gives; of others, one of file and offset."""
        given = block.columns[self._lists.list_id]
        if not given.null_count:
            return given
        file = hash_array(pa.array([self._file]), salt_seed(self._lists.list_id))[0]
        made = pc.binary_join_element_wise(f"{int(file):016x}", pa.array(block.offsets).cast(pa.string()), "-")
        return pc.coalesce(loose_texts(given), made)

    def _repeat(
        self,
        block: RawBlock,
        found: _Found,
        ids: pa.Array,
        lines: NDArray[np.int64],
        starts: NDArray[np.int64],
        rejected: list[RejectedLine],
    ) -> RawBlock:
        """Make the rows of some lines."""
        lists, lengths = self._lists, found.lengths[lines]
        rows = np.repeat(lines, lengths)
        places = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        taken, chosen = pa.array(rows), pa.array(starts[rows] + places)
        gone = {lists.column, lists.clicked} - self._columns
        columns = {name: values.take(taken) for name, values in block.columns.items() if name not in gone}
        columns |= {
            lists.list_id: ids.take(taken),
            lists.position: pa.array(places + 1),
            lists.name: found.items.take(chosen),
        }
        if found.labels is not None and lists.label is not None:
            columns[lists.label] = found.labels.take(chosen)
        offsets = block.offsets[rows] if self._is_text else block.offsets[rows] << _POSITION_BITS
        return RawBlock(
            columns=columns,
            numbers=block.numbers[rows],
            offsets=offsets + places,  # a candidate has a byte of its line at least
            lines=block.lines.take(rows),
            rejected=rejected,
            lists={name: values.take(taken) for name, values in block.lists.items() if name not in gone},
            absent=tuple(name for name in block.absent if name != lists.list_id),
            of_lines=frozenset(columns) - {lists.position, lists.name, lists.label},
        )


_NO_VALUE = "a candidate has no value"


def _reject(found: _Found, is_bad: NDArray[np.bool_], reason: str) -> None:
    """Note a fault of some lines, unless they have an earlier one."""
    is_new = is_bad & (found.reason < 0)
    if is_new.any():
        found.reason[is_new] = len(found.reasons)
        found.reasons.append(reason)


def _any_of(lines: NDArray[np.int64], mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Tell of each line whether the mask holds for one of its candidates."""
    found = np.zeros(size, np.bool_)
    found[lines[mask]] = True
    return found


def _array_rows(block: RawBlock, column: str) -> NDArray[np.bool_]:
    """Find the lines whose list is an array and no text."""
    if pa.types.is_nested(block.columns[column].type):
        return np.ones(len(block), np.bool_)
    arrays = block.lists.get(column)
    return np.zeros(len(block), np.bool_) if arrays is None else as_mask(arrays.is_valid())


def _row_bytes(block: RawBlock) -> NDArray[np.int64]:
    """Compute the bytes of each row's columns, about."""
    total = np.full(len(block), 8, np.int64)
    for values in [*block.columns.values(), *block.lists.values()]:
        if pa.types.is_string(values.type) or pa.types.is_binary(values.type):
            sizes = pc.binary_length(values)
        elif pa.types.is_nested(values.type):
            items = values.flatten()
            sizes = pc.multiply(pc.list_value_length(values), max(items.nbytes // max(len(items), 1), 1))
        else:
            total += 8
            continue
        total += pc.fill_null(sizes, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return total


def _runs(
    good: NDArray[np.int64], lengths: NDArray[np.int64], row_bytes: NDArray[np.int64]
) -> Iterator[NDArray[np.int64]]:
    """Cut the good lines into runs of about a block's rows and bytes; no good line is one run of none."""
    rows, sizes = np.cumsum(lengths[good]), np.cumsum(lengths[good] * row_bytes[good])
    start = 0
    while start < len(good) or not start:
        before = (rows[start - 1], sizes[start - 1]) if start else (0, 0)
        ends = (
            np.searchsorted(rows, before[0] + _BLOCK_ROWS, side="right"),
            np.searchsorted(sizes, before[1] + _BLOCK_BYTES, side="right"),
        )
        stop = max(int(min(ends)), start + 1)
        yield good[start:stop]
        start = stop
