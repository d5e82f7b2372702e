"""Learnt: state fitted on the training split (vocabularies, quantile boundaries, moments), kept beside the schema.

A dataset, a run and an artifact all carry it, because ids mean nothing without it.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, StrictInt, TypeAdapter, ValidationError

from features.schema import (
    VOCABULARY_KINDS,
    BoundariesEncoding,
    FeatureSchema,
    HashEncoding,
    LogEncoding,
    SparseFeature,
)

Number = FiniteFloat | int

OUT_OF_VOCABULARY_NAME = "out_of_vocabulary.json"


class LearntError(ValueError):
    """A learnt file is missing, damaged, or belongs to other features."""


@dataclass(frozen=True)
class Learnt:
    """State fitted on the training split only.

    Attributes:
        vocabularies: feature -> kept tokens in id order (the first has id 1; see ``ids_of``); features that share a
            table have equal ones.
        boundaries: feature -> strictly rising quantile boundaries.
        moments: dense feature -> (mean, standard deviation) after fill, clip and log1p.
        out_of_vocabulary: feature -> its out-of-vocabulary id, only for a vocabulary that extends an earlier one's: the
            id stays where it was, and newer tokens come after it. Everywhere else it comes after the last token.
    """

    vocabularies: dict[str, list[str]] = field(default_factory=dict)
    boundaries: dict[str, list[float]] = field(default_factory=dict)
    moments: dict[str, tuple[float, float]] = field(default_factory=dict)
    out_of_vocabulary: dict[str, int] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Hash everything learnt to 64 hexadecimal digits.

        Raises:
            LearntError: a token is no text (half a surrogate pair, as JSON may hold).
        """
        digest = hashlib.sha256()
        try:
            for name, part in sorted(self._parts().items()):
                digest.update(f"{name}\n{part}\n".encode())
        except UnicodeEncodeError as error:
            raise LearntError(f"what was learnt is not text ({error}): build the dataset again") from error
        return digest.hexdigest()

    def _parts(self) -> dict[str, str]:
        """File name -> JSON text. A vocabulary has a file of its own: it can be large."""
        parts = {f"vocabulary.{name}.json": _dump(tokens) for name, tokens in self.vocabularies.items()}
        parts["boundaries.json"] = _dump(self.boundaries)
        parts["moments.json"] = _dump(self.moments)
        if self.out_of_vocabulary:  # else no file: datasets that extend no other keep their fingerprints
            parts[OUT_OF_VOCABULARY_NAME] = _dump(self.out_of_vocabulary)
        return parts

    def save(self, folder: Path) -> list[str]:
        """Write one JSON file a vocabulary, plus ``boundaries.json``, ``moments.json`` and, only where a vocabulary was
        extended, ``out_of_vocabulary.json``; returns the file names.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / OUT_OF_VOCABULARY_NAME).unlink(missing_ok=True)  # an older one would move ids
        for name, part in self._parts().items():
            (folder / name).write_text(part + "\n", encoding="utf-8")
        return sorted(self._parts())

    @classmethod
    def load(cls, folder: Path, schema: FeatureSchema) -> "Learnt":
        """Read what ``save`` wrote.

        Raises:
            LearntError: a file that ``schema`` needs is missing or damaged, or an out-of-vocabulary id cannot be.
        """
        vocabularies = {
            f.name: _read(folder / f"vocabulary.{f.name}.json", list[str])
            for f in schema.sparse
            if f.encoding.kind in VOCABULARY_KINDS
        }
        boundaries = _read(folder / "boundaries.json", dict[str, list[Number]])
        moments = _read(folder / "moments.json", dict[str, tuple[Number, Number]])
        extended = folder / OUT_OF_VOCABULARY_NAME
        out_of_vocabulary = _read(extended, dict[str, StrictInt]) if extended.exists() else {}
        learnt = cls(vocabularies, boundaries, moments, out_of_vocabulary)
        learnt.check(schema)
        return learnt

    def check(self, schema: FeatureSchema) -> None:
        """Raise LearntError unless every fitted feature of ``schema`` has its state, and ids can be told from it."""
        for feature in schema.sparse:
            kind = feature.encoding.kind
            if kind in VOCABULARY_KINDS and feature.name not in self.vocabularies:
                raise LearntError(f"feature {feature.name!r} has no learnt vocabulary: build the dataset again")
            if kind == "quantiles" and feature.name not in self.boundaries:
                raise LearntError(f"feature {feature.name!r} has no learnt quantiles: build the dataset again")
        for table, (first, *others) in schema.tables.items():
            known = self.vocabularies.get(first.name), self.out_of_vocabulary.get(first.name)
            for other in others:
                if (self.vocabularies.get(other.name), self.out_of_vocabulary.get(other.name)) != known:
                    raise LearntError(
                        f"features {first.name!r} and {other.name!r} share the table {table!r} but not their learnt "
                        "vocabulary: build the dataset again"
                    )
        for dense in schema.dense:
            if dense.standardise and dense.name not in self.moments:
                raise LearntError(f"feature {dense.name!r} has no learnt moments: build the dataset again")
        for name, id_ in self.out_of_vocabulary.items():
            if name not in self.vocabularies:
                raise LearntError(f"{name!r} has an out-of-vocabulary id but no vocabulary: build the dataset again")
            last = len(self.vocabularies[name]) + 1
            if not 1 <= id_ <= last:
                raise LearntError(
                    f"feature {name!r} has the out-of-vocabulary id {id_}, which is not one of 1 to {last}: build the "
                    "dataset again"
                )

    def oov_id(self, name: str) -> int:
        """Return a feature's out-of-vocabulary id, which unknown and missing values have."""
        return self.out_of_vocabulary.get(name, len(self.vocabularies[name]) + 1)

    def ids_of(self, name: str) -> dict[str, int]:
        """Token -> id of a feature with a vocabulary, in id order: 1, 2, ... without the out-of-vocabulary id."""
        out_of_vocabulary = self.oov_id(name)
        tokens = enumerate(self.vocabularies[name], start=1)
        return {token: place + (place >= out_of_vocabulary) for place, token in tokens}

    def extends(self, other: "Learnt") -> bool:
        """Tell whether every id of ``other`` means the same here, and every number becomes the same bucket and float.

        Then rows encoded with ``other`` are rows of this state too; it may have more tokens. A state extends itself.
        """
        return (self.boundaries, self.moments) == (other.boundaries, other.moments) and all(
            name in self.vocabularies
            and self.vocabularies[name][: len(tokens)] == tokens
            and self.oov_id(name) == other.oov_id(name)
            for name, tokens in other.vocabularies.items()
        )

    def boundaries_of(self, feature: SparseFeature) -> tuple[float, ...]:
        """Return the boundaries of a feature bucketed by ``boundaries``, ``quantiles`` or ``log``."""
        encoding = feature.encoding
        if isinstance(encoding, BoundariesEncoding | LogEncoding):
            return encoding.boundaries
        return tuple(self.boundaries[feature.name])

    def num_embeddings(self, feature: SparseFeature) -> int:
        """Count the rows of the feature's table: ids are 0 <= id < num_embeddings.

        hash: num_buckets. vocabulary, log_squared: n + 2 (0 is padding, one is out-of-vocabulary).
        boundaries, quantiles, log: boundaries + 2 (0 is missing).
        """
        if isinstance(feature.encoding, HashEncoding):
            return feature.encoding.num_buckets
        if feature.encoding.kind in VOCABULARY_KINDS:
            return len(self.vocabularies[feature.learnt_name]) + 2
        return len(self.boundaries_of(feature)) + 2


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _read(path: Path, type_: Any) -> Any:
    try:
        return TypeAdapter(type_).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        [first, *_] = error.errors()
        reason = f"{first['msg']} at {first['loc']}"
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
    raise LearntError(f"{path} is missing or damaged ({reason}): build the dataset again")
