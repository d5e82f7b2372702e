"""Write encoded rows to near-equal, globally shuffled Parquet files, and commit a dataset in one step.

Everything is written to a new version folder; replacing ``manifest.json`` is the commit. A job killed before it leaves
the old dataset, one killed after it the new one, and the next job removes what is left over. A dataset in an object
store is made on disk first; there a lock does not exist, and one job at a time is the user's part: of two, the one
that finds the other's commit gives up.
"""

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet

from features.disk.atomic import leftover_pattern, sync, sync_tree
from features.disk.dataset import (
    BUILD_NAME,
    DATASET_LOCK_NAME,
    MANIFEST_NAME,
    DataFile,
    DatasetError,
    DatasetManifest,
    SequenceStatistics,
)
from features.disk.digest import file_sha256
from features.disk.lock import lock
from features.disk.object_store import VERSION, ObjectPath, StorageError, clean, new_version_name, publish
from features.disk.place import scratch
from features.kinds import TABLE
from features.schema import FeatureSchema
from pipeline.build.learn import rounded
from pipeline.config import WriteConfig

_NAMES = (MANIFEST_NAME, BUILD_NAME)
_LEFTOVER = "|".join(map(leftover_pattern, _NAMES))
_OURS = "|".join([VERSION.pattern, _LEFTOVER, *map(re.escape, (*_NAMES, DATASET_LOCK_NAME))])


# -------------------------------------------------------------------------------------------------------------- dataset


@contextmanager
def new_version(dataset: Path) -> Iterator[Path]:
    """Make a version folder inside ``dataset``; remove it if the body fails.

    Raises:
        DatasetError: the folder cannot be written, holds something else, or another job is writing to it.
    """
    version = dataset / new_version_name()
    try:
        dataset.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(dataset, [path.name for path in dataset.iterdir()])
    except OSError as error:
        raise _cannot_write(dataset, error) from error
    with ExitStack() as stack:
        try:
            message = f"another job is writing to {dataset}: wait for it to end"
            stack.enter_context(lock(dataset / DATASET_LOCK_NAME, message, error=DatasetError))
        except OSError as error:
            raise _cannot_write(dataset, error) from error
        try:
            _remove_leftovers(dataset)  # before there is a version of ours: it needs the room
            version.mkdir()
            yield version
        except BaseException:
            shutil.rmtree(version, ignore_errors=True)
            raise


def _cannot_write(dataset: Path, error: OSError) -> DatasetError:
    return DatasetError(f"cannot write to {dataset} ({error.strerror}): choose another pipeline.output")


def _refuse_foreign(dataset: Path | ObjectPath, names: Iterable[str]) -> None:
    foreign = sorted(name for name in names if not re.fullmatch(_OURS, name))
    if foreign:
        raise DatasetError(f"{dataset} holds something that is no dataset ({foreign[0]}): choose an empty folder")


def staging(dataset: ObjectPath, folder: str | None) -> Path:
    """Find the staging folder on disk of a dataset in an object store; equal datasets have equal folders.

    Raises:
        DatasetError: the store holds something else there.
        StorageError: it cannot be read.
    """
    _refuse_foreign(dataset, {name.partition("/")[0] for name in dataset.sizes()})
    name = hashlib.sha256(str(dataset).encode()).hexdigest()[:16]
    return (Path(folder).absolute() if folder else scratch()) / f"dataset-{name}"


def commit_to_store(dataset: ObjectPath, version: Path, manifest: DatasetManifest) -> list[str]:
    """Put ``version`` into the store and make it the dataset in one step, then remove older versions.

    Returns:
        Warnings for a person.

    Raises:
        StorageError: it did not get there; the old dataset is as it was.
    """
    manifest.write(version)
    publish(version, dataset, MANIFEST_NAME)
    try:
        clean(dataset, version.name)
    except StorageError as error:
        return [f"older versions are still there, for the next build to remove: {error}"]
    finally:
        for path in version.parent.iterdir():
            if VERSION.fullmatch(path.name):  # ours and those of killed jobs
                shutil.rmtree(path, ignore_errors=True)
    return []


def commit(dataset: Path, version: Path, manifest: DatasetManifest) -> None:
    """Make ``version`` the dataset in one step, then remove older versions and what killed jobs left."""
    sync_tree(version)
    manifest.write(dataset)
    sync(dataset)
    _remove_leftovers(dataset)


def _remove_leftovers(dataset: Path) -> None:
    """Remove what the manifest does not name: older versions, and what killed jobs left."""
    manifest = dataset / MANIFEST_NAME
    named = manifest.read_text(encoding="utf-8", errors="replace") if manifest.exists() else ""
    for path in dataset.iterdir():
        if VERSION.fullmatch(path.name) and path.name not in named:
            shutil.rmtree(path, ignore_errors=True)
        elif re.fullmatch(_LEFTOVER, path.name):
            path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------- files


