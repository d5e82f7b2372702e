"""Lines of a raw text file: bytes in steps -> blocks of whole lines, as UTF-8, with their numbers and offsets.

A line ends at a line feed, at a carriage return and line feed, or at a carriage return alone. A byte order mark is no
part of the first line. What is no text in the file's encoding, and what is longer than ``MAX_LINE`` characters, keeps
its place as a damaged line, so that nothing is lost in silence and memory stays bounded.
"""

import codecs
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.log_format import MAX_LINE, TOO_LONG, LogError
from features.raw_block import RejectedLine
from features.read.streams import ByteSource, Transcoder

STEP_BYTES = 16 << 20
"""Bytes of text that are parsed at a time: more would leave the processor's cache."""
MAX_BYTES_A_CHARACTER = 4
_LOOK_AHEAD = 1 << 16
"""First bytes that are read beyond a portion's end, for a row that goes on there; then twice as many, and so on."""
_BYTE_ORDER_MARK = codecs.BOM_UTF8
_CHINESE_AND_KOREAN = ("gb2312", "gbk", "gb18030", "big5", "big5hkscs", "cp950", "cp949", "johab", "euc_kr")
_JAPANESE = ("cp932", "shift_jis", "shift_jis_2004", "shift_jisx0213", "euc_jp", "euc_jis_2004", "euc_jisx0213")
_MULTIBYTE = frozenset((*_CHINESE_AND_KOREAN, *_JAPANESE))
"""Encodings of several bytes a character, of which none but the end of a line is the byte of one."""

Positions = NDArray[np.int64]


@lru_cache
def has_plain_line_ends(encoding: str) -> bool:
    """Tell whether the bytes 0x0A and 0x0D always end lines in an encoding and nothing else does.

    Only then can a file be cut into portions without being decoded from its start.
    """
    name = codecs.lookup(encoding).name
    if name in ("utf-8", "utf-8-sig", "ascii") or name in _MULTIBYTE:
        return True
    try:
        singles = [bytes([i]).decode(encoding, "replace") for i in range(256)]
        pairs = bytes(range(256)).decode(encoding, "replace")
    except (UnicodeError, LookupError):
        return False
    one_byte_each = all(len(one) == 1 for one in singles) and pairs == "".join(singles)
    ends = {i: one for i, one in enumerate(singles) if one in "\r\n"}
    return one_byte_each and ends == {10: "\n", 13: "\r"}


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def not_text(encoding: str) -> str:
    """Reason for rejecting a line that is no text in the file's encoding."""
    return "not UTF-8 text" if _is_utf8(encoding) else f"not {encoding.upper()} text"


@dataclass(frozen=True)
class LineBlock:
    """Consecutive lines of a file.

    Attributes:
        data: UTF-8 text that holds them; damaged lines in it may be anything.
        starts: (n,) first byte of each in ``data``.
        lengths: (n,) bytes of each, without its end.
        offsets: (n + 1,) byte offset of each in the file, and of the line behind the last.
        number: number of the first, from 1 where the reading began.
        damaged: index -> reason, of lines that cannot be read.
        num_own: number of the first lines that lie within the portion; the others lie behind its end.
        is_last: whether the lines cannot be read together with any that follow.
        texts: index -> text, of damaged lines that ``data`` does not hold.
    """

    data: bytes
    starts: Positions
    lengths: Positions
    offsets: Positions
    number: int
    damaged: dict[int, str] = field(default_factory=dict)
    num_own: int = 0
    is_last: bool = False
    texts: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.starts)

    def bytes_of(self, index: int) -> bytes:
        """Return one line without its end."""
        start = int(self.starts[index])
        return self.data[start : start + int(self.lengths[index])]

    def reject(self, index: int, reason: str) -> RejectedLine:
        """Return one line as a rejected one."""
        text = self.texts.get(index)
        if text is None:
            text = self.bytes_of(index)[: MAX_BYTES_A_CHARACTER * MAX_LINE].decode("utf-8", "replace")
        return RejectedLine(self.number + index, int(self.offsets[index]), text[:MAX_LINE], reason)


