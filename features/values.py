"""Raw values of a column -> texts, numbers, tokens: the one reading of Arrow arrays, for builds and for scoring alike.

Functions take an Arrow array of any type that a reader returns. What cannot be read comes back as a mask of bad rows,
never as an exception; only a type that has no reading at all raises ``ColumnError``.
"""

import json
import re
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.arrow import pc
from features.schema import SparseFeature, Values
from features.times import TimePattern

NUMBER_PATTERN = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
"""Pattern of a number after trimming spaces and tabs; any other text that is not missing is malformed."""

MAX_EXACT = 2**53
"""Largest size of a float as a category: beyond it floats stand for several whole numbers each."""

MAX_NUMBER = float(np.finfo(np.float32).max)
"""A number must not be larger than this in size: a column of the files is float32, and moments are sums of squares."""

AS_IT_IS = Values()
"""Settings of a schema that has none."""

Mask = NDArray[np.bool_]

_BLANKS = " \t"
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
_BLOCK = 2048
"""Texts that are read with care together, if one of them is odd."""
_MAX_SECONDS = float(1 << 53)


class ColumnError(ValueError):
    """A column has a type that has no such reading."""


class Tokens(NamedTuple):
    """Values of a multi-valued feature, row by row.

    Attributes:
        texts: (V,) Arrow strings, none of them null or empty.
        lengths: (n,) int64, how many of them each row has.
        dropped: (n,) int64, how many more a row had than the feature keeps.
        bad: (n,) rows with a value that has no text; None: there are none.
    """

    texts: pa.StringArray
    lengths: NDArray[np.int64]
    dropped: NDArray[np.int64]
    bad: Mask | None


def as_mask(array: pa.Array) -> Mask:
    """Convert an Arrow array of booleans, nulls of which are False."""
    if array.null_count:
        array = array.fill_null(False)
    return array.to_numpy(zero_copy_only=False)


def text_fault(name: str, type_: pa.DataType) -> str:
    """Say why a value of a column is no category; the type decides."""
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_):
        return f"column {name!r} is not UTF-8 text"
    return f"column {name!r} has a fraction or is beyond 2^53: it cannot be a category"


def _any(mask: Mask) -> Mask | None:
    return mask if mask.any() else None


def _either(first: Mask | None, second: Mask | None) -> Mask | None:
    if first is None or second is None:
        return second if first is None else first
    return first | second


def _nulled(found: pa.StringArray, mask: Mask) -> pa.StringArray:
    """Make the texts of a mask null; the others are shared.

    ``pc.if_else`` with a null scalar gives wrong texts for a part of an array (PyArrow 14).
    """
    is_there = np.zeros(found.offset + len(found), np.bool_)
    is_there[found.offset :] = as_mask(found.is_valid()) & ~mask
    _, ends, values = found.buffers()
    validity = pa.py_buffer(np.packbits(is_there, bitorder="little"))
    return pa.Array.from_buffers(found.type, len(found), [validity, ends, values], -1, found.offset)


# ---------------------------------------------------------------------------------------------------------------- texts


def texts(array: pa.Array, settings: Values = AS_IT_IS) -> tuple[pa.StringArray, Mask | None]:
    """Convert to canonical texts, which decide ids.

    Whole numbers have no point, whatever their type; booleans are ``true`` and ``false``; dates are ``2017-12-01``;
    times are ``2017-12-01 10:20:30`` in UTC, with as many digits of a second as are not zero.

    Returns:
        (n,) strings, null where the value is missing (null, empty text, NaN, a null token) or bad; and the mask of bad
        values, None if there are none: numbers with a fraction, floats beyond 2^53, bytes that are no UTF-8 text.

    Raises:
        ColumnError: the type has no texts: a list, a struct, a duration.
    """
    found, bad = _scalar_texts(array, settings, "text")
    return known_texts(found, settings), bad


def loose_texts(array: pa.Array, settings: Values = AS_IT_IS) -> pa.StringArray:
    """Convert to any text form, for columns that are carried, compared or split by alone; null where it is missing.

    As ``texts``, but a number may have a fraction, and lists and structs are JSON.
    """
    array = _plain(array)
    if pa.types.is_floating(array.type):
        found, bad = texts(array, settings)
        if bad is None:
            return found
        whole = array.cast(pa.float32()) if array.type == pa.float16() else array
        return pc.if_else(pa.array(bad), whole.cast(pa.string()), found)
    if pa.types.is_decimal(array.type):
        return known_texts(array.cast(pa.string()), settings)
    if _is_binary(array.type):
        decoded = [None if value is None else value.decode("utf-8", "replace") for value in array.to_pylist()]
        return known_texts(pa.array(decoded, pa.string()), settings)
    if pa.types.is_nested(array.type) or pa.types.is_duration(array.type):
        dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode
        return pa.array([None if value is None else dump(value) for value in array.to_pylist()], pa.string())
    return texts(array, settings)[0]


