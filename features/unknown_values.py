"""Unknown values: how many values a model's vocabularies do not have, counted while rows are scored.

A value outside the vocabulary is no error: it has the out-of-vocabulary id, as some values of the training split had.
Far more of them than there are mostly another spelling (``7.0`` for ``7``), and every score is wrong then. Hashed and
bucketed features have an id for every value, so of them only missing values are known.

Shapes: n rows, V values of a multi-valued feature in all rows together.
"""

import math
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from features.disk.dataset import DatasetManifest, Split
from features.hashing import MISSING_ID
from features.kinds import ids_of
from features.learnt import Learnt
from features.odd_values import NULL_TOKENS
from features.rows import Columns
from features.schema import VOCABULARY_KINDS, FeatureSchema, SparseFeature

MIN_EXCESS = 0.05
"""Least share by which unknown or missing values must be above the expected share to be told of."""
ROOM_SHARE = 0.1
"""Part of the values that the training split knows which must be unknown now, beyond the expected share."""
DEVIATIONS = 4.0
"""Standard deviations of a share of so many values that it must be above the expected share."""
NUM_NAMED = 5
"""Features in one line at most."""
_LONGEST_EXAMPLE = 60
_WHOLE = re.compile(r"-?[0-9]+")
_DOTTED = re.compile(r"(-?[0-9]+)\.0+")
_MOST_ZEROS = 20

_SPLIT_WORDS = {"train": "training", "valid": "validation", "test": "test"}

ValueRates = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Split -> feature -> ``missing`` and, of one with a vocabulary, ``unknown``: shares in a dataset."""


def value_rates(manifest: DatasetManifest) -> dict[str, dict[str, dict[str, float]]]:
    """Read the shares of missing and unknown values of sparse features and sequences from a dataset's statistics."""
    has_vocabulary = {f.name for f in manifest.schema.sparse if f.encoding.kind in VOCABULARY_KINDS}

    def rates_of(split: Split) -> dict[str, dict[str, float]]:
        rates = {
            name: {"missing": found.null_rate, **({"unknown": found.oov_rate} if name in has_vocabulary else {})}
            for name, found in split.sparse.items()
        }
        for sequence in manifest.schema.sequence if split.sequences else ():
            found = split.sequences[sequence.name]
            for column in sequence.part_columns.values():
                rates[column] = {"unknown": found.oov_rates[column]} if column in found.oov_rates else {}
            # No events is one thing for all parts.
            rates[sequence.keys[0]]["missing"] = found.empty_rate
        return rates

    return {name: rates_of(split) for name, split in manifest.splits.items()}


class ValueExample(NamedTuple):
    """An unknown value as text, and what the vocabulary has in its place; None: that is not known."""

    text: str
    cause: str | None


@dataclass
class ValueTally:
    """Counts of values in some rows; tallies of other rows are added.

    Attributes:
        rows: number of rows.
        missing: feature, or part of a sequence -> rows without a value; without those that have none.
        unknown: feature, or part of a sequence -> values outside the vocabulary; without those that have none. Of a
            sequence's events that lack a value it counts as unknown.
        tokens: multi-valued feature, or part of a sequence -> its values; a single-valued one has one in each row that
            is not missing.
        examples: feature -> one of its unknown values.
    """

    rows: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    examples: dict[str, ValueExample] = field(default_factory=dict)

    def add(self, other: "ValueTally") -> None:
        """Add the counts of other rows; the first example of a feature stays."""
        self.rows += other.rows
        for name in ("missing", "unknown", "tokens"):
            getattr(self, name).update(getattr(other, name))
        self.examples = {**other.examples, **self.examples}


class ValueTexts(Protocol):
    """Texts behind encoded rows, asked for only where an id is the out-of-vocabulary one."""

    def num_missing(self, feature: SparseFeature, rows: NDArray[np.intp]) -> int:
        """Count those of some rows that have no value of a single-valued feature."""
        ...

    def texts(self, feature: SparseFeature, rows: NDArray[np.intp]) -> Iterable[str | None]:
        """Return the values of a feature in some rows, one after the other; None where a value is missing."""
        ...


def counted_features(schema: FeatureSchema) -> tuple[SparseFeature, ...]:
    """List what is counted: the sparse features, and the parts of sequences but for their gaps."""
    return (*schema.sparse, *(part for part in schema.parts if part.part))


