"""ScoreRequest: the rows of a request, parsed from JSON and checked against the limits before they are scored."""

import difflib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from features.rows import RawRow
from jobs.serving.row_schema import RowSchema

BUDGET_HEADER = "X-Time-Budget-Ms"
"""Header with the milliseconds that a client waits for an answer."""
MAX_JSON_NUMBER = sys.float_info.max
"""Largest absolute value of a number; JSON allows integers of any length."""


class RequestError(ValueError):
    """A request is refused as a whole, with an HTTP status."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class RequestLimits:
    """Limits of one request.

    Attributes:
        rows: rows of the request.
        body: bytes of its body.
        value: characters of one value; for a list, the number of items and the characters of each.
    """

    rows: int = 1000
    body: int = 4 << 20
    value: int = 4096


@dataclass(frozen=True)
class ScoreRequest:
    """Rows of a request, with the limits on their values.

    Attributes:
        rows: each row's columns; with ``shared`` only the columns that differ.
        limits: limits on the values.
        shared: columns that all rows have.
    """

    rows: Sequence[Mapping[str, Any]]
    limits: RequestLimits
    shared: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, body: bytes, limits: RequestLimits) -> "ScoreRequest":
        """Read ``{"rows": [{column: value}, ...]}``, the list alone, or ``{"shared": {...}, "candidates": [...]}``.

        Raises:
            RequestError: the body has another form, the same key twice, or too many rows.
        """
        try:
            found = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise RequestError(f"the body is not JSON: {error}") from error
        shared: Any = {}
        rows, word = found, "row"
        if isinstance(found, dict):
            if found.keys() == {"rows"}:
                rows = found["rows"]
            elif found.keys() == {"shared", "candidates"}:
                shared, rows, word = found["shared"], found["candidates"], "candidate"
            else:
                rows = None
        if not isinstance(rows, list) or not isinstance(shared, dict):
            _refuse_repeated(body)
            raise RequestError(
                'the body must be {"rows": [{column: value, ...}, ...]}, the list alone, or '
                '{"shared": {column: value, ...}, "candidates": [{column: value, ...}, ...]}'
            )
        if len(rows) > limits.rows:
            raise RequestError(f"{len(rows)} rows are too many: a request may have {limits.rows}", 413)
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict):
                raise RequestError(f"{word} {number} is no object of column -> value")
            if shared and not shared.keys().isdisjoint(row):
                column = next(name for name in row if name in shared)
                raise RequestError(f"{word} {number} has column {column!r}, which shared has too: leave it out of one")
        num_keys = sum(map(len, rows)) + len(shared) + (len(found) if isinstance(found, dict) else 0)
        if body.count(b":") != num_keys:  # else each colon is behind another key
            _refuse_repeated(body)
        return cls(rows, limits, shared)

    def rows_of(self, wanted: RowSchema) -> Sequence[RawRow]:
        """Select a model's columns from the rows, and check their values.

        Raises:
            RequestError: a row lacks a column, or a value is beyond the limits.
        """
        given = self._given(wanted)
        shared = {column: self.shared[column] for column in wanted.columns if column in self.shared}
        self._check(shared, "shared")
        own = [column for column in wanted.required if column not in shared]
        optional = [column for column in wanted.columns if column in wanted.optional and column not in shared]
        try:
            rows = [{column: row[column] for column in own} for row in given]
        except KeyError:
            number, column = next((i, c) for i, row in enumerate(given, 1) for c in own if c not in row)
            raise RequestError(
                f"row {number} lacks column {column!r}{self._confused(column)}; null stands for a missing value"
            ) from None
        if optional:
            for row, whole in zip(rows, given, strict=True):
                row.update({column: whole.get(column) for column in optional})
        for number, row in enumerate(rows, start=1):
            self._check(row, f"row {number}")
        for name in (column.name for column in wanted.buckets if given is not self.rows):
            for row, whole in zip(rows, given, strict=True):
                row[name] = whole[name] if name in whole else self.shared.get(name)
        return [{**shared, **row} for row in rows] if shared else rows

    def _given(self, wanted: RowSchema) -> Sequence[Mapping[str, Any]]:
        """Give rows that have a bucket table empty columns of the events that it stands for; without one, ``rows``.

        Tables are checked where they are read: one that cannot be used is its row's error, as old ones are after a
        promotion, and their length is within that of the body.
        """
        if wanted.is_of_histories:
            return self.rows
        names = {column.name: column.replaces for column in wanted.buckets}
        if not any(name in row for row in (self.shared, *self.rows) for name in names):
            return self.rows
        rows = []
        for row in self.rows:
            brought = [name for name in names if row.get(name, self.shared.get(name)) is not None]
            absent = (column for name in brought for column in names[name] if column not in self.shared)
            rows.append({**dict.fromkeys(absent), **row})
        return rows

    def _confused(self, column: str) -> str:
        """Name a column of the request that may be the missing one, spelt otherwise."""
        given = dict.fromkeys(name for row in (self.shared, *self.rows[:1]) for name in row)
        close = difflib.get_close_matches(column, given, 1)
        return f" (it has {close[0]!r})" if close else ""

    def _check(self, row: Mapping[str, Any], where: str) -> None:
        for column, value in row.items():
            if problem := self._problem(value):
                raise RequestError(f"{where}, column {column!r}: {problem}")

    def _problem(self, value: Any) -> str | None:
        """Describe what is wrong with a value; None: it is within the limits."""
        limit = self.limits.value
        kind = type(value)
        if kind is str:
            return f"the value is longer than {limit}" if len(value) > limit else None
        if kind is float or value is None or kind is bool:
            return None
        if kind is int:
            return None if -MAX_JSON_NUMBER <= value <= MAX_JSON_NUMBER else "a number that is too large"
        if kind is dict:
            return "an object is no value"
        if len(value) > limit:
            return f"the value is longer than {limit}"
        return next(filter(None, (self._item_problem(item) for item in value)), None)

    def _item_problem(self, item: Any) -> str | None:
        return "a list in a list is no value" if isinstance(item, list) else self._problem(item)


def read_budget(text: str | None) -> float | None:
    """Read the header with a client's time budget in milliseconds; return seconds, or None without one.

    Raises:
        RequestError: it is no number above 0.
    """
    if text is None:
        return None
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        raise RequestError(f"header {BUDGET_HEADER}: {text!r:.40} is no number of milliseconds above 0")
    return milliseconds / 1000


class _Repeated(Exception):
    """An object has a key twice."""


def _refuse_repeated(body: bytes) -> None:
    """Refuse a body of which an object has the same key twice; parsers keep the last one in silence.

    Raises:
        RequestError: names the key.
    """

    def refuse(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            raise _Repeated(next(name for place, name in enumerate(names) if name in names[:place]))
        return found

    try:
        json.loads(body, object_pairs_hook=refuse, parse_int=str, parse_float=str)
    except _Repeated as error:
        raise RequestError(f"key {str(error)!r} is there twice in one object: leave one of them out") from None
