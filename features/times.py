"""Time patterns: texts -> Unix seconds by a date pattern of Java's, as Spark reads it.

Patterns with fields of fixed widths are read for a whole column at once, the others once a distinct text. The rules are
those of Spark's ``CORRECTED`` policy: nothing is guessed, a day must exist, the whole text must fit. Years are 0 to
9999.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

Seconds = NDArray[np.int64]

_MAX_LAYOUTS = 64
_LONGEST_NUMBER = 9
"""Digits that a field of no fixed width has at most; more are no time."""

_MONTHS = "January February March April May June July August September October November December".lower().split()
_NAMES = {
    "long_month": {name: number for number, name in enumerate(_MONTHS, start=1)},
    "short_month": {name[:3]: number for number, name in enumerate(_MONTHS, start=1)},
    "afternoon": {"am": 0, "pm": 1},
}
_FIELDS = {
    "y": "year",
    "u": "year",
    "M": "month",
    "L": "month",
    "d": "day",
    "D": "day_of_year",
    "H": "hour",
    "k": "hour_from_1",
    "h": "hour_of_12",
    "K": "hour_of_12_from_0",
    "m": "minute",
    "s": "second",
}
_DEFAULTS = {"year": 1970, "month": 1, "day": 1, "minute": 0, "second": 0, "sign": 1, "offset_hour": 0}
_DEFAULTS |= {"offset_minute": 0, "offset_second": 0}
_OFFSETS = {  # forms beside Z
    "X": ("Hh", "HhMm"),
    "XX": ("HhMm",),
    "XXX": ("Hh:Mm",),
    "XXXX": ("HhMm", "HhMmSs"),
    "XXXXX": ("Hh:Mm", "Hh:Mm:Ss"),
    "Z": ("HhMm",),
    "ZZ": ("HhMm",),
    "ZZZ": ("HhMm",),
    "ZZZZZ": ("Hh:Mm", "Hh:Mm:Ss"),
}


class TimePatternError(ValueError):
    """A date pattern cannot be read; the message names the letter."""


def check_time_format(time_format: str) -> None:
    """Raise TimePatternError unless a timestamp's format is ``unix``, ``unix_ms`` or a pattern that can be read."""
    if time_format not in ("unix", "unix_ms"):
        TimePattern.parse(time_format)


class _Literal(NamedTuple):
    text: str


class _Number(NamedTuple):
    field: str
    width: int | None  # None: any


class _Name(NamedTuple):
    field: str


class _Fraction(NamedTuple):
    width: int  # digits at most


class _Sign(NamedTuple):
    pass


class _Choice(NamedTuple):
    options: tuple[tuple["_Part", ...], ...]


_Part = _Literal | _Number | _Name | _Fraction | _Sign | _Choice


