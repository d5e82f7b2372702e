"""Encode raw rows to ids and floats with Spark SQL functions alone: the twin of ``features.encoding.RowEncoder``.

It goes in two steps, because vocabularies lie between them: ``prepare_rows`` checks a row and reduces each value to
what its encoding looks at (a hash, a token, a number); ``encode`` turns that into an id once everything is learnt.
"""

import json
import math
from collections.abc import Callable

import pyarrow
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.types import DataType

from features.hashing import MISSING_ID, hash_text
from features.kinds import BAG_KIND, SINGLE_KIND
from features.learnt import Learnt
from features.schema import BUCKET_KINDS, DenseFeature, FeatureSchema, HashEncoding, SparseFeature
from pipeline.build.ingest import FILE, LINE, REASON, ROW_ID, SPLIT, listed, plain_path, raw
from pipeline.build.split import split_of
from pipeline.build.values import (
    is_bad_list,
    is_bad_number,
    is_bad_text,
    loose_text_of,
    number_of,
    seconds_of,
    text_of,
    tokens_of,
)
from pipeline.config import HashSplit, PipelineConfig

RawValue = Callable[[str], tuple[Column, DataType]]
"""Name of a raw column -> its values and their type."""

DUPLICATE = "row:duplicate"
_DEDUPE = "row:dedupe"
_TIE = "row:hash"
_TOKENS_PER_BUCKET = 4
_MAX_LITERAL_TOKENS = 10_000
"""A larger vocabulary of a single-valued feature is joined; a smaller one is looked up without a join of its own."""


def sparse(name: str) -> str:
    """Name the column of prepared rows that holds a sparse feature; its type is ``prepared_kind``."""
    return f"sparse:{name}"


def dense(name: str) -> str:
    """Name the column of prepared rows that holds a dense feature's raw number (double, null when missing)."""
    return f"dense:{name}"


def dropped(name: str) -> str:
    """Name the column of prepared rows that counts the values which a feature lost to max_length."""
    return f"dropped:{name}"


def prepared_kind(feature: SparseFeature) -> str:
    """Name the type of a prepared value: ``hash`` (bigint), ``text`` or ``number`` (double); arrays if multi-valued."""
    return {"hash": "hash", "vocabulary": "text"}.get(feature.encoding.kind, "number")


# -------------------------------------------------------------------------------------------------------------- prepare


def prepare_rows(frames: list[DataFrame], schema: FeatureSchema, config: PipelineConfig) -> DataFrame:
    """Check each raw row and reduce it to what is needed of it.

    Returns:
        ``row:id``, ``row:split``, ``row:reason`` (null for a good row; else ``row:file`` and ``row:line`` are kept),
        ``row:duplicate``, ``label``, ``weight``, ``group_id``, ``timestamp``, ``sparse:NAME``, ``dense:NAME``,
        ``dropped:NAME`` and the carried columns.
    """
    prepared = [_prepare(frame, schema, config) for frame in frames]
    rows = prepared[0]
    for other in prepared[1:]:
        rows = rows.unionByName(other)
    if not config.dedupe:
        return rows.withColumn(DUPLICATE, F.lit(False))
    return _mark_duplicates(rows, bool(schema.timestamp))


def _prepare(frame: DataFrame, schema: FeatureSchema, config: PipelineConfig) -> DataFrame:
    types = {field.name: field.dataType for field in frame.schema.fields}

    def value(name: str) -> tuple[Column, DataType]:
        return F.col(raw(name)), types[raw(name)]

    label = schema.label_rule
    bucketed = [f.columns[0] for f in schema.sparse if prepared_kind(f) == "number"]
    numbers = list(dict.fromkeys([*bucketed, *(f.source for f in schema.dense), label.column]))
    numbers += [schema.weight] if schema.weight and schema.weight not in numbers else []
    time = schema.timestamp
    seconds = seconds_of(*value(time.column), time.format) if time else F.lit(None).cast("bigint")
    # Numbers and times are columns of their own first, so that they are parsed once.
    parsed = frame.select(
        "*", seconds.alias("seconds"), *(number_of(*value(name)).alias(f"number:{name}") for name in numbers)
    )
    if config.input.times is not None:
        first, end = config.input.times
        parsed = parsed.filter((F.col("seconds") >= first) & (F.col("seconds") < end))
    reasons = [F.col(REASON)]
    reasons += [
        F.when(is_bad_number(*value(name), F.col(f"number:{name}")), f"column {name!r} is not a number")
        for name in numbers
    ]
    reasons += [
        F.when(bad, f"column {name!r} has a fraction: it cannot be a category")
        for name, bad in _bad_texts(schema, value)
    ]
    reasons += _bad_row(schema)
    columns = [F.col(ROW_ID), _split(schema, config, value).alias(SPLIT), F.coalesce(*reasons).alias(REASON)]
    columns += [F.col(FILE), F.col(LINE), *_row_columns(schema, value)]
    for feature in schema.sparse:
        columns += _prepare_sparse(feature, value, types)
    columns += [F.col(f"number:{f.source}").alias(dense(f.name)) for f in schema.dense]
    if config.dedupe:
        key = F.array(*(loose_text_of(*value(name)) for name in config.dedupe))
        columns += [key.alias(_DEDUPE), F.xxhash64(LINE).alias(_TIE)]
    rows = parsed.select(*columns)
    rejected = F.col(REASON).isNotNull()
    return rows.withColumns({FILE: F.when(rejected, plain_path(F.col(FILE))), LINE: F.when(rejected, F.col(LINE))})


