"""Checks of a Parquet file before training: bytes, columns and ids against the manifest and the schema.

Everything is checked where it is read, because a cut file, a missing value or an id outside its table would otherwise
become a model that is merely worse.
"""

import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.disk.dataset import DataFile, DatasetError
from features.disk.digest import file_sha256
from features.kinds import TABLE, Column, batch_columns
from features.ragged import Ragged
from features.rows import Columns
from features.schema import FeatureSchema

PETASTORM_KEY = b"dataset-toolkit."
"""Start of the footer keys whose values Petastorm un-pickles."""


class ReaderError(DatasetError):
    """A file does not hold the rows the manifest says, or holds rows that must not be trained on."""


class ShardChecker:
    """Checks files and their row groups for one schema.

    Attributes:
        columns: the columns a batch needs, by name.
    """

    def __init__(
        self, schema: FeatureSchema, num_embeddings: Mapping[str, int] | None, later: Mapping[str, int] | None = None
    ) -> None:
        """Prepare the bounds of every column.

        Args:
            num_embeddings: feature, or part of a sequence -> rows of its table; None: ids have no upper bound.
            later: feature -> id that replaces ids outside its table, for a model with a shorter vocabulary than the
                dataset's.
        """
        self._later = later or {}
        self.columns = batch_columns(schema)
        tables = dict.fromkeys((f.name for f in schema.id_features), 2**31) | dict(num_embeddings or {})
        self._sequences = [(sequence.keys, sequence.max_length) for sequence in schema.sequence]
        self._bounds = {
            column.name: tables[feature.name] if column.bound == TABLE else column.bound
            for feature in schema.id_features
            for column in feature.kind.columns(feature)
            if column.bound is not None
        }
        self._files: dict[Path, DataFile] = {}

    def check_file(self, path: Path, file: DataFile) -> None:
        """Compare a file with the manifest, before anything else opens it.

        Raises:
            ReaderError: it is missing, cut, of other bytes, row groups or columns, or it carries pickled objects.
        """
        if not path.is_file():
            raise ReaderError(f"{path} is named in the manifest but is missing: build the dataset again")
        if path.stat().st_size != file.num_bytes:
            raise ReaderError(
                f"{path} has {path.stat().st_size} bytes where the manifest says {file.num_bytes}: it was cut or "
                "changed; build the dataset again"
            )
        self._files[path] = file
        self._check_bytes(path)
        keys, row_groups, names = _footer_of(path, _state(path))
        if any(key.startswith(PETASTORM_KEY) for key in keys):
            raise ReaderError(f"{path} carries pickled Petastorm keys, which could run code: it is not opened")
        if row_groups != file.row_groups:
            raise ReaderError(
                f"{path} has {sum(row_groups)} rows in {len(row_groups)} row groups where the manifest says "
                f"{file.num_rows} rows in {len(file.row_groups)}: build the dataset again"
            )
        amiss = sorted(name for name in self.columns if names[name] != 1)
        if amiss:
            raise ReaderError(f"{path} lacks columns {', '.join(amiss)}, or has them twice: build the dataset again")

    def to_columns(self, table: pa.Table, path: Path) -> Columns:
        """Convert a row group to columns, without a copy where Arrow's memory can be used as it is.

        Raises:
            ReaderError: a value is missing or of another type, an id outside its table, a length outside its list, or
                the file is no longer the one that was checked.
        """
        self._check_bytes(path)  # it may have changed since it was opened; then the rows are of nobody knows what
        columns: Columns = {}
        for name, expected in self.columns.items():
            if expected.is_ragged:
                columns[name] = self._to_ragged(table.column(name), expected, path)
                continue
            column = _to_numpy(table.column(name), name, path)
            if (column.dtype, column.shape[1:]) != (expected.dtype, expected.shape):
                raise ReaderError(
                    f"column {name!r} of {path} must hold {np.dtype(expected.dtype)} of shape {expected.shape} a row, "
                    f"got {column.dtype} of shape {column.shape[1:]}"
                )
            if name in self._later:
                column = np.where(column >= self._bounds[name], np.int32(self._later[name]), column)
            if name in self._bounds:
                self._check_bounds(column, name, path)
            elif not _is_finite(column):
                raise ReaderError(f"column {name!r} of {path} has infinite values or NaN")
            columns[name] = column
        for keys, max_length in self._sequences:
            self._check_lengths({key: columns[key].lengths for key in keys}, max_length, path)
        return columns

    def _to_ragged(self, column: pa.ChunkedArray, expected: Column, path: Path) -> Ragged:
        """Convert a column of lists of any length, in Arrow's memory."""
        name, array = expected.name, _one_array(column)
        if not _is_list(array.type) or array.type.value_type != pa.from_numpy_dtype(expected.dtype):
            raise ReaderError(
                f"column {name!r} of {path} must hold lists of {np.dtype(expected.dtype)}, got {array.type}"
            )
        num_missing = array.null_count + array.values.null_count
        if num_missing:
            raise ReaderError(f"column {name!r} of {path} has {num_missing} missing values: build the dataset again")
        rows = Ragged.of_arrow(array)
        if name in self._later:
            values = np.where(rows.values >= self._bounds[name], np.int32(self._later[name]), rows.values)
            rows = Ragged(values, rows.offsets)
        self._check_bounds(rows.flat, name, path)
        return rows

    def _check_lengths(self, lengths: dict[str, NDArray[Any]], max_length: int, path: Path) -> None:
        """Check that all columns of a sequence have lists of one length in a row, none of them too long."""
        (name, first), *others = lengths.items()
        for other, found in others:
            if not np.array_equal(first, found):
                raise ReaderError(
                    f"columns {name!r} and {other!r} of {path} have lists of different lengths in a row: build the "
                    "dataset again"
                )
        if first.max(initial=0) > max_length:
            raise ReaderError(
                f"column {name!r} of {path} has a list of {first.max()} events, more than max_length {max_length}: "
                "build the dataset again"
            )

    def _check_bytes(self, path: Path) -> None:
        try:
            digest = digest_of_file(path, _state(path))
        except OSError as error:
            raise ReaderError(f"{path} cannot be read ({error}): build the dataset again") from error
        if digest != self._files[path].sha256:
            raise ReaderError(
                f"{path} does not hold the bytes it was written with (its sha256 is not the manifest's): the disk or "
                "somebody changed it; build the dataset again"
            )

    def _check_bounds(self, column: NDArray[Any], name: str, path: Path) -> None:
        # Seen without a sign, a negative number is larger than any bound: one pass instead of two.
        if len(column) and column.view(f"u{column.dtype.itemsize}").max() >= self._bounds[name]:
            wrong = column.min() if column.min() < 0 else column.max()
            raise ReaderError(
                f"column {name!r} of {path} holds {wrong}, outside 0 to {self._bounds[name] - 1}: the data and the "
                "model's tables do not belong together"
            )