@dataclass(frozen=True)
class TimePattern:
    """A date pattern, parsed.

    Attributes:
        pattern: pattern as written.
        parts: what a text consists of, in order.
    """

    pattern: str
    parts: tuple[_Part, ...] = field(repr=False)

    @classmethod
    def parse(cls, pattern: str) -> "TimePattern":
        """Read a pattern like ``yyMMddHH`` or ``yyyy-MM-dd'T'HH:mm:ss[.SSS][XXX]``.

        Letters: y u M L d D H k h K a m s S X x Z; text in single quotes and other characters stand for themselves,
        brackets for what may be left out.

        Raises:
            TimePatternError: a letter has no such meaning, or not so often in a row.
        """
        return _parse(pattern)

    def seconds(self, texts: "pa.StringArray") -> tuple[Seconds, NDArray[np.bool_]]:
        """Read a column of texts as UTC, or at the offset that they have.

        Returns:
            (n,) Unix seconds, rounded down, and the mask of the texts that are times; the others are 0.
        """
        found, is_time = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.bool_)
        if not len(texts) or texts.null_count == len(texts):
            return found, is_time
        layouts = _layouts(self)
        if layouts is None:
            return _seconds_of_distinct(self, texts)
        _, ends, values = texts.buffers()
        offsets = np.frombuffer(ends, np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
        data = np.frombuffer(values, np.uint8) if values else np.empty(0, np.uint8)
        lengths = offsets[1:] - offsets[:-1]
        if texts.null_count:
            lengths[~texts.is_valid().to_numpy(zero_copy_only=False)] = -1
        for size, known in layouts.items():
            rows = np.flatnonzero(lengths == size)
            for layout in known:
                if not len(rows):
                    break
                read, is_read = _read_layout(data, offsets[:-1][rows], layout)
                found[rows[is_read]] = read[is_read]
                is_time[rows[is_read]] = True
                rows = rows[~is_read]
        return found, is_time


# ---------------------------------------------------------------------------------------------------------------- parse


@lru_cache(64)
def _parse(pattern: str) -> TimePattern:
    stack: list[list[_Part]] = [[]]
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        if letter == "'":
            text, at = _quoted(pattern, at)
            stack[-1].append(_Literal(text))
        elif letter == "[":
            stack.append([])
            at += 1
        elif letter == "]":
            if len(stack) == 1:
                raise TimePatternError(f"time pattern {pattern!r} has a ] without a [ before it")
            inner = tuple(stack.pop())
            stack[-1].append(_Choice((inner, ())))
            at += 1
        elif letter in "#{}":
            raise TimePatternError(f"time pattern {pattern!r}: put {letter!r} in single quotes")
        elif letter.isascii() and letter.isalpha():
            run = re.match(f"{letter}+", pattern[at:])
            assert run is not None
            stack[-1].append(_part(letter, len(run[0]), pattern))
            at += len(run[0])
        else:
            stack[-1].append(_Literal(letter))
            at += 1
    if len(stack) > 1:
        raise TimePatternError(f"time pattern {pattern!r} has a [ without a ] behind it")
    _check_fields(stack[0], pattern)
    return TimePattern(pattern, tuple(stack[0]))


def _quoted(pattern: str, at: int) -> tuple[str, int]:
    match = re.compile(r"'((?:[^']|'')*)'(?!')", re.DOTALL).match(pattern, at)
    if match is None:
        raise TimePatternError(f"time pattern {pattern!r} has a single quote without its second")
    return match[1].replace("''", "'") or "'", match.end()


def _part(letter: str, count: int, pattern: str) -> _Part:
    if letter == "S" and count <= 9:
        return _Fraction(count)
    if letter in "ML" and count in (3, 4):
        return _Name("short_month" if count == 3 else "long_month")
    if letter == "a" and count == 1:
        return _Name("afternoon")
    if letter in "yu" and count <= 6:
        return _Number("year_of_century" if count == 2 else "year", count if count in (2, 4) else None)
    if letter == "D" and count <= 3:
        return _Number("day_of_year", 3 if count == 3 else None)
    if letter in _FIELDS and letter not in "yuD" and count <= 2:
        return _Number(_FIELDS[letter], 2 if count == 2 else None)
    forms = _OFFSETS.get(letter.upper() * count if letter == "x" else letter * count)
    if forms is not None:
        options = [(_Sign(), *_offset_parts(form)) for form in reversed(forms)]
        has_z = letter == "X" or count == 5
        return _Choice((*options, *([(_Literal("Z"),)] if has_z else [])))
    raise TimePatternError(
        f"time pattern {pattern!r}: {letter * count!r} cannot be read; letters are y M d D H k h K a m s S X x Z, as "
        "in yyyy-MM-dd'T'HH:mm:ss[.SSS][XXX], and other text stands in single quotes"
    )


def _offset_parts(form: str) -> list[_Part]:
    names = {"Hh": "offset_hour", "Mm": "offset_minute", "Ss": "offset_second"}
    parts = re.findall("Hh|Mm|Ss|:", form)
    return [_Number(names[part], 2) if part in names else _Literal(part) for part in parts]


def _check_fields(parts: list[_Part], pattern: str) -> None:
    """Refuse patterns with two readings of one thing that could disagree."""
    groups = {
        "year": {"year", "year_of_century"},
        "month": {"month", "long_month", "short_month", "day_of_year"},
        "day": {"day", "day_of_year"},
        "hour": {"hour", "hour_from_1"},
        "hour of 12": {"hour_of_12", "hour_of_12_from_0"},
        "half of the day": {"afternoon"},
        "minute": {"minute"},
        "second": {"second"},
        "fraction": {"fraction"},
        "offset": {"sign"},
    }
    names = [name for part in parts for name in sorted(_names(part))]
    for what, members in groups.items():
        if sum(name in members for name in names) > 1:
            raise TimePatternError(f"time pattern {pattern!r} has the {what} twice")


def _names(part: _Part) -> set[str]:
    if isinstance(part, _Choice):
        return {name for option in part.options for inner in option for name in _names(inner)}
    if isinstance(part, _Sign):
        return {"sign"}
    if isinstance(part, _Fraction):
        return {"fraction"}
    return {part.field} if isinstance(part, _Number | _Name) else set()


# ------------------------------------------------------------------------------------------------------- fixed widths


class _Layout(NamedTuple):
    """Places in a text of fixed length: (place, byte, its other case) and (field, place, digits) and that of a sign."""

    literals: list[tuple[int, int, int]]
    numbers: list[tuple[str, int, int]]
    ignored: list[tuple[int, int]]  # digits of a fraction
    sign: int | None


@lru_cache(64)
def _layouts(pattern: TimePattern) -> dict[int, list[_Layout]] | None:
    """Length in bytes -> layouts of texts, the fullest first; None: not all widths are fixed."""
    rows = _expanded(pattern.parts)
    if rows is None:
        return None
    found: dict[int, list[_Layout]] = {}
    for row in rows:
        layout, at = _Layout([], [], [], None), 0
        for part in row:
            if isinstance(part, _Literal):
                lower, upper = part.text.lower().encode(), part.text.upper().encode()
                if len(lower) != len(upper):
                    return None
                layout.literals.extend((at + i, *pair) for i, pair in enumerate(zip(lower, upper, strict=True)))
                at += len(lower)
            elif isinstance(part, _Number):
                assert part.width is not None
                layout.numbers.append((part.field, at, part.width))
                at += part.width
            elif isinstance(part, _Fraction):
                layout.ignored.append((at, part.width))
                at += part.width
            else:
                layout = layout._replace(sign=at)
                at += 1
        found.setdefault(at, []).append(layout)
    return found


def _expanded(parts: tuple[_Part, ...]) -> list[list[_Part]] | None:
    """List the sequences of parts of fixed width that choices stand for; None: a width is not fixed, or too many."""
    options: list[list[list[_Part]]] = []
    for part in parts:
        if isinstance(part, _Name) or (isinstance(part, _Number) and part.width is None):
            return None
        if isinstance(part, _Fraction):
            options.append([[_Fraction(width)] for width in range(part.width, 0, -1)])
        elif isinstance(part, _Choice):
            inner = [_expanded(option) for option in part.options]
            if any(rows is None for rows in inner):
                return None
            options.append([row for rows in inner for row in rows or []])
        else:
            options.append([[part]])
    if np.prod([len(rows) for rows in options]) > _MAX_LAYOUTS:
        return None
    return [[part for row in rows for part in row] for rows in product(*options)]


def _read_layout(data: NDArray[np.uint8], starts: Seconds, layout: _Layout) -> tuple[Seconds, NDArray[np.bool_]]:
    is_read = np.ones(len(starts), np.bool_)

    def digits(at: int) -> NDArray[np.uint8]:
        nonlocal is_read
        digit = data[starts + at] - np.uint8(48)  # wraps around below 0
        is_read &= digit < 10
        return digit

    for at, lower, upper in layout.literals:
        byte = data[starts + at]
        is_read &= (byte == lower) | (byte == upper)
    fields: dict[str, Seconds] = {}
    for name, at, width in layout.numbers:
        value = np.zeros(len(starts), np.int64)
        for place in range(at, at + width):
            value *= 10
            value += digits(place)
        fields[name] = value
    for at, width in layout.ignored:
        for place in range(at, at + width):
            digits(place)
    if layout.sign is not None:
        byte = data[starts + layout.sign]
        is_read &= (byte == ord("+")) | (byte == ord("-"))
        fields["sign"] = np.where(byte == ord("-"), -1, 1)
    read, is_time = _epoch(fields, len(starts))
    return read, is_read & is_time


# ---------------------------------------------------------------------------------------------------------- any widths


def _seconds_of_distinct(pattern: TimePattern, texts: "pa.StringArray") -> tuple[Seconds, NDArray[np.bool_]]:
    """Read each distinct text by a regular expression."""
    encoded = texts.dictionary_encode()
    regex = _regex(pattern)
    names = list(regex.groupindex)
    matches = [regex.fullmatch(text) for text in encoded.dictionary.to_pylist()]
    fields = {}
    for name in names:
        kind = name.rstrip("_0123456789") if name.startswith("sign") else re.sub(r"_\d+$", "", name)
        values = np.array([_value(kind, match[name] if match else None) for match in matches], np.int64)
        kind = "month" if kind in ("short_month", "long_month") else kind
        fields[kind] = np.where(values >= -1, np.maximum(values, fields[kind]), values) if kind in fields else values
    fields.pop("fraction", None)
    read, is_time = _epoch(fields, len(matches))
    is_time &= np.array([match is not None for match in matches], np.bool_)
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    # A null takes the last place.
    return np.append(np.where(is_time, read, 0), 0)[codes], np.append(is_time, False)[codes]


def _value(kind: str, text: str | None) -> int:
    if text is None:
        return -1
    if kind in _NAMES:
        return _NAMES[kind][text.lower()]
    return {"+": 1, "-": 0}[text] if kind == "sign" else int(text)


@lru_cache(64)
def _regex(pattern: TimePattern) -> re.Pattern[str]:
    numbers = iter(range(1_000))

    def fragment(parts: tuple[_Part, ...]) -> str:
        return "".join(one(part, parts[i + 1] if i + 1 < len(parts) else None) for i, part in enumerate(parts))

    def one(part: _Part, after: _Part | None) -> str:
        if isinstance(part, _Literal):
            return re.escape(part.text)
        if isinstance(part, _Choice):
            # What fits first stays, as in Java.
            return f"(?>{'|'.join(fragment(option) for option in part.options)})"
        if isinstance(part, _Fraction):
            return f"[0-9]{{1,{part.width}}}+"
        if isinstance(part, _Sign):
            return f"(?P<sign_{next(numbers)}>[+-])"
        name = f"(?P<{part.field}_{next(numbers)}>"
        if isinstance(part, _Name):
            return f"{name}{'|'.join(_NAMES[part.field])})"
        if part.width is not None:
            return f"{name}[0-9]{{{part.width}}})"
        is_followed = isinstance(after, _Number) and after.width is not None
        return f"{name}[0-9]{{1,{_LONGEST_NUMBER}}}{'' if is_followed else '+'})"

    return re.compile(fragment(pattern.parts), re.IGNORECASE | re.ASCII)


# ---------------------------------------------------------------------------------------------------------------- epoch


def _epoch(fields: dict[str, Seconds], n: int) -> tuple[Seconds, NDArray[np.bool_]]:
    """Convert fields to Unix seconds; -1 is an absent field. Also returns which are times that exist."""
    if "year_of_century" in fields:
        fields["year"] = np.where(fields["year_of_century"] < 0, -1, 2000 + fields["year_of_century"])

    def value(name: str, low: int, high: int) -> Seconds | int:
        nonlocal is_time
        found = fields.get(name)
        if found is None:
            return _DEFAULTS[name]
        found = np.where(found < 0, _DEFAULTS[name], found)
        is_time &= (found >= low) & (found <= high)
        return found

    is_time = np.ones(n, np.bool_)
    year, month, day = value("year", 0, 9999), value("month", 1, 12), value("day", 1, 31)
    is_leap = ((np.mod(year, 4) == 0) & (np.mod(year, 100) != 0)) | (np.mod(year, 400) == 0)
    last = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])[np.clip(month, 1, 12) - 1] + (
        is_leap & (np.asarray(month) == 2)
    )
    is_time &= day <= last
    days = _days(year, month, day)
    if "day_of_year" in fields:
        number = fields["day_of_year"]
        is_time &= (number < 0) | ((number >= 1) & (number <= 365 + is_leap))
        days = np.where(number < 0, days, _days(year, 1, 1) + number - 1)
    hour, is_hour = _hour(fields, n)
    is_time &= is_hour
    seconds = days * 86_400 + hour * 3600 + value("minute", 0, 59) * 60 + value("second", 0, 59)
    if "offset_hour" in fields:
        offset = value("offset_hour", 0, 18) * 3600 + value("offset_minute", 0, 59) * 60 + value("offset_second", 0, 59)
        is_time &= offset <= 18 * 3600
        sign = fields["sign"]
        seconds = seconds - np.where(sign > 0, 1, -1) * offset
    return np.broadcast_to(seconds, n).astype(np.int64), is_time


