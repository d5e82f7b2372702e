"""Rows of Parquet and ORC files: row groups or stripes -> the wanted columns, in the file's types.

Dictionaries are decoded, binary text becomes text, and ``large_`` types become small ones; an object's field is wanted
by its dotted name. What no category, number, time or list can be made of is refused where it is wanted.
"""

import json
from collections.abc import Generator, Iterator
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet
from numpy.typing import NDArray

from features.log_format import LogError, LogFormat
from features.raw_block import RawBlock, RejectedLine, Slices, Wanted
from features.read.arrays import join_arrays, null_texts, null_where
from features.read.lines import Positions, not_text
from features.read.streams import arrow_source

MAX_BLOCK_ROWS = 1 << 16
"""Rows of a block at most: a row group may have millions."""
COLUMNAR_ERRORS = (pa.ArrowException, ValueError, OverflowError, OSError)
"""Errors of a damaged file."""
_NOT_TEXT = not_text("UTF-8")


class ColumnGroups(Protocol):
    """Row groups, or stripes, of a file.

    Attributes:
        schema: columns of the file.
        num_groups: number of groups.
        sizes: bytes of each group, unpacked; none: the groups can only be read from the first to the last.
    """

    schema: pa.Schema
    num_groups: int
    sizes: list[int]

    def __init__(self, file: str) -> None: ...

    def first_row(self, group: int) -> int:
        """Return the number of rows before a group."""
        ...

    def read(self, group: int, columns: list[str]) -> pa.Table:
        """Read some columns of a group; a dotted name is a field of an object."""
        ...


class ParquetGroups:
    """ParquetGroups: the row groups of a Parquet file."""

    def __init__(self, file: str) -> None:
        self._file = pyarrow.parquet.ParquetFile(arrow_source(file))
        self.schema = self._file.schema_arrow
        metadata = self._file.metadata
        self.num_groups = metadata.num_row_groups
        self._rows = [metadata.row_group(group).num_rows for group in range(self.num_groups)]
        self.sizes = [metadata.row_group(group).total_byte_size for group in range(self.num_groups)]

    def first_row(self, group: int) -> int:
        """Return the number of rows before a group."""
        return sum(self._rows[:group])

    def read(self, group: int, columns: list[str]) -> pa.Table:
        """Read some columns of a group; a dotted name is a field of an object."""
        # Not iter_batches: in PyArrow 14 it ends the process where a damaged file has columns of different lengths.
        table = self._file.read_row_group(group, columns=columns)
        if not columns:  # pyarrow 14 forgets the number of rows
            return pa.table({"": pa.nulls(self._rows[group])})
        return table


class OrcStripes:
    """OrcStripes: the stripes of an ORC file, which says how many rows it has and not where they are."""

    def __init__(self, file: str) -> None:
        self._file = pyarrow.orc.ORCFile(arrow_source(file))
        self.schema = self._file.schema
        self.num_groups = self._file.nstripes
        self.sizes: list[int] = []
        self._next = 0, 0

    def first_row(self, group: int) -> int:
        """Return the number of rows before a group, which must be the first or the one behind that read last."""
        assert group == self._next[0], "stripes are read from the first to the last"
        return self._next[1]

    def read(self, group: int, columns: list[str]) -> pa.Table:
        """Read some columns of a group; a dotted name is a field of an object."""
        columns = columns or [self.schema.names[0]]
        batch = self._file.read_stripe(group, columns=list(dict.fromkeys(name.split(".")[0] for name in columns)))
        self._next = group + 1, self._next[1] + batch.num_rows
        return pa.Table.from_batches([batch])


_READERS: dict[str, tuple[str, type[ColumnGroups]]] = {
    "parquet": ("a Parquet", ParquetGroups),
    "delta": ("a Parquet", ParquetGroups),
    "orc": ("an ORC", OrcStripes),
}
"""Kind of log -> what its files are, and their reader."""


def open_groups(file: str, log_format: LogFormat) -> ColumnGroups:
    """Open a file.

    Raises:
        LogError: it is damaged, or not what the format says; names it.
    """
    kind, reader = _READERS[log_format.kind]
    try:
        opened = reader(file)
        _ = opened.schema.names  # raises where damage has made one that is no text
        return opened
    except COLUMNAR_ERRORS as error:
        raise LogError(f"{file} cannot be read as {kind} file: {error}") from error


