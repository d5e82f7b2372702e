"""Rows of JSON lines: whole lines -> columns of texts, by ``pyarrow.json``; what that misreads is read line by line.

A value's text is what the line says: 1.50 stays 1.50. ``pyarrow.json`` keeps no text of numbers. So a column is read as
the type of its values, where their text can be had back from it (whole numbers) or is not wanted (numbers alone); else
bare values are put into quotes first. A line that fails then is read by itself.

A wanted column ``user.id`` is the key ``id`` of the object ``user``; a key that is spelt ``user.id`` comes first.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from features.arrow import pc
from features.log_format import LogFormat
from features.raw_block import RawBlock, Slices, Wanted
from features.read.arrays import are_numbers, join_arrays, null_texts
from features.read.lines import LineBlock, LineReader, Positions
from features.values import NUMBER_PATTERN, numbers

NOT_JSON = "not a JSON object"
MAX_DEPTH = 200
"""Nesting of a line at most: parsers give up at depths of their own, and must agree."""
_BLOCK_BYTES = 1 << 20
"""Bytes that pyarrow parses at a time: they stay in the cache."""
_SAMPLE_LINES = 100
_MOST_FAILURES = 16
"""Lines of a block that are read by themselves, before all that are left are."""
_SPACE = " \t\n\v\f\r"
"""White space as Java has it; a line of nothing else is no row."""
_NO_NUMBER = re.compile(rb"[:,\[\s]-?(?:NaN|Inf)")
_NAME = re.compile(rb"[ \t\r]+:")
"""Space and the colon behind a member's name: a bare name is malformed, and quotes would mend it."""
_MINUS_ZERO = re.compile(rb"-0[\s,}\]]")
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"|([\[{])|[\]}]')
_BARE_VALUE = r"^(-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false)$"
_AT_ROW = re.compile(r"in row (\d+)")
_SCALAR_CHANGED = re.compile(r"changed from (string|number|boolean) to (string|number|boolean)|convert JSON to")
_TEXT, _WHOLE, _FLOAT, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()


class _NotTyped(Exception):
    """A column has values of another type than the lines before."""


@dataclass
class _Piece:
    """Rows that were parsed together.

    Attributes:
        rows: index of each row's line.
        columns: column -> its texts, or numbers.
        lists: column that may hold arrays -> its arrays.
        rejected: index -> reason, of lines that are no rows.
    """

    rows: Positions
    columns: dict[str, pa.Array]
    lists: dict[str, pa.Array]
    rejected: dict[int, str] = field(default_factory=dict)