def _plain(array: pa.Array) -> pa.Array:
    """Return one array without a dictionary or an extension type."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)


def _is_binary(type_: pa.DataType) -> bool:
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_)


def _scalar_texts(array: pa.Array, settings: Values, use: str) -> tuple[pa.StringArray, Mask | None]:
    """Convert single values; empty text stays."""
    array, bad = _plain(array), None
    type_ = array.type
    if pa.types.is_string(type_):
        return array, None
    if _is_binary(type_):
        return _decoded(array)
    if pa.types.is_floating(type_):
        return _float_texts(array)
    if pa.types.is_decimal(type_):
        return _decimal_texts(array)
    if pa.types.is_timestamp(type_):
        return _time_texts(array), bad
    if pa.types.is_date64(type_):
        array = array.cast(pa.date32())
    if pa.types.is_nested(type_) or pa.types.is_duration(type_):
        raise ColumnError(f"the type {type_} is no {use}")
    return array.cast(pa.string()), bad


def _decoded(array: pa.Array) -> tuple[pa.StringArray, Mask | None]:
    if pa.types.is_fixed_size_binary(array.type):
        array = array.cast(pa.binary())
    try:
        return array.cast(pa.string()), None
    except pa.ArrowInvalid:
        pass
    bad = np.zeros(len(array), np.bool_)
    for row, value in enumerate(array.to_pylist()):
        try:
            _ = value and value.decode()
        except UnicodeDecodeError:
            bad[row] = True
    rest = [None if is_bad else value for value, is_bad in zip(array.to_pylist(), bad.tolist(), strict=True)]
    return pa.array(rest, pa.binary()).cast(pa.string()), bad


def _float_texts(array: pa.Array) -> tuple[pa.StringArray, Mask | None]:
    values = _floats(array)
    with np.errstate(invalid="ignore"):
        is_whole = (np.abs(values) <= MAX_EXACT) & (np.rint(values) == values)
    bad = _any(~is_whole & ~np.isnan(values))
    whole = np.where(is_whole, values, 0).astype(np.int64)
    return pa.array(whole, mask=~is_whole).cast(pa.string()), bad


def _floats(array: pa.Array) -> NDArray[np.float64]:
    """Convert an Arrow array of floats of any width; null is NaN."""
    if array.type == pa.float16() and array.null_count:
        array = pa.array([None if v is None else float(v) for v in array.to_pylist()], pa.float64())
    return array.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)


def _decimal_texts(array: pa.Array) -> tuple[pa.StringArray, Mask | None]:
    found = array.cast(pa.string())
    found = pc.replace_substring_regex(found, r"^(-?[0-9]+)\.0+$", r"\1")
    odd = ~as_mask(pc.match_substring_regex(found, "^-?[0-9]+$")) & as_mask(found.is_valid())
    if not odd.any():
        return found, None
    texts_ = found.to_pylist()
    for row in np.flatnonzero(odd).tolist():  # with a fraction, or with an exponent
        value = Decimal(texts_[row])
        odd[row] = value != value.to_integral_value()
        texts_[row] = None if odd[row] else str(int(value))
    return pa.array(texts_, pa.string()), _any(odd)


def _time_texts(array: pa.Array) -> pa.StringArray:
    unit = pa.timestamp(array.type.unit)
    found = array.cast(pa.int64()).cast(unit).cast(pa.string())  # without its zone: UTC
    if array.type.unit == "s":
        return found
    return pc.replace_substring_regex(pc.replace_substring_regex(found, r"\.0+$", ""), r"(\.[0-9]*[1-9])0+$", r"\1")


def known_texts(found: pa.StringArray, settings: Values) -> pa.StringArray:
    """Turn what means missing into null, and spellings of one value into one."""
    if settings.strip:
        found = pc.utf8_trim(found, _BLANKS)
    if settings.null_tokens:
        found = _without_null_tokens(found, settings)
    if settings.whole_floats and bool(pc.any(pc.match_substring(found, ".0")).as_py()):
        found = pc.replace_substring_regex(found, r"^-(0+)\.0+$", r"\1")
        found = pc.replace_substring_regex(found, r"^(-?[0-9]+)\.0+$", r"\1")
        found = _without_null_tokens(found, settings) if settings.null_tokens else found
    _, ends, _ = found.buffers()
    if not len(found):
        return found
    offsets = np.frombuffer(ends, np.int32)[found.offset : found.offset + len(found) + 1]
    is_empty = offsets[1:] == offsets[:-1]
    if found.null_count:
        is_empty &= as_mask(found.is_valid())
    return _nulled(found, is_empty) if is_empty.any() else found


def _without_null_tokens(found: pa.StringArray, settings: Values) -> pa.StringArray:
    is_null = as_mask(pc.is_in(found, value_set=pa.array(settings.null_tokens, pa.string())))
    return _nulled(found, is_null) if is_null.any() else found


# -------------------------------------------------------------------------------------------------------------- numbers


def numbers(array: pa.Array, settings: Values = AS_IT_IS) -> tuple[NDArray[np.float64], Mask | None]:
    """Convert to finite numbers within float32's range.

    Text is decimal, with spaces and tabs around it left out; ``true`` and ``false`` (and ``True``, ``TRUE``, ...) are 1
    and 0.

    Returns:
        (n,) float64, NaN where the value is missing or bad; and the mask of bad values, None if there are none.

    Raises:
        ColumnError: the type has no numbers: a time, a list, a struct.
    """
    array = _plain(array)
    type_ = array.type
    if _is_text(type_):
        return _text_numbers(array.cast(pa.string()), settings)
    if _is_binary(type_):
        decoded, bad = _decoded(array)
        found, more = _text_numbers(decoded, settings)
        return found, _either(bad, more)
    if pa.types.is_decimal(type_):
        found, _ = _text_numbers(array.cast(pa.string()), AS_IT_IS)
    elif pa.types.is_floating(type_):
        found = _floats(array)
    elif pa.types.is_integer(type_) or pa.types.is_boolean(type_):
        if pa.types.is_boolean(type_):
            array = array.cast(pa.int8())
        found = array.to_numpy(zero_copy_only=False).astype(np.float64)
    elif pa.types.is_null(type_):
        found = np.full(len(array), np.nan)
    else:
        raise ColumnError(f"the type {type_} is no number")
    if settings.null_tokens:
        found = np.where(np.isin(found, _null_numbers(settings, type_)), np.nan, found)
    return in_range(found)


def _null_numbers(settings: Values, type_: pa.DataType) -> list[float]:
    """List the numbers whose canonical text means missing."""
    if pa.types.is_boolean(type_):
        return [float(value) for value, text in ((1, "true"), (0, "false")) if text in settings.null_tokens]
    return [float(token) for token in settings.null_tokens if re.fullmatch("0|-?[1-9][0-9]*", token)]


def in_range(found: NDArray[np.float64]) -> tuple[NDArray[np.float64], Mask | None]:
    """Take out the numbers that float32 has no room for; returns the others and the mask of these, None if none."""
    is_bad = np.abs(found) > MAX_NUMBER
    if not is_bad.any():
        return found, None
    return np.where(is_bad, np.nan, found), is_bad


def _text_numbers(found: pa.StringArray, settings: Values) -> tuple[NDArray[np.float64], Mask | None]:
    if settings != AS_IT_IS:
        found = known_texts(found, settings)
    values = _plain_numbers(found)
    if values is not None:
        return in_range(values)
    if len(found) <= _BLOCK:
        return _odd_numbers(found)
    # What is odd is mostly rare: only its blocks are read with care.
    parts = []
    for at in range(0, len(found), _BLOCK):
        block = found[at : at + _BLOCK]
        values = _plain_numbers(block)
        parts.append(_odd_numbers(block) if values is None else in_range(values))
    bads = [np.zeros(len(values), np.bool_) if bad is None else bad for values, bad in parts]
    return np.concatenate([values for values, _ in parts]), _any(np.concatenate(bads))


def _plain_numbers(found: pa.StringArray) -> NDArray[np.float64] | None:
    """Convert texts that are numbers or null; None: some may be something else."""
    try:
        values = found.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return None
    return values if np.count_nonzero(np.isnan(values)) == found.null_count else None


def _odd_numbers(found: pa.StringArray) -> tuple[NDArray[np.float64], Mask | None]:
    """Convert any texts: spaces, signs, booleans, and what is no number."""
    found = pc.utf8_trim(found, _BLANKS)
    is_filled = as_mask(pc.not_equal(found, ""))
    is_number = as_mask(pc.match_substring_regex(found, NUMBER_PATTERN))
    values = _parsed(_nulled(pc.utf8_ltrim(found, "+"), ~is_number))
    for spellings, value in ((_TRUE, 1.0), (_FALSE, 0.0)):
        is_spelled = as_mask(pc.is_in(found, value_set=pa.array(spellings)))
        if is_spelled.any():
            values = np.where(is_spelled, value, values)
    values, bad = in_range(values)
    return values, _either(bad, _any(is_filled & np.isnan(values)))


def is_number_text(text: str) -> bool:
    """Tell whether a text is a decimal number, however large."""
    return re.match(NUMBER_PATTERN, text.strip(_BLANKS)) is not None


def _parsed(decimals: pa.StringArray) -> NDArray[np.float64]:
    """Convert decimal texts, which may be beyond what a double holds."""
    try:
        return decimals.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return np.array([np.nan if text is None else float(text) for text in decimals.to_pylist()], np.float64)


# --------------------------------------------------------------------------------------------------------------- tokens


class RawLists(NamedTuple):
    """Lists of a column, row by row.

    Attributes:
        items: (V,) Arrow array of any type: the items as they are, or texts, null where missing.
        lengths: (n,) int64, how many of them each row has.
        bad: (n,) rows whose value has no text to split; None: there are none.
    """

    items: pa.Array
    lengths: NDArray[np.int64]
    bad: Mask | None


def list_items(array: pa.Array, lists: pa.Array | None, separator: str, settings: Values = AS_IT_IS) -> RawLists:
    """Split the values of a column of lists into their items, missing ones too, which keep their place.

    Args:
        array: (n,) texts to split at the separator, or lists; anything else is one item.
        lists: (n,) lists of text where a row's value was one, else null (``RawBlock.lists``); None: there are none.
        separator: text between two items.
        settings: of the schema; each item is a value of its own.

    Raises:
        ColumnError: the type has no texts.
    """
    array = _plain(array)
    if _is_list(array.type):
        items = _plain(array.flatten())
        return RawLists(
            known_texts(items, settings) if pa.types.is_string(items.type) else items, _lengths(array), None
        )
    found, bad = _scalar_texts(array, settings, "text")
    parts = _split(known_texts(found, settings), separator, settings)
    if lists is not None and lists.null_count < len(lists):
        parts = pc.if_else(lists.is_valid(), lists.cast(parts.type), parts)
    return RawLists(known_texts(parts.flatten(), settings), _lengths(parts), bad)


def tokens(array: pa.Array, lists: pa.Array | None, feature: SparseFeature, settings: Values = AS_IT_IS) -> Tokens:
    """Split the values of a multi-valued feature into its tokens, of which it keeps the first ``max_length``.

    Args:
        array: (n,) texts to split at the feature's separator, or lists; anything else is one token.
        lists: (n,) lists of text where a row's value was one, else null (``RawBlock.lists``); None: there are none.
        feature: multi-valued feature.
        settings: of the schema; each token is a text of its own.

    Raises:
        ColumnError: the type has no texts.
    """
    array = _plain(array)
    if _is_list(array.type):
        return _kept(_items(array, settings), feature)
    found, bad = _scalar_texts(array, settings, "text")
    parts = _split(known_texts(found, settings), feature.separator or "", settings)
    if lists is not None and lists.null_count < len(lists):
        parts = pc.if_else(lists.is_valid(), lists.cast(parts.type), parts)
    return _kept(_Items(parts.flatten(), _lengths(parts), bad), feature, settings)


class _Items(NamedTuple):
    texts: pa.StringArray
    lengths: NDArray[np.int64]
    bad: Mask | None


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def _lengths(lists: pa.Array) -> NDArray[np.int64]:
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _items(lists: pa.Array, settings: Values) -> _Items:
    items, bad = texts(lists.flatten(), settings)
    lengths = _lengths(lists)
    if bad is None:
        return _Items(items, lengths, None)
    rows = np.repeat(np.arange(len(lengths)), lengths)[bad]
    return _Items(items, lengths, np.bincount(rows, minlength=len(lengths)) > 0)


def _split(found: pa.StringArray, separator: str, settings: Values) -> pa.ListArray:
    if settings.list_literals:
        is_printed = as_mask(pc.match_substring_regex(found, PRINTED_LIST))
        if is_printed.any():
            printed = _split_printed(_nulled(found, ~is_printed))
            plain = pc.split_pattern(_nulled(found, is_printed), separator)
            return pc.if_else(pa.array(is_printed), printed, plain)
    return pc.split_pattern(found, separator)


def _kept(items: _Items, feature: SparseFeature, settings: Values | None = None) -> Tokens:
    """Leave out what is missing, then what is too much.

    Args:
        items: tokens of all rows.
        feature: feature they belong to.
        settings: settings that have still to be applied to each token.
    """
    found = items.texts if settings is None else known_texts(items.texts, settings)
    lengths = items.lengths
    if found.null_count:
        is_there = found.is_valid()
        rows = np.repeat(np.arange(len(lengths)), lengths)[as_mask(is_there)]
        found, lengths = found.filter(is_there), np.bincount(rows, minlength=len(lengths))
    dropped = np.maximum(lengths - feature.max_length, 0)
    if dropped.any():
        starts = np.cumsum(lengths) - lengths
        rank = np.arange(len(found)) - np.repeat(starts, lengths)
        found = found.filter(pa.array(rank < feature.max_length))
        lengths = lengths - dropped
    return Tokens(found, lengths, dropped, items.bad)


PRINTED_LIST = r"(?s)^\s*\[.*\]\s*$"
"""Pattern of a cell that looks like a printed list."""
_ITEM = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^,]*?))\s*(?:,|$)""", re.DOTALL)
_MISSING_ITEMS = ("", "None", "null", "nan", "NaN")


