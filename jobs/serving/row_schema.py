"""RowSchema: what a row of a request must have for one version of a model, and what its scores mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from features.bucket_tables import BucketColumn
from features.schema import FeatureSchema
from features.unknown_values import ValueRates

TEXT_TYPES = ["string", "integer", "boolean", "null"]
"""JSON types of a category; a number with a fraction is none."""
NUMBER_TYPES = ["number", "string", "boolean", "null"]
"""JSON types of a number; a string is decimal text."""


@dataclass(frozen=True)
class RowSchema:
    """Columns of a row for one version of a model.

    Attributes:
        schema: the model's features.
        optional: columns that a row may lack, as logs may (``pipeline.input.format.optional``).
        value_rates: shares of missing and unknown values in the dataset that the model was trained on.
        buckets: columns of bucket tables, which stand for the events of sequences.
        is_of_histories: flag: a row has what bucket tables are made of, and nothing else.
    """

    schema: FeatureSchema
    optional: frozenset[str]
    value_rates: ValueRates
    buckets: tuple[BucketColumn, ...] = ()
    is_of_histories: bool = False

    @classmethod
    def of(
        cls,
        schema: FeatureSchema,
        config: Mapping[str, Any],
        value_rates: ValueRates,
        buckets: tuple[BucketColumn, ...] = (),
    ) -> "RowSchema":
        """Make the row schema of an artifact, whose config may be one of an earlier version."""
        log_format = config.get("pipeline", {}).get("input", {}).get("format", {})
        return cls(schema, frozenset(log_format.get("optional", ())), value_rates, buckets)

    @property
    def made(self) -> tuple[BucketColumn, ...]:
        """Columns of the bucket tables that the model makes and reads; it refuses those of other sequences."""
        return tuple(column for column in self.buckets if column.shapes)

    @cached_property
    def of_histories(self) -> "RowSchema":
        """Schema of a row that bucket tables are made of."""
        return replace(self, is_of_histories=True)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Raw columns that are read."""
        if self.is_of_histories:
            return tuple(dict.fromkeys(name for column in self.made for name in column.lists))
        return self.schema.feature_columns

    @cached_property
    def required(self) -> tuple[str, ...]:
        """Raw columns that every row must have."""
        return tuple(name for name in self.columns if name not in self.optional)

    def to_json(self) -> dict[str, Any]:
        """Describe the columns, their types and encodings, and the label."""
        return {
            "columns": [*map(self._column, self.columns), *map(_bucket_column, self.made)],
            "label": {"column": self.schema.label_rule.column, "is_1_where": self.schema.label},
        }

    def _column(self, name: str) -> dict[str, Any]:
        uses: list[dict[str, Any]] = [
            {"feature": f.name, "encoding": f.encoding.kind, **f.splitting}
            for f in self.schema.id_features
            if name in f.columns
        ]
        uses += [{"feature": f.name, "encoding": "number"} for f in self.schema.dense if f.source == name]
        return {"name": name, "required": name not in self.optional, "types": self._types(name), "features": uses}

    def _types(self, name: str) -> Sequence[str]:
        found = [f for f in self.schema.id_features if name in f.columns]
        time = self.schema.timestamp
        is_number = any(f.source == name for f in self.schema.dense) or (not found and time and time.column == name)
        is_number = is_number or any(f.encoding.kind not in ("hash", "vocabulary") for f in found)
        types = NUMBER_TYPES if is_number else TEXT_TYPES
        return [*types, "array"] if any(f.kind.takes_lists for f in found) else types


def _bucket_column(column: BucketColumn) -> dict[str, Any]:
    found = {"name": column.name, "required": False, "types": ["string", "null"]}
    return {**found, "features": [], "in_place_of": list(column.replaces)}