class ValueCounter:
    """Counts missing and unknown values of encoded rows, for one schema and what was learnt with it."""

    def __init__(self, schema: FeatureSchema, learnt: Learnt) -> None:
        singles = [f for f in schema.sparse if not f.kind.takes_lists]
        self._coded = [f for f in singles if f.encoding.kind in VOCABULARY_KINDS]
        self._others = [f for f in singles if f.encoding.kind not in VOCABULARY_KINDS]
        self._bags = [f for f in counted_features(schema) if f.kind.takes_lists]
        self._unknown = np.array([learnt.oov_id(f.name) for f in self._coded], np.int32)[:, None]
        coded = [f for f in self._bags if f.encoding.kind in VOCABULARY_KINDS]
        self._bag_ids = {f.name: learnt.oov_id(f.learnt_name) for f in coded}
        self._learnt = learnt
        self._examples: dict[str, ValueExample | None] = {}

    def count(
        self, columns: Columns, texts: ValueTexts, tally: ValueTally, elsewhere: Mapping[str, int] | None = None
    ) -> None:
        """Add the counts of a batch to a tally.

        Args:
            columns: encoded rows.
            texts: what they were encoded from.
            tally: what is added to.
            elsewhere: part of a sequence -> rows without an event here that have some in a bucket table.
        """
        tally.rows += len(next(iter(columns.values())))
        if self._others:
            missing = _count_equal([columns[f.name] for f in self._others], MISSING_ID)
            for place, number in missing.items():
                tally.missing[self._others[place].name] += number
        if self._coded:
            for place in _count_equal([columns[f.name] for f in self._coded], self._unknown):
                feature = self._coded[place]
                rows = np.flatnonzero(columns[feature.name] == self._unknown[place])
                num_missing = texts.num_missing(feature, rows)
                if num_missing:
                    tally.missing[feature.name] += num_missing
                if len(rows) > num_missing:
                    tally.unknown[feature.name] += len(rows) - num_missing
                    self._give_example(feature, texts, rows, tally)
        for feature in self._bags:
            self._count_bag(feature, columns, texts, tally, (elsewhere or {}).get(feature.name, 0))

    def _count_bag(
        self, feature: SparseFeature, columns: Columns, texts: ValueTexts, tally: ValueTally, elsewhere: int
    ) -> None:
        lengths = feature.kind.lengths(columns, feature)
        tally.tokens[feature.name] += int(lengths.sum())
        num_missing = len(lengths) - int(np.count_nonzero(lengths)) - elsewhere
        if num_missing:
            tally.missing[feature.name] += num_missing
        if feature.name in self._bag_ids:
            ids, _ = ids_of(columns, feature)
            is_unknown = ids == self._bag_ids[feature.name]
            num_unknown = int(np.count_nonzero(is_unknown))
            if num_unknown:
                tally.unknown[feature.name] += num_unknown
                rows = np.unique(np.repeat(np.arange(len(lengths)), lengths)[is_unknown])
                self._give_example(feature, texts, rows, tally)

    def _give_example(
        self, feature: SparseFeature, texts: ValueTexts, rows: NDArray[np.intp], tally: ValueTally
    ) -> None:
        """Give a tally one of a feature's unknown values; it is looked for once."""
        name = feature.name
        if name not in self._examples:
            # All values of these rows are unknown, but a multi-valued feature may have known ones beside them.
            known = frozenset(self._learnt.vocabularies[feature.learnt_name] if feature.kind.takes_lists else ())
            found = (text for text in texts.texts(feature, rows) if text is not None and text not in known)
            text = next(iter(found), None)
            self._examples[name] = None if text is None else ValueExample(text, self._cause(feature, text))
        if (example := self._examples[name]) is not None:
            tally.examples.setdefault(name, example)

    def _cause(self, feature: SparseFeature, example: str) -> str | None:
        if feature.encoding.kind != "vocabulary":  # its tokens are not raw values
            return None
        vocabulary = self._learnt.vocabularies[feature.learnt_name]
        return _likely_cause(example, frozenset(vocabulary)) or (
            f"the vocabulary has values such as {_shown(vocabulary[0])}" if vocabulary else "the vocabulary is empty"
        )


def _count_equal(columns: list[NDArray[Any]], ids: NDArray[np.int32] | int) -> dict[int, int]:
    """Count in each of some columns, (n,), the rows whose id is a certain one: place -> number, where there are any."""
    is_equal = np.array(columns) == ids
    if not np.count_nonzero(is_equal):
        return {}
    counts = is_equal.sum(axis=1)
    return {place: int(counts[place]) for place in np.flatnonzero(counts).tolist()}


def _likely_cause(text: str, known: Container[str]) -> str | None:
    """Find another spelling of a value that the vocabulary has, and say so; None: there is none."""
    if text in NULL_TOKENS:
        return "it looks like a missing value, for which null or an empty text stands"
    spellings = dict.fromkeys(_spellings(text.strip()))
    spelling = next((one for one in [text.strip(), *spellings] if one != text and one in known), None)
    return None if spelling is None else f"the vocabulary has {_shown(spelling)}"


