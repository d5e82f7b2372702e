"""A raw row -> ids and floats, in Python: the twin of ``pipeline/build/encode.py``, used for scoring and as its oracle.

The output columns are exactly those of the Parquet files, so one function turns either into a batch.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import chain
from typing import Any

import numpy as np

from features.hashing import MISSING_ID, hash_to_id
from features.learnt import Learnt
from features.rows import Columns, MissingColumnError, RawRow, RowError
from features.schema import BUCKET_KINDS, DenseFeature, FeatureSchema, HashEncoding, SparseFeature
from features.values import MAX_NUMBER, NUMBER_PATTERN

MAX_CATEGORY = 2**63
"""A float as a category must be smaller than this in size: beyond it, whole numbers have no exact text in Spark."""

_REMEMBERED_VALUES = 1 << 16
"""Size of a feature's cache of raw values and their ids (least recently used out first)."""

_NUMBER = re.compile(NUMBER_PATTERN)


def to_text(value: Any) -> str | None:
    """Canonical text of a raw value; None for a missing one (None, empty text, NaN).

    Whole numbers have no decimal point, booleans are ``true`` and ``false``.

    Raises:
        RowError: the value is a number with a fraction (declare it dense or bucketed) or has no text form.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return None
        if float(value).is_integer() and abs(value) < MAX_CATEGORY:
            return str(int(value))
        raise RowError(f"{value!r} has a fraction (or is beyond 2^63): it cannot be a category")
    raise RowError(f"{value!r} ({type(value).__name__}) is neither text nor a number")


def to_number(value: Any) -> float | None:
    """Read a raw value as a number; None for a missing one; ``true`` is 1 and ``false`` 0, as text too.

    Raises:
        RowError: text that is not a finite decimal number, or a number that float32 has no room for.
    """
    if isinstance(value, bool | np.bool_):
        return float(value)
    if isinstance(value, int | float | np.integer | np.floating):
        return None if value != value else _finite(value)
    text = to_text(value)
    text = text.strip(" ") if text else text
    if not text:
        return None
    if text in ("true", "false"):
        return float(text == "true")
    if not _NUMBER.match(text):
        raise RowError(f"{text!r} is not a number")
    return _finite(float(text))


def _finite(number: Any) -> float:
    if not -MAX_NUMBER <= number <= MAX_NUMBER:
        raise RowError(f"{number!r:.80} is not a finite number that float32 has room for")
    return float(number)


def log_squared_token(value: float | None) -> str:
    """Token of the Criteo rule: floor(ln(v)^2) for v > 2, else v truncated; a missing value is "0"."""
    if value is None:
        return "0"
    return str(math.floor(math.log(value) * math.log(value)) if value > 2 else int(value))


class RowEncoder:
    """Encodes raw rows for one schema and what was learnt with it."""

    def __init__(self, schema: FeatureSchema, learnt: Learnt) -> None:
        learnt.check(schema)
        self.schema = schema
        self.learnt = learnt
        # Raw values repeat; typed, because 1, 1.0 and True have different texts.
        remember = lru_cache(_REMEMBERED_VALUES, typed=True)
        self._ids = {f.name: remember(self._make_ids(f)) for f in schema.sparse}
        self._dense_value = {f.name: remember(partial(self._transform, f)) for f in schema.dense}

    def _make_ids(self, feature: SparseFeature) -> Callable[..., tuple[int, ...]]:
        id_of = self._make_id_of(feature)
        kind = feature.encoding.kind
        if feature.kind.takes_lists:
            one = (lambda token: id_of((token,))) if kind == "hash" else id_of
            return lambda value: tuple(one(token) for token in _split(value, feature))
        if kind == "hash":
            return lambda *values: (id_of([to_text(v) for v in values]),)
        if kind == "vocabulary":
            return lambda value: (id_of(to_text(value)),)
        if kind == "log_squared":
            return lambda value: (id_of(log_squared_token(to_number(value))),)
        return lambda value: (id_of(to_number(value)),)

    def _make_id_of(self, feature: SparseFeature) -> Callable[[Any], int]:
        encoding = feature.encoding
        if isinstance(encoding, HashEncoding):
            salt, num_buckets = feature.salt, encoding.num_buckets

            def hashed(texts: Sequence[str | None]) -> int:
                if all(text is None for text in texts):
                    return MISSING_ID
                return hash_to_id((text or "" for text in texts), num_buckets, salt)

            return hashed
        if encoding.kind in BUCKET_KINDS:
            boundaries = self.learnt.boundaries_of(feature)
            return lambda v: MISSING_ID if v is None else 1 + bisect_right(boundaries, v)
        ids, out_of_vocabulary = self.learnt.ids_of(feature.name), self.learnt.oov_id(feature.name)
        return lambda token: ids.get(token, out_of_vocabulary)

    def _transform(self, feature: DenseFeature, raw: Any) -> float:
        value = to_number(raw)
        value = feature.fill if value is None else value
        if feature.clip is not None:
            value = min(max(value, feature.clip[0]), feature.clip[1])
        if feature.log1p:
            value = math.copysign(math.log1p(abs(value)), value)
        if feature.standardise:
            mean, deviation = self.learnt.moments[feature.name]
            value = (value - mean) / deviation if deviation > 0 else 0.0
        return value

    def ids(self, feature: SparseFeature, row: RawRow) -> tuple[int, ...]:
        """Ids of one feature of one row: exactly one if single-valued, none or more if multi-valued.

        Raises:
            RowError: a column is absent or a value malformed; the message names it.
        """
        return _call(self._ids[feature.name], feature.columns, row)

    def dense_value(self, feature: DenseFeature, row: RawRow) -> float:
        """Compute the float of one dense feature of one row.

        Raises:
            RowError: the column is absent or its value malformed.
        """
        return _call(self._dense_value[feature.name], (feature.source,), row)

    def check(self, row: RawRow) -> None:
        """Raise RowError unless ``row`` can be encoded."""
        for feature in self.schema.sparse:
            self.ids(feature, row)
        for dense in self.schema.dense:
            self.dense_value(dense, row)

    def encode(self, rows: Sequence[RawRow]) -> Columns:
        """Encode rows into the columns of the Parquet files (features only).

        Raises:
            RowError: the message names the row (from 1) and the column.
        """
        columns: Columns = {}
        for feature in self.schema.sparse:
            ids = [_numbered(i, self.ids, feature, row) for i, row in enumerate(rows, start=1)]
            values = np.fromiter(chain.from_iterable(ids), dtype=np.int32)
            lengths = np.fromiter(map(len, ids), dtype=np.int32, count=len(ids))
            columns |= feature.kind.to_columns(values, lengths, feature)
        for dense in self.schema.dense:
            values = [_numbered(i, self.dense_value, dense, row) for i, row in enumerate(rows, start=1)]
            columns[dense.name] = np.array(values, dtype=np.float32)
        return columns


def _call(encode: Any, columns: tuple[str, ...], row: RawRow) -> Any:
    """Call a cached ``encode`` on some columns of a row; errors name the columns."""
    try:
        values = [row[column] for column in columns]
    except KeyError as error:
        shown = ", ".join(map(str, row))
        raise MissingColumnError(f"column {error.args[0]!r} is missing from the row; it has: {shown}") from None
    try:
        try:
            return encode(*values)
        except TypeError:  # a list cannot be remembered
            return encode.__wrapped__(*values)
    except (RowError, UnicodeEncodeError) as error:  # half a surrogate pair, as JSON may hold, has no bytes to hash
        raise RowError(f"column {'+'.join(columns)!r}: {error}") from error


def _split(value: Any, feature: SparseFeature) -> list[str]:
    """Split a multi-valued value into its first ``max_length`` non-empty tokens."""
    if isinstance(value, list | tuple | np.ndarray):
        texts = [to_text(v) for v in value]
    else:
        text = to_text(value)
        texts = [] if text is None else text.split(feature.separator)
    return [t for t in texts if t][: feature.max_length]


def _numbered(number: int, encode, feature, row: RawRow):
    try:
        return encode(feature, row)
    except RowError as error:
        raise type(error)(f"row {number}: {error}") from error
