"""Learn vocabularies, quantile boundaries and moments from the training split alone.

With a base (the learnt state of an earlier dataset) only the tokens that the base lacks are learnt.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa

from features.arrow import pc
from features.disk.dataset import SPLITS
from features.learnt import Learnt
from features.schema import VOCABULARY_KINDS, FeatureSchema, LogSquaredEncoding, QuantilesEncoding, VocabularyEncoding
from pipeline.build.counts import FEATURE, NUMBER, TEXT
from pipeline.build.moments import Moments

SIGNIFICANT_DIGITS = 9
"""Significant digits of learnt floats: sums in another order differ behind them."""


def rounded(value: float) -> float:
    """Round to the digits that do not depend on the order of a sum."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def table_owners(schema: FeatureSchema) -> dict[int, int]:
    """Map each feature with a vocabulary to the first one that shares its table, as places in ``id_features``.

    Parts of sequences are such features: the items of histories are learnt as values of the feature are.
    """
    numbers = {feature.name: number for number, feature in enumerate(schema.id_features)}
    return {
        numbers[feature.name]: numbers[schema.tables[feature.table_name][0].name]
        for feature in schema.id_features
        if feature.encoding.kind in VOCABULARY_KINDS
    }


def least_counts(schema: FeatureSchema) -> dict[int, int]:
    """Map each first feature of a table with a vocabulary to the least count of a token."""
    least = {}
    for owner in sorted(set(table_owners(schema).values())):
        encoding = schema.sparse[owner].encoding
        assert isinstance(encoding, VocabularyEncoding | LogSquaredEncoding)
        least[owner] = encoding.min_count
    return least


def known_tokens(schema: FeatureSchema, base: Learnt | None) -> dict[int, pa.Array]:
    """Map each first feature of a table with a vocabulary to the tokens of the base dataset."""
    if base is None:
        return {}
    return {
        owner: pa.array(base.vocabularies[schema.sparse[owner].name], pa.string()) for owner in least_counts(schema)
    }


def fit_learnt(
    schema: FeatureSchema,
    tokens: pa.Table | None,
    numbers: pa.Table | None,
    moments: Mapping[str, Moments],
    base: Learnt | None = None,
) -> Learnt:
    """Learn everything that the schema's encodings need.

    Args:
        schema: the features.
        tokens: what ``tokens_to_keep`` kept of all counts; None: no feature has a vocabulary.
        numbers: merged counts of the numbers of features with quantiles; None: there are none.
        moments: dense feature -> moments of its transformed training values.
        base: what was learnt with the same schema before: its ids, boundaries and moments are kept, and only tokens
            that it has not are learnt. None: everything is.
    """
    vocabularies = {} if tokens is None else _fit_vocabularies(schema, tokens, base)
    if base is not None:
        return _extend(base, vocabularies)
    standardised = [feature.name for feature in schema.dense if feature.standardise]
    return Learnt(
        vocabularies=vocabularies,
        boundaries={} if numbers is None else _fit_quantiles(schema, numbers),
        moments={name: (rounded(moments[name].mean), rounded(moments[name].deviation)) for name in standardised},
    )


def _extend(base: Learnt, new: dict[str, list[str]]) -> Learnt:
    """``base`` with new tokens, whose ids come after the out-of-vocabulary one, so that no id changes its meaning."""
    vocabularies = {name: [*tokens, *new[name]] for name, tokens in base.vocabularies.items()}
    moved = {name: base.oov_id(name) for name, tokens in new.items() if tokens}
    return replace(base, vocabularies=vocabularies, out_of_vocabulary={**base.out_of_vocabulary, **moved})


def _fit_vocabularies(schema: FeatureSchema, tokens: pa.Table, base: Learnt | None) -> dict[str, list[str]]:
    """Feature -> tokens to keep, in byte order; those of ``base`` are left out, and count as some of ``max_size``.

    Features that share a table get one vocabulary, learnt as if their values were those of the first of them.
    """
    sums = tokens.group_by(["owner", TEXT]).aggregate([("train", "sum")])
    owners, counts = sums["owner"].to_numpy(), sums["train_sum"].to_numpy()
    vocabularies: dict[str, list[str]] = {}
    for owner, least in least_counts(schema).items():
        feature = schema.sparse[owner]
        encoding = feature.encoding
        assert isinstance(encoding, VocabularyEncoding | LogSquaredEncoding)
        own = (owners == owner) & (counts >= least)
        texts = sums[TEXT].filter(pa.array(own)).combine_chunks()
        known = [] if base is None else base.vocabularies[feature.name]
        left_out = [*known, "0"] if isinstance(encoding, LogSquaredEncoding) else known  # the fill value stays out
        if left_out:
            new = pc.invert(pc.is_in(texts, value_set=pa.array(left_out, pa.string())))
            own[own] = new.to_numpy(zero_copy_only=False)
            texts = texts.filter(new)
        in_bytes = pc.sort_indices(texts.cast(pa.binary())).to_numpy()
        if encoding.max_size is not None:
            room = max(encoding.max_size - len(known), 0)
            frequent = np.argsort(-counts[own][in_bytes], kind="stable")[:room]
            in_bytes = in_bytes[np.sort(frequent)]
        kept = texts.take(pa.array(in_bytes)).to_pylist()
        vocabularies |= {sharer.name: list(kept) for sharer in schema.tables[feature.table_name]}
    return vocabularies


def _fit_quantiles(schema: FeatureSchema, numbers: pa.Table) -> dict[str, list[float]]:
    """Exact quantiles: boundary k of B is the value at rank floor(k * rows / B) of the sorted ones, from 0."""
    features, values, counts = numbers[FEATURE].to_numpy(), numbers[NUMBER].to_numpy(), numbers["train"].to_numpy()
    boundaries = {}
    for number, feature in enumerate(schema.sparse):
        if not isinstance(feature.encoding, QuantilesEncoding):
            continue
        own = (features == number) & (counts > 0)
        order = np.argsort(values[own], kind="stable")
        until = np.cumsum(counts[own][order])
        if not len(until):
            boundaries[feature.name] = []
            continue
        steps = np.arange(1, feature.encoding.num_buckets)
        places = np.searchsorted(until, steps * int(until[-1]) // feature.encoding.num_buckets, side="right")
        boundaries[feature.name] = values[own][order][np.unique(places)].tolist()
    return boundaries


def count_known(schema: FeatureSchema, tokens: pa.Table, learnt: Learnt) -> dict[tuple[str, int], int]:
    """Count the values that have an id of their own: (split, number of the feature) -> values.

    Args:
        schema: the features.
        tokens: counts of at least all tokens that have an id.
        learnt: the vocabularies.
    """
    features, found = tokens[FEATURE].to_numpy(), {}
    for number in table_owners(schema):
        own = tokens.filter(pa.array(features == number))
        vocabulary = pa.array(learnt.vocabularies[schema.id_features[number].learnt_name], pa.string())
        own = own.filter(pc.is_in(own[TEXT], value_set=vocabulary))
        found |= {(split, number): int(own[split].to_numpy().sum()) for split in SPLITS}
    return found
