"""Raw histories -> events: lists of values side by side, the newest events kept, newest first.

One event has a value of every part, at the same place of each list. Shapes: n rows, V events of all rows together.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.raw_block import Repeats
from features.schema import TEXT_KINDS, FeatureSchema, SequenceFeature, SequencePart
from features.values import ColumnError, Mask, RawLists, as_mask, list_items, numbers, seconds, text_fault, texts


@dataclass(frozen=True)
class EventValues:
    """Events of one sequence, row by row and newest first.

    Where rows repeat their history, n and V are those of the histories that were read, and ``places`` says which of
    them each row has.

    Attributes:
        values: name of a part -> (V,) its values: texts, null where missing, or float64 numbers, NaN where missing; of
            gaps the seconds between an event and its row, of dwell times seconds.
        lengths: (n,) how many of the V events each row has.
        dropped: (n,) how many more a row had than the sequence keeps.
        faults: rows that are bad, (rows,) each, with the reason; their events are of no meaning.
        places: (rows,) the history of each row; None: each row has its own.
    """

    values: dict[str, pa.StringArray | NDArray[np.float64]]
    lengths: NDArray[np.int64]
    dropped: NDArray[np.int64]
    faults: list[tuple[Mask, str]]
    places: NDArray[np.int64] | None = None


def read_events(
    schema: FeatureSchema,
    sequence: SequenceFeature,
    column: Callable[[str], pa.Array],
    lists: Mapping[str, pa.Array],
    row_times: NDArray[np.int64] | None,
    repeats: Repeats | None = None,
) -> EventValues:
    """Read the events of one sequence.

    An event all of whose values are missing is left out; one that lacks some of them has a missing value there.

    Args:
        schema: schema of the features.
        sequence: one of its sequences.
        column: returns a raw column by name: (n,) texts to split, or lists.
        lists: raw column -> (n,) lists of text, null where a row's value was none (``RawBlock.lists``).
        row_times: (n,) the rows' times in Unix seconds; needed with gaps.
        repeats: columns that rows share with those beside them: a history that is among them is read once.

    Raises:
        MissingColumnError: a column is missing; names it.
        ColumnError: a column has a type that its use has no reading for; names both.
    """
    parts = [part for part in schema.parts if part.sequence == sequence.name]
    if repeats is None or not _is_repeated(parts, repeats, row_times):
        return _Reading(schema, sequence, parts, column, lists).run(row_times)
    firsts, places = pa.array(repeats.firsts), repeats.places
    lists = {name: lists[name].take(firsts) for part in parts for name in part.columns if name in lists}
    times = None if row_times is None else row_times[repeats.firsts]
    events = _Reading(schema, sequence, parts, lambda name: column(name).take(firsts), lists).run(times)
    return replace(events, faults=[(mask[places], reason) for mask, reason in events.faults], places=places)


def _is_repeated(parts: list[SequencePart], repeats: Repeats, row_times: NDArray[np.int64] | None) -> bool:
    """Tell whether rows that share their columns share the events too, whose gaps depend on the row's time."""
    if not all(repeats.columns.issuperset(part.columns) for part in parts):
        return False
    return row_times is None or bool((row_times[repeats.firsts][repeats.places] == row_times).all())


