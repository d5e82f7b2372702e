"""Rows of libffm and libsvm files: ``label field:feature:value ...`` and ``label index:value ...`` -> columns.

A wanted column is one of these:

* ``label``: the first word of a line.
* ``field_N``: the features of field N: a list of texts where the column may hold several values, else the one feature;
  a row with more is rejected. (libsvm has no fields: an index is a field of its own, with itself as its feature.)
* ``value_N``: the value of field N's one feature, missing where the row has none; a row with more is rejected.
* ``index``: all features of a row, whatever their fields, as a list.

So most libffm files, with one feature a field, are read as ``field_0``, ``field_1`` and so on, and libsvm's numbers as
``value_1``, ``value_2``.
"""

import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.arrow import pc
from features.log_format import LogError, LogFormat
from features.raw_block import RawBlock, Slices, Wanted
from features.read.arrays import null_texts
from features.read.lines import LineBlock, LineReader, Positions

NOT_LIBFFM = "not label field:feature:value"
_COLUMN = re.compile(r"(field|value)_(\d+)")
_ITEM = r"^(?:(?P<field>[0-9]+):)?(?P<feature>[^:\s]+):(?P<value>[^:\s]+)$"


class LibffmReader:
    """LibffmReader: turns the lines of one file into rows."""

    def __init__(self, file: str, log_format: LogFormat, wanted: Wanted) -> None:
        """Check the wanted columns.

        Raises:
            LogError: the format has no such column.
        """
        self._wanted = wanted
        self._nulls = pa.array(log_format.null_values, pa.string())
        self._parts = {name: _COLUMN.fullmatch(name) for name in wanted.columns}
        for name, part in self._parts.items():
            if part is None and name not in ("label", "index"):
                raise LogError(f"{file} has no column {name!r}: a libffm log has label, index, field_N and value_N")

    def read(self, reader: LineReader) -> Iterator[RawBlock]:
        """Read blocks of rows up to the end of the reader's portion."""
        while lines := reader.read():
            block = self._to_block(lines)
            if len(block) or block.rejected:
                yield block

    def _to_block(self, lines: LineBlock) -> RawBlock:
        rejected = dict(lines.damaged)
        rows = _find_filled(lines, rejected)
        texts = pa.array([lines.bytes_of(index) for index in rows.tolist()], pa.binary()).cast(pa.string())
        words = pc.utf8_split_whitespace(pc.ascii_trim_whitespace(texts))
        num_words = pc.list_value_length(words).to_numpy(zero_copy_only=False).astype(np.int64)
        flat = words.flatten()
        is_label = np.zeros(len(flat), np.bool_)
        is_label[np.cumsum(num_words) - num_words] = True
        labels = flat.filter(pa.array(is_label))
        items = pc.extract_regex(flat.filter(pa.array(~is_label)), _ITEM)
        row_of = np.repeat(np.arange(len(rows)), num_words - 1)
        is_wrong = np.zeros(len(rows), np.bool_)
        is_wrong[row_of[items.is_null().to_numpy(zero_copy_only=False)]] = True
        is_wrong |= pc.match_substring(labels, ":").to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(is_wrong).tolist():
            rejected[int(rows[row])] = NOT_LIBFFM
        fields, features, values = (
            items.flatten()[items.type.get_field_index(k)] for k in ("field", "feature", "value")
        )
        has_field = (pc.binary_length(fields).fill_null(0).to_numpy(zero_copy_only=False)) > 0
        fields = join_where(has_field, fields, features)
        columns: dict[str, pa.Array] = {}
        lists: dict[str, pa.Array] = {}
        reasons: dict[str, NDArray[np.bool_]] = {}
        for name, part in self._parts.items():
            if part is None and name == "label":
                columns[name] = null_texts(labels, self._nulls)
                continue
            mask = np.ones(len(row_of), np.bool_)
            if part is not None:
                mask = pc.equal(fields, part[2]).fill_null(False).to_numpy(zero_copy_only=False)
            picked = (values if part and part[1] == "value" else features).filter(pa.array(mask))
            counts = np.bincount(row_of[mask], minlength=len(rows))
            if part is None or (part[1] == "field" and name in self._wanted.lists):
                offsets = pa.array(np.append(0, np.cumsum(counts)), pa.int32())
                lists[name] = pa.ListArray.from_arrays(offsets, picked)
                columns[name] = pa.nulls(len(rows), pa.string())
                continue
            reasons[f"field {part[2]} has several features"] = counts > 1
            places = np.cumsum(counts) - counts
            one = picked.take(pa.array(places, mask=counts == 0)) if len(picked) else pa.nulls(len(rows), pa.string())
            columns[name] = null_texts(one, self._nulls)
        for reason, mask in reasons.items():
            for row in np.flatnonzero(mask & ~is_wrong).tolist():
                rejected.setdefault(int(rows[row]), reason)
        is_good = ~np.isin(rows, np.fromiter(rejected, np.int64, len(rejected)))
        found, mask = rows[is_good], pa.array(is_good)
        return RawBlock(
            columns={name: columns[name].filter(mask) for name in self._wanted.columns},
            numbers=found + lines.number,
            offsets=lines.offsets[found],
            lines=Slices(np.frombuffer(lines.data, np.uint8), lines.starts[found], lines.lengths[found]),
            rejected=[lines.reject(index, reason) for index, reason in sorted(rejected.items())],
            lists={name: values.filter(mask) for name, values in lists.items()},
        )


def join_where(mask: NDArray[np.bool_], first: pa.Array, second: pa.Array) -> pa.Array:
    """Return the values of ``first`` where a mask says so, else those of ``second``."""
    places = np.arange(len(mask))
    return pa.concat_arrays([first, second]).take(np.where(mask, places, places + len(mask)))


def _find_filled(lines: LineBlock, rejected: dict[int, str]) -> Positions:
    """Find the lines that have more than white space and are not damaged."""
    is_filled = lines.lengths > 0
    if rejected:
        is_filled[list(rejected)] = False
    rows = np.flatnonzero(is_filled)
    return rows[[bool(lines.bytes_of(index).strip()) for index in rows.tolist()]] if len(rows) else rows
