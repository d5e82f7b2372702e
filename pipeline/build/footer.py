"""Make a Parquet footer the same in every run.

Parquet-mr lists the encodings of a column in the order of a Java hash set of enums, which differs from one JVM to the
next. Their order means nothing, so they are sorted in place; then equal rows make equal bytes.
"""

from pathlib import Path

MAGIC = b"PAR1"
_ENCODINGS = (4, 1, 3, 2)
"""Thrift fields FileMetaData.row_groups, RowGroup.columns, ColumnChunk.meta_data, ColumnMetaData.encodings."""

# Types of Thrift's compact protocol.
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12


def sort_encodings(path: Path) -> None:
    """Sort the encodings of every column chunk of one file, in place.

    Raises:
        ValueError: the file has no readable footer.
    """
    with path.open("r+b") as file:
        file.seek(-8, 2)
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != MAGIC:
            raise ValueError(f"{path} is no complete Parquet file")
        file.seek(-8 - length, 2)
        footer = bytearray(file.read(length))
        _Footer(footer).walk(0, _STRUCT, ())
        file.seek(-8 - length, 2)
        file.write(footer)


class _Footer:
    """Walks one Thrift struct and sorts the lists at ``_ENCODINGS`` on its way."""

    def __init__(self, data: bytearray) -> None:
        self.data = data

    def walk(self, at: int, kind: int, path: tuple[int, ...]) -> int:
        """Pass the value of type ``kind`` that starts at ``at``; returns where the next one starts."""
        if kind in _BOOLEANS or kind == _BYTE:
            return at + 1
        if kind in _INTEGERS:
            return self._varint(at)[1]
        if kind == _DOUBLE:
            return at + 8
        if kind == _BINARY:
            length, at = self._varint(at)
            return at + length
        if kind in _LISTS:
            return self._list(at, path)
        if kind == _STRUCT:
            return self._struct(at, path)
        raise ValueError(f"unexpected Thrift type {kind} in a Parquet footer")

    def _varint(self, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = self.data[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value, at

    def _list(self, at: int, path: tuple[int, ...]) -> int:
        size, kind = self.data[at] >> 4, self.data[at] & 0x0F
        at += 1
        if size == 15:
            size, at = self._varint(at)
        start = at
        for _ in range(size):
            at = self.walk(at, kind, path)
        if path == _ENCODINGS and at - start == size:  # one byte each
            self.data[start:at] = bytes(sorted(self.data[start:at]))
        return at

    def _struct(self, at: int, path: tuple[int, ...]) -> int:
        field = 0
        while (header := self.data[at]) != 0:
            at += 1
            kind, step = header & 0x0F, header >> 4
            if step:
                field += step
            else:
                number, at = self._varint(at)
                field = (number >> 1) ^ -(number & 1)
            if kind not in _BOOLEANS:  # a boolean field is in its header
                at = self.walk(at, kind, (*path, field))
        return at + 1
