"""Read a checkpoint's files without running code in them, because a checkpoint may come from a stranger.

``torch.distributed.checkpoint`` keeps its index and all that is not a tensor in pickles, and a pickle can call any
function. Here an index may contain its own few classes only, and the files that it names must lie in the folder.
"""

import io
import os
import pickle  # nosec B403
import zipfile
from dataclasses import replace
from pathlib import PurePosixPath
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.utils import _ReaderView
from torch.serialization import _get_layout

from training.model.embedding import table_of


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or of another run."""


class CheckpointReader(FileSystemReader):
    """Reader of tensors that refuses an index or a record with anything else."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the index and rebuild it from checked parts.

        Raises:
            CheckpointError: it is absent or damaged, or holds an object of a foreign class.
        """
        path = self._get_metadata_path(kwargs.get("rank"))
        try:
            with open(path, "rb") as file:
                metadata = _checked(_Unpickler(io.BytesIO(file.read())).load())
        except Exception as error:  # a stranger's bytes may raise anything
            raise CheckpointError(f"{path} is not the index of a checkpoint: {error!r:.200}") from error
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    def _slice_file(self, file: IO[bytes], sinfo: _StorageInfo) -> IO[bytes]:
        """Open one record, a zip file; compressed members are refused, as they could unpack to any size."""
        with zipfile.ZipFile(_Slice(cast(Any, file), sinfo.offset, sinfo.length)) as members:
            packed = [m.filename for m in members.infolist() if m.compress_type or m.file_size > sinfo.length]
        if packed:
            raise CheckpointError(
                f"{sinfo.relative_path} holds compressed data ({packed[0]!r}), which torch never does"
            )
        return super()._slice_file(file, sinfo)


class _Slice(_ReaderView):
    """View of a part of a file: Torch's, with its seek from the end corrected."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return super().seek(offset + self.len if whence == os.SEEK_END else offset)


def flat_state(state: dict[str, Any]) -> dict[str, Any]:
    """Map the names that a checkpoint's index has for the values of nested dictionaries to the values."""
    return flatten_state_dict(state)[0]


class CheckpointPlanner(DefaultLoadPlanner):
    """Load planner that un-pickles other values than tensors with Torch's list of safe types only."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Load a value that is not a tensor into the state dict."""
        path = self.mappings[read_item.dest_index.fqn]
        set_element(self.original_state_dict, path, torch.load(value, weights_only=True))


class GrownPlanner(CheckpointPlanner):
    """Load planner that loads a table saved with fewer rows into its first rows."""

    def create_local_plan(self) -> Any:
        """Plan this rank's reads, with the saved sizes of grown tables replaced by the present ones."""
        assert self.metadata is not None
        saved = self.metadata.state_dict_metadata
        # Not of self.state_dict: it leaves out tables that lie on other ranks alone, and is then replaced by this one.
        for name, value in flat_state(self.original_state_dict).items():
            entry = saved.get(name)
            if table_of(name) and isinstance(entry, TensorStorageMetadata):
                before, now = entry.size, value.size()
                if before[:1] < now[:1] and before[1:] == now[1:]:
                    saved[name] = replace(entry, size=now)
        return super().create_local_plan()


_BUILT = (
    Metadata,
    TensorStorageMetadata,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    TensorProperties,
    MetadataIndex,
    StorageMeta,
    _StorageInfo,
)
_GLOBALS: dict[tuple[str, str], Any] = {
    **{(c.__module__, c.__name__): c for c in (*_BUILT, _MEM_FORMAT_ENCODING)},
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _get_layout,
    ("pathlib", "PosixPath"): PurePosixPath,  # where it was written
    ("pathlib._local", "PosixPath"): PurePosixPath,  # the same by Python 3.13
}
_OPCODES = (
    *(pickle.PROTO, pickle.FRAME, pickle.MARK, pickle.STOP, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_DICT),
    *(pickle.STACK_GLOBAL, pickle.REDUCE, pickle.NEWOBJ),
)


_PythonUnpickler: Any = pickle._Unpickler


class _Unpickler(_PythonUnpickler):
    """Unpickler that makes objects of the index's classes only.

    It extends the one written in Python, because the one in C allocates memory for as many objects as a pickle claims.
    """

    dispatch = {code[0]: _PythonUnpickler.dispatch[code[0]] for code in _OPCODES}  # noqa: RUF012

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code") from None

    def load_build(self) -> None:
        if type(self.stack[-2]) not in _BUILT:  # a class could be given other methods
            raise pickle.UnpicklingError("it changes something that is no part of an index")
        super().load_build()

    def load_setitem(self) -> None:
        _check_key(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        for key in self.stack[::2]:  # since the mark
            _check_key(key)
        super().load_setitems()

    dispatch |= {
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


def _check_key(key: Any) -> None:
    """Refuse keys that could take exponential time to hash: tuples of the same tuple twice, nested."""
    if type(key) is not str:
        _check_types((key, MetadataIndex), (key.fqn, str), (key.index, int, type(None)))
        _check_types((key.offset, torch.Size, type(None)))


def _check_types(*pairs: Any) -> None:
    for value, *types in pairs:
        if type(value) not in types:
            raise pickle.UnpicklingError(f"it holds a {type(value).__name__} where a {types[0].__name__} belongs")


def _checked(found: Any) -> Metadata:
    """Check an index and copy the parts that a load needs."""
    _check_types((found, Metadata), (found.state_dict_metadata, dict), (found.storage_data, dict))
    entries, records = {}, {}
    for name, entry in found.state_dict_metadata.items():
        _check_types((name, str), (entry, TensorStorageMetadata, BytesStorageMetadata))
        entries[name] = entry if isinstance(entry, BytesStorageMetadata) else _checked_tensor(entry)
    for index, info in found.storage_data.items():
        _check_types((index, MetadataIndex), (info, _StorageInfo), (info.relative_path, str))
        _check_types((info.offset, int), (info.length, int))
        if PurePosixPath(info.relative_path).name != info.relative_path:
            raise pickle.UnpicklingError(f"it names {info.relative_path!r}, a file outside its folder")
        if getattr(info, "transform_descriptors", None):
            raise pickle.UnpicklingError("its files are compressed, which ours never are")
        records[index] = _StorageInfo(info.relative_path, info.offset, info.length)
    return Metadata(entries, storage_data=records, version=None)


def _checked_tensor(entry: TensorStorageMetadata) -> TensorStorageMetadata:
    _check_types((entry.size, torch.Size), (entry.chunks, list), (entry.properties, TensorProperties))
    _check_types((entry.properties.dtype, torch.dtype))
    for chunk in entry.chunks:
        _check_types((chunk, ChunkStorageMetadata), (chunk.offsets, torch.Size), (chunk.sizes, torch.Size))
    chunks = [ChunkStorageMetadata(c.offsets, c.sizes) for c in entry.chunks]
    return TensorStorageMetadata(TensorProperties(entry.properties.dtype), cast(torch.Size, entry.size), chunks)