def _state(path: Path) -> tuple[int, ...]:
    """Return numbers that change with any write to a file: no program can set the last one, ctime, back."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@functools.lru_cache(maxsize=1 << 16)
def digest_of_file(path: Path, state: tuple[int, ...]) -> str:
    """Compute the sha256 of a file, cached in this process for as long as the file is in this state.

    Parquet's own checksums are not enough: a page's checksum leaves out page headers and the footer, and one bit of
    the footer can have other values read from the same pages.
    """
    return file_sha256(path)


@functools.lru_cache(maxsize=1 << 12)
def _footer_of(path: Path, state: tuple[int, ...]) -> tuple[tuple[bytes, ...], tuple[int, ...], Counter[str]]:
    """Read a file's metadata keys, rows of each row group and column names, cached while it is in this state.

    Raises:
        ReaderError: it is no readable Parquet file.
    """
    try:
        footer = pq.read_metadata(path)
        names = Counter(footer.schema.to_arrow_schema().names)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise ReaderError(f"{path} is not a readable Parquet file ({error}): build the dataset again") from error
    row_groups = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
    return tuple(footer.metadata or {}), row_groups, names


def _is_finite(column: NDArray[Any]) -> bool:
    if column.dtype.kind != "f":
        return True
    # A sum of squares is finite only where all are, and takes one pass; where it overflows, each number is looked at.
    return bool(np.isfinite(np.dot(column, column)) or np.isfinite(column).all())


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_fixed_size_list(type_)


def _to_numpy(column: pa.ChunkedArray, name: str, path: Path) -> NDArray[Any]:
    """Convert a column to (n,); one of lists, which must all have one length, to (n, max_length)."""
    array = _one_array(column)
    shape = (len(array),)
    if not array.null_count and _is_list(array.type) and len(array):
        values = array.flatten()
        width = len(values) // len(array)
        if pa.types.is_list(array.type) and (np.diff(array.offsets.to_numpy()) != width).any():
            raise ReaderError(f"column {name!r} of {path} has lists of different lengths: build the dataset again")
        array, shape = values, (len(array), width)
    if array.null_count:
        raise ReaderError(f"column {name!r} of {path} has {array.null_count} missing values: build the dataset again")
    return array.to_numpy(zero_copy_only=False).reshape(shape)