def _days(year: Seconds | int, month: Seconds | int, day: Seconds | int) -> Seconds:
    """Count days since 1970-01-01 (Howard Hinnant's days_from_civil)."""
    year = np.asarray(year) - (np.asarray(month) <= 2)
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * ((np.asarray(month) + 9) % 12) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def _hour(fields: dict[str, Seconds], n: int) -> tuple[Seconds, NDArray[np.bool_]]:
    absent = np.full(n, -1)
    hour, from_1 = fields.get("hour", absent), fields.get("hour_from_1", absent)
    of_12, of_12_from_0 = fields.get("hour_of_12", absent), fields.get("hour_of_12_from_0", absent)
    afternoon = fields.get("afternoon", absent)
    is_time = (hour <= 23) & (from_1 != 0) & (from_1 <= 24) & (of_12 != 0) & (of_12 <= 12) & (of_12_from_0 <= 11)
    hour = np.where(from_1 > 0, from_1 % 24, hour)
    half = np.where(of_12 > 0, of_12 % 12, of_12_from_0)
    clock = np.where(half >= 0, half + 12 * (afternoon == 1), np.where(afternoon == 1, 12, 0))
    # An hour beside am or pm, or beside one of twelve, must be the same hour.
    is_time &= (hour < 0) | (afternoon < 0) | ((hour >= 12) == (afternoon == 1))
    is_time &= (hour < 0) | (half < 0) | (hour % 12 == half)
    return np.where(hour < 0, clock, hour), is_time
