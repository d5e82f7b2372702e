"""Archives: files that hold other files, such as zip and tar, which no reader of logs takes."""

import lzma
import re
import tarfile
from pathlib import PurePath
from typing import BinaryIO

_NAMES = re.compile(r"\.(?:(?P<kind>tar|zip|7z|rar)|t(?:gz|bz|bz2|xz|zst|lz4)|tar\.\w+)", re.IGNORECASE)
_STARTS = {
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"PK\x07\x08": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
}
_TAR_MARKS = (b"ustar\x00", b"ustar  \x00")
"""Texts at byte 257 of a tar file: POSIX, GNU."""
_CODECS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
_XZ = b"\xfd7zXZ\x00"
_HEAD_BYTES = tarfile.BLOCKSIZE


def named_archive(name: str) -> str | None:
    """Tell from the ending of a file's name which kind of archive it is; None: none."""
    endings = PurePath(name).suffixes[-2:]
    for ending in ("".join(endings), endings[-1] if endings else ""):
        if found := _NAMES.fullmatch(ending):
            return (found["kind"] or "tar").lower()
    return None


def archive_in(file: BinaryIO) -> str | None:
    """Tell from a file's first bytes, unpacked if it is compressed, which kind of archive it is; None: none.

    Args:
        file: seekable, at its start, where it is left again.
    """
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    kind = _kind_of(head)
    if kind is None and (unpacked := _unpacked(file, head)):
        kind = _kind_of(unpacked)
    file.seek(0)
    return kind


def _kind_of(head: bytes) -> str | None:
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    if head[257:].startswith(_TAR_MARKS):
        return "tar"
    if b"\x00" not in head:
        return None
    try:  # tar files of old have no mark but a checksum
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return "tar"


def _unpacked(file: BinaryIO, head: bytes) -> bytes | None:
    """The first bytes that a compressed file unpacks to; None where it is not compressed, or damaged."""
    import pyarrow  # not needed for plain files

    try:
        if head.startswith(_XZ):
            return lzma.LZMAFile(file).read(_HEAD_BYTES)
        for start, codec in _CODECS.items():
            if head.startswith(start):
                return pyarrow.CompressedInputStream(_Unclosed(file), codec).read(_HEAD_BYTES)
    except (OSError, EOFError, ValueError, lzma.LZMAError):
        return None  # whoever reads it says what is wrong with it
    return None


class _Unclosed:
    """A file that stays open when the stream that unpacks it is closed."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read

    def close(self) -> None:
        pass