def num_files(num_rows: int, config: WriteConfig) -> int:
    """Compute the number of files of a split: rows / ``rows_per_file``, and ``min_files`` at least if rows allow."""
    return max(min(config.min_files, num_rows), -(-num_rows // config.rows_per_file))


@dataclass(frozen=True)
class FileTask:
    """A file to write.

    Attributes:
        split: its split.
        number: its place among the files of the split, from 0.
        first_key: least key of its rows.
        end_key: key behind the last.
    """

    split: str
    number: int
    first_key: int
    end_key: int


def write_table(table: pa.Table, path: Path, config: WriteConfig) -> tuple[int, ...]:
    """Write one Parquet file, complete or not at all; equal rows make equal bytes.

    Returns:
        Rows of each row group.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    rows, step = len(table), _row_group_rows(table, config)
    try:
        pyarrow.parquet.write_table(
            table,
            temporary,
            row_group_size=step,
            compression=config.compression,
            write_statistics=True,
            store_schema=False,  # padded lists are lists, as every reader takes them
        )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return tuple(min(step, rows - start) for start in range(0, rows, step))


MAX_LIST_BYTES = 32 * 1024 * 1024
"""Bytes of sequences' ids that a row group holds, about: readers have many row groups in memory."""


def _row_group_rows(table: pa.Table, config: WriteConfig) -> int:
    """Compute the rows of a row group: as configured, or fewer where sequences are long."""
    num_bytes = sum(
        column.type.value_type.bit_width // 8 * sum(len(chunk.flatten()) for chunk in column.chunks)
        for column in table.columns
        if pa.types.is_list(column.type)
    )
    fit = MAX_LIST_BYTES * len(table) // num_bytes if num_bytes else config.row_group_rows
    return max(min(config.row_group_rows, fit), 1)


def describe_file(path: Path, version: Path, row_groups: tuple[int, ...]) -> DataFile:
    """Describe a written file, with the sha256 of its bytes; its path is relative to the dataset."""
    return DataFile(path.relative_to(version.parent).as_posix(), path.stat().st_size, row_groups, file_sha256(path))


class IdChunk(NamedTuple):
    """Chunk of a column of ids.

    Attributes:
        path: path of its file.
        group: number of its row group.
        feature: feature, or part of a sequence, that the ids are of.
        metadata: description of it, with its statistics.
    """

    path: str
    group: int
    feature: str
    metadata: pyarrow.parquet.ColumnChunkMetaData


def max_ids(chunks: Sequence[IdChunk], schema: FeatureSchema) -> dict[str, int]:
    """Find the largest id of each feature with ids in a split, whose chunks are given.

    Raises:
        DatasetError: an id is negative, or a footer has no statistics.
    """
    largest = dict.fromkeys((f.name for f in schema.id_features), 0)
    for path, group, name, chunk in chunks:
        bounds = chunk.statistics
        if bounds is not None and bounds.null_count == chunk.num_values:
            continue  # no row of it has a history
        if bounds is None or not bounds.has_min_max or bounds.min < 0:
            raise DatasetError(f"{path}: feature {name!r} has no valid ids in row group {group}")
        largest[name] = max(largest[name], bounds.max)
    return largest


def sequence_statistics(
    chunks: Sequence[IdChunk],
    rows: int,
    schema: FeatureSchema,
    largest: dict[str, int],
    truncated: dict[str, int],
    unknown: Mapping[str, int],
    dwell: Mapping[str, tuple[int, ...]],
) -> dict[str, SequenceStatistics]:
    """Describe the sequences of a split.

    Args:
        chunks: those of the split.
        rows: its number of rows.
        schema: the features.
        largest: result of ``max_ids``.
        truncated: sequence -> events beyond ``max_length``.
        unknown: column of ids with a vocabulary -> events out of it.
        dwell: sequence with dwell weights -> events by the id of their dwell time.
    """
    events = dict.fromkeys((part.name for part in schema.parts), 0)
    empty = dict(events)
    for _, _, name, chunk in chunks:
        if name in events:
            # A row without events has one value that is null; events are never null.
            empty[name] += chunk.statistics.null_count
            events[name] += chunk.num_values - chunk.statistics.null_count
    return {
        sequence.name: SequenceStatistics(
            rounded(events[sequence.keys[0]] / rows),
            rounded(empty[sequence.keys[0]] / rows),
            {key: largest[key] for key in sequence.keys},
            truncated.get(sequence.name, 0),
            {key: rounded(unknown[key] / max(events[key], 1)) for key in sequence.keys if key in unknown},
            dwell.get(sequence.name, ()),
        )
        for sequence in schema.sequence
    }


def id_chunks(dataset: Path, files: tuple[DataFile, ...], schema: FeatureSchema) -> list[IdChunk]:
    """List the chunks of columns of ids, from the files' footers."""
    paths = {c.path: f.name for f in schema.id_features for c in f.kind.columns(f) if c.bound == TABLE}
    found = []
    for file in files:
        metadata = pyarrow.parquet.read_metadata(dataset / file.path)
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(column)
                if chunk.path_in_schema in paths:
                    found.append(IdChunk(file.path, group, paths[chunk.path_in_schema], chunk))
    return found