class _Reading:
    """One call of ``read_events``."""

    def __init__(
        self,
        schema: FeatureSchema,
        sequence: SequenceFeature,
        parts: list[SequencePart],
        column: Callable[[str], pa.Array],
        lists: Mapping[str, pa.Array],
    ) -> None:
        self.schema, self.sequence, self.parts = schema, sequence, parts
        self.faults: list[tuple[Mask, str]] = []
        self.raw: dict[str, RawLists] = {}
        for part in parts:
            [name] = part.columns
            array = column(name)
            self.raw[name] = _named(name, list_items, array, lists.get(name), sequence.separator, schema.values)
            self.reject(self.raw[name].bad, text_fault(name, array.type))

    def reject(self, mask: Mask | None, reason: str) -> None:
        if mask is not None and mask.any():
            self.faults.append((mask, reason))

    def run(self, row_times: NDArray[np.int64] | None) -> EventValues:
        lengths = self._common_lengths()
        rows = np.repeat(np.arange(len(lengths)), lengths)
        found, is_there = {}, np.zeros(len(rows), np.bool_)
        for part in self.parts:
            found[part.name], is_missing = self._values(part, rows, len(lengths))
            if part.part:
                is_there |= ~is_missing
        if not is_there.all():
            rows, found = rows[is_there], {name: _taken(values, is_there) for name, values in found.items()}
            lengths = np.bincount(rows, minlength=len(lengths))
        dropped = np.maximum(lengths - self.sequence.max_length, 0)
        places = self._newest(lengths, lengths - dropped)
        lengths = lengths - dropped
        if places is not None:
            rows, found = rows[places], {name: _taken(values, places) for name, values in found.items()}
        if self.sequence.gap_column is not None:
            assert row_times is not None
            before = row_times[rows] - found[self.sequence.gap_column]
            later = np.bincount(rows[before < 0], minlength=len(lengths)) > 0
            self.reject(later, f"sequence {self.sequence.name!r} has an event that is later than its row")
            found[self.sequence.gap_column] = before
        return EventValues(found, lengths, dropped, self.faults)

    def _common_lengths(self) -> NDArray[np.int64]:
        """Check that all lists of a row have one length; where they have not, no list counts.

        No dwell time at all says that none is known: a text of one that is missing is as empty.
        """
        if self.sequence.dwell_weights:
            dwell, parts = self.sequence.raw_dwell_column, next(iter(self.raw.values()))
            self.raw[dwell] = _with_nulls(self.raw[dwell], parts.lengths)
        first, *others = self.raw.values()
        differs = np.zeros(len(first.lengths), np.bool_)
        for other in others:
            differs |= other.lengths != first.lengths
        if differs.any():
            columns = ", ".join(map(repr, self.raw))
            self.reject(differs, f"sequence {self.sequence.name!r}: columns {columns} have lists of different lengths")
            self.raw = {name: _without_rows(lists, differs) for name, lists in self.raw.items()}
            return np.where(differs, 0, first.lengths)
        return first.lengths

    def _values(self, part: SequencePart, rows: NDArray[np.intp], num_rows: int) -> tuple[Any, Mask]:
        """Convert a part's items to what its encoding looks at; returns the mask of missing ones too."""
        [name] = part.columns
        items, settings = self.raw[name].items, self.schema.values
        if part.is_dwell:
            stayed, bad = _named(name, numbers, items, settings)
            bad = stayed < 0 if bad is None else bad | (stayed < 0)
            fault = f"column {name!r} has a dwell time that is no number of seconds from 0 on"
            self._reject_items(bad, rows, num_rows, fault)
            return stayed, np.isnan(stayed)
        if not part.part:
            time = self.schema.timestamp
            assert time is not None
            moments, is_time = _named(name, seconds, items, time.format, settings)
            missing = as_mask(items.is_null())
            self._reject_items(~is_time & ~missing, rows, num_rows, f"column {name!r} has a time that is unreadable")
            return np.where(is_time, moments, np.nan), missing
        if part.encoding.kind in TEXT_KINDS:
            found, bad = _named(name, texts, items, settings)
            self._reject_items(bad, rows, num_rows, text_fault(name, items.type))
            return found, as_mask(found.is_null())
        found, bad = _named(name, numbers, items, settings)
        self._reject_items(bad, rows, num_rows, f"column {name!r} has a value that is not a number")
        return found, np.isnan(found)

    def _reject_items(self, bad: Mask | None, rows: NDArray[np.intp], num_rows: int, reason: str) -> None:
        if bad is not None:
            self.reject(np.bincount(rows[bad], minlength=num_rows) > 0, reason)

    def _newest(self, lengths: NDArray[np.int64], kept: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Places of the newest events of each row, newest first; None: they are all, as they are."""
        ends = np.cumsum(lengths)
        if self.sequence.is_newest_first:
            if kept.sum() == lengths.sum():
                return None
            starts = ends - lengths
            return np.arange(kept.sum()) + np.repeat(starts - (np.cumsum(kept) - kept), kept)
        ranks = np.arange(kept.sum()) - np.repeat(np.cumsum(kept) - kept, kept)
        return np.repeat(ends, kept) - 1 - ranks


def _named(name: str, read: Callable[..., Any], *args: Any) -> Any:
    """Read a column, and name it in an error about its type."""
    try:
        return read(*args)
    except ColumnError as error:
        raise ColumnError(f"column {name!r}: {error}") from None


def _taken(values: Any, places: NDArray[Any]) -> Any:
    """Take values by a mask or by places."""
    if isinstance(values, np.ndarray):
        return values[places]
    return values.filter(pa.array(places)) if places.dtype == np.bool_ else values.take(pa.array(places))


def _with_nulls(lists: RawLists, lengths: NDArray[np.int64]) -> RawLists:
    """Fill the lists that are empty with nulls, as many as ``lengths`` says."""
    is_empty = (lists.lengths == 0) & (lengths > 0)
    if not is_empty.any():
        return lists
    filled = np.where(is_empty, lengths, lists.lengths)
    is_null = np.repeat(is_empty, filled)
    places = np.cumsum(~is_null) - 1
    return RawLists(lists.items.take(pa.array(places, pa.int64(), mask=is_null)), filled, lists.bad)


def _without_rows(lists: RawLists, rows: Mask) -> RawLists:
    """Empty the lists of some rows."""
    keep = ~np.repeat(rows, lists.lengths)
    return RawLists(lists.items.filter(pa.array(keep)), np.where(rows, 0, lists.lengths), lists.bad)
