"""Current files of a Delta table, with the values of its partition columns; by the library ``deltalake``, an extra."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse

import pyarrow as pa

from features.disk.object_store import ObjectPath
from features.disk.place import locate
from features.log_files import FoundLogs, LogFile, listed_file, refuse_shared
from features.log_format import LogError

_REFUSED = {
    "deletionVectors": "marks deleted rows in files of its own (REORG TABLE t APPLY (PURGE) writes them out)",
    "columnMapping": "renames columns (write it to a table without column mapping)",
}


_NEEDED = ("path", "partition")


@dataclass(frozen=True)
class DeltaFile:
    """One Parquet file of a Delta table.

    Attributes:
        path: its path.
        partition: partition column -> the value in all of its rows, as text; None where it is missing.
        columns: the table's columns; a file lacks those that are younger than it, and they are missing in its rows.
    """

    path: str
    partition: dict[str, str | None]
    columns: tuple[str, ...]


class FoundTables(NamedTuple):
    """Files of each split.

    Attributes:
        splits: split -> its files; of Delta tables, the current ones.
        columns: ``LogFile.real`` -> columns of the file's Delta table.
    """

    splits: dict[str, FoundLogs]
    columns: dict[str, frozenset[str]]


def find_delta_files(tables: Mapping[str, Sequence[str]]) -> FoundTables:
    """Find the current files of the Delta tables of each split; a table that is given twice is read once.

    Args:
        tables: split -> folders of tables, as paths or ``file://`` URLs.

    Raises:
        LogError: as ``list_delta_files``; a table is in a store, has no file, or is in two splits.
        StorageError: a URL is none.
    """
    splits, columns = {}, {}
    for split, folders in tables.items():
        files: dict[str, LogFile] = {}
        repeated: list[str] = []
        for folder in folders:
            for file in _list_files(folder):
                log = listed_file(file.path, file.partition)
                if files.setdefault(log.real, log) is not log:
                    repeated.append(log.path)
                columns[log.real] = frozenset(file.columns)
        ordered = sorted(files.values(), key=lambda log: log.path)
        splits[split] = FoundLogs(tuple(ordered), repeated=tuple(sorted(repeated)))
    refuse_shared(splits)
    return FoundTables(splits, columns)


def _list_files(folder: str) -> list[DeltaFile]:
    place = locate(folder)
    if isinstance(place, ObjectPath):
        raise LogError(f"{folder}: a Delta table is read on disk alone: copy its folder there")
    files = list_delta_files(str(place))
    if not files:
        raise LogError(f"{folder}: the Delta table has no rows")
    return files


def list_delta_files(folder: str) -> list[DeltaFile]:
    """List the files of a Delta table's current version, sorted by path.

    Raises:
        LogError: the library is not installed, the folder is no Delta table, or reading its files alone would give
            other rows than the table has; names the folder and the cure.
    """
    try:
        import deltalake  # pyright: ignore[reportMissingImports]
        import deltalake.exceptions  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise LogError(
            f"{folder}: a Delta table is read by the library deltalake: pip install 'deltalake>=1,<2'"
        ) from error
    try:
        table = deltalake.DeltaTable(folder)
        features = {*(table.protocol().reader_features or ())}
        if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
            features.add("columnMapping")  # tables of reader version 2 list no features
        for feature, reason in _REFUSED.items():
            if feature in features:
                raise LogError(f"{folder}: the Delta table {reason}: its files alone would be misread")
        columns = tuple(field.name for field in table.schema().fields)
        actions = pa.table(table.get_add_actions())
        rows: list[dict[str, Any]] = actions.select([n for n in actions.column_names if n in _NEEDED]).to_pylist()
    except (deltalake.exceptions.DeltaError, OSError) as error:
        raise LogError(f"{folder} cannot be read as a Delta table: {error}") from error
    files = [DeltaFile(_local_path(folder, row["path"]), _texts(row.get("partition") or {}), columns) for row in rows]
    return sorted(files, key=lambda file: file.path)


def _local_path(folder: str, path: str) -> str:
    """Return the path of a file as the log names it: below the table's folder and quoted as in an address."""
    parts = urlparse(path)
    if parts.scheme == "file":
        return unquote(parts.path)
    if parts.scheme:
        raise LogError(f"{folder}: the Delta table has files elsewhere: {path}")
    return str(Path(folder) / unquote(path))


def _texts(values: dict[str, Any]) -> dict[str, str | None]:
    shown = {True: "true", False: "false"}
    return {name: None if v is None else shown[v] if isinstance(v, bool) else str(v) for name, v in values.items()}