def _split(schema: FeatureSchema, config: PipelineConfig, value: RawValue) -> Column:
    whole_row = F.col(LINE)
    if isinstance(config.split, HashSplit) and config.split.column:
        whole_row = loose_text_of(*value(config.split.column))
    return split_of(config, F.col(SPLIT), F.col("seconds"), whole_row)


def _bad_texts(schema: FeatureSchema, value: RawValue) -> list[tuple[str, Column]]:
    lists = {f.columns[0] for f in schema.sparse if f.kind.takes_lists}
    texts = {c for f in schema.sparse if prepared_kind(f) in ("hash", "text") for c in f.columns}
    texts |= {schema.group_id} if schema.group_id else set()
    return [(name, is_bad_list(*value(name)) if name in lists else is_bad_text(*value(name))) for name in sorted(texts)]


def _bad_row(schema: FeatureSchema) -> list[Column]:
    """Reasons to reject a row for its label, weight or time."""
    label = schema.label_rule
    number = F.col(f"number:{label.column}")
    reasons = [F.when(number.isNull(), f"label {label.column!r} is missing")]
    if label.op is None:
        reasons.append(F.when(~number.isin(0.0, 1.0), f"label {label.column!r} is not 0 or 1"))
    if schema.weight:
        weight = F.col(f"number:{schema.weight}")
        reasons.append(F.when(weight.isNull(), f"weight {schema.weight!r} is missing"))
        reasons.append(F.when(weight < 0, f"weight {schema.weight!r} is negative"))
    if schema.timestamp:
        name = schema.timestamp.column
        reasons.append(F.when(F.col("seconds").isNull(), f"timestamp {name!r} is missing or unreadable"))
    return reasons


def _row_columns(schema: FeatureSchema, value: RawValue) -> list[Column]:
    rule = schema.label_rule
    label = F.col(f"number:{rule.column}")
    if rule.op is not None:
        bound = F.lit(rule.value)
        compared = {
            ">=": label >= bound,
            "<=": label <= bound,
            "==": label == bound,
            "!=": label != bound,
            ">": label > bound,
            "<": label < bound,
        }
        label = compared[rule.op]
    columns = [label.cast("float").alias("label")]
    if schema.weight:
        columns.append(F.col(f"number:{schema.weight}").cast("float").alias("weight"))
    if schema.group_id:
        text = text_of(*value(schema.group_id))
        columns.append(F.when(text.isNull(), F.lit(0)).otherwise(F.xxhash64(text)).cast("bigint").alias("group_id"))
    if schema.timestamp:
        columns.append(F.col("seconds").alias("timestamp"))
    return columns + [loose_text_of(*value(name)).alias(name) for name in schema.carry]


def _prepare_sparse(feature: SparseFeature, value: RawValue, types: dict[str, DataType]) -> list[Column]:
    if prepared_kind(feature) == "number":
        return [F.col(f"number:{feature.columns[0]}").alias(sparse(feature.name))]
    salt = F.lit(feature.salt) if isinstance(feature.encoding, HashEncoding) else None
    return _PREPARE[feature.kind](feature, value, salt, types)