class LineReader:
    """LineReader: reads the lines of a portion block by block.

    A caller that finds a row at the end of a block that goes on behind it calls ``keep_from``.
    """

    def __init__(
        self,
        source: ByteSource,
        file: str,
        encoding: str,
        start: int = 0,
        end: int | None = None,
        step: int = STEP_BYTES,
    ) -> None:
        """Begin to read.

        Args:
            source: bytes from ``start`` on.
            file: name for messages.
            encoding: the file's.
            start: offset where a line begins.
            end: offset where a line begins that is no longer the portion's; None: the file's end.
            step: bytes to read at a time.
        """
        self._file = file
        self._reason = not_text(encoding)
        self._encoding = encoding
        if not has_plain_line_ends(encoding):
            source, self._encoding = Transcoder(source, encoding), "utf-8"
        self._source = source
        self._end = end
        self._step = step
        self._look_ahead = min(step, _LOOK_AHEAD)
        self._buffer = b""
        self._offset = start
        """Offset of the buffer's first byte."""
        self._num_kept = 0
        """Bytes at the buffer's start that were returned before, whole lines."""
        self._read_to = start
        self._at_end = False
        self._last: LineBlock | None = None
        self.number = 1
        if start == 0 and _is_utf8(self._encoding):
            self._skip_mark()

    @property
    def position(self) -> int:
        """Offset of the line that is read next."""
        return self._offset

    def _skip_mark(self) -> None:
        while len(self._buffer) < len(_BYTE_ORDER_MARK) and not self._at_end:
            self._fetch_step()
        if self._buffer.startswith(_BYTE_ORDER_MARK):
            self._drop(len(_BYTE_ORDER_MARK))

    def keep_from(self, index: int) -> None:
        """Have the lines from one of the last block on returned again, together with those that follow."""
        lines = self._last
        assert lines is not None
        at = int(lines.offsets[index])
        kept = self._kept_bytes[at - int(lines.offsets[0]) :]
        self._buffer = kept + self._buffer
        self._num_kept = len(kept)
        self._offset = at
        self.number = lines.number + index

    def _fetch_step(self) -> None:
        """Read on into the buffer."""
        if self._end is None:
            size = self._step
        elif self._read_to < self._end:
            size = min(self._step, self._end - self._read_to)
        else:
            size = self._look_ahead
            self._look_ahead = min(2 * self._look_ahead, max(self._step, _LOOK_AHEAD))
        parts = [self._buffer] if self._buffer else []
        while size > 0 and not self._at_end:
            chunk = self._source.read(size)
            self._at_end = not chunk
            parts.append(chunk)
            size -= len(chunk)
            self._read_to += len(chunk)
        self._buffer = parts[0] if len(parts) == 1 else b"".join(parts)
        if self._at_end and self._end is not None and self._read_to < self._end:
            raise LogError(f"{self._file} has become shorter while it was read")

    def read(self) -> LineBlock | None:
        """Read more lines; None behind the portion's end.

        Raises:
            LogError: the file has become shorter.
        """
        if self._end is not None and self._offset >= self._end:
            return None
        cut, searched = 0, self._num_kept
        while not self._at_end:
            found = self._last_end(searched)
            if found > self._num_kept:
                if self._end is not None and self._offset + found < self._end <= self._read_to:
                    # The portion's last line has no end yet: the file's last line, as a rule.
                    self._fetch_step()
                    continue
                cut = found
                break
            if len(self._buffer) - self._num_kept > MAX_BYTES_A_CHARACTER * MAX_LINE:
                if self._num_kept:
                    return self._take(self._num_kept, is_last=True)
                return self._skip_line()
            searched = max(self._num_kept, len(self._buffer) - 1)
            self._fetch_step()
        if self._at_end:
            cut = len(self._buffer)
            if not cut:
                return None
        return self._take(cut, is_last=self._at_end)

    def _last_end(self, searched: int) -> int:
        """Bytes of the buffer up to its last end of a line; a carriage return at its very end may yet go on."""
        feed = self._buffer.rfind(b"\n", max(searched - 1, 0))
        return max(feed, self._buffer.rfind(b"\r", max(searched - 1, feed, 0), len(self._buffer) - 1)) + 1

    def _take(self, cut: int, is_last: bool) -> LineBlock:
        raw = self._buffer if cut == len(self._buffer) else self._buffer[:cut]
        self._buffer = b"" if cut == len(self._buffer) else self._buffer[cut:]
        starts, ends = find_lines(raw)
        offsets = np.append(starts, len(raw)) + self._offset
        lines = self._decode(raw, starts, ends, offsets)
        num_own = len(starts) if self._end is None else int(np.searchsorted(offsets[:-1], self._end))
        self._last = LineBlock(*lines[:3], offsets, self.number, lines[3], num_own, is_last, lines[4])
        self._kept_bytes = raw
        self._num_kept = 0
        self._offset += cut
        self.number += len(starts)
        return self._last

    def _skip_line(self) -> LineBlock:
        """Read a line without end to its end, and keep its first characters alone."""
        head, start = self._buffer, self._offset
        text = head.decode(self._encoding, "replace")[:MAX_LINE]
        self._buffer = b""
        self._offset = start + len(head)
        ends_in_return = head.endswith(b"\r")
        while True:
            if not self._buffer:
                self._fetch_step()
            if not self._buffer:
                break
            chunk = self._buffer
            if ends_in_return:
                self._drop(int(chunk.startswith(b"\n")))
                break
            found = min((at for at in (chunk.find(b"\n"), chunk.find(b"\r")) if at >= 0), default=-1)
            if found >= 0:
                ends_in_return = chunk[found : found + 1] == b"\r"
                self._drop(found + 1)
                if not ends_in_return:
                    break
            else:
                self._drop(len(chunk))
        zero = np.zeros(1, np.int64)
        offsets = np.array([start, self._offset], np.int64)
        self._last = LineBlock(b"", zero, zero, offsets, self.number, {0: TOO_LONG}, 1, True, {0: text})
        self.number += 1
        return self._last

    def _drop(self, size: int) -> None:
        self._buffer = self._buffer[size:]
        self._offset += size

    def _decode(self, raw: bytes, starts: Positions, ends: Positions, offsets: Positions):
        """(UTF-8 text, starts, lengths, damaged, their texts) of raw lines."""
        damaged: dict[int, str] = {}
        texts: dict[int, str] = {}
        if not _is_utf8(self._encoding):
            try:
                data = raw.decode(self._encoding).encode()
                new_starts, new_ends = find_lines(data)
            except UnicodeError:
                new_starts = new_ends = np.zeros(0, np.int64)
            if len(new_starts) == len(starts):
                starts, ends, raw = new_starts, new_ends, data
            else:
                raw, starts, ends = self._decode_each(raw, starts, ends, damaged, texts)
        lengths = ends - starts
        for index in np.flatnonzero(lengths > MAX_LINE).tolist():
            line = raw[starts[index] : ends[index]]
            if len(line.decode("utf-8", "surrogateescape")) > MAX_LINE:
                damaged[index] = TOO_LONG
        for index in _find_damaged(raw, starts, ends):
            damaged.setdefault(index, self._reason)
        return raw, starts, lengths, damaged, texts

    def _decode_each(
        self, raw: bytes, starts: Positions, ends: Positions, damaged: dict[int, str], texts: dict[int, str]
    ):
        """Decode line by line, because one of them is damaged."""
        parts, lengths = [], []
        behind = [*starts[1:].tolist(), len(raw)]
        for index, (start, end, next_start) in enumerate(zip(starts.tolist(), ends.tolist(), behind, strict=True)):
            try:
                line = raw[start:end].decode(self._encoding).encode()
            except UnicodeError:
                texts[index] = raw[start:end].decode(self._encoding, "replace")
                damaged[index] = self._reason
                line = b""
            parts += [line, raw[end:next_start]]
            lengths += [len(line), next_start - end]
        borders = np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))])
        return b"".join(parts), borders[:-1:2], borders[1::2]