def _split_printed(found: pa.StringArray) -> pa.ListArray:
    """Split texts like ``[3, 7]``, ``['a', 'b']`` and NumPy's ``[3 7]`` into their items; null stays null.

    Missing items, such as ``None`` and ``nan``, are null and keep their place: a history has several such lists.
    """
    inner = pc.utf8_trim(pc.replace_substring_regex(found, r"(?s)^\s*\[(.*)\]\s*$", r"\1"), " \t\r\n")
    distinct = inner.dictionary_encode()
    items = [_printed_items(text) for text in distinct.dictionary.to_pylist()]
    return pa.array(items, pa.list_(pa.string())).take(distinct.indices)


def _printed_items(inner: str) -> list[str | None]:
    if "," not in inner and "'" not in inner and '"' not in inner:
        return [None if item in _MISSING_ITEMS else item for item in inner.split()]
    items: list[str | None] = []
    at = 0
    if "," not in inner:  # NumPy's quoted texts stand side by side
        inner = re.sub(r"""(?<=['"])\s+(?=['"])""", ",", inner)
    while at < len(inner) and (match := _ITEM.match(inner, at)):
        at = match.end()
        single, double, bare = match.groups()
        if bare is None:
            items.append(re.sub(r"\\(.)", r"\1", single if double is None else double, flags=re.DOTALL))
        else:
            items.append(None if bare in _MISSING_ITEMS else bare)
    return items