def _prepare_bag(
    feature: SparseFeature, value: RawValue, salt: Column | None, types: dict[str, DataType]
) -> list[Column]:
    assert feature.separator is not None
    tokens, list_name = tokens_of(*value(feature.columns[0]), feature.separator), listed(feature.columns[0])
    if list_name in types:  # JSON lines: the value is text in some rows and an array in others
        array = tokens_of(F.col(list_name), types[list_name], feature.separator)
        tokens = F.when(F.col(list_name).isNotNull(), array).otherwise(tokens)
    kept = F.slice(tokens, 1, feature.max_length)
    if salt is not None:
        kept = F.transform(kept, lambda token: F.xxhash64(salt, token))
    lost = F.greatest(F.size(tokens) - feature.max_length, F.lit(0))
    return [kept.alias(sparse(feature.name)), lost.alias(dropped(feature.name))]


def _prepare_single(
    feature: SparseFeature, value: RawValue, salt: Column | None, types: dict[str, DataType]
) -> list[Column]:
    texts: list[Column] = [text_of(*value(name)) for name in feature.columns]
    if salt is None:
        return [texts[0].alias(sparse(feature.name))]
    filled: list[Column] = [F.coalesce(text, F.lit("")) for text in texts]
    known = F.xxhash64(salt, *filled)
    return [F.when(F.coalesce(*texts).isNotNull(), known).alias(sparse(feature.name))]


_PREPARE = {SINGLE_KIND: _prepare_single, BAG_KIND: _prepare_bag}


def _mark_duplicates(rows: DataFrame, has_time: bool) -> DataFrame:
    """Mark all but the earliest of the good rows with equal keys; of equal times, the line's smallest hash wins."""
    order = (["timestamp"] if has_time else []) + [_TIE, ROW_ID]
    good = F.col(REASON).isNull()
    # Rejected rows are a window of their own each, so that they neither win nor count.
    window = Window.partitionBy(_DEDUPE, F.when(~good, F.col(ROW_ID))).orderBy(*order)
    later = F.row_number().over(window) > 1
    return rows.withColumn(DUPLICATE, good & later).drop(_DEDUPE, _TIE)


# --------------------------------------------------------------------------------------------------------------- encode


def encode(spark: SparkSession, rows: DataFrame, schema: FeatureSchema, learnt: Learnt) -> DataFrame:
    """Turn prepared rows into the columns of the Parquet files; ``row:id`` and ``row:split`` stay."""
    for feature in schema.sparse:
        if not feature.kind.is_array and len(learnt.vocabularies.get(feature.name, ())) > _MAX_LITERAL_TOKENS:
            rows = _join_vocabulary(spark, rows, feature, learnt.ids_of(feature.name))
    columns = [F.col(ROW_ID), F.col(SPLIT)]
    for feature in schema.sparse:
        encoded = _ENCODE[feature.kind](feature, learnt)
        for column, values in zip(feature.kind.columns(feature), encoded, strict=True):
            columns.append(values.cast("array<int>" if column.shape else "int").alias(column.name))
    columns += [_dense_value(feature, learnt).cast("float").alias(feature.name) for feature in schema.dense]
    columns.append(F.col("label"))
    present = {"weight": schema.weight, "group_id": schema.group_id, "timestamp": schema.timestamp}
    columns += [F.col(name) for name, declared in present.items() if declared]
    return rows.select(*columns, *schema.carry)


def _hash_id(hashed: Column, num_buckets: int) -> Column:
    return F.lit(1) + F.pmod(hashed, F.lit(num_buckets - 1))


def _single_id(feature: SparseFeature, learnt: Learnt) -> Column:
    value = F.col(sparse(feature.name))
    if isinstance(feature.encoding, HashEncoding):
        return F.coalesce(_hash_id(value, feature.encoding.num_buckets), F.lit(MISSING_ID))
    if feature.encoding.kind in BUCKET_KINDS:
        index = count_at_or_below(value, learnt.boundaries_of(feature))
        return F.when(value.isNull(), F.lit(MISSING_ID)).otherwise(index + 1)
    if len(learnt.vocabularies[feature.name]) > _MAX_LITERAL_TOKENS:
        return F.coalesce(F.col(f"id:{feature.name}"), F.lit(learnt.oov_id(feature.name)))
    return _lookup(feature, learnt)(_token(feature))


def _token(feature: SparseFeature) -> Column:
    value = F.col(sparse(feature.name))
    return log_squared_column(value) if feature.encoding.kind == "log_squared" else value


