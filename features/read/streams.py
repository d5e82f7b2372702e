"""Byte streams of raw text files, unpacked (gzip, bzip2, zstd, lz4); archives and binary formats are refused."""

import bz2
import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from features.log_format import LogError

STREAM_ERRORS = (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeError)
"""Errors of a file that is damaged, cut off, not there, or (UTF-16) without the mark that its encoding begins with."""

PACKED_SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd", ".zstd": "zstd", ".lz4": "lz4"}
"""Ends of names of compressed files."""
_MAGIC = {"gzip": b"\x1f\x8b\x08", "bzip2": b"BZh", "zstd": b"\x28\xb5\x2f\xfd", "lz4": b"\x04\x22\x4d\x18"}
_BZIP2_BLOCK = (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90")
"""Bytes behind ``BZh`` and a digit: text may begin with BZh too."""
_NO_TEXT = {
    b"PK\x03\x04": "a zip archive: unpack it",
    b"PK\x05\x06": "a zip archive: unpack it",
    b"\xfd7zXZ\x00": "compressed by xz: use gzip, bzip2, zstd or lz4",
    b"7z\xbc\xaf\x27\x1c": "a 7-zip archive: unpack it",
    b"PAR1": 'Parquet: set pipeline.input.format.kind = "parquet"',
}
_TAR_MAGIC_AT = 257
_HEAD = 512
_TAIL = 4
"""An ORC file ends with its name and one byte; text may begin with ORC too."""
UNDECODABLE = "\udcff"
"""Stands for bytes that are no text of a stream's encoding: no text has it, so that its line is found as damaged."""


class ByteSource(Protocol):
    """Anything with ``read(size) -> bytes``; fewer bytes than asked for come before more do, none at the end alone."""

    def read(self, size: int, /) -> bytes:
        """Read up to ``size`` bytes."""
        ...


def compression_of(file: str) -> str | None:
    """Tell how a file is compressed: gzip, bzip2, zstd, lz4 or, for plain text, None.

    Raises:
        LogError: the name says that it is compressed and its first bytes do not, or it is an archive or no text at all.
        OSError: the file cannot be read.
    """
    with Path(file).open("rb") as stream:
        head = stream.read(_HEAD)
        stream.seek(-min(_TAIL, stream.seek(0, 2)), 2)
        tail = stream.read(_TAIL)
    named = PACKED_SUFFIXES.get(Path(file).suffix.lower())
    found = next((kind for kind, magic in _MAGIC.items() if head.startswith(magic)), None)
    if found == "bzip2" and head[4:10] not in _BZIP2_BLOCK and named is None:
        found = None
    if named and head and found != named:
        raise LogError(f"{file} cannot be read: its name says {named}, its first bytes do not: rename or repair it")
    if found is None:
        _refuse_archives(file, head)
        if head.startswith(b"ORC") and tail.startswith(b"ORC"):
            raise LogError(f'{file} is no text, it is ORC: set pipeline.input.format.kind = "orc"')
    return found


def _refuse_archives(file: str, head: bytes) -> None:
    """Refuse bytes that begin something else than text.

    Raises:
        LogError: says what they are.
    """
    for magic, cure in _NO_TEXT.items():
        if head.startswith(magic):
            raise LogError(f"{file} is no text, it is {cure}")
    if head[_TAR_MAGIC_AT:].startswith(b"ustar"):
        raise LogError(f"{file} is no text, it is a tar archive: unpack it")


@contextmanager
def open_stream(file: str, start: int = 0) -> Iterator[ByteSource]:
    """Open a raw file as the bytes that it unpacks to.

    Args:
        file: its path.
        start: first byte to read, of a plain file alone.

    Raises:
        LogError: names the file that is damaged, cut off, not there or no text; also while the stream is read.
    """
    try:
        compression = compression_of(file)
        with _open(file, compression) as stream:
            if compression is None:
                stream.seek(start)
                yield stream
            else:
                yield _Unpacked(file, stream)
    except STREAM_ERRORS as error:
        raise LogError(f"{file} cannot be read: {error}") from error


def _open(file: str, compression: str | None) -> Any:
    if compression is None:
        return Path(file).open("rb", buffering=0)
    if compression == "gzip":
        return gzip.open(file, "rb")
    if compression == "bzip2":
        return bz2.open(file, "rb")
    return pa.input_stream(arrow_source(file), compression=compression)


def arrow_source(file: str) -> Any:
    """Return what Arrow opens a file by: its path, or for one that is no text, which Arrow does not take, the file."""
    try:
        file.encode()
    except UnicodeEncodeError:
        return Path(file).open("rb")
    return file


class _Unpacked:
    """Unpacked: a stream whose first bytes are looked at, for a tar archive within."""

    def __init__(self, file: str, stream: ByteSource) -> None:
        self._stream = stream
        self._first = b""
        while len(self._first) < _HEAD and (more := stream.read(_HEAD - len(self._first))):
            self._first += more
        _refuse_archives(file, self._first)

    def read(self, size: int, /) -> bytes:
        if self._first:
            found, self._first = self._first[:size], self._first[size:]
            return found
        return self._stream.read(size)


class Transcoder:
    """Transcoder: a byte source in some encoding, read as UTF-8; bytes that are no text become ``UNDECODABLE``."""

    def __init__(self, source: ByteSource, encoding: str) -> None:
        self._source = source
        self._decoder = codecs.getincrementaldecoder(encoding)(_MARK)
        self._ended = False

    def read(self, size: int, /) -> bytes:
        """Read about ``size`` bytes; more, where characters are longer in UTF-8."""
        while not self._ended:
            chunk = self._source.read(size)
            self._ended = not chunk
            text = self._decoder.decode(chunk, self._ended)
            if text:
                return text.encode("utf-8", "surrogatepass")
        return b""


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return UNDECODABLE, error.end


_MARK = "features.read.mark"
codecs.register_error(_MARK, _mark)
