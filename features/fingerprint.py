"""Fingerprints of a feature schema: 64 hexadecimal digits, equal where every raw value becomes the same id or float.

A fingerprint is of departures from defaults only, so a key that is added later, with a default that means what was done
before, changes none. For the same reason the default of a key must never change.
"""

import hashlib
import json
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from features.disk.versions import Format

FINGERPRINT_FORMAT = Format(
    "fingerprint",
    "use the program that made it",
    (lambda file: file,),  # fingerprints of version 1 are computed anew from the schema: ``fingerprint_version_1``
    key="fingerprint_version",
)
"""Has another version when the formula changes; a file that stores fingerprints says which one it has."""

MODEL_CHOICE = {"model_choice": True}
"""Metadata of a dataclass field that a model chooses: it decides neither an id nor a float of a dataset's columns."""

_VERSION_1_KEYS = {
    "schema": ("label", "weight", "group_id", "carry"),
    "sparse": ("name", "columns", "separator", "max_length", "pooling"),
    "dense": ("name", "column", "fill", "clip", "log1p", "standardise"),
    "timestamp": ("column", "format"),
    "hash": ("num_buckets", "salt", "kind"),
    "vocabulary": ("min_count", "max_size", "kind"),
    "boundaries": ("boundaries", "kind"),
    "quantiles": ("num_buckets", "kind"),
    "log": ("num_buckets", "base", "kind"),
    "log_squared": ("min_count", "max_size", "kind"),
}
"""Keys that schemas had when fingerprints of version 1 were made. Never to be added to."""


def departures(part: Any) -> Any:
    """Convert a dataclass to a tree of JSON values without fields at their default and without model choices.

    ``kind`` stays: it says which class the other fields belong to.
    """
    if is_dataclass(part):
        values = {f.name: (f, getattr(part, f.name)) for f in fields(part) if not is_model_choice(f)}
        return {
            name: departures(value) for name, (f, value) in values.items() if name == "kind" or value != _default(f)
        }
    if isinstance(part, tuple | list):
        return [departures(value) for value in part]
    return part


def is_model_choice(field: Field) -> bool:
    """Tell whether a field of a schema's dataclasses is marked as ``MODEL_CHOICE``."""
    return bool(field.metadata.get("model_choice"))


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def digest(tree: Any) -> str:
    """SHA-256 of a tree of JSON values, in hexadecimal."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def fingerprint_version_1(schema: Any, encoding_version: int) -> str:
    """Fingerprint of a FeatureSchema by the formula of version 1: every key of that time, defaults and ``pooling`` too.

    Frozen: datasets, runs and artifacts made until November 2026 hold it.
    """

    def keys(part: Any, kind: str) -> dict[str, Any]:
        return {name: getattr(part, name) for name in _VERSION_1_KEYS.get(kind, ())}

    return digest(
        {
            "encoding_version": encoding_version,
            **keys(schema, "schema"),
            "sparse": [
                {
                    **keys(f, "sparse"),
                    # It came before version 2, but only where set.
                    **({} if f.table is None else {"table": f.table}),
                    "encoding": keys(f.encoding, f.encoding.kind),
                }
                for f in schema.sparse
            ],
            "dense": [keys(feature, "dense") for feature in schema.dense],
            "sequence": [],
            "timestamp": schema.timestamp and keys(schema.timestamp, "timestamp"),
        }
    )