def cut_groups(groups: ColumnGroups, num_bytes: int) -> list[tuple[int, int]]:
    """Cut row groups into runs of about ``num_bytes``: (first, behind the last) of each; an ORC file is one run."""
    if not groups.sizes:
        return [(0, groups.num_groups)]
    totals = list(accumulate(groups.sizes, initial=0))
    starts = [0]
    for group in range(1, groups.num_groups):
        if totals[group] - totals[starts[-1]] >= num_bytes:
            starts.append(group)
    return list(zip(starts, [*starts[1:], groups.num_groups], strict=True))


def read_groups(
    file: str, groups: ColumnGroups, start: int, end: int | None, log_format: LogFormat, wanted: Wanted
) -> Generator[RawBlock, None, int]:
    """Read a run of row groups.

    Returns:
        The number of rows.

    Raises:
        LogError: a column is missing, there twice or of a type that nothing can be made of, or the file is damaged.
    """
    end = groups.num_groups if end is None else end
    paths = find_columns(file, groups.schema, wanted)
    row = 0
    try:
        for group in range(start, end):
            first = groups.first_row(group)
            table = groups.read(group, [".".join(path) for path in paths.values()])
            table.validate(full=True)
            for low in range(0, len(table), MAX_BLOCK_ROWS):
                part = table.slice(low, MAX_BLOCK_ROWS)
                columns = {name: _take_out(part, path) for name, path in paths.items()}
                yield _to_block(columns, len(part), first + low, row + low, log_format, wanted)
            row += len(table)
            del table
    except LogError:
        raise
    except COLUMNAR_ERRORS as error:
        raise LogError(f"{file} cannot be read after row {row}: {error}") from error
    return row


def find_columns(file: str, schema: pa.Schema, wanted: Wanted) -> dict[str, list[str]]:
    """Find the wanted columns: column -> its name, or the keys that lead to an object's field.

    Raises:
        LogError: a column is missing, there twice or of a type that nothing can be made of.
    """
    found = {}
    names = schema.names
    for name in wanted.columns:
        if names.count(name) > 1:
            raise LogError(f"{file} has column {name!r} twice")
        path = [name] if name in names else name.split(".")
        kind = _type_of(schema, path)
        if kind is not None:
            _check_type(file, name, kind, name in wanted.lists)
            found[name] = path
        elif name not in wanted.optional:
            raise LogError(
                f"{file} has no column {name!r}; it has: {', '.join(names)}; if older files may lack it, name "
                "it in pipeline.input.format.optional"
            )
    return found


def _type_of(schema: pa.Schema, path: list[str]) -> pa.DataType | None:
    if schema.names.count(path[0]) != 1:
        return None
    kind = schema.field(path[0]).type
    for key in path[1:]:
        place = kind.get_field_index(key) if pa.types.is_struct(kind) else -1
        if place < 0:
            return None
        kind = kind.field(place).type
    return kind


def _check_type(file: str, name: str, kind: pa.DataType, may_be_list: bool) -> None:
    element = kind.value_type if may_be_list and _is_list(kind) else kind
    if _plain_type(element) is None:
        raise LogError(
            f"{file}: column {name!r} has type {kind}: a raw column must be text, a number, a boolean or a time (or, "
            "for a feature with a separator, a list of them); an object's field is a column by its dotted name"
        )


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _plain_type(kind: pa.DataType) -> pa.DataType | None:
    """Type that a column of a type is returned as; None if nothing can be made of it."""
    types = pa.types
    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if _is_textual(kind) or types.is_null(kind):
        return pa.string()
    if types.is_float16(kind):
        return pa.float32()
    is_scalar = types.is_primitive(kind) or types.is_boolean(kind) or types.is_decimal(kind)
    is_span = types.is_duration(kind) or types.is_interval(kind)
    return kind if is_scalar and not is_span else None


def _is_textual(kind: pa.DataType) -> bool:
    types = pa.types
    is_view = str(kind) in ("string_view", "binary_view")  # unknown to pyarrow 14
    is_string = types.is_string(kind) or types.is_large_string(kind)
    return is_string or types.is_binary(kind) or types.is_large_binary(kind) or is_view


def _take_out(table: pa.Table, path: list[str]) -> pa.Array:
    """Return a column, or an object's field, as one array."""
    column = table.column(path[0])
    values = join_arrays(column.chunks, column.type)
    for key in path[1:]:
        place = values.type.get_field_index(key)
        values = values.flatten()[place]
    return values