class JsonReader:
    """JsonReader: turns the lines of one file into rows."""

    def __init__(self, log_format: LogFormat, wanted: Wanted) -> None:
        self._wanted = wanted
        self._lists = tuple(name for name in wanted.columns if name in wanted.lists)
        self._nulls = pa.array(log_format.null_values, _TEXT)
        self._null_texts = frozenset(log_format.null_values)
        keeps_numbers = any(re.match(NUMBER_PATTERN, text.strip(" \t")) for text in log_format.null_values)
        self._floats = frozenset() if keeps_numbers else wanted.numbers - wanted.lists
        """Columns that may be read as floats."""
        paths = [name.split(".") for name in wanted.columns]
        above = {".".join(path[:i]) for path in paths for i in range(1, len(path))}
        self._is_exact = bool(above & set(wanted.columns))
        """Whether one column is an object that holds another one: no type has both."""
        self._seen: dict[str, set[str]] = {name: set() for name in wanted.columns}
        """Column -> kinds of its values so far."""
        self._has_sample = False
        self._is_text = False
        """Whether bare values are put into quotes."""

    def read(self, reader: LineReader) -> Iterator[RawBlock]:
        """Read blocks of rows up to the end of the reader's portion."""
        while lines := reader.read():
            block = self._to_block(lines)
            if len(block) or block.rejected:
                yield block

    def _to_block(self, lines: LineBlock) -> RawBlock:
        rejected = dict(lines.damaged)
        rows = _find_objects(lines, rejected)
        pieces = self._parse_all(lines, rows)
        types = {
            name: {piece.columns[name].type for piece in pieces if _has_values(piece.columns[name])}
            for name in self._floats
        }
        if any(len(found) > 1 for found in types.values()):
            self._is_text = True
            pieces = self._parse_all(lines, rows)
        for piece in pieces:
            rejected |= piece.rejected
        found = np.concatenate([np.zeros(0, np.int64), *(piece.rows for piece in pieces)])
        columns = {name: self._join(pieces, name) for name in self._wanted.columns}
        lists = {name: join_arrays([piece.lists[name] for piece in pieces], pa.list_(_TEXT)) for name in self._lists}
        return RawBlock(
            columns=columns,
            numbers=found + lines.number,
            offsets=lines.offsets[found],
            lines=Slices(np.frombuffer(lines.data, np.uint8), lines.starts[found], lines.lengths[found]),
            rejected=[lines.reject(index, reason) for index, reason in sorted(rejected.items())],
            lists={name: values for name, values in lists.items() if _has_values(values)},
            absent=tuple(
                name
                for name in self._wanted.columns
                if not _has_values(columns[name])
                and not (name in lists and _has_values(lists[name]))
                and not _has_key(lines, found, name)
            ),
        )

    def _join(self, pieces: list[_Piece], name: str) -> pa.Array:
        arrays = [piece.columns[name] for piece in pieces]
        kind = next((one.type for one in arrays if _has_values(one)), arrays[0].type if arrays else _TEXT)
        return join_arrays([one if one.type == kind else pa.nulls(len(one), kind) for one in arrays], kind)

    # ------------------------------------------------------------------------------------------------ pieces of a step

    def _parse_all(self, lines: LineBlock, rows: Positions) -> list[_Piece]:
        """Parse the lines of a step, in pieces that stay in the cache."""
        if self._is_exact:
            return [self._parse_exactly(lines, rows)] if len(rows) else []
        if not self._has_sample and len(rows):
            self._look_at(lines, rows[:_SAMPLE_LINES])
            self._has_sample = True
        pieces: list[_Piece] = []
        borders = np.searchsorted(lines.starts[rows], np.arange(0, len(lines.data), _BLOCK_BYTES))
        borders = np.unique(np.append(borders, len(rows))).tolist()
        for low, high in pairwise(borders):
            part = rows[low:high]
            try:
                pieces += self._parse(lines, part)
            except _NotTyped:
                self._look_at(lines, part)
                try:
                    pieces += self._parse(lines, part)
                except _NotTyped:
                    self._is_text = True
                    pieces += self._parse(lines, part)
        return pieces

    def _parse(self, lines: LineBlock, rows: Positions) -> list[_Piece]:
        """Parse some lines; one that pyarrow cannot parse is read by itself.

        Raises:
            _NotTyped: a value has another type than its column so far.
        """
        text, is_text = _text_of(lines, rows), self._is_text
        alone: list[int] = []
        # One byte is found at memory's speed, several are not.
        if (b"N" in text and b"NaN" in text) or (b"I" in text and b"Inf" in text):
            alone = sorted({int(np.searchsorted(lines.starts, at, "right")) - 1 for at in _matches(lines, rows)})
        if not is_text and b"-" in text and any("whole" in self._seen[name] for name in self._wanted.columns):
            is_text = b"-0" in text and _MINUS_ZERO.search(text) is not None
        pieces: list[_Piece] = []
        for run in _without(rows, alone):
            if len(run) == 1 and int(run[0]) in alone:
                pieces.append(self._parse_exactly(lines, run, is_text))
            else:
                pieces += self._parse_run(lines, run, is_text)
        return pieces

    def _parse_run(self, lines: LineBlock, rows: Positions, is_text: bool) -> list[_Piece]:
        pieces: list[_Piece] = []
        for _ in range(_MOST_FAILURES):
            if not len(rows):
                return pieces
            try:
                piece = self._parse_fast(lines, rows, is_text)
            except pa.ArrowException as error:
                message = str(error)
                if not is_text and _SCALAR_CHANGED.search(message):
                    raise _NotTyped from error
                place = _AT_ROW.search(message)
                bad = int(place[1]) if place else len(rows)
                if bad >= len(rows):
                    break
                if bad:
                    pieces.append(self._parse_prefix(lines, rows[:bad], is_text))
                pieces.append(self._parse_exactly(lines, rows[bad : bad + 1], is_text))
                rows = rows[bad + 1 :]
                continue
            if piece is None:
                break
            return [*pieces, piece]
        return [*pieces, self._parse_exactly(lines, rows, is_text)] if len(rows) else pieces

    def _parse_prefix(self, lines: LineBlock, rows: Positions, is_text: bool) -> _Piece:
        """Parse lines before the first that failed."""
        try:
            piece = self._parse_fast(lines, rows, is_text)
        except pa.ArrowException as error:
            if not is_text and _SCALAR_CHANGED.search(str(error)):
                raise _NotTyped from error
            piece = None
        return piece or self._parse_exactly(lines, rows, is_text)

    # -------------------------------------------------------------------------------------------------- by pyarrow.json

    def _kind_of(self, name: str, is_text: bool) -> pa.DataType:
        """Type to read a column as."""
        seen = self._seen[name]
        if name in self._lists and any(kind.startswith("list") for kind in seen):
            return pa.list_(_WHOLE if seen == {"list of whole"} and not is_text else _TEXT)
        if is_text:
            return _TEXT
        if name in self._floats and seen <= {"whole", "fraction"}:
            return _FLOAT
        return {"whole": _WHOLE, "bool": _BOOL}.get(next(iter(seen), ""), _TEXT)

    def _schema(self, is_text: bool) -> pa.Schema:
        tree: dict[str, Any] = {}
        for name in self._wanted.columns:
            kind = self._kind_of(name, is_text)
            tree.setdefault(name, kind)
            *above, last = name.split(".")
            node = tree
            for key in above:
                node = node.setdefault(key, {})
            node[last] = kind
        return pa.schema(_to_fields(tree))

    def _parse_fast(self, lines: LineBlock, rows: Positions, is_text: bool) -> _Piece | None:
        """Parse by pyarrow; None if it does not see one row a line.

        Every line begins and ends with a brace. So no object goes on in the next line, and as many rows as lines are
        one a line.

        Raises:
            pa.ArrowException: a line is malformed, or a value has another type.
        """
        text = _text_of(lines, rows)
        if is_text:
            text = quote_bare_values(text)
            if text is None:
                return None
        table = pyarrow.json.read_json(
            pa.BufferReader(text),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(text) + 1),
            pyarrow.json.ParseOptions(explicit_schema=self._schema(is_text), unexpected_field_behavior="ignore"),
        )
        if len(table) != len(rows):
            return None
        columns, lists = {}, {}
        for name in self._wanted.columns:
            values = self._take_out(table, name)
            if pa.types.is_list(values.type):
                lists[name] = values.cast(pa.list_(_TEXT))
                columns[name] = pa.nulls(len(values), _TEXT)
            elif pa.types.is_floating(values.type):
                if not are_numbers(values):
                    raise _NotTyped
                columns[name] = values
            else:
                columns[name] = null_texts(values.cast(_TEXT), self._nulls)
            if name in self._lists and name not in lists:
                lists[name] = pa.nulls(len(values), pa.list_(_TEXT))
        return _Piece(rows, columns, lists)

    def _take_out(self, table: pa.Table, name: str) -> pa.Array:
        """Return a column; a literal key comes before a nested one."""
        literal = join_arrays(table.column(name).chunks, table.schema.field(name).type)
        if "." not in name:
            return literal
        first, *rest = name.split(".")
        nested = join_arrays(table.column(first).chunks, table.schema.field(first).type)
        for key in rest:
            place = nested.type.get_field_index(key)
            nested = nested.flatten()[place]
        if not _has_values(literal):
            return nested
        is_literal = literal.is_valid().to_numpy(zero_copy_only=False)
        places = np.arange(len(literal))
        return join_arrays([literal, nested], literal.type).take(np.where(is_literal, places, places + len(literal)))

    # ----------------------------------------------------------------------------------------------------- line by line

    def _look_at(self, lines: LineBlock, rows: Positions) -> None:
        """Note the kinds of values in some lines; where a column has several, all bare values are quoted."""
        for index in rows.tolist():
            row = parse_object(lines.bytes_of(index)) or {}
            for name in self._wanted.columns:
                self._seen[name] |= _kinds(get_value(row, name))
        for name, seen in self._seen.items():
            allowed = {"whole", "fraction"} if name in self._floats else set()
            scalars = {kind for kind in seen if not kind.startswith("list")}
            if not scalars <= allowed and (len(scalars) > 1 or "fraction" in scalars):
                self._is_text = True
            if (name in self._lists and len(seen - {"list of nothing"}) > 1) or seen & {"list of others"}:
                self._is_text = True

    def _parse_exactly(self, lines: LineBlock, rows: Positions, is_text: bool = True) -> _Piece:
        """Parse line by line."""
        rejected: dict[int, str] = {}
        good: list[list[Any]] = []
        indices: list[int] = []
        for index in rows.tolist():
            row = parse_object(lines.bytes_of(index))
            if row is None:
                rejected[index] = NOT_JSON
                continue
            values = [get_value(row, name) for name in self._wanted.columns]
            reason = self._find_repeated(row) or self._refuse(values)
            if reason:
                rejected[index] = reason
            else:
                good.append(values)
                indices.append(index)
        columns, lists = {}, {}
        for name, values in zip(self._wanted.columns, _transpose(good, len(self._wanted.columns)), strict=True):
            if name in self._lists:
                arrays = [[to_json_text(v) for v in value] if isinstance(value, list) else None for value in values]
                lists[name] = pa.array(arrays, pa.list_(_TEXT))
            texts = [None if isinstance(value, list) else self._to_text(value) for value in values]
            wants_floats = self._kind_of(name, is_text) == _FLOAT
            columns[name] = (wants_floats and _to_floats(texts)) or pa.array(texts, _TEXT)
        return _Piece(np.array(indices, np.int64), columns, lists, rejected)

    def _find_repeated(self, row: dict[str, Any]) -> str | None:
        """Say which wanted key is there twice, as ``pyarrow.json`` does; which value is meant, nobody knows."""
        name = next((name for name in self._wanted.columns if _is_repeated(row, name)), None)
        return None if name is None else f"key {name!r} is there twice"

    def _refuse(self, values: list[Any]) -> str | None:
        for name, value in zip(self._wanted.columns, values, strict=True):
            if isinstance(value, dict) or (isinstance(value, list) and name not in self._lists):
                return f"column {name!r} is neither text nor a number"
            if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
                return f"column {name!r} holds an array or an object within an array"
        return None

    def _to_text(self, value: Any) -> str | None:
        text = to_json_text(value)
        return None if text == "" or text in self._null_texts else text