def find_lines(data: bytes) -> tuple[Positions, Positions]:
    """Find the lines of some bytes.

    Returns:
        (n,) int64 first byte of each line, and the byte behind its last one.
    """
    values = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(values == 10)
    behind = ends + 1
    if b"\r" in data:
        returns = np.flatnonzero(values == 13)
        followed = values[np.minimum(returns + 1, len(values) - 1)] == 10
        ends = ends - np.isin(ends - 1, returns[followed], assume_unique=True)
        behind = np.concatenate([behind, returns[~followed] + 1])
        order = np.argsort(behind, kind="stable")
        behind, ends = behind[order], np.concatenate([ends, returns[~followed]])[order]
    if len(data) and (not len(behind) or behind[-1] < len(data)):
        ends, behind = np.append(ends, len(data)), np.append(behind, len(data))
    starts = np.zeros(len(ends), np.int64)
    starts[1:] = behind[:-1]
    return starts, ends.astype(np.int64, copy=False)


def is_utf8_text(data: bytes | memoryview) -> bool:
    """Tell whether bytes are UTF-8 text."""
    if isinstance(data, bytes) and data.isascii():
        return True
    offsets = pa.py_buffer(np.array([0, len(data)], np.int64))
    try:
        pa.LargeStringArray.from_buffers(1, offsets, pa.py_buffer(data)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _find_damaged(data: bytes, starts: Positions, ends: Positions) -> list[int]:
    """Find the lines that are no UTF-8 text, by halves: as a rule there are none, else few."""
    if is_utf8_text(data):
        return []
    view, found, parts = memoryview(data), [], [(0, len(starts))]
    while parts:
        low, high = parts.pop()
        if low < high and not is_utf8_text(view[starts[low] : ends[high - 1]]):
            middle = (low + high) // 2
            if high - low == 1:
                found.append(low)
            else:
                parts += [(low, middle), (middle, high)]
    return sorted(found)
