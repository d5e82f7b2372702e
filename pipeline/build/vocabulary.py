"""Learn vocabularies, quantile boundaries and moments from the training split alone.

With a base (the learnt state of an earlier dataset) only the tokens that the base lacks are learnt.

One table of (split, feature, value, count) is made in one pass; everything learnt, and most of the statistics, follow
from it, so the rows are not read once a feature.
"""

from collections.abc import Collection
from dataclasses import replace

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from features.learnt import Learnt
from features.schema import (
    FeatureSchema,
    LogSquaredEncoding,
    QuantilesEncoding,
    SparseFeature,
    VocabularyEncoding,
)
from pipeline.build.encode import log_squared_column, prepared_kind, sparse, transformed
from pipeline.build.ingest import SPLIT

SIGNIFICANT_DIGITS = 9
"""Significant digits of learnt floats, because Spark adds up in another order in every run."""


def rounded(value: float | None) -> float:
    """Round to the digits that do not depend on the order of a sum; 0 for None."""
    return 0.0 if value is None else float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def count_values(rows: DataFrame, schema: FeatureSchema, features: Collection[str]) -> DataFrame:
    """Count the distinct prepared values of sparse features in every split.

    Args:
        rows: good prepared rows.
        features: names of those to count.

    Returns:
        ``split``, ``feature`` (its number in the schema), one of ``hash`` (bigint), ``text``, ``number`` (all null for
        a missing value; a multi-valued row without values counts as one) and ``count``.
    """
    counted = [(number, feature) for number, feature in enumerate(schema.sparse) if feature.name in features]
    if not counted:
        rows = rows.filter(F.lit(False))  # nothing is read for nothing
    singles = [_entry(number, feature) for number, feature in counted if not feature.kind.is_array]
    lists = [_entries(number, feature) for number, feature in counted if feature.kind.is_array]
    entries = F.concat(*([F.array(*singles)] if singles else []), *lists) if counted else F.array().cast(_NO_ENTRIES)
    exploded = rows.select(F.col(SPLIT).alias("split"), F.explode(entries).alias("entry")).select("split", "entry.*")
    return exploded.groupBy("split", "feature", "hash", "text", "number").count()


_NO_ENTRIES = "array<struct<feature:int,hash:bigint,text:string,number:double>>"


def _fields(number: Column, kind: str, value: Column) -> Column:
    types = {"hash": "bigint", "text": "string", "number": "double"}
    # Adding 0.0 makes -0.0 the same value as 0.0.
    value = value + F.lit(0.0) if kind == "number" else value
    parts = [(value if kind == name else F.lit(None)).cast(dtype).alias(name) for name, dtype in types.items()]
    return F.struct(number.cast("int").alias("feature"), *parts)


def _entry(number: int, feature: SparseFeature) -> Column:
    return _fields(F.lit(number), prepared_kind(feature), F.col(sparse(feature.name)))


def _entries(number: int, feature: SparseFeature) -> Column:
    values = F.col(sparse(feature.name))
    missing = F.array(_fields(F.lit(number), "none", F.lit(None)))
    present = F.transform(values, lambda value: _fields(F.lit(number), prepared_kind(feature), value))
    return F.when(F.size(values) == 0, missing).otherwise(present)


def fit_learnt(rows: DataFrame, counts: DataFrame, schema: FeatureSchema, base: Learnt | None = None) -> Learnt:
    """Learn vocabularies, quantiles and moments.

    Args:
        rows: good prepared rows of all splits.
        counts: what ``count_values`` made of them.
        base: what was learnt with the same schema before: its ids, boundaries and moments are kept, and only tokens
            that it has not are learnt. None: everything is.
    """
    train = counts.filter(F.col("split") == "train")
    if base is not None:
        return _extend(base, _fit_vocabularies(train, schema, base))
    return Learnt(
        vocabularies=_fit_vocabularies(train, schema),
        boundaries=_fit_quantiles(train, schema),
        moments=_fit_moments(rows.filter(F.col(SPLIT) == "train"), schema),
    )


def token_of(schema: FeatureSchema) -> Column:
    """Compute the vocabulary token of a counted value; null without a vocabulary and for a missing value."""
    squared = [n for n, f in enumerate(schema.sparse) if isinstance(f.encoding, LogSquaredEncoding)]
    token = F.col("text")
    if squared:
        token = F.when(F.col("feature").isin(squared), log_squared_column(F.col("number"))).otherwise(token)
    return token


def _extend(base: Learnt, new: dict[str, list[str]]) -> Learnt:
    """``base`` with new tokens, whose ids come after the out-of-vocabulary one, so that no id changes its meaning."""
    vocabularies = {name: [*tokens, *new[name]] for name, tokens in base.vocabularies.items()}
    moved = {name: base.oov_id(name) for name, tokens in new.items() if tokens}
    return replace(base, vocabularies=vocabularies, out_of_vocabulary={**base.out_of_vocabulary, **moved})


