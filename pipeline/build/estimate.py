"""Statistics of features that nothing is learnt from, estimated where counting their values would dominate a build.

A vocabulary has to count every value. A hashed or a bucketed feature does not: exact counts of its values would shuffle
each row once a feature, only for four numbers that a person looks at.
"""

from collections.abc import Collection

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from features.disk.dataset import FeatureStatistics
from features.schema import VOCABULARY_KINDS, FeatureSchema, HashEncoding
from pipeline.build.encode import sparse
from pipeline.build.ingest import ROW_ID, SPLIT
from pipeline.build.quality import Profile
from pipeline.build.vocabulary import count_values

EXACT_ROWS = 200_000
"""Number of good rows up to which every value is counted; above it, head shares come from a sample of that size."""
RELATIVE_ERROR = 0.016
"""Standard deviation of an estimated cardinality (a HyperLogLog sketch of 4,096 registers), relative to it."""
_LEARNT = (*VOCABULARY_KINDS, "quantiles")


def features_to_estimate(schema: FeatureSchema, seen: Profile) -> list[str]:
    """List the features of one value a row that nothing is learnt from, if there are more than ``EXACT_ROWS`` rows."""
    if sum(seen.rows.values()) <= EXACT_ROWS:
        return []
    return [f.name for f in schema.sparse if f.encoding.kind not in _LEARNT and not f.kind.is_array]


def estimate_statistics(
    rows: DataFrame, schema: FeatureSchema, features: Collection[str], seen: Profile
) -> dict[str, dict[str, FeatureStatistics]]:
    """Estimate split -> feature -> statistics, without ``max_id``; null rates are exact.

    Args:
        rows: good prepared rows.
        features: names, from ``features_to_estimate``.
    """
    if not features:
        return {}
    encodings = {f.name: f.encoding for f in schema.sparse}
    columns = []
    for name in features:
        value = F.col(sparse(name))
        columns += [F.count(value).alias(f"values:{name}")]
        # A sketch takes no doubles; -0.0 is the same value as 0.0. (approx_count_distinct is ten times slower.)
        entry = value if encodings[name].kind == "hash" else F.when(value.isNotNull(), F.xxhash64(value + F.lit(0.0)))
        columns += [F.hll_sketch_estimate(F.hll_sketch_agg(entry, 12)).alias(f"distinct:{name}")]
    heads = _head_shares(rows, schema, features, seen)
    statistics: dict[str, dict[str, FeatureStatistics]] = {}
    for group in rows.groupBy(SPLIT).agg(*columns).collect():
        split = group[SPLIT]
        statistics[split] = {}
        for name in features:
            encoding, cardinality = encodings[name], group[f"distinct:{name}"] or 0
            hashed = isinstance(encoding, HashEncoding)
            statistics[split][name] = FeatureStatistics(
                cardinality=cardinality,
                null_rate=1 - group[f"values:{name}"] / seen.rows[split],
                oov_rate=0.0,
                head_share=heads.get((split, name), 0.0),
                max_id=0,
                collision_rate=expected_collision_rate(cardinality, encoding.num_buckets - 1) if hashed else None,
                is_estimated=True,
            )
    return statistics


def expected_collision_rate(cardinality: int, num_ids: int) -> float:
    """Compute the expected share of ``cardinality`` values, hashed uniformly to ``num_ids`` ids, that share an id."""
    return 1 - (1 - 1 / num_ids) ** (cardinality - 1) if cardinality else 0.0


def _head_shares(
    rows: DataFrame, schema: FeatureSchema, features: Collection[str], seen: Profile
) -> dict[tuple[str, str], float]:
    """(split, feature) -> share of the most frequent value among the values present, in a sample of whole rows."""
    one_in = sum(seen.rows.values()) // EXACT_ROWS
    # By a hash of the row's own number: the same sample in every run, whatever the partitions.
    sample = rows.filter(F.pmod(F.xxhash64(F.lit("sample"), ROW_ID), F.lit(one_in)) == 0)
    present = F.col("hash").isNotNull() | F.col("number").isNotNull()
    counts = count_values(sample, schema, features).filter(present)
    shares = counts.groupBy("split", "feature").agg((F.max("count") / F.sum("count")).alias("share"))
    return {(row["split"], schema.sparse[row["feature"]].name): row["share"] for row in shares.collect()}