# -------------------------------------------------------------------------------------------------------------- seconds


def seconds(array: pa.Array, time_format: str, settings: Values = AS_IT_IS) -> tuple[NDArray[np.int64], Mask]:
    """Convert to Unix seconds, rounded down.

    Args:
        array: times; a column of Arrow timestamps or dates is read as such, whatever the format.
        time_format: ``unix``, ``unix_ms``, or a date pattern (``features.times``).
        settings: of the schema.

    Returns:
        (n,) seconds, and the mask of those that are readable; the others are 0.

    Raises:
        ColumnError: the type has no times.
        TimePatternError: the format is no pattern that can be read.
    """
    array = _plain(array)
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        return _floor_seconds(array)
    if time_format not in ("unix", "unix_ms"):
        return TimePattern.parse(time_format).seconds(loose_texts(array, settings))
    per_second = 1000 if time_format == "unix_ms" else 1
    if pa.types.is_signed_integer(array.type) and not settings.null_tokens:
        whole = array.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64) // per_second
        is_readable = as_mask(array.is_valid()) & (np.abs(whole) < int(_MAX_SECONDS))
    else:
        found, _ = numbers(array, settings)
        with np.errstate(invalid="ignore"):
            floats = np.floor(found / per_second)
            is_readable = np.abs(floats) < _MAX_SECONDS
        whole = np.where(is_readable, floats, 0).astype(np.int64)
    return np.where(is_readable, whole, 0), is_readable


def _floor_seconds(times: pa.Array) -> tuple[NDArray[np.int64], Mask]:
    """Convert Arrow timestamps or dates of any unit to Unix seconds, rounded down; null is 0 and False in the mask."""
    is_there = as_mask(times.is_valid())
    if pa.types.is_date32(times.type):
        days = times.cast(pa.int32()).fill_null(0).to_numpy(zero_copy_only=False)
        return days.astype(np.int64) * 86_400, is_there
    unit = "ms" if pa.types.is_date64(times.type) else times.type.unit
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    return times.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False) // per_second, is_there