def _fit_vocabularies(train: DataFrame, schema: FeatureSchema, base: Learnt | None = None) -> dict[str, list[str]]:
    """Feature -> tokens to keep, in byte order; those of ``base`` are left out, and count as some of ``max_size``.

    Features that share a table get one vocabulary, learnt as if their values were those of the first of them.
    """
    numbers = {f.name: n for n, f in enumerate(schema.sparse)}
    firsts = {numbers[f.name]: numbers[shared[0].name] for shared in schema.tables.values() for f in shared}
    encodings = {
        n: f.encoding
        for n, f in enumerate(schema.sparse)
        if firsts[n] == n and isinstance(f.encoding, VocabularyEncoding | LogSquaredEncoding)
    }
    if not encodings:
        return {}
    enough = F.lit(False)
    for number, encoding in encodings.items():
        kept = (F.col("feature") == number) & (F.col("count") >= encoding.min_count)
        if isinstance(encoding, LogSquaredEncoding):
            kept &= F.col("token") != "0"  # the fill value stays out
        enough |= kept
    owner = F.col("feature")
    for number, first in firsts.items():
        if number != first:
            owner = F.when(F.col("feature") == number, F.lit(first)).otherwise(owner)
    tokens = train.select(owner.alias("feature"), token_of(schema).alias("token"), "count")
    tokens = tokens.filter(F.col("feature").isin(list(encodings)))
    tokens = tokens.filter(F.col("token").isNotNull()).groupBy("feature", "token").agg(F.sum("count").alias("count"))
    table = tokens.filter(enough).toPandas()
    vocabularies: dict[str, list[str]] = {}
    for number, encoding in encodings.items():
        part = table[table["feature"] == number]
        name = schema.sparse[number].name
        known = set() if base is None else set(base.vocabularies[name])
        found = [pair for pair in zip(part["token"], part["count"], strict=True) if pair[0] not in known]
        ranked = sorted(found, key=lambda pair: (-pair[1], pair[0].encode()))
        room = None if encoding.max_size is None else max(encoding.max_size - len(known), 0)
        kept_tokens = sorted((token for token, _ in ranked[:room]), key=str.encode)
        vocabularies |= {f.name: list(kept_tokens) for f in schema.tables[schema.sparse[number].table_name]}
    return vocabularies


def _fit_quantiles(train: DataFrame, schema: FeatureSchema) -> dict[str, list[float]]:
    """Exact quantiles: boundary k of B is the value at rank floor(k * rows / B) of the sorted ones, from 0."""
    buckets = {
        n: f.encoding.num_buckets for n, f in enumerate(schema.sparse) if isinstance(f.encoding, QuantilesEncoding)
    }
    if not buckets:
        return {}
    sizes = F.lit(None).cast("bigint")
    for number, size in buckets.items():
        sizes = F.when(F.col("feature") == number, F.lit(size)).otherwise(sizes)
    values = train.filter(F.col("feature").isin(list(buckets)) & F.col("number").isNotNull())
    whole = Window.partitionBy("feature")
    upto = whole.orderBy("number").rowsBetween(Window.unboundedPreceding, Window.currentRow)
    ranked = values.select(
        "feature",
        "number",
        sizes.alias("buckets"),
        F.sum("count").over(upto).alias("until"),
        (F.sum("count").over(upto) - F.col("count")).alias("since"),
        F.sum("count").over(whole).alias("total"),
    )
    # A value covers ranks [since, until): it is a boundary if floor(k * total / B) lies there for a k in 1 .. B - 1.
    first, last = "(since * buckets + total - 1) div total", "(until * buckets - 1) div total"
    found = ranked.filter(f"greatest({first}, 1) <= least({last}, buckets - 1)").select("feature", "number")
    boundaries: dict[str, list[float]] = {schema.sparse[n].name: [] for n in buckets}
    for feature, number in found.collect():
        boundaries[schema.sparse[feature].name].append(number)
    return {name: sorted(values) for name, values in boundaries.items()}


def _fit_moments(train: DataFrame, schema: FeatureSchema) -> dict[str, tuple[float, float]]:
    features = [f for f in schema.dense if f.standardise]
    if not features:
        return {}
    sums = [F.avg(transformed(f)).alias(f"mean:{f.name}") for f in features]
    sums += [F.stddev_pop(transformed(f)).alias(f"deviation:{f.name}") for f in features]
    row = train.agg(*sums).collect()[0]
    return {f.name: (rounded(row[f"mean:{f.name}"]), rounded(row[f"deviation:{f.name}"])) for f in features}
