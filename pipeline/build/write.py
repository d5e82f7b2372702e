"""Write encoded rows to near-equal, globally shuffled Parquet files, and commit a dataset in one step.

Everything is written to a new version folder; replacing ``manifest.json`` is the commit. A job killed before it leaves
the old dataset, one killed after it the new one, and the next job removes what is left over. A dataset in an object
store is made on disk first; there a lock does not exist, and one job at a time is the user's part: of two, the one
that finds the other's commit gives up.
"""

import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow.parquet
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from features.disk.atomic import leftover_pattern, sync, sync_tree
from features.disk.dataset import BUILD_NAME, DATASET_LOCK_NAME, MANIFEST_NAME, DataFile, DatasetError, DatasetManifest
from features.disk.digest import file_sha256
from features.disk.lock import lock
from features.disk.object_store import VERSION, ObjectPath, StorageError, clean, new_version_name, publish
from features.disk.place import scratch
from features.kinds import TABLE
from features.schema import FeatureSchema
from pipeline.build.footer import sort_encodings
from pipeline.build.ingest import ROW_ID, SPLIT
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


def write_files(
    spark: SparkSession, rows: DataFrame, num_rows: dict[str, int], config: WriteConfig, version: Path
) -> dict[str, tuple[DataFile, ...]]:
    """Write encoded rows: each file holds a random share of its split, in random order, the same in every run.

    Args:
        rows: what ``encode`` returns.
        num_rows: split -> its rows, as counted before.
        version: folder to write to; paths in the result are relative to its parent.

    Raises:
        DatasetError: the files do not hold exactly the counted rows.
    """
    counts = {split: num_files(rows_of, config) for split, rows_of in num_rows.items()}
    total = sum(counts.values())
    first_file, offset = {}, 0
    number = F.lit(None).cast("bigint")
    for split, count in counts.items():
        first_file[split] = offset
        within = F.pmod(F.xxhash64(F.lit("file"), F.col(ROW_ID)), F.lit(count))
        number = F.when(F.col(SPLIT) == split, within + offset).otherwise(number)
        offset += count
    keys = F.array(*(F.lit(key) for key in _partition_keys(spark, total)))
    shuffled = rows.withColumn("file:key", F.get(keys, number.cast("int"))).repartition(total, "file:key")
    ordered = shuffled.sortWithinPartitions(F.xxhash64(F.lit("order"), F.col(ROW_ID)), ROW_ID)
    folder = version / "unsorted"
    options = {
        "compression": {"lz4": "lz4_raw"}.get(config.compression, config.compression),
        # Parquet-mr ends a row group by its bytes alone, and looks at them every so many rows: with one byte allowed,
        # each look ends the group.
        "parquet.block.size": "1",
        "parquet.page.size.row.check.min": str(config.row_group_rows),
        "parquet.page.size.row.check.max": str(config.row_group_rows),
    }
    ordered.drop(ROW_ID, SPLIT, "file:key").write.options(**options).parquet(f"file://{folder}")
    written = {int(p.name.split("-")[1]): p for p in folder.glob("part-*.parquet")}
    files = {}
    for split, count in counts.items():
        paths = [written[n] for n in range(first_file[split], first_file[split] + count) if n in written]
        files[split] = _place(paths, version, split)
        found = sum(file.num_rows for file in files[split])
        if found != num_rows[split]:
            raise DatasetError(f"split {split!r} has {found} rows in its files where {num_rows[split]} were counted")
    shutil.rmtree(folder)
    return files


def _partition_keys(spark: SparkSession, total: int) -> list[int]:
    """Find an integer key for each partition of ``repartition(total, key)``."""
    keys: dict[int, int] = {}
    candidates = 64 * total
    while len(keys) < total:
        key = F.col("id").cast("int")
        found = spark.range(0, candidates, 1, 1).groupBy(F.pmod(F.hash(key), F.lit(total)).alias("partition"))
        keys = {row["partition"]: row["key"] for row in found.agg(F.min(key).alias("key")).collect()}
        candidates *= 4
    return [keys[partition] for partition in range(total)]


def _place(paths: list[Path], version: Path, split: str) -> tuple[DataFile, ...]:
    folder = version / split
    folder.mkdir()
    files = []
    for number, path in enumerate(paths):
        target = folder / f"part-{number:05d}.parquet"
        path.rename(target)
        sort_encodings(target)
        metadata = pyarrow.parquet.read_metadata(target)
        groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        relative = f"{version.name}/{split}/{target.name}"
        files.append(DataFile(relative, target.stat().st_size, groups, file_sha256(target)))
    return tuple(files)


def max_ids(dataset: Path, files: tuple[DataFile, ...], schema: FeatureSchema) -> dict[str, int]:
    """Read the largest id of each sparse feature from the statistics in the files' footers.

    Raises:
        DatasetError: an id is negative, or a footer has no statistics.
    """
    largest = dict.fromkeys(schema.sparse_names, 0)
    paths = {c.path: f.name for f in schema.sparse for c in f.kind.columns(f) if c.bound == TABLE}
    for file in files:
        metadata = pyarrow.parquet.read_metadata(dataset / file.path)
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(column)
                name = paths.get(chunk.path_in_schema)
                if name is None:
                    continue
                bounds = chunk.statistics
                if bounds is None or not bounds.has_min_max or bounds.min < 0:
                    raise DatasetError(f"{file.path}: feature {name!r} has no valid ids in row group {group}")
                largest[name] = max(largest[name], bounds.max)
    return largest
