"""Rows: encoded rows laid out so that a batch is a few block copies, not one or more a column.

The columns of Parquet files or of the row encoder, a shuffled window of them, are laid out once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.kinds import BATCH_COLUMNS, Column
from features.ragged import Ragged, RaggedMemory
from features.rows import Columns, RowError
from features.schema import FeatureSchema

BLOCK_ROWS = 4_096
"""Rows of dense features that are laid out together."""


@dataclass(frozen=True)
class Rows:
    """n rows of a schema's features.

    Attributes:
        ids: (S, n) of the sparse features with one id a row, in the schema's order.
        dense: (n, N) float32, in the schema's order.
        others: all other columns, by name: those of features with any number of ids, and label, weight and group_id
            (n,) where there are any.
        ragged: memory of ragged columns, which grows with the ids of a window; ``fill`` puts their rows into
            ``others``.
    """

    schema: FeatureSchema
    ids: NDArray[Any]
    dense: NDArray[np.float32]
    others: Columns
    ragged: dict[str, RaggedMemory] = field(default_factory=dict)

    @classmethod
    def allocate(
        cls, schema: FeatureSchema, columns: Mapping[str, tuple[Any, tuple[int, ...]]], num_rows: int
    ) -> "Rows":
        """Allocate memory for ``num_rows`` rows of ``columns``: name -> type, shape of one row."""
        names = one_id_names(schema)
        ragged = {c.name: RaggedMemory(columns[c.name][0], num_rows) for c in schema.columns if c.is_ragged}
        taken = {*names, *schema.dense_names, *ragged}
        others = {n: np.empty((num_rows, *shape), dtype) for n, (dtype, shape) in columns.items() if n not in taken}
        ids = np.empty((len(names), num_rows), np.result_type(np.int32, *(columns[name][0] for name in names)))
        return cls(schema, ids, np.empty((num_rows, len(schema.dense)), np.float32), others, ragged)

    @classmethod
    def of(cls, columns: Columns, schema: FeatureSchema) -> "Rows":
        """Lay out ``columns``, all of one length.

        Raises:
            RowError: a feature's column is missing, or a column has another number of rows than the first feature.
        """
        for needed in schema.columns:
            if needed.name not in columns:
                raise RowError(f"column {needed.name!r} is missing; there are: {', '.join(columns)}")
            if needed.is_ragged != isinstance(columns[needed.name], Ragged):
                raise RowError(f"column {needed.name!r} must {'' if needed.is_ragged else 'not '}be ragged rows")
            if needed.shape and len(shape := columns[needed.name].shape) != 2:
                raise RowError(f"column {needed.name!r} must hold one list of ids a row, got shape {shape}")
        num_rows = len(columns[schema.sparse_names[0]])
        optional = [name for name in BATCH_COLUMNS if name in columns]
        kept = {name: columns[name] for name in (*(column.name for column in schema.columns), *optional)}
        for name, column in kept.items():
            if len(column) != num_rows:
                raise RowError(f"column {name!r} has {len(column)} rows where the first feature has {num_rows}")
        for sequence in schema.sequence:
            first, *rest = (kept[key].lengths for key in sequence.keys)
            if not all(np.array_equal(lengths, first) for lengths in rest):
                raise RowError(f"columns {', '.join(sequence.keys)} have lists of different lengths in a row")
        types = {n: (c.dtype, () if isinstance(c, Ragged) else c.shape[1:]) for n, c in kept.items()}
        return cls.allocate(schema, types, num_rows).fill([kept])

    @property
    def num_rows(self) -> int:
        """Return n, the number of rows."""
        return len(self.dense)

    def fill(
        self, parts: Sequence[Columns], order: NDArray[np.int64] | None = None, scratch: NDArray[np.uint8] | None = None
    ) -> "Rows":
        """Lay out the rows of ``parts``, end to end and then in ``order``, over the first rows of this memory.

        Args:
            parts: columns, those of each part of one length; together they fit.
            order: (n,) which row comes when; None: as they are.
            scratch: ``scratch_bytes`` to overwrite; only an order needs it.

        Returns:
            A view of the n rows.
        """
        rows = self[: sum(len(part[self.schema.sparse_names[0]]) for part in parts)]
        # Column by column, since one column fits in the cache and all of them do not; but dense features, being next to
        # each other, move a row at a time.
        names = [*one_id_names(self.schema), *rows.others]
        for name, out in [*zip(names, [*rows.ids, *rows.others.values()], strict=True), ("", rows.dense)]:
            laid = out
            if order is not None:
                assert scratch is not None
                laid = scratch[: out.nbytes].view(out.dtype).reshape(out.shape)
            if out is rows.dense:
                lay_side_by_side(parts, self.schema.dense_names, laid)
            else:
                lay_end_to_end((part[name] for part in parts), laid)
            if order is not None:
                # "clip" only because it lets NumPy write without a copy; every index is in range.
                laid.take(order, axis=0, out=out, mode="clip")
        for name, memory in self.ragged.items():
            rows.others[name] = memory.fill([part[name] for part in parts], order)
        return rows

    @property
    def scratch_bytes(self) -> int:
        """Return the bytes that ``fill`` needs to shuffle this many rows: the largest block that moves at once."""
        return max(block.nbytes for block in (self.ids[:1], self.dense, *self.others.values()))

    def copy(self) -> "Rows":
        """Copy the rows to memory of their own."""
        others = {name: column.copy() for name, column in self.others.items()}
        return Rows(self.schema, self.ids.copy(), self.dense.copy(), others)

    def __getitem__(self, rows: slice) -> "Rows":
        """Return a view of some rows."""
        others = {name: column[rows] for name, column in self.others.items()}
        return Rows(self.schema, self.ids[:, rows], self.dense[rows], others)


def one_id_names(schema: FeatureSchema) -> list[str]:
    """List the sparse features with one id a row, in the schema's order."""
    return [feature.name for feature in schema.sparse if feature.kind.has_one_id]


def lay_end_to_end(arrays: Iterable[NDArray[Any]], out: NDArray[Any]) -> None:
    """Copy arrays into the first rows of ``out``, one after the other."""
    start = 0
    for array in arrays:
        out[start : start + len(array)] = array
        start += len(array)


def lay_side_by_side(parts: Iterable[Columns], names: Sequence[str], out: NDArray[Any]) -> None:
    """Copy the named columns of ``parts`` into the columns of ``out``, one part below the other.

    A block of rows at a time, which stays in the cache until its last column is there.
    """
    start = 0
    for part in parts if names else ():
        for first in range(0, len(part[names[0]]), BLOCK_ROWS):
            last = min(first + BLOCK_ROWS, len(part[names[0]]))
            for name, column in zip(names, out[start + first : start + last].T, strict=True):
                column[:] = part[name][first:last]
        start += len(part[names[0]])


class RowsPool:
    """Memory for windows of rows, reused over epochs: fresh memory would cost more than the work done in it."""

    def __init__(self, schema: FeatureSchema, columns: Mapping[str, Column], num_rows: int) -> None:
        """Prepare windows of ``num_rows`` rows of ``columns``, by name; memory is allocated when it is taken."""
        types = {name: (column.dtype, column.shape) for name, column in columns.items()}
        self._allocate = lambda: Rows.allocate(schema, types, num_rows)
        self._free: list[Rows] = []

    def take(self) -> Rows:
        """Take memory that no other stream has."""
        return self._free.pop() if self._free else self._allocate()

    def give(self, rows: Rows) -> None:
        """Hand back what ``take`` gave."""
        self._free.append(rows)
