"""Data quality: rejected rows, statistics of every feature, and their limits."""

from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from features.disk.dataset import SPLITS, DatasetError, DenseStatistics, FeatureStatistics
from features.learnt import Learnt
from features.rawlog import LogFormat
from features.schema import VOCABULARY_KINDS, FeatureSchema, HashEncoding
from pipeline.build.encode import DUPLICATE, dense, dropped
from pipeline.build.ingest import FILE, LINE, REASON, ROW_ID, SPLIT
from pipeline.build.sources import find_line
from pipeline.build.vocabulary import rounded, token_of
from pipeline.config import QualityConfig, QualityLimits


@dataclass(frozen=True)
class Profile:
    """Counts over all input rows, and sums over the good ones."""

    num_input_rows: int
    num_duplicates: int
    reasons: dict[str, int]
    """Why rows were rejected -> how many."""
    rows: dict[str, int]
    """Split -> good rows; splits without any are left out."""
    label_rates: dict[str, float]
    dense: dict[str, dict[str, DenseStatistics]]
    truncated: dict[str, dict[str, int]]
    """Split -> multi-valued feature -> values dropped."""

    @property
    def num_rejected(self) -> int:
        """Number of rejected rows."""
        return sum(self.reasons.values())


def profile(prepared: DataFrame, schema: FeatureSchema) -> Profile:
    """Count all prepared rows in one pass, rejected rows and duplicates included."""
    columns = [F.count("*").alias("rows"), F.avg(F.col("label").cast("double")).alias("label")]
    for feature in schema.dense:
        value = F.col(dense(feature.name))
        columns += [
            make(value).alias(f"{name}:{feature.name}")
            for name, make in (
                ("count", F.count),
                ("mean", F.avg),
                ("deviation", F.stddev_pop),
                ("minimum", F.min),
                ("maximum", F.max),
            )
        ]
    lists = [f.name for f in schema.sparse if f.kind.takes_lists]
    columns += [F.sum(dropped(name)).alias(f"dropped:{name}") for name in lists]
    groups = prepared.groupBy(SPLIT, REASON, DUPLICATE).agg(*columns).collect()
    good = {g[SPLIT]: g for g in groups if g[REASON] is None and not g[DUPLICATE]}
    splits = [name for name in SPLITS if name in good]
    reasons: dict[str, int] = {}
    for group in groups:
        if group[REASON] is not None:
            reasons[group[REASON]] = reasons.get(group[REASON], 0) + group["rows"]
    return Profile(
        num_input_rows=sum(g["rows"] for g in groups),
        num_duplicates=sum(g["rows"] for g in groups if g[DUPLICATE]),
        reasons=dict(sorted(reasons.items())),
        rows={name: good[name]["rows"] for name in splits},
        label_rates={name: rounded(good[name]["label"]) for name in splits},
        dense={name: {f.name: _dense_statistics(good[name], f.name) for f in schema.dense} for name in splits},
        truncated={name: {feature: good[name][f"dropped:{feature}"] or 0 for feature in lists} for name in splits},
    )


def _dense_statistics(group: Any, name: str) -> DenseStatistics:
    return DenseStatistics(
        null_rate=1 - group[f"count:{name}"] / group["rows"],
        mean=rounded(group[f"mean:{name}"]),
        standard_deviation=rounded(group[f"deviation:{name}"]),
        minimum=float(group[f"minimum:{name}"] or 0.0),
        maximum=float(group[f"maximum:{name}"] or 0.0),
    )


# ------------------------------------------------------------------------------------------------------------- rejected


def check_rejected(prepared: DataFrame, seen: Profile, config: QualityConfig, log_format: LogFormat) -> None:
    """Refuse an input with too many malformed rows, or with no training row left.

    Raises:
        DatasetError: names the first malformed rows by file, line and reason.
    """
    if not seen.num_input_rows:
        raise DatasetError("the input files have no rows")
    if seen.num_rejected > config.max_rejected_fraction * seen.num_input_rows:
        first = prepared.filter(F.col(REASON).isNotNull()).orderBy(ROW_ID).select(FILE, LINE, REASON).take(3)
        raise DatasetError(
            f"{seen.num_rejected:,} of {seen.num_input_rows:,} rows "
            f"({seen.num_rejected / seen.num_input_rows:.2%}) are malformed, more than "
            f"pipeline.quality.max_rejected_fraction = {config.max_rejected_fraction:g} allows. First: "
            + "; ".join(_describe(row[FILE], row[LINE], row[REASON], log_format) for row in first)
        )
    if not seen.rows.get("train"):
        raise DatasetError("no row is left for the training split: see pipeline.input.train and pipeline.split")


def _describe(file: str, line: str, reason: str, log_format: LogFormat) -> str:
    number = find_line(file, log_format, line)
    place = f"{file} line {number}" if number else file
    return f"{place}: {reason}: {line[:120]!r}"


def write_rejected(prepared: DataFrame, folder: Path) -> None:
    """Write malformed rows as JSON lines {file, line, reason}, in the order of the input."""
    rejected = prepared.filter(F.col(REASON).isNotNull()).select(
        ROW_ID, F.col(FILE).alias("file"), F.make_valid_utf8(LINE).alias("line"), F.col(REASON).alias("reason")
    )
    ordered = rejected.repartition(1).sortWithinPartitions(ROW_ID).drop(ROW_ID)
    ordered.write.mode("overwrite").json(f"file://{folder}")
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            path.rename(folder / "rejected.jsonl")
        else:
            path.unlink()