def _spellings(text: str) -> Iterable[str]:
    if match := _DOTTED.fullmatch(text):
        yield match[1]
        text = match[1]
    if _WHOLE.fullmatch(text):
        yield f"{text}.0"
        sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
        yield sign + (digits.lstrip("0") or "0")
        yield from (sign + digits.zfill(width) for width in range(len(digits) + 1, _MOST_ZEROS + 1))
    yield from (text.lower(), text.upper(), text.capitalize(), text.title())
    bare = text.strip("'\"[]()")
    yield from (bare, bare.lower(), text.replace(",", ""), text.removesuffix(".0"))


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_EXAMPLE else f"{text[:_LONGEST_EXAMPLE]}...")


@dataclass(frozen=True)
class ValueReport:
    """Shares of missing and unknown values in scored rows beside those of the dataset that a model was trained on.

    Attributes:
        tally: counts of the scored rows.
        expected: shares in the dataset; empty: the artifact does not say them, as those of earlier versions.
        schema: schema of the features.
    """

    tally: ValueTally
    expected: ValueRates
    schema: FeatureSchema

    def num_values(self, feature: SparseFeature) -> int:
        """Count the values of a feature that are not missing."""
        tally = self.tally
        return tally.tokens[feature.name] if feature.kind.takes_lists else tally.rows - tally.missing[feature.name]

    def shares(self, feature: SparseFeature) -> dict[str, float]:
        """Compute the shares of missing rows and, with a vocabulary, of unknown values; empty without a value."""
        found, name = {}, feature.name
        if self.tally.rows:
            found["missing"] = self.tally.missing[name] / self.tally.rows
        if feature.encoding.kind in VOCABULARY_KINDS and (values := self.num_values(feature)):
            found["unknown"] = self.tally.unknown[name] / values
        return found

    def to_json(self) -> dict[str, Any]:
        """Return, by feature and part of a sequence, the shares of the scored rows and of each split of the dataset."""
        found = {}
        for feature in counted_features(self.schema):
            name = feature.name
            found[name] = {
                "values": self.num_values(feature),
                **self.shares(feature),
                **({"example": self.tally.examples[name].text} if name in self.tally.examples else {}),
                **{split: dict(rates[name]) for split, rates in self.expected.items() if name in rates},
            }
        return found

    def warnings(self) -> dict[str, str]:
        """Describe each feature that has far more missing or unknown values than the dataset had, a sentence each."""
        found = {}
        for feature in counted_features(self.schema):
            name = feature.name
            for what, share in self.shares(feature).items():
                size = self.tally.rows if what == "missing" else self.num_values(feature)
                rates = {split: of[name][what] for split, of in self.expected.items() if what in of.get(name, {})}
                if rates and _is_far_above(share, max(rates.values()), size):
                    found[f"{name}: {what}"] = self._sentence(feature, what, share, rates)
        return found

    def _sentence(self, feature: SparseFeature, what: str, share: float, rates: Mapping[str, float]) -> str:
        name = feature.name
        first, *others = [f"{word} {rates[split]:.1%}" for split, word in _SPLIT_WORDS.items() if split in rates]
        had = first.replace(" ", " had ", 1) + (f" ({', '.join(others)})" if others else "")
        if what == "missing":
            told = feature.kind.tell_missing(feature, f"{share:.1%}")
        else:
            told = f"feature {name!r}: {share:.1%} of values are not in its vocabulary"
        told = f"{told}, where {had}"
        example = self.tally.examples.get(name) if what == "unknown" else None
        if example is None:
            return told
        return f"{told}; one of them is {_shown(example.text)}" + (f": {example.cause}" if example.cause else "")


def name_unknown(values: Mapping[str, Mapping[str, Any]]) -> str:
    """Name the features with the most unknown values in a line; empty: there are none.

    Args:
        values: what ``ValueReport.to_json`` returns.
    """
    shares = {name: found["unknown"] for name, found in values.items() if found.get("unknown")}
    names = sorted(shares, key=lambda name: -shares[name])

    def shown(name: str) -> str:
        trained = values[name].get("train", {}).get("unknown")
        return f"{name} {shares[name]:.1%}" + ("" if trained is None else f" (training {trained:.1%})")

    more = f" and {len(names) - NUM_NAMED} features more" if len(names) > NUM_NAMED else ""
    return f"unknown values: {', '.join(map(shown, names[:NUM_NAMED]))}{more}" if names else ""


def _is_far_above(share: float, expected: float, size: int) -> bool:
    """Tell whether a share of so many values is above the expected one by more than chance and habit explain."""
    smoothed = (expected * size + 1) / (size + 2)
    scatter = DEVIATIONS * math.sqrt(smoothed * (1 - smoothed) / size) if size else math.inf
    return share - expected > max(MIN_EXCESS, ROOM_SHARE * (1 - expected), scatter)