def parse_object(line: bytes) -> dict[str, Any] | None:
    """Parse one line; numbers stay text. None: it is no JSON object.

    Half a surrogate pair becomes a question mark, as in Java.
    """
    try:
        text = line.decode()
        row = json.loads(
            text,
            parse_float=_Number,
            parse_int=_Number,
            parse_constant=_refuse_constant,
            object_pairs_hook=_to_object,
        )
        if "\\ud" in text or "\\uD" in text:
            row = _without_half_pairs(row)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


class _Repeating(dict[str, Any]):
    """An object with a key that is there twice; it holds the last value of each."""

    repeated: frozenset[str]


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeating = _Repeating(found)
    repeating.repeated = frozenset(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
    return repeating


def _is_repeated(row: dict[str, Any], name: str) -> bool:
    """Tell whether a key, or that of an object that a dotted name leads through, is there twice."""
    if isinstance(row, _Repeating) and name in row.repeated:
        return True
    value: Any = row
    for key in name.split("."):
        if isinstance(value, _Repeating) and key in value.repeated:
            return True
        value = value.get(key) if isinstance(value, dict) else None
    return False


class _Number(str):
    """Text of a JSON number."""

    __slots__ = ()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _without_half_pairs(value: Any) -> Any:
    if isinstance(value, dict):
        items = [(_without_half_pairs(key), _without_half_pairs(item)) for key, item in value.items()]
        found = _to_object(items)  # two keys may become one
        if isinstance(value, _Repeating):
            names = frozenset(map(_without_half_pairs, value.repeated))
            repeating = _Repeating(found)
            repeating.repeated = names | (found.repeated if isinstance(found, _Repeating) else frozenset())
            return repeating
        return found
    if isinstance(value, list):
        return [_without_half_pairs(item) for item in value]
    if isinstance(value, str) and not isinstance(value, _Number):
        return value.encode("utf-8", "replace").decode()
    return value


def get_value(row: dict[str, Any], name: str) -> Any:
    """Return a key's value, or that of the objects whose keys a dotted name lists; None where there is none."""
    value = row.get(name)
    if value is not None or "." not in name:
        return value
    value = row
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _has_own_key(row: dict[str, Any], name: str) -> bool:
    if name in row:
        return True
    *above, last = name.split(".")
    value: Any = row
    for key in above:
        value = value.get(key) if isinstance(value, dict) else None
    return isinstance(value, dict) and last in value


def to_json_text(value: Any) -> str | None:
    """Return the text of a JSON string, number, boolean or null."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)


def _kinds(value: Any) -> set[str]:
    if value is None:
        return set()
    if isinstance(value, bool):
        return {"bool"}
    if isinstance(value, _Number):
        return {"whole" if value.lstrip("-").isdigit() else "fraction"}
    if isinstance(value, list):
        items = set().union(*map(_kinds, value))
        if items <= {"whole"} or items <= {"text"}:
            return {f"list of {next(iter(items), 'nothing')}"}
        return {"list of others"}
    return {"text"}  # an object fails by itself


def _to_fields(tree: dict[str, Any]) -> list[pa.Field]:
    return [pa.field(k, pa.struct(_to_fields(v)) if isinstance(v, dict) else v) for k, v in tree.items()]


def _transpose(rows: list[list[Any]], num_columns: int) -> Sequence[Sequence[Any]]:
    return list(zip(*rows, strict=True)) if rows else [()] * num_columns


def _to_floats(texts: list[str | None]) -> pa.Array | None:
    found, bad = numbers(pa.array(texts, _TEXT))
    return pa.array(found, from_pandas=True) if bad is None else None


def _has_values(values: pa.Array) -> bool:
    return values.null_count < len(values)


def _matches(lines: LineBlock, rows: Positions) -> Iterator[int]:
    """Find what may be a number that JSON has not, within some lines."""
    low, high = int(lines.starts[rows[0]]), int(lines.starts[rows[-1]] + lines.lengths[rows[-1]])
    return (match.start() for match in _NO_NUMBER.finditer(lines.data, low, high))


def _without(rows: Positions, alone: list[int]) -> Iterator[Positions]:
    """Cut rows so that each of those in ``alone`` is by itself."""
    places = np.searchsorted(rows, alone)
    low = 0
    for place, index in zip(places.tolist(), alone, strict=True):
        if place < len(rows) and rows[place] == index:
            yield from (part for part in (rows[low:place], rows[place : place + 1]) if len(part))
            low = place + 1
    if low < len(rows):
        yield rows[low:]


def _text_of(lines: LineBlock, rows: Positions) -> bytes:
    """Join some lines; empty ones between them do no harm."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows):
        return lines.data[int(lines.starts[first]) : int(lines.starts[last] + lines.lengths[last])]
    return b"\n".join(map(lines.bytes_of, rows.tolist()))


def _find_objects(lines: LineBlock, rejected: dict[int, str]) -> Positions:
    """Find the lines that may be objects, and reject those that cannot be."""
    values = np.frombuffer(lines.data, np.uint8)
    last = np.maximum(lines.starts + lines.lengths - 1, 0)
    is_object = lines.lengths > 1
    is_object &= values[np.minimum(lines.starts, len(values) - 1)] == ord("{")
    is_object &= values[last] == ord("}")
    for index in np.flatnonzero(~is_object & (lines.lengths > 0)).tolist():
        if index not in rejected:
            text = lines.bytes_of(index).decode()
            if text.strip(" \t").startswith("{") and text.strip(" \t").endswith("}"):
                is_object[index] = len(text.strip(" \t")) > 1
            if not is_object[index] and text.strip(_SPACE):
                rejected[index] = NOT_JSON
    for index in _find_deep(lines, values):
        if is_object[index]:
            rejected.setdefault(index, NOT_JSON)
    if rejected:
        is_object[list(rejected)] = False
    return np.flatnonzero(is_object)


def _find_deep(lines: LineBlock, values: np.ndarray) -> list[int]:
    """Find the lines that are nested deeper than ``MAX_DEPTH``."""
    if lines.data.count(b"{") + lines.data.count(b"[") - len(lines) <= MAX_DEPTH:
        return []
    opening = np.flatnonzero((values == ord("{")) | (values == ord("[")))
    counts = np.diff(np.searchsorted(opening, lines.starts), append=len(opening))
    return [index for index in np.flatnonzero(counts > MAX_DEPTH).tolist() if _depth(lines.bytes_of(index)) > MAX_DEPTH]


def _depth(line: bytes) -> int:
    depth = deepest = 0
    for match in _BRACKETS.finditer(line):
        if match[0][:1] != b'"':
            depth += 1 if match[1] else -1
            deepest = max(deepest, depth)
    return deepest


def _has_key(lines: LineBlock, rows: Positions, name: str) -> bool:
    """Tell whether any of some lines has a key, which is null in all of them."""
    last = name.rsplit(".")[-1]
    spellings = {json.dumps(key, ensure_ascii=is_ascii).encode() for key in (name, last) for is_ascii in (True, False)}
    if not any(spelling in lines.data for spelling in spellings):
        return False
    for index in rows.tolist():
        line = lines.bytes_of(index)
        if any(spelling in line for spelling in spellings):
            row = parse_object(line)
            if row is not None and _has_own_key(row, name):
                return True
    return False


def quote_bare_values(text: bytes) -> bytes | None:
    """Put numbers, true and false into quotes; None if something bare is none of them, so that a line is malformed."""
    # Without escapes, of the same length: all quotes that are left begin or end a string.
    plain = text.replace(b"\\\\", b"__").replace(b'\\"', b"__") if b"\\" in text else text
    values = np.frombuffer(plain, np.uint8)
    quotes = np.flatnonzero(values == ord('"'))
    begins = _BEGINS[values]
    begins[1:] &= _BEFORE[values[:-1]]
    starts = np.flatnonzero(begins)
    starts = starts[np.searchsorted(quotes, starts) % 2 == 0]
    if not len(starts):
        return text
    stops = np.append(np.flatnonzero(_BEHIND[values]), len(values))
    ends = stops[np.searchsorted(stops, starts)]
    lengths = ends - starts
    offsets = np.zeros(len(starts) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    picked = values[np.repeat(starts - offsets[:-1], lengths) + np.arange(int(offsets[-1]))]
    tokens = pa.StringArray.from_buffers(len(starts), pa.py_buffer(offsets), pa.py_buffer(picked))
    if not pc.all(pc.match_substring_regex(tokens, _BARE_VALUE)).as_py():
        return None
    spaced = ends[ends < len(values)]
    spaced = spaced[values[spaced] <= ord(" ")]  # few have space behind them
    if any(_NAME.match(text, end) for end in spaced.tolist()):
        return None
    return np.insert(np.frombuffer(text, np.uint8), np.concatenate([starts, ends]), ord('"')).tobytes()


def _table(members: bytes) -> np.ndarray:
    table = np.zeros(256, np.bool_)
    table[list(members)] = True
    return table


_BEGINS = _table(b"-0123456789tf")
_BEFORE = _table(b":,[ \t\r\n")
_BEHIND = _table(b",}] \t\r\n")
