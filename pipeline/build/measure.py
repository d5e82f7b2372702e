"""Measure blocks of encoded rows and add up what was measured: rows, labels, numbers and values of each split."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from features.disk.dataset import SPLITS, DenseStatistics, FeatureStatistics
from features.learnt import Learnt
from features.schema import FeatureSchema, HashEncoding
from pipeline.build.cardinality import ValueSketch
from pipeline.build.counts import ValueCounts
from pipeline.build.learn import rounded
from pipeline.build.moments import Moments


class Span(NamedTuple):
    """The times of some rows; ``a | b`` holds both.

    Attributes:
        oldest: least Unix seconds.
        newest: largest Unix seconds.
    """

    oldest: int
    newest: int

    def __or__(self, other: "Span") -> "Span":
        """Return the span that holds both."""
        return Span(min(self.oldest, other.oldest), max(self.newest, other.newest))


@dataclass
class Sums:
    """Sums over the good rows of some blocks; every dict is by split, or by (split, feature).

    Attributes:
        rows: number of rows.
        labels: sum of the labels.
        times: times of the rows, where they have one.
        dense: moments of a dense feature's present numbers.
        transformed: dense feature -> moments of its transformed training values, for standardised ones.
        sketches: sketch of a hashed or bucketed feature's values.
        missing: rows without a value of a feature with a vocabulary.
        truncated: values of a multi-valued feature beyond ``max_length``.
    """

    rows: dict[str, int] = field(default_factory=dict)
    labels: dict[str, float] = field(default_factory=dict)
    times: dict[str, Span] = field(default_factory=dict)
    dense: dict[tuple[str, str], Moments] = field(default_factory=dict)
    transformed: dict[str, Moments] = field(default_factory=dict)
    sketches: dict[tuple[str, str], ValueSketch] = field(default_factory=dict)
    missing: dict[tuple[str, str], int] = field(default_factory=dict)
    truncated: dict[tuple[str, str], int] = field(default_factory=dict)


def add_up(parts: Iterable[Sums]) -> Sums:
    """Add up the sums of several blocks, in their order."""
    total = Sums()
    sketches: dict[tuple[str, str], list[ValueSketch]] = {}
    for part in parts:
        for name in ("rows", "labels", "dense", "transformed", "missing", "truncated"):
            into = getattr(total, name)
            for key, value in getattr(part, name).items():
                into[key] = into[key] + value if key in into else value
        for split, span in part.times.items():
            total.times[split] = span | total.times.get(split, span)
        for key, sketch in part.sketches.items():
            sketches.setdefault(key, []).append(sketch)
    total.sketches = {key: ValueSketch.join(found) for key, found in sketches.items()}
    return total


def splits_of(total: Sums) -> list[str]:
    """List the splits that have rows, in their order."""
    return [split for split in SPLITS if total.rows.get(split)]


def dense_statistics(total: Sums, schema: FeatureSchema, split: str) -> dict[str, DenseStatistics]:
    """Describe the present numbers of each dense feature in a split."""
    rows, found = total.rows[split], {}
    for name in schema.dense_names:
        moments = total.dense.get((split, name), Moments())
        found[name] = DenseStatistics(
            null_rate=1 - moments.count / rows,
            mean=rounded(moments.mean),
            standard_deviation=rounded(moments.deviation),
            minimum=moments.minimum if moments.count else 0.0,
            maximum=moments.maximum if moments.count else 0.0,
        )
    return found


def sparse_statistics(
    total: Sums,
    counts: dict[tuple[str, int], ValueCounts],
    known: dict[tuple[str, int], int],
    schema: FeatureSchema,
    learnt: Learnt,
    split: str,
) -> dict[str, FeatureStatistics]:
    """Describe the values of each sparse feature in a split, without ``max_id``, which the written files have.

    Args:
        total: sums over all blocks.
        counts: (split, number of the feature) -> sums over distinct tokens, for features with a vocabulary.
        known: (split, number of the feature) -> values whose token has an id.
        schema: the features.
        learnt: their learnt state.
        split: the split.
    """
    rows, found = total.rows[split], {}
    for number, feature in enumerate(schema.sparse):
        values = counts.get((split, number), ValueCounts())
        unknown = values.total - known.get((split, number), 0)
        common = {
            "oov_rate": unknown / values.total if values.total else 0.0,
            "max_id": 0,
            "num_truncated": total.truncated.get((split, feature.name), 0),
        }
        if feature.encoding.kind == "vocabulary":
            found[feature.name] = FeatureStatistics(
                cardinality=values.cardinality,
                null_rate=total.missing.get((split, feature.name), 0) / rows,
                head_share=values.head / values.total if values.total else 0.0,
                **common,
            )
            continue
        sketch, encoding = total.sketches[split, feature.name], feature.encoding
        found[feature.name] = FeatureStatistics(
            cardinality=sketch.cardinality,
            null_rate=sketch.num_missing / rows,
            head_share=sketch.head_share,
            collision_rate=_collision_rate(sketch, encoding.num_buckets - 1)
            if isinstance(encoding, HashEncoding)
            else None,
            is_estimated=not sketch.is_exact,
            **common,
        )
    return found


def _collision_rate(sketch: ValueSketch, num_ids: int) -> float:
    """Share of distinct values whose id is shared: counted where all are known, else as uniform hashes would give."""
    if not sketch.is_exact:
        return expected_collision_rate(sketch.cardinality, num_ids)
    _, sharers = np.unique(sketch.sample.view(np.int64) % num_ids, return_counts=True)
    return float(sharers[sharers > 1].sum()) / max(len(sketch.sample), 1)


def expected_collision_rate(cardinality: int, num_ids: int) -> float:
    """Compute the expected share of ``cardinality`` values, hashed uniformly to ``num_ids`` ids, that share an id."""
    return 1 - (1 - 1 / num_ids) ** (cardinality - 1) if cardinality else 0.0
