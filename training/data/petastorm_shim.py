"""Petastorm 0.12.1 on today's pyarrow and NumPy; no other module imports it.

Petastorm takes names from both libraries that they no longer have: pyarrow's Parquet datasets of before version 15 and
its old file systems, NumPy's two old names for text. This module puts stand-ins into Petastorm's own modules, so that
everybody else in the process sees pyarrow and NumPy as they are. They can do what the reader asks for: row groups of a
list of local files, read in this process. Anything else (folders, HDFS, ``make_reader``, filters, the process pool)
ends with an error. docs/adr/0009-petastorm-on-todays-pyarrow.md says why that is safe.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from types import ModuleType, SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


class LocalFileSystem:
    """Files on disk."""

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading."""
        return open(path, "rb")


class ParquetDatasetPiece:
    """One Parquet file, or one row group of it."""

    partition_keys = ()

    def __init__(self, path: str, row_group: int | None = None, **_: Any) -> None:
        self.path, self.row_group = path, row_group

    @cached_property
    def _metadata(self) -> pq.FileMetaData:
        return pq.read_metadata(self.path)

    def get_metadata(self) -> pq.FileMetaData:
        """Return the footer of the file."""
        return self._metadata

    def read(self, columns: set[str], **_: Any) -> pa.Table:
        """Read some columns of the row group, in the order that they have in the file."""
        with pq.ParquetFile(self.path) as file:
            return file.read_row_group(self.row_group, columns=columns)


class ParquetDataset:
    """Parquet files by name.

    There is no metadata beside the files, so Petastorm has none that it could un-pickle.
    """

    metadata = common_metadata = partitions = None

    def __init__(self, paths: Sequence[str], filesystem: LocalFileSystem, filters: None = None, **_: Any) -> None:
        if isinstance(paths, str) or filters is not None:
            raise ValueError("Petastorm reads a list of files here, without filters")
        self.pieces, self.fs = [ParquetDatasetPiece(path) for path in paths], filesystem


class OldNumPy(ModuleType):
    """NumPy with the two names that version 2 has dropped."""

    unicode_, string_ = np.str_, np.bytes_

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@contextlib.contextmanager
def stand_ins(names: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Let modules that do not exist be imported: name of the module -> what it holds."""
    for module, content in names.items():
        sys.modules[module] = ModuleType(module)
        vars(sys.modules[module]).update(content)
    try:
        yield
    finally:
        for module in names:
            del sys.modules[module]


with stand_ins(
    {
        "pyarrow.filesystem": {"LocalFileSystem": LocalFileSystem},
        # The module itself would ask for pyarrow.hdfs, and for distutils, which Python 3.12 has dropped.
        "petastorm.hdfs.namenode": {"HdfsNamenodeResolver": None, "HdfsConnector": None},
    }
):
    from petastorm import arrow_reader_worker, fs_utils, reader, unischema
    from petastorm.etl import dataset_metadata
    from petastorm.reader import make_batch_reader
    from petastorm.workers_pool import EmptyResultError

_old_parquet = SimpleNamespace(ParquetDataset=ParquetDataset, ParquetDatasetPiece=ParquetDatasetPiece)
reader.pq = dataset_metadata.pq = arrow_reader_worker.pq = _old_parquet
fs_utils.pyarrow = SimpleNamespace(localfs=LocalFileSystem())
unischema.np = arrow_reader_worker.np = OldNumPy("numpy")

__all__ = ["EmptyResultError", "make_batch_reader"]
