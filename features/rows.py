"""Raw rows and encoded columns: the types that encoders and what uses them share; no engine is needed for them."""

from collections.abc import Mapping
from typing import Any

RawRow = Mapping[str, Any]
"""Raw column -> value."""
Columns = dict[str, Any]
"""Feature -> (n,) int32 ids, or (n, max_length) int32 with a ``NAME__length`` (n,) int32, or (n,) float32; part of a
sequence -> n ``Ragged`` rows of int32 ids."""


class RowError(ValueError):
    """A raw row cannot be encoded: a column is missing or a value is malformed."""


class MissingColumnError(RowError):
    """A raw row lacks a column that a feature needs."""
