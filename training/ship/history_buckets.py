"""HistoryBuckets: bucket tables of raw histories, made by a model and read by it in place of their events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from features.bucket_tables import BucketColumn, BucketPrecision, has_bucket_column
from features.encode_rows import FeatureEncoder
from features.learnt import Learnt
from features.ragged import Ragged
from features.rows import Columns, MissingColumnError, RawRow, RowError
from features.schema import FeatureSchema, SequenceFeature
from training.data.batch import to_batch
from training.model.ctr_model import CTRModel
from training.model.histories import BucketTables

_BATCH_ROWS = 256
"""Histories that are added up together; a table of a thousand events is as large as these."""


@dataclass(frozen=True)
class TakenTables:
    """Bucket tables that some rows brought.

    Attributes:
        rows: the rows, with empty columns in place of the events that tables stand for.
        tables: sequence -> its tables, as the model reads them.
        with_events: sequence -> rows whose table has an event.
    """

    rows: Sequence[RawRow]
    tables: Mapping[str, BucketTables] = field(default_factory=dict)
    with_events: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def num_elsewhere(self, columns: Columns, schema: FeatureSchema) -> dict[str, int]:
        """Count, by part of a sequence, the rows without an event in their columns that have some in a table."""
        found = {}
        for part in schema.parts if self.with_events else ():
            rows = list(self.with_events.get(part.sequence, ()))
            found[part.name] = int(np.count_nonzero(columns[part.name].lengths[rows] == 0))
        return found


class HistoryBuckets:
    """Makes bucket tables of one model, and takes them out of rows.

    Args:
        model: the model.
        schema: its features.
        learnt: what was learnt with them.
        model_id: id of what a table depends on; a table with another one is refused.

    Attributes:
        columns: a column for each sequence, by its name; those whose encoder has no bucket tables are refused.
    """

    def __init__(self, model: CTRModel, schema: FeatureSchema, learnt: Learnt, model_id: str) -> None:
        self._model, self._schema, self._learnt = model, schema, learnt
        self.model_id = model_id
        columns = [self._column(sequence) for sequence in schema.sequence if has_bucket_column(schema, sequence)]
        self.columns = {column.name: column for column in columns}

    def _column(self, sequence: SequenceFeature) -> BucketColumn:
        encoders = self._model.histories.hashed(sequence.name)
        shapes = {s: (of.num_signatures, 2**of.bits, of.dim) for s, of in encoders.items()}
        keeps_events = any(of.short is not None for of in encoders.values())
        kind = self._model.histories.kinds[sequence.name]
        return BucketColumn.of(sequence, kind, shapes, keeps_events=keeps_events)

    @property
    def made(self) -> tuple[BucketColumn, ...]:
        """List the columns of the sequences that have bucket tables."""
        return tuple(column for column in self.columns.values() if column.shapes)

    # ---------------------------------------------------------------------------------------------------------- making

    def make(self, rows: Sequence[RawRow], precision: BucketPrecision = "float32") -> list[dict[str, str]]:
        """Make the bucket tables of raw histories: of each row, column -> text, to be put into rows to score.

        Args:
            rows: raw columns of the histories (``BucketColumn.lists``) -> value; others are ignored. Times are not
                needed: what reads them is no table.
            precision: type of the numbers.

        Raises:
            RowError: no sequence has bucket tables, a column is missing or a value malformed; names row and column.
        """
        if not self.made:
            kinds = ", ".join(f"{c.sequence} ({c.encoder})" for c in self.columns.values()) or "none"
            raise RowError(f"no sequence of the model has bucket tables, which 'sdim' reads alone; sequences: {kinds}")
        found: list[dict[str, str]] = []
        for start in range(0, len(rows), _BATCH_ROWS):
            found += self._make(rows[start : start + _BATCH_ROWS], start, precision)
        return found

    def find_error(self, row: RawRow) -> str | None:
        """Find the reason why no bucket table can be made of a raw row; None if one can.

        Raises:
            MissingColumnError: a column is missing: an error of the log, not of one row.
        """
        return self._encoder.find_error(self._only_histories(row))

    def _make(self, rows: Sequence[RawRow], start: int, precision: BucketPrecision) -> list[dict[str, str]]:
        try:
            columns = self._encoder.encode([self._only_histories(row) for row in rows])
        except RowError:
            for number, row in enumerate(rows, start=start + 1):
                try:
                    fault = self.find_error(row)
                except MissingColumnError as error:
                    raise MissingColumnError(f"row {number}: {error}") from None
                if fault is not None:
                    raise RowError(f"row {number}: {fault}") from None
            raise
        with torch.no_grad():
            tables = self._model.bucket_tables(to_batch(self._with_gaps(columns), self._schema))
        arrays = {name: {s: t.numpy() for s, t in of.items()} for name, of in tables.items()}
        found: list[dict[str, str]] = []
        for row in range(len(rows)):
            texts = {}
            for column in self.made:
                of_row = {stream: of[row] for stream, of in arrays[column.sequence].items()}
                texts[column.name] = column.write(self.model_id, of_row, precision)
            found.append(texts)
        return found

    def _only_histories(self, row: RawRow) -> RawRow:
        """Keep a row's histories; its other columns are empty, and no table depends on them."""
        try:
            lists = {name: row[name] for column in self.made for name in column.lists}
        except KeyError as error:
            raise MissingColumnError(f"column {error.args[0]!r} is missing; the row has: {', '.join(row)}") from None
        return {**dict.fromkeys(self._schema.feature_columns), **lists}

    @cached_property
    def _encoder(self) -> FeatureEncoder:
        """Encoder of histories without times: the row has none, because it is no row to score."""
        return FeatureEncoder(
            replace(self._schema, sequence=tuple(map(_without_gaps, self._schema.sequence))), self._learnt
        )

    def _with_gaps(self, columns: Columns) -> Columns:
        """Give each event the gap of an event without a time."""
        gaps = {}
        for sequence in self._schema.sequence:
            if sequence.gap_column is not None:
                lengths = columns[sequence.keys[0]].lengths
                gaps[sequence.gap_column] = Ragged.of(np.zeros(lengths.sum(), np.int32), lengths)
        return {**columns, **gaps}

    # ---------------------------------------------------------------------------------------------------------- taking

    def take(self, rows: Sequence[RawRow]) -> TakenTables:
        """Take the bucket tables out of rows to score.

        Raises:
            RowError: a table cannot be used, or the row has events beside it; names row and column.
        """
        brought = [name for name in self.columns if any(row.get(name) is not None for row in rows)]
        if not brought:
            return TakenTables(rows)
        kept, tables, with_events = list(rows), {}, {}
        for name in brought:
            column = self.columns[name]
            places: dict[str, int] = {}  # rows of one user, as a request's candidates are, share a table
            arrays: list[dict[str, np.ndarray[Any, Any]]] = []
            found: list[tuple[int, int]] = []
            for number, row in enumerate(rows):
                if (text := row.get(name)) is None:
                    continue
                try:
                    if not isinstance(text, str) or text not in places:
                        arrays.append(column.read(text, self.model_id))
                        places[text] = len(places)
                    column.check_events(row)
                except RowError as error:
                    raise RowError(f"row {number + 1}: {error}") from None
                found.append((number, places[text]))
                kept[number] = {**kept[number], **dict.fromkeys(column.replaces)}
            has_events = [any(of.any() for of in one.values()) for one in arrays]
            with_events[column.sequence] = [number for number, place in found if has_events[place]]
            rows_R, places_R = torch.tensor(found).unbind(1)
            stacked = {s: torch.from_numpy(np.stack([one[s] for one in arrays])) for s in column.shapes}
            tables[column.sequence] = BucketTables(stacked, rows_R, places_R)  # pyright: ignore[reportArgumentType]
        return TakenTables(kept, tables, with_events)


def _without_gaps(sequence: SequenceFeature) -> SequenceFeature:
    columns = {part: name for part, name in sequence.columns.items() if part != "time" or part in sequence.parts}
    return replace(sequence, gaps=(), columns=columns)