# ----------------------------------------------------------------------------------------------------------- statistics


def sparse_statistics(
    spark: SparkSession, counts: DataFrame, schema: FeatureSchema, learnt: Learnt, seen: Profile
) -> dict[str, dict[str, FeatureStatistics]]:
    """Compute split -> feature -> statistics, without ``max_id``, which is read from the written files."""
    present = F.coalesce(F.col("hash").cast("string"), F.col("text"), F.col("number").cast("string")).isNotNull()
    kept = _vocabulary_table(spark, schema, learnt)
    marked = counts.withColumn("present", present).withColumn("token", token_of(schema))
    marked = marked.join(F.broadcast(kept), ["feature", "token"], "left")
    groups = marked.groupBy("split", "feature").agg(
        F.sum(F.when(~F.col("present"), F.col("count")).otherwise(0)).alias("missing"),
        F.sum(F.when(F.col("present"), F.col("count")).otherwise(0)).alias("values"),
        F.count_if(F.col("present")).alias("cardinality"),
        F.max(F.when(F.col("present"), F.col("count"))).alias("head"),
        F.sum(F.when(F.col("present") & F.col("known").isNull(), F.col("count")).otherwise(0)).alias("unknown"),
    )
    collisions = _collisions(counts, schema)
    statistics: dict[str, dict[str, FeatureStatistics]] = {name: {} for name in seen.rows}
    for group in groups.collect():
        split, feature = group["split"], schema.sparse[group["feature"]]
        shared = collisions.get((split, group["feature"]), 0)
        has_vocabulary = feature.encoding.kind in VOCABULARY_KINDS
        statistics[split][feature.name] = FeatureStatistics(
            cardinality=group["cardinality"],
            null_rate=group["missing"] / seen.rows[split],
            oov_rate=group["unknown"] / group["values"] if has_vocabulary and group["values"] else 0.0,
            head_share=group["head"] / group["values"] if group["values"] else 0.0,
            max_id=0,
            collision_rate=shared / max(group["cardinality"], 1)
            if isinstance(feature.encoding, HashEncoding)
            else None,
            num_truncated=seen.truncated[split].get(feature.name, 0),
        )
    return statistics


def _vocabulary_table(spark: SparkSession, schema: FeatureSchema, learnt: Learnt) -> DataFrame:
    numbers = {f.name: n for n, f in enumerate(schema.sparse)}
    features = [numbers[name] for name, tokens in learnt.vocabularies.items() for _ in tokens]
    tokens = [token for tokens in learnt.vocabularies.values() for token in tokens]
    columns = [pyarrow.array(features, pyarrow.int32()), pyarrow.array(tokens, pyarrow.string())]
    table = pyarrow.table(columns, names=["feature", "token"])
    return spark.createDataFrame(table).withColumn("known", F.lit(True))  # pyright: ignore[reportArgumentType]


def _collisions(counts: DataFrame, schema: FeatureSchema) -> dict[tuple[str, int], int]:
    """(split, feature) -> distinct values whose id is shared."""
    num_buckets = F.lit(None).cast("bigint")
    for number, feature in enumerate(schema.sparse):
        if isinstance(feature.encoding, HashEncoding):
            size = F.lit(feature.encoding.num_buckets)
            num_buckets = F.when(F.col("feature") == number, size).otherwise(num_buckets)
    hashed = counts.filter(F.col("hash").isNotNull())
    by_id = hashed.groupBy("split", "feature", F.pmod(F.col("hash"), num_buckets - 1).alias("id")).count()
    shared = by_id.filter(F.col("count") > 1).groupBy("split", "feature").agg(F.sum("count").alias("shared"))
    return {(row["split"], row["feature"]): row["shared"] for row in shared.collect()}


# --------------------------------------------------------------------------------------------------------------- limits


def beyond_limits(statistics: dict[str, FeatureStatistics], config: QualityConfig) -> list[str]:
    """List the limits that features of the training split exceed, a sentence each."""
    rates = {"max_null_rate": "null_rate", "max_oov_rate": "oov_rate", "max_collision_rate": "collision_rate"}
    found = []
    for name, values in statistics.items():
        own = config.features.get(name, QualityLimits())
        for limit in fields(QualityLimits):  # pyright: ignore[reportArgumentType]
            bound = getattr(own, limit.name)
            bound = getattr(config.limits, limit.name) if bound is None else bound
            rate = getattr(values, rates[limit.name])
            if bound is not None and rate is not None and rate > bound:
                found.append(f"feature {name!r}: {rates[limit.name]} {rate:.4f} is beyond {limit.name} = {bound:g}")
    return found


def enforce_limits(statistics: dict[str, FeatureStatistics], config: QualityConfig) -> list[str]:
    """Collect warnings about features that exceed their limits.

    Raises:
        DatasetError: there are any and ``pipeline.quality.action`` is ``fail``.
    """
    found = beyond_limits(statistics, config)
    if found and config.action == "fail":
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        raise DatasetError("; ".join(islice(found, 5)) + more)
    return found