def _join_vocabulary(spark: SparkSession, rows: DataFrame, feature: SparseFeature, ids: dict[str, int]) -> DataFrame:
    table = pyarrow.table({"token": pyarrow.array(list(ids), pyarrow.string()), "id": list(ids.values())})
    side = spark.createDataFrame(table)  # pyright: ignore[reportArgumentType]
    side = F.broadcast(side.select("token", F.col("id").cast("int").alias(f"id:{feature.name}")))
    return rows.join(side, _token(feature) == side["token"], "left").drop("token")


def log_squared_column(number: Column) -> Column:
    """Compute the token of the Criteo rule (bigint as text); null beyond 2^63, which no vocabulary holds."""
    log = F.log(number)
    squared = F.floor(log * log).cast("bigint")
    truncated = F.when(number >= 0, F.floor(number)).otherwise(F.ceil(number))
    small = F.when(F.abs(number) < F.lit(2.0**62), truncated)
    return F.when(number.isNull(), "0").when(number > 2, squared.cast("string")).otherwise(small.cast("string"))


def count_at_or_below(value: Column, boundaries: tuple[float, ...]) -> Column:
    """Count the rising ``boundaries`` at or below ``value``: a binary search as nested CASE."""

    def search(low: int, high: int) -> Column:
        if low == high:
            return F.lit(low)
        middle = (low + high) // 2
        return F.when(value >= F.lit(boundaries[middle]), search(middle + 1, high)).otherwise(search(low, middle))

    return search(0, len(boundaries))


def _list_ids(feature: SparseFeature, learnt: Learnt) -> Column:
    values = F.col(sparse(feature.name))
    if isinstance(feature.encoding, HashEncoding):
        num_buckets = feature.encoding.num_buckets
        return F.transform(values, lambda hashed: _hash_id(hashed, num_buckets).cast("int"))
    return F.transform(values, _lookup(feature, learnt))


def _encode_single(feature: SparseFeature, learnt: Learnt) -> list[Column]:
    return [_single_id(feature, learnt)]


def _encode_bag(feature: SparseFeature, learnt: Learnt) -> list[Column]:
    ids = _list_ids(feature, learnt)
    padding = F.array_repeat(F.lit(MISSING_ID), F.lit(feature.max_length) - F.size(ids))
    return [F.concat(ids, padding), F.size(sparse(feature.name))]


_ENCODE = {SINGLE_KIND: _encode_single, BAG_KIND: _encode_bag}
"""Kind -> its columns in the files; with ``_PREPARE`` what Spark knows of kinds."""


def _lookup(feature: SparseFeature, learnt: Learnt) -> Callable[[Column], Column]:
    """A function token -> id (int) whose vocabulary is one literal: an array of small maps, a hash table.

    The tokens of an array cannot be joined, and a lookup in one large map would walk through all of it.
    """
    ids, unknown = learnt.ids_of(feature.name), F.lit(learnt.oov_id(feature.name))
    if not ids:
        return lambda _: unknown
    num_buckets = math.ceil(len(ids) / _TOKENS_PER_BUCKET)
    buckets: list[dict[str, int]] = [{} for _ in range(num_buckets)]
    for token, number in ids.items():
        buckets[hash_text([token]) % num_buckets][token] = number
    # from_json of a literal is folded into a literal before the job runs.
    text = json.dumps(buckets, ensure_ascii=False, separators=(",", ":"))
    table = F.from_json(F.lit(text), "array<map<string,int>>")

    def id_of(token: Column) -> Column:
        bucket = F.get(table, F.pmod(F.xxhash64(token), F.lit(num_buckets)).cast("int"))
        return F.coalesce(F.try_element_at(bucket, token), unknown)

    return id_of


def transformed(feature: DenseFeature) -> Column:
    """Apply fill, clip and log1p to a dense feature; standardising comes later (double)."""
    value = F.coalesce(F.col(dense(feature.name)), F.lit(feature.fill))
    if feature.clip is not None:
        value = F.least(F.greatest(value, F.lit(feature.clip[0])), F.lit(feature.clip[1]))
    if feature.log1p:
        logarithm = F.log1p(F.abs(value))
        value = F.when(value < 0, -logarithm).otherwise(logarithm)
    return value


def _dense_value(feature: DenseFeature, learnt: Learnt) -> Column:
    value = transformed(feature)
    if not feature.standardise:
        return value
    mean, deviation = learnt.moments[feature.name]
    return (value - F.lit(mean)) / F.lit(deviation) if deviation > 0 else F.lit(0.0)
