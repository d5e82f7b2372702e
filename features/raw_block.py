"""RawBlock: rows of a raw log as Arrow columns, read but not yet encoded; what every reader of logs returns."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True)
class Wanted:
    """Raw columns that a reader returns.

    Attributes:
        columns: every column that is needed, by name.
        numbers: those of them that are used as numbers alone; a reader of text may return them as float64.
        lists: those of them that may hold several values; a reader of JSON lines keeps their arrays.
        optional: those of them that a file may lack: they are missing in every row then.
    """

    columns: tuple[str, ...]
    numbers: frozenset[str] = frozenset()
    lists: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()


class RejectedLine(NamedTuple):
    """A line that is no row.

    Attributes:
        number: line number in the file from 1 (Parquet and ORC: row number).
        offset: byte offset of the line in the file, or in what the file unpacks to (Parquet and ORC: row number from
            0).
        text: the line, valid text of at most 2^24 characters.
        reason: reason in a few words, the same for all lines with the same fault.
    """

    number: int
    offset: int
    text: str
    reason: str


@dataclass(frozen=True)
class Slices:
    """Pieces of one buffer of bytes: ``data[starts[i] : starts[i] + lengths[i]]``; they may leave gaps.

    Attributes:
        data: (bytes,) uint8.
        starts: (n,) int64.
        lengths: (n,) int64.
    """

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def text(self, index: int) -> str:
        """Decode one piece, which is UTF-8 text."""
        start = int(self.starts[index])
        return self.data[start : start + int(self.lengths[index])].tobytes().decode("utf-8", "replace")

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "Slices":
        """Select pieces by index or by mask; the buffer is shared."""
        return Slices(self.data, self.starts[rows], self.lengths[rows])


class Repeats(NamedTuple):
    """Columns whose value stands in several rows side by side, so that it need be read only once.

    Attributes:
        columns: their names.
        firsts: (m,) the first of the rows that share their values.
        places: (n,) place in ``firsts`` of each row.
    """

    columns: frozenset[str]
    firsts: NDArray[np.int64]
    places: NDArray[np.int64]


@dataclass(frozen=True)
class RawBlock:
    """Consecutive good lines of one file as columns, and the lines in between that are no rows.

    Attributes:
        columns: raw column -> (n,) Arrow array, one chunk, null where the value is missing. Text formats: string
            (float64 for ``Wanted.numbers`` where the reader has checked that every value is a number). Parquet and ORC:
            the type in the file, with dictionaries decoded and ``large_`` types made small.
        numbers: (n,) int64 line number of each row in the file, from 1.
        offsets: (n,) int64 byte offset of each row's line in the file, or in what the file unpacks to (Parquet and ORC:
            row number from 0). With the file it is the row's identity, whatever the portions are.
        lines: the (n,) raw lines as UTF-8 text, without their ends (Parquet and ORC: the row's wanted columns as JSON).
        rejected: lines that are no rows, in order.
        lists: raw column -> (n,) Arrow array list<string>, null where the value was no array (JSON lines alone; then
            ``columns`` has the text of the other rows).
        absent: columns of ``Wanted.optional`` that this file lacks.
        of_lines: columns that are one value in all rows of a line, where several rows are made of one.
    """

    columns: dict[str, pa.Array]
    numbers: NDArray[np.int64]
    offsets: NDArray[np.int64]
    lines: Slices
    rejected: list[RejectedLine] = field(default_factory=list)
    lists: dict[str, pa.Array] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    of_lines: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def repeats(self) -> Repeats | None:
        """Values that several rows share; None: each row is a line of its own."""
        if not self.of_lines:
            return None
        is_first = np.diff(self.numbers, prepend=-1) != 0
        return Repeats(self.of_lines, np.flatnonzero(is_first), np.cumsum(is_first) - 1)

    def reject(self, row: int, reason: str) -> RejectedLine:
        """Describe one row as a rejected line."""
        return RejectedLine(int(self.numbers[row]), int(self.offsets[row]), self.lines.text(row), reason)

    def take(self, keep: NDArray[np.bool_], rejected: list[RejectedLine] | None = None) -> "RawBlock":
        """Keep the rows of a mask; ``rejected`` lines join the others, in the order of the file."""
        mask = pa.array(keep)
        joined: list[RejectedLine] = sorted([*self.rejected, *(rejected or [])], key=lambda line: line.offset)
        return RawBlock(
            columns={name: values.filter(mask) for name, values in self.columns.items()},
            numbers=self.numbers[keep],
            offsets=self.offsets[keep],
            lines=self.lines.take(keep),
            rejected=joined,
            lists={name: values.filter(mask) for name, values in self.lists.items()},
            absent=self.absent,
            of_lines=self.of_lines,
        )
