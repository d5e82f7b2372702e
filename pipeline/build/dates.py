"""Dates: number of rows of each raw file for each hour, day or month, by the timestamp in the row.

Rows that have no readable time belong to no date; they are written aside with their file, line and reason.
"""

from collections import defaultdict
from pathlib import Path
from typing import Literal

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from features.disk.dataset import DatasetError
from features.schema import FeatureSchema
from pipeline.build.ingest import FILE, LINE, REASON, ROW_ID, plain_path, raw, read_logs
from pipeline.build.quality import write_rejected
from pipeline.build.sources import InputPlan
from pipeline.build.values import seconds_of
from pipeline.config import UNDATED, PipelineConfig
from pipeline.session import SPARK_ERRORS, configure, explain, size_shuffles

Span = Literal["hour", "day", "month"]
PATTERNS: dict[Span, str] = {"hour": "yyyyMMddHH", "day": "yyyyMMdd", "month": "yyyyMM"}
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_370_764_799
"""First and last second of the years 1 to 9998, which Python's calendar can exceed by a month."""


def count_dates(
    spark: SparkSession, schema: FeatureSchema, pipeline: PipelineConfig, plan: InputPlan, span: Span, undated: Path
) -> dict[str, dict[str, int]]:
    """Count the rows of each date, in one pass over the raw files.

    Args:
        span: what a date is: 2014102807, 20141028 or 201410, in UTC.
        undated: folder to write the rows without a readable time to; it is not made where there are none.

    Returns:
        File -> date -> rows; ``UNDATED`` -> rows without one. Every row of a file counts once.

    Raises:
        LogError, DatasetError: one sentence about what is wrong with the input or the disk.
    """
    assert schema.timestamp is not None
    configure(spark, pipeline.spark)
    size_shuffles(spark, plan.num_bytes())
    try:
        rows = _dated(read_logs(spark, pipeline, schema, plan), schema, span)
        counts: dict[str, dict[str, int]] = defaultdict(dict)
        for group in rows.groupBy(FILE, "date").count().collect():
            counts[group[FILE]][group["date"]] = group["count"]
        if any(UNDATED in dates for dates in counts.values()):
            write_rejected(rows, undated)
    except SPARK_ERRORS as error:
        raise DatasetError(explain(error, undated)) from error
    return dict(counts)


def _dated(frames: list[DataFrame], schema: FeatureSchema, span: Span) -> DataFrame:
    """``row:id``, ``row:file``, ``row:line``, ``row:reason`` (why a row has no date, else null) and ``date``."""
    time = schema.timestamp
    assert time is not None
    dated = None
    for frame in frames:
        seconds = seconds_of(F.col(raw(time.column)), frame.schema[raw(time.column)].dataType, time.format)
        rows = frame.select(ROW_ID, plain_path(F.col(FILE)).alias(FILE), LINE, REASON, seconds.alias("seconds"))
        dated = rows if dated is None else dated.unionByName(rows)
    assert dated is not None
    known = F.col("seconds").between(_FIRST_SECOND, _LAST_SECOND) & F.col(REASON).isNull()
    unreadable = F.lit(f"timestamp {time.column!r} is missing or unreadable")
    date = F.date_format(F.timestamp_seconds(F.when(known, F.col("seconds"))), PATTERNS[span])
    dated = dated.withColumn("date", F.coalesce(date, F.lit(UNDATED)))
    return dated.withColumn(REASON, F.when(F.col("date") == UNDATED, F.coalesce(F.col(REASON), unreadable)))
