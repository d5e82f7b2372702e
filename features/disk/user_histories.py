"""State of users' histories after a build: the events that rows of later builds may see, as an online store holds them.

``history.parquet`` of a dataset has a row an event, sorted by sequence, user, time and place in the log: ``sequence``,
``user`` (hash of the raw value), ``time`` (Unix seconds), ``is_dropped`` (left out by a filter; kept while it may count
for a burst), an id for each part, NAME__PART, and with dwell weights the dwell time in seconds, NAME__dwell, NaN where
it is not known; null in the events of other sequences. Of every user it holds the last
events that a row after the newest one surely sees, and all after that.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet

from features.arrow import pc
from features.disk.dataset import DatasetError, DatasetManifest, inside
from features.disk.object_store import ObjectPath
from features.disk.place import Place, locate
from features.disk.versions import Format
from features.history import UserEvent, UserHistory, user_hashes
from features.schema import FeatureSchema, SequenceFeature

USER_HISTORIES_NAME = "history.parquet"
USER_HISTORIES_FORMAT = Format("history", "update twinfocus here, or build the dataset again with this program")
_VERSION_KEY, _NEWEST_KEY = b"twinfocus:version", b"twinfocus:newest"
_FIXED = {"sequence": pa.string(), "user": pa.uint64(), "time": pa.int64(), "is_dropped": pa.bool_()}


def _parquet_schema(schema: FeatureSchema) -> pa.Schema:
    built = [one for one in schema.sequence if one.history is not None]
    parts = [(name, pa.int32()) for one in built for name in one.part_columns.values()]
    dwell = [(one.dwell_column, pa.float64()) for one in built if one.dwell_column is not None]
    return pa.schema([*_FIXED.items(), *parts, *dwell])


class HistoriesWriter:
    """Writer of a ``history.parquet``: tables of events, sequence by sequence, in the order of users."""

    def __init__(self, writer: pyarrow.parquet.ParquetWriter, columns: pa.Schema) -> None:
        self._writer, self._columns = writer, columns

    def write(self, sequence: str, events: Mapping[str, pa.Array]) -> None:
        """Write events of one sequence.

        Args:
            sequence: name of the sequence.
            events: the columns beside the sequence's name: ``user``, ``time``, ``is_dropped``, NAME__PART, NAME__dwell.
        """
        n = len(events["user"])
        columns = {"sequence": pa.repeat(pa.scalar(sequence), n), **events}
        arrays = [columns[f.name] if f.name in columns else pa.nulls(n, f.type) for f in self._columns]
        self._writer.write_table(pa.table(arrays, schema=self._columns))


@contextmanager
def write_histories(path: Path, schema: FeatureSchema, newest: int) -> Iterator[HistoriesWriter]:
    """Open a new file for the events of a schema's built histories.

    Args:
        path: file to write.
        schema: schema of the dataset.
        newest: time of the newest row that the build has seen, and its bases.
    """
    metadata = {_VERSION_KEY: str(USER_HISTORIES_FORMAT.version), _NEWEST_KEY: str(newest)}
    columns = _parquet_schema(schema).with_metadata(metadata)
    with pyarrow.parquet.ParquetWriter(path, columns, compression="zstd") as writer:
        yield HistoriesWriter(writer, columns)


class UserHistories:
    """A ``history.parquet`` that is read: events of a sequence by the hashes of their users."""

    def __init__(self, path: Path, schema: FeatureSchema) -> None:
        """Open and check a file.

        Raises:
            DatasetError: it is missing, damaged, of a newer version or of another schema.
        """
        self.path = path
        try:
            columns = pyarrow.parquet.read_schema(path)
            self.num_events = pyarrow.parquet.read_metadata(path).num_rows
            metadata = columns.metadata or {}
            version = {"version": int(metadata[_VERSION_KEY])}
            self.newest = int(metadata[_NEWEST_KEY])
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise DatasetError(f"{path} cannot be read ({error}): build the dataset again") from error
        USER_HISTORIES_FORMAT.version_of(version, path, DatasetError)
        if not columns.remove_metadata().equals(_parquet_schema(schema)):
            raise DatasetError(f"{path} has not the columns of the schema's histories: build the dataset again")

    def read(self, sequence: str, first: int = 0, end: int = 1 << 64) -> pa.Table:
        """Read the events of the users whose hashes are from ``first`` to before ``end``, in order.

        Raises:
            DatasetError: the file is damaged.
        """
        least, last = (pa.scalar(user, pa.uint64()) for user in (first, end - 1))
        user = pc.field("user")
        kept = (pc.field("sequence") == sequence) & (user >= least) & (user <= last)
        try:
            found = pyarrow.parquet.read_table(self.path, filters=kept, partitioning=cast(Any, None))
            return found.drop_columns(["sequence"])
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{self.path} cannot be read ({error}): build the dataset again") from error

    def of_user(self, sequence: SequenceFeature, user: str) -> UserHistory:
        """Fill a store with one user's events of a sequence that the build made; their values are ids, part by part.

        Raises:
            DatasetError: the file is damaged.
        """
        assert sequence.history is not None
        store, hashed = UserHistory(sequence.history), int(user_hashes(pa.array([user]))[0])
        for number, event in enumerate(self.read(sequence.name, hashed, hashed + 1).to_pylist()):
            ids = [event[column] for column in sequence.part_columns.values()]
            dwell = event[sequence.dwell_column] if sequence.dwell_column is not None else math.nan
            known = None if math.isnan(dwell) else dwell
            store.add(UserEvent(event["time"], number, ids, known, event["is_dropped"]))
        return store


def fetch_histories(manifest: DatasetManifest, dataset: Place | str, folder: Path) -> UserHistories:
    """Open the events that a dataset's build left for later ones.

    Args:
        manifest: manifest of the dataset.
        dataset: its folder.
        folder: folder for a copy of what is in an object store.

    Raises:
        DatasetError: it has none, or they are damaged.
        StorageError: they cannot be fetched.
    """
    if manifest.histories is None:
        raise DatasetError(f"{dataset} has no {USER_HISTORIES_NAME}: its schema has no history that the build makes")
    place = locate(dataset)
    if not isinstance(place, ObjectPath):
        return UserHistories(inside(place, manifest.histories.path), manifest.schema)
    path = folder / USER_HISTORIES_NAME
    stored = place / manifest.histories.path
    stored.download(path, stored.state()[0])
    return UserHistories(path, manifest.schema)