def _to_block(
    columns: dict[str, pa.Array], num_rows: int, first: int, row: int, log_format: LogFormat, wanted: Wanted
) -> RawBlock:
    is_bad = np.zeros(num_rows, np.bool_)
    found = {name: _to_plain(values, is_bad) for name, values in columns.items()}
    lines = RowTexts(columns, np.arange(num_rows))
    absent = tuple(name for name in wanted.columns if name not in found)
    for name in absent:
        found[name] = pa.nulls(num_rows, pa.float64() if name in wanted.numbers else pa.string())
    nulls = pa.array(log_format.null_values, pa.string())
    for name, values in found.items():
        if pa.types.is_string(values.type) and values.null_count < len(values):
            found[name] = null_texts(values, nulls)
    block = RawBlock(
        columns={name: found[name] for name in wanted.columns},
        numbers=np.arange(row + 1, row + num_rows + 1),
        offsets=np.arange(first, first + num_rows),
        lines=lines,
        absent=absent,
    )
    if not is_bad.any():
        return block
    places = np.flatnonzero(is_bad).tolist()
    return block.take(~is_bad, [RejectedLine(row + i + 1, first + i, lines.text(i), _NOT_TEXT) for i in places])


def _to_plain(values: pa.Array, is_bad: NDArray[np.bool_]) -> pa.Array:
    """Convert to the type that is returned; rows with bytes that are no text are marked and null."""
    kind = values.type
    element = _plain_type(kind.value_type if _is_list(kind) else kind)
    target = pa.list_(element) if _is_list(kind) else element
    if kind == target:
        return values
    if pa.types.is_float16(kind):
        floats = values.to_numpy(zero_copy_only=False).astype(np.float32)
        return pa.array(floats, mask=values.is_null().to_numpy(zero_copy_only=False))
    try:
        return values.cast(target)
    except pa.ArrowInvalid:
        good = [_is_castable(values.slice(i, 1), target) for i in range(len(values))]
        mask = np.array(good, np.bool_)
        is_bad |= ~mask
        return null_where(values, ~mask).cast(target)


def _is_castable(value: pa.Array, target: pa.DataType) -> bool:
    try:
        # A copy: in PyArrow 14 a cast looks at the whole array of which a list is a part.
        pa.array(value.to_pylist(), value.type).cast(target)
    except pa.ArrowInvalid:
        return False
    return True


class RowTexts(Slices):
    """RowTexts: rows of columns as JSON, written when somebody asks for them."""

    def __init__(self, columns: dict[str, pa.Array], rows: Positions) -> None:
        object.__setattr__(self, "_columns", columns)
        object.__setattr__(self, "_rows", rows)

    @cached_property
    def _slices(self) -> Slices:
        _, first, place = np.unique(self.__dict__["_rows"], return_index=True, return_inverse=True)
        texts = [self.text(i).encode() for i in first.tolist()]  # rows of one list have one text
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        starts = np.cumsum(lengths) - lengths
        return Slices(np.frombuffer(b"".join(texts), np.uint8), starts[place], lengths[place])

    @property
    def data(self) -> NDArray[np.uint8]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Bytes of all rows."""
        return self._slices.data

    @property
    def starts(self) -> Positions:  # pyright: ignore[reportIncompatibleVariableOverride]
        """First byte of each row."""
        return self._slices.starts

    @property
    def lengths(self) -> Positions:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Bytes of each row."""
        return self._slices.lengths

    def text(self, index: int) -> str:
        """Write one row."""
        columns = cast(dict[str, pa.Array], self.__dict__["_columns"])
        row = int(self.__dict__["_rows"][index])
        return json.dumps({name: _shown(values.slice(row, 1)) for name, values in columns.items()}, ensure_ascii=False)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "RowTexts":
        """Select rows by index or by mask; the columns are shared."""
        return RowTexts(self.__dict__["_columns"], self.__dict__["_rows"][rows])


def _shown(value: pa.Array) -> Any:
    """Return one value as JSON can hold it; times as text in UTC."""
    kind = value.type
    if pa.types.is_dictionary(kind):
        return _shown(value.cast(kind.value_type))
    if pa.types.is_timestamp(kind):
        value = value.cast(pa.timestamp(kind.unit)).cast(pa.string())
    elif pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        value = value.cast(pa.string())
    elif _is_list(kind):
        items: Iterator[int] = iter(range(len(value.flatten())))
        return None if value.null_count else [_shown(value.flatten().slice(i, 1)) for i in items]
    found = value[0].as_py()
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else found
