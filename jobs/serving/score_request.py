"""ScoreRequest: the rows of a request, parsed from JSON and checked against the limits before they are scored."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from features.rows import RawRow

TOKEN = "TWINFOCUS_TOKEN"  # nosec B105
"""Environment variable with the bearer token of all requests but those for health; unset: no token is needed."""
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
    """Rows of a request, with the limits on their values."""

    rows: Sequence[Mapping[str, Any]]
    limits: RequestLimits

    @classmethod
    def parse(cls, body: bytes, limits: RequestLimits) -> "ScoreRequest":
        """Read ``{"rows": [{column: value, ...}, ...]}``, or the list alone.

        Raises:
            RequestError: the body has another form, or too many rows.
        """
        try:
            found = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise RequestError(f"the body is not JSON: {error}") from error
        if isinstance(found, dict) and set(found) == {"rows"}:
            found = found["rows"]
        if not isinstance(found, list):
            raise RequestError('the body must be {"rows": [{column: value, ...}, ...]}, or the list alone')
        if len(found) > limits.rows:
            raise RequestError(f"{len(found)} rows are too many: a request may have {limits.rows}", 413)
        for number, row in enumerate(found, start=1):
            if not isinstance(row, dict):
                raise RequestError(f"row {number} is no object of column -> value")
        return cls(found, limits)

    def rows_of(self, columns: Sequence[str]) -> Sequence[RawRow]:
        """Select a model's columns from the rows, and check their values.

        Raises:
            RequestError: a row lacks a column, or a value is beyond the limits.
        """
        try:
            rows = [{column: row[column] for column in columns} for row in self.rows]
        except KeyError:
            number, column = next((i, c) for i, row in enumerate(self.rows, 1) for c in columns if c not in row)
            raise RequestError(f"row {number} lacks column {column!r}; null stands for a missing value") from None
        for number, row in enumerate(rows, start=1):
            for column, value in row.items():
                if problem := self._problem(value):
                    raise RequestError(f"row {number}, column {column!r}: {problem}")
        return rows

    def _problem(self, value: Any) -> str | None:
        """Describe what is wrong with a value; None: it is within the limits."""
        limit = self.limits.value
        if isinstance(value, str | list) and len(value) > limit:
            return f"the value is longer than {limit}"
        if isinstance(value, int) and not -MAX_JSON_NUMBER <= value <= MAX_JSON_NUMBER:
            return "a number that is too large"
        if isinstance(value, dict):
            return "an object is no value"
        if isinstance(value, list):
            return next(filter(None, (self._item_problem(item) for item in value)), None)
        return None

    def _item_problem(self, item: Any) -> str | None:
        return "a list in a list is no value" if isinstance(item, list) else self._problem(item)
