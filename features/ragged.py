"""Ragged: rows of any number of values each, as the values of all rows and where each row's begin.

It takes the place of a NumPy array wherever a column has one list a row: in row groups, windows of rows and batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

_GATHERED_ROWS = 1 << 13
"""Rows that are gathered at a time, so that their index is small beside the values."""


@dataclass(frozen=True, eq=False)
class Ragged:
    """n rows of values; row i has ``values[offsets[i]:offsets[i + 1]]``.

    Rows with the values ``[4, 9]``, none, and ``[2]``::

        values    [4, 9, 2]
        offsets   [0, 2, 2, 3]

    A slice of rows is a view: its offsets begin where its first row does, and ``values`` are those of all rows.

    Attributes:
        values: values of all rows, row by row, and perhaps more before and behind them.
        offsets: (n + 1,) place of each row's first value, and the end of the last row's.
    """

    values: NDArray[Any]
    offsets: NDArray[np.integer[Any]]

    @classmethod
    def of(cls, values: NDArray[Any], lengths: NDArray[Any]) -> "Ragged":
        """Make rows of values that stand row by row, with the number of values of each row."""
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(values, offsets)

    @classmethod
    def of_arrow(cls, lists: "pa.Array") -> "Ragged":
        """Make rows of an Arrow array of lists without nulls, in Arrow's own memory."""
        import pyarrow as pa

        if pa.types.is_fixed_size_list(lists.type):
            values, width = lists.flatten().to_numpy(zero_copy_only=False), lists.type.list_size
            return cls(values, np.arange(len(lists) + 1) * width)
        offsets = lists.offsets.to_numpy()
        return cls(lists.values.to_numpy(zero_copy_only=False), offsets)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the type of the values."""
        return self.values.dtype

    @property
    def lengths(self) -> NDArray[Any]:
        """Count the values of each row, (n,)."""
        return np.diff(self.offsets)

    @property
    def flat(self) -> NDArray[Any]:
        """Return the values of these rows and no others, row by row."""
        return self.values[self.offsets[0] : self.offsets[-1]]

    @property
    def nbytes(self) -> int:
        """Count the bytes of these rows' values and offsets."""
        return self.flat.nbytes + self.offsets.nbytes

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, rows: "slice | NDArray[Any]") -> "Ragged":
        """Return some rows: a view of a slice without step, else a copy of the rows of a mask or of an index."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                return self.take(np.arange(start, stop, step))
            return Ragged(self.values, self.offsets[start : max(start, stop) + 1])
        return self.take(np.flatnonzero(rows) if rows.dtype == np.bool_ else rows)

    def take(self, rows: NDArray[Any]) -> "Ragged":
        """Copy rows by their numbers, in any order and as often as they are named."""
        lengths = self.lengths[rows]
        found = Ragged.of(np.empty(int(lengths.sum()), self.dtype), lengths)
        self._gather(rows, lengths, found.values)
        return found

    def copy(self) -> "Ragged":
        """Copy the rows to memory of their own."""
        return Ragged(self.flat.copy(), self.offsets - self.offsets[0])

    def tolist(self) -> list[list[Any]]:
        """Convert to a list of values a row."""
        ends = (self.offsets - self.offsets[0]).tolist()
        values = self.flat.tolist()
        return [values[start:end] for start, end in pairwise(ends)]

    def to_arrow(self) -> "pa.ListArray":
        """Convert to an Arrow array of lists."""
        import pyarrow as pa

        offsets = (self.offsets - self.offsets[0]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(self.flat))

    def _gather(self, rows: NDArray[Any], lengths: NDArray[Any], out: NDArray[Any]) -> None:
        """Copy the values of rows, whose lengths are known, into ``out``; a block of rows at a time."""
        starts, at = self.offsets[:-1][rows].astype(np.int64), 0
        for first in range(0, len(rows), _GATHERED_ROWS):
            counts = lengths[first : first + _GATHERED_ROWS]
            ends = np.cumsum(counts)
            total = int(ends[-1])
            # Row i's values stand at start_i + 0, 1, ...: the place in the block, moved by what the row is moved.
            index = np.arange(total) + np.repeat(starts[first : first + _GATHERED_ROWS] - ends + counts, counts)
            # "clip" only because it lets NumPy write without a copy; every index is in range.
            self.values.take(index, out=out[at : at + total], mode="clip")
            at += total


def concatenate(parts: Sequence[Any]) -> Any:
    """Put arrays, or ragged rows, end to end."""
    if not isinstance(parts[0], Ragged):
        return np.concatenate(parts)
    return Ragged.of(np.concatenate([part.flat for part in parts]), np.concatenate([part.lengths for part in parts]))


class RaggedMemory:
    """Memory for the ragged rows of a window, kept for the next one; it grows where a window has more values."""

    def __init__(self, dtype: Any, num_rows: int) -> None:
        self._values = np.empty(0, dtype)
        self._offsets = np.empty(num_rows + 1, np.int64)

    def fill(self, parts: Sequence[Ragged], order: NDArray[np.int64] | None = None) -> Ragged:
        """Lay out the rows of ``parts``, end to end and then in ``order``.

        Returns:
            A view of the rows, good until the next call.
        """
        num_rows, num_values = sum(map(len, parts)), sum(len(part.flat) for part in parts)
        if len(self._values) < num_values:
            self._values = np.empty(num_values + num_values // 16, self._values.dtype)
        rows = Ragged(self._values[:num_values], self._offsets[: num_rows + 1])
        rows.offsets[0] = 0
        if order is None:
            at = start = 0
            for part in parts:
                flat = part.flat
                rows.values[at : at + len(flat)] = flat
                np.add(part.offsets[1:], at - int(part.offsets[0]), out=rows.offsets[start + 1 : start + 1 + len(part)])
                at, start = at + len(flat), start + len(part)
            return rows
        whole = parts[0] if len(parts) == 1 else concatenate(parts)
        lengths = whole.lengths[order]
        np.cumsum(lengths, out=rows.offsets[1:])
        whole._gather(order, lengths, rows.values)
        return rows
