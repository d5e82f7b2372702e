"""A file of vectors: raw values of a feature, each with a vector of numbers, as another model gave it.

    vectors.parquet   a column of values and one of lists of numbers
    vectors.npz       an array of values, (N,), and one of vectors, (N, W)
    vectors.npy       vectors alone; the values are in a file of their own (``ids_path``)

Shapes: N values, W numbers of a vector.
"""

import contextlib
import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.arrow import pc
from features.disk.digest import file_sha256
from features.disk.object_store import ObjectPath, StorageError
from features.disk.place import locate, temporary_folder
from features.vector_source import VectorFileError, VectorSource

_MOST_NAMED = 5
"""Columns of a file that an error names."""


@dataclass(frozen=True)
class VectorFile:
    """Content of a file of vectors.

    Attributes:
        name: the file, for messages.
        values: (N,) raw values, of any type that a log may have.
        vectors_NW: their vectors, finite float32.
        sha256: digest of the file, or of both files.
    """

    name: str
    values: pa.Array
    vectors_NW: NDArray[np.float32]
    sha256: str

    @property
    def dimension(self) -> int:
        """Numbers of a vector, W."""
        return self.vectors_NW.shape[1]


def read_vectors(source: VectorSource) -> VectorFile:
    """Read a file of vectors and check every number of it.

    Raises:
        VectorFileError: it is missing or damaged, lacks a column, or is not the file that ``source`` describes; it has
            no rows, a row without a vector, vectors of different lengths, or a number that is not finite.
        StorageError: its store cannot be read.
    """
    with _local(source) as (path, ids_path):
        sha256 = _digest(path, ids_path)
        if source.sha256 not in (None, sha256):
            raise VectorFileError(
                f"{source.path} is another file than it was (sha256 {sha256[:12]}, and {source.sha256[:12]} is asked "
                "for): put that file back, or leave out sha256 and start a new run"
            )
        try:
            values, vectors = (
                _read_parquet(path, source)
                if ids_path is None and path.suffix == ".parquet"
                else (_read_arrays(path, ids_path, source))
            )
        except VectorFileError:
            raise
        except (OSError, ValueError, EOFError, pa.ArrowException, zipfile.BadZipFile) as error:
            raise VectorFileError(f"{source.path} cannot be read as vectors: {error}") from error
    if not len(vectors):
        raise VectorFileError(f"{source.path} has no rows")
    if len(values) != len(vectors):
        raise VectorFileError(f"{source.path} has {len(vectors):,} vectors and {len(values):,} values")
    if source.dimension not in (None, vectors.shape[1]):
        raise VectorFileError(
            f"{source.path} has vectors of {vectors.shape[1]} numbers, and dimension is {source.dimension}: give its "
            "own, or leave it out"
        )
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(vectors, np.float32)
    is_bad = ~np.isfinite(vectors).all(axis=1)
    if is_bad.any():
        row = int(is_bad.argmax())
        raise VectorFileError(
            f"{source.path}: the vector of {values[row].as_py()!r:.80} (row {row + 1}) holds a number that is not "
            f"finite, and {int(is_bad.sum()) - 1:,} others do: leave those rows out"
        )
    return VectorFile(source.path, values, vectors, sha256)


@contextlib.contextmanager
def _local(source: VectorSource) -> Iterator[tuple[Path, Path | None]]:
    """Give paths on disk of the vectors and, where it is another file, of the values, while the body runs."""
    with contextlib.ExitStack() as stack:
        found = []
        for name in (source.path, source.ids_path):
            place = None if name is None else locate(name)
            if place is not None and not place.is_file():
                raise VectorFileError(f"{name} is missing: training.model names it as a file of vectors")
            if isinstance(place, ObjectPath):
                copy = stack.enter_context(temporary_folder()) / place.name
                before = place.state()
                place.download(copy, before[0])
                if place.state() != before:
                    raise StorageError(f"{place} was changed while it was read: try again when it is complete")
                place = copy
            found.append(place)
        yield found[0], found[1]


def _digest(path: Path, ids_path: Path | None) -> str:
    digests = [file_sha256(file) for file in (path, ids_path) if file is not None]
    return digests[0] if ids_path is None else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _read_parquet(path: Path, source: VectorSource) -> tuple[pa.Array, NDArray[Any]]:
    names = pq.read_schema(path).names
    for key in ("id_column", "vector_column"):
        if getattr(source, key) not in names:
            raise _missing(source, key, names, "column")
    table = pq.ParquetFile(path).read(columns=[source.id_column, source.vector_column])
    values, lists = (_one_array(table.column(name)) for name in (source.id_column, source.vector_column))
    type_: Any = lists.type
    if not (pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)):
        raise VectorFileError(f"{source.path}: column {source.vector_column!r} is {type_}, and not lists of numbers")
    if not (pa.types.is_floating(type_.value_type) or pa.types.is_integer(type_.value_type)):
        raise VectorFileError(f"{source.path}: column {source.vector_column!r} has lists of {type_.value_type}")
    if lists.null_count:
        row = int(np.argmax(lists.is_null().to_numpy(zero_copy_only=False)))
        raise VectorFileError(
            f"{source.path}: {values[row].as_py()!r:.80} (row {row + 1}) has no vector: leave out values without one"
        )
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    if not len(lengths):
        return values, np.empty((0, 1), np.float32)
    odd = np.flatnonzero(lengths != lengths[0])
    if len(odd) or not lengths[0]:
        row = int(odd[0]) if len(odd) else 0
        raise VectorFileError(
            f"{source.path}: vectors have different lengths, or none: {lengths[0]} numbers in row 1, {lengths[row]} of "
            f"{values[row].as_py()!r:.80} (row {row + 1})"
        )
    numbers = lists.flatten()
    if numbers.null_count:
        raise VectorFileError(f"{source.path}: column {source.vector_column!r} has vectors with missing numbers")
    return values, numbers.to_numpy(zero_copy_only=False).reshape(len(lists), int(lengths[0]))


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    found = column.combine_chunks()
    return found.chunk(0) if isinstance(found, pa.ChunkedArray) else found


def _read_arrays(path: Path, ids_path: Path | None, source: VectorSource) -> tuple[pa.Array, NDArray[Any]]:
    if ids_path is not None:
        values, vectors = np.load(ids_path, allow_pickle=False), np.load(path, allow_pickle=False)
    else:
        with np.load(path, allow_pickle=False) as arrays:
            for key in ("id_column", "vector_column"):
                if getattr(source, key) not in arrays.files:
                    raise _missing(source, key, arrays.files, "array")
            values, vectors = arrays[source.id_column], arrays[source.vector_column]
    if values.ndim != 1 or vectors.ndim != 2 or not vectors.shape[1]:
        raise VectorFileError(
            f"{source.path} needs values of shape (N,) and vectors of shape (N, W), and has {values.shape} and "
            f"{vectors.shape}"
        )
    if vectors.dtype.kind not in "fiu":
        raise VectorFileError(f"{source.path} has vectors of {vectors.dtype}, which are no numbers")
    return pa.array(values), vectors


def _missing(source: VectorSource, key: str, names: list[str], what: str) -> VectorFileError:
    shown = ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
    return VectorFileError(f"{source.path} has no {what} {getattr(source, key)!r} ({key}); it has: {shown}")
