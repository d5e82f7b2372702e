"""LookupTable: a side table in memory, joined to blocks of rows by the text of its key."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from features.arrow import pc
from features.log_format import LogError, Lookup
from features.raw_block import RawBlock, Wanted
from features.read.arrays import join_arrays
from features.read.portions import column_names, plan_portions, read_portion
from features.values import texts

_REMEMBERED_TABLES = 8


@dataclass(frozen=True)
class LookupTable:
    """A side table.

    Attributes:
        keys: (n,) string, each once.
        columns: column besides the key -> its (n,) values, as the file's reader returns them.
        lists: column -> its arrays, where a JSON table has some.
    """

    keys: pa.Array
    columns: dict[str, pa.Array]
    lists: dict[str, pa.Array]

    def join(self, block: RawBlock, keys: pa.Array, wanted: tuple[str, ...] | None = None) -> tuple[RawBlock, int]:
        """Add the table's columns to rows; where both have one, the table's replaces it.

        Args:
            block: (n,) rows.
            keys: (n,) string, each row's key as text; null for none.
            wanted: columns to add; None: all.

        Returns:
            The rows, with null where the table has no such key, and the number of rows whose key it has.
        """
        places = pc.index_in(keys, self.keys)
        names = [name for name in self.columns if wanted is None or name in wanted]
        columns = block.columns | {name: self.columns[name].take(places) for name in names}
        lists = {name: values for name, values in block.lists.items() if name not in names}
        lists |= {name: values.take(places) for name, values in self.lists.items() if name in names}
        joined = replace(block, columns=columns, lists=lists, of_lines=block.of_lines - {*names})
        return joined, len(places) - places.null_count


def load_lookup(path: str, lookup: Lookup, lists: frozenset[str] = frozenset()) -> LookupTable:
    """Read a side table, once in a process for as long as its file does not change.

    Args:
        path: where it is.
        lookup: key and format.
        lists: columns that may hold several values.

    Raises:
        LogError: the table cannot be read, a line of it is malformed, or a key is missing or there twice.
    """
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise LogError(f"{path} cannot be read: {error}") from error
    return _load(path, stat.st_size, stat.st_mtime_ns, lookup, lists)


@lru_cache(_REMEMBERED_TABLES)
def _load(path: str, size: int, time: int, lookup: Lookup, lists: frozenset[str]) -> LookupTable:
    names = column_names(path, lookup.format)
    if lookup.key not in names:
        raise LogError(f"{path} has no column {lookup.key!r} (the lookup's key); it has: {', '.join(names)}")
    wanted = Wanted(names, lists=lists & set(names), optional=frozenset(names))
    blocks: list[RawBlock] = []
    before = 0
    for portion in plan_portions(path, size, lookup.format, max(size, 1)):
        reading = read_portion(portion, lookup.format, wanted)
        for block in reading:
            for line in block.rejected:
                raise LogError(f"{path} line {line.number + before}: {line.reason}")
            blocks.append(block)
        before += reading.end.num_lines
    values = _join([block.columns[lookup.key] for block in blocks])
    keys, bad = texts(values)
    if bad is not None:
        shown = values[int(bad.argmax())].as_py()
        raise LogError(f"{path}: key {lookup.key!r}: {shown!r} is neither text nor a whole number")
    counts = keys.value_counts()
    twice = [row["values"] for row in counts.to_pylist() if row["counts"] > 1 or row["values"] is None]
    if twice:
        raise LogError(f"{path}: key {lookup.key!r} is missing or twice: {twice[0]!r}")
    columns = {name: _join([block.columns[name] for block in blocks]) for name in names if name != lookup.key}
    listed = {name for block in blocks for name in block.lists}
    empty = {name: pa.list_(pa.string()) for name in listed}
    arrays = {
        name: _join([block.lists.get(name, pa.nulls(len(block), empty[name])) for block in blocks]) for name in listed
    }
    return LookupTable(keys, columns, arrays)


def _join(arrays: list[pa.Array]) -> pa.Array:
    return join_arrays(arrays, pa.string())
