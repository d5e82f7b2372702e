"""Current files of a Delta table, with the values of its partition columns; by the library ``deltalake``, an extra."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow as pa

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
            f"{folder}: a Delta table is read by the library deltalake: pip install 'twinfocus[delta]'"
        ) from error
    try:
        table = deltalake.DeltaTable(folder)
        for feature in table.protocol().reader_features or ():
            if feature in _REFUSED:
                raise LogError(f"{folder}: the Delta table {_REFUSED[feature]}: its files alone would be misread")
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
