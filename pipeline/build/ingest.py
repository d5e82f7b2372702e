"""Read raw files into DataFrames: each line becomes one row; a malformed row keeps its line and a reason.

Text is read as whole lines and cut with Spark SQL functions, because Spark's own CSV and JSON readers drop, pad or
silently null what they cannot read.
"""

from functools import reduce

import pyarrow
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, MapType, StringType, StructField, StructType

from features.encoding import to_text
from features.rawlog import MAX_LINE, TOO_LONG, LogError, LogFormat, Lookup
from features.schema import FeatureSchema
from pipeline.build.sources import InputPlan, LookupTable, Source
from pipeline.build.values import SCALAR_TYPES, TIME_TYPES, loose_text_of, regex_literal
from pipeline.config import PipelineConfig

ROW_ID, SPLIT, FILE, LINE, REASON = "row:id", "row:split", "row:file", "row:line", "row:reason"
"""Columns of every row; the colon keeps them apart from feature names."""

WRONG_COLUMNS = "wrong number of columns"
BADLY_QUOTED = "badly quoted"
NOT_JSON = "not a JSON object"
NOT_UTF8 = "not UTF-8 text"

_SOURCE_BITS = 48
"""Row ids: number of the source above, Spark's partition and row number (33 bits) below."""
_JSON_NUMBER = (
    r'\G((?:[^"\d-]|"(?:[^"\\]|\\.)*+")*+)'  # from the last match on, anything else: strings as a whole
    r"(-?(?:0|[1-9]\d*+)(?:\.\d++)?+(?:[eE][+-]?\d++)?+)(?![\w.+-]|\s*+:)"
)
"""A bare number, quoted before Spark sees it, because Spark would write 1.50 as 1.5 and its id would change."""
_JSON_OPTIONS = {
    "mode": "PERMISSIVE",
    "columnNameOfCorruptRecord": "corrupt",
    "allowSingleQuotes": "false",
    "allowNonNumericNumbers": "false",
}


def raw(name: str) -> str:
    """Name the column with the raw value of ``name``; null when missing."""
    return f"raw:{name}"


def listed(name: str) -> str:
    """Name the column with the values of a JSON array (array<string>), null where ``name`` is no array."""
    return f"list:{name}"


def read_logs(spark: SparkSession, config: PipelineConfig, schema: FeatureSchema, plan: InputPlan) -> list[DataFrame]:
    """Read every source.

    Returns:
        One DataFrame a source with ``row:id`` (bigint, the same in every run), ``row:split``, ``row:file``
        (a URI), ``row:line`` (the raw text), ``row:reason`` (why the line is malformed, else null) and ``raw:NAME`` for
        each raw column.

    Raises:
        LogError: a column is absent from every line, or has a type that no feature can be made of.
    """
    lists = {f.columns[0] for f in schema.sparse if f.kind.takes_lists}
    times = {schema.timestamp.column} if schema.timestamp else set()
    frames = []
    for number, source in enumerate(plan.sources):
        frame = _read_source(spark, source, config.input.format, lists, number)
        _check_types(frame, source, lists, times)
        tables = [plan.tables[n, path] for n, path in enumerate(source.lookups)]
        for lookup, table in zip(config.input.lookups, tables, strict=True):
            frame = _join_lookup(spark, frame, lookup, table)
        frames.append(frame)
    return frames


def _read_source(spark: SparkSession, source: Source, log_format: LogFormat, lists: set[str], number: int) -> DataFrame:
    row_id = F.lit(number << _SOURCE_BITS) + F.monotonically_increasing_id()
    common = [row_id.alias(ROW_ID), F.lit(source.split).alias(SPLIT), F.col("_metadata.file_path").alias(FILE)]
    uris = [_uri(file) for file in source.files]
    if not log_format.is_text:
        return _read_columnar(spark.read.format(log_format.kind).load(uris), common, log_format, source)
    lines = _spread(spark, spark.read.text(uris).select(*common, _decoded(log_format).alias(LINE)), source)
    too_long = (F.octet_length(LINE) > MAX_LINE) & (F.length(LINE) > MAX_LINE)
    invalid = F.when(too_long, TOO_LONG).when(~F.is_valid_utf8(LINE), NOT_UTF8)
    if log_format.kind == "jsonl":
        return _parse_json(lines.filter(F.col(LINE).rlike(r"\S")), source, lists, log_format, invalid)
    lines = lines.filter(F.col(LINE) != "")
    if source.header is not None:
        lines = lines.filter(F.col(LINE) != F.lit(source.header))
    return _parse_delimited(lines, source, log_format, invalid)


def _uri(file: str) -> str:
    """A path as Spark takes it: its globs are ours to expand, so their characters are escaped."""
    return "file://" + "".join(f"\\{c}" if c in "\\{}[]*?" else c for c in file)


def plain_path(uri: Column) -> Column:
    """Convert a file URI of Spark into its path."""
    path = F.regexp_replace(uri, "^file:/*", "/")
    return F.url_decode(F.replace(path, F.lit("+"), F.lit("%2B")))


def _decoded(log_format: LogFormat) -> Column:
    """The line; of one that is too long, the first characters alone, so that nothing else is done with all of it."""
    value = F.col("value")
    value = value if log_format.encoding == "UTF-8" else F.decode(value.cast("binary"), log_format.encoding)
    return F.when(F.octet_length(value) > MAX_LINE, F.substring(value, 1, MAX_LINE + 1)).otherwise(value)


def _spread(spark: SparkSession, lines: DataFrame, source: Source) -> DataFrame:
    """Share the lines of a few gzip files out between all cores: one such file is one task, however large."""
    cores = spark.sparkContext.defaultParallelism
    if cores > 1 and len(source.files) < 2 * cores and all(file.endswith(".gz") for file in source.files):
        return lines.repartition(2 * cores, ROW_ID)  # row ids are given already, so nothing else changes
    return lines


# ---------------------------------------------------------------------------------------------------------- csv and tsv


def _parse_delimited(lines: DataFrame, source: Source, log_format: LogFormat, invalid: Column) -> DataFrame:
    quote, separator = log_format.quote_character, log_format.delimiter
    quoted = F.contains(F.col(LINE), F.lit(quote)) if quote else F.lit(False)
    cut = lines.withColumn("fields", F.when(~quoted, F.split(LINE, regex_literal(separator), -1)))
    wrong_columns = F.size("fields") != len(source.columns)
    values = [F.get("fields", F.lit(i)) for i in range(len(source.columns))]
    if quote:
        well_quoted = F.col(LINE).rlike(_well_quoted(separator, quote))
        cut = cut.withColumn("quoted", quoted)
        cut = cut.withColumn("csv", F.when(F.col("quoted") & well_quoted, _from_csv(source, log_format)))
        badly_quoted = F.col("quoted") & F.col("csv").isNull()
        csv_wrong = F.col("csv").getField("corrupt").isNotNull()
        values = [F.when(F.col("quoted"), F.col("csv").getField(f"c{i}")).otherwise(v) for i, v in enumerate(values)]
        wrong_columns = F.when(F.col("quoted"), csv_wrong).otherwise(wrong_columns)
        invalid = F.coalesce(invalid, F.when(badly_quoted, BADLY_QUOTED))
    reason = F.coalesce(invalid, F.when(wrong_columns, WRONG_COLUMNS))
    named = [_without_nulls(v, log_format).alias(raw(name)) for v, name in zip(values, source.columns, strict=True)]
    return cut.select(ROW_ID, SPLIT, FILE, LINE, reason.alias(REASON), *named)


def _well_quoted(separator: str, quote: str) -> str:
    """A pattern of the lines that Python's strict ``csv.reader`` takes; where quotes mean anything else, it differs."""
    if len(separator) > 1:
        return r"\z\A."  # nothing: as in features.rawlog.split_line, such a line has no clear meaning
    s, q = regex_literal(separator), regex_literal(quote)
    # Possessive quantifiers keep Java's matcher off the stack. Spark's parser takes a NUL for an escape.
    field = f"(?:{q}[^{q}\\x00]*+(?:{q}{q}[^{q}\\x00]*+)*+{q}|(?!{q})[^{s}\\x00]*+)"
    return rf"\A{field}(?:{s}{field})*+\z"


def _from_csv(source: Source, log_format: LogFormat) -> Column:
    fields = [f"c{i} string" for i in range(len(source.columns))]
    options = {
        "sep": log_format.delimiter if len(log_format.delimiter) == 1 else ",",
        "quote": log_format.quote_character,
        "escape": log_format.quote_character,
        "mode": "PERMISSIVE",
        "columnNameOfCorruptRecord": "corrupt",
        "maxCharsPerColumn": "-1",
        "maxColumns": str(max(20_480, 2 * len(fields))),
    }
    return F.from_csv(F.col(LINE), ", ".join([*fields, "corrupt string"]), options)


def _without_nulls(value: Column, log_format: LogFormat) -> Column:
    """Null for the empty text and the format's null values."""
    return F.when(~value.isin("", *log_format.null_values), value)


# ----------------------------------------------------------------------------------------------------------- JSON lines


def _parse_json(lines: DataFrame, source: Source, lists: set[str], log_format: LogFormat, invalid: Column) -> DataFrame:
    _require_keys(lines, source)
    names = list(source.columns)
    # Inside an object of ours, text after the line's own object is an error instead of being skipped. A key at its end
    # shows that it did not end before, at a brace too many in the line.
    wrapped = F.concat(F.lit('{"row":'), F.regexp_replace(LINE, _JSON_NUMBER, '$1"$2"'), F.lit(',"row:end":"}"}'))

    def parsed(kinds: dict[str, ArrayType | MapType | StringType], corrupt: bool = False) -> Column:
        row = StructType([StructField(name, kind) for name, kind in kinds.items()])
        checks = [StructField("row:end", StringType()), StructField("corrupt", StringType())] if corrupt else []
        fields = [StructField("row", row), *checks]
        options = _JSON_OPTIONS if corrupt else {k: v for k, v in _JSON_OPTIONS.items() if "Corrupt" not in k}
        return F.from_json(wrapped, StructType(fields), options)

    texts = lines.withColumn("json", parsed({name: StringType() for name in names}, corrupt=True))
    if lists & set(names):
        arrays = parsed({name: ArrayType(StringType()) for name in names if name in lists})
        texts = texts.withColumn("arrays", arrays)
    row = F.col("json").getField("row")
    reason = F.coalesce(
        invalid,
        F.when(F.col("json").isNull() | F.col("json").getField("corrupt").isNotNull() | row.isNull(), NOT_JSON),
        F.when(F.col("json").getField("row:end").isNull(), NOT_JSON),
        _nested(row, names, lists, parsed),
        *(_nested_elements(_array(name), name) for name in names if name in lists),
    )
    columns = []
    for name in names:
        value = _without_nulls(row.getField(name), log_format)
        if name in lists:
            array = _array(name)
            columns += [F.when(array.isNull(), value).alias(raw(name)), array.alias(listed(name))]
        else:
            columns.append(value.alias(raw(name)))
    return texts.select(ROW_ID, SPLIT, FILE, LINE, reason.alias(REASON), *columns)


def _nested(row: Column, names: list[str], lists: set[str], parsed) -> Column:
    """Reason to reject a line with an object, or an array where one value is expected.

    Only text that looks nested is parsed again, typed: a string may begin with a bracket too.
    """
    reasons = []
    for name in names:
        suspicious = F.coalesce(row.getField(name).rlike(r"^\s*[\[{]"), F.lit(False))
        kinds = [MapType(StringType(), StringType())] + ([] if name in lists else [ArrayType(StringType())])
        is_nested = reduce(
            lambda a, b: a | b, (parsed({name: kind}).getField("row").getField(name).isNotNull() for kind in kinds)
        )
        reasons.append(F.when(suspicious, F.when(is_nested, f"column {name!r} is neither text nor a number")))
    return F.coalesce(*reasons)


def _array(name: str) -> Column:
    """The values of an array; null where it is none, though the key was there before with one."""
    text, array = (F.col(parsed).getField("row").getField(name) for parsed in ("json", "arrays"))
    return F.when(F.startswith(text, F.lit("[")), array)


def _nested_elements(array: Column, name: str) -> Column:
    is_nested = F.exists(array, lambda item: item.rlike(r"^\s*[\[{]") & F.try_parse_json(item).isNotNull())
    return F.when(is_nested, f"column {name!r} holds an array or an object within an array")


def _require_keys(lines: DataFrame, source: Source) -> None:
    """A key may be absent from a line, where it counts as missing, but not from all of them."""
    if not source.unseen:
        return
    keys = F.json_object_keys(F.col(LINE))
    seen = [F.max(F.array_contains(keys, name)).alias(name) for name in source.unseen]
    found = lines.agg(*seen).collect()[0]
    absent = [name for name in source.unseen if not found[name]]
    if absent:
        files = source.files[0] + (f" and {len(source.files) - 1} more" if len(source.files) > 1 else "")
        raise LogError(f"{files}: no line has {', '.join(map(repr, absent))}")


# -------------------------------------------------------------------------------------------------- Parquet and lookups


def _read_columnar(frame: DataFrame, common: list[Column], log_format: LogFormat, source: Source) -> DataFrame:
    values = []
    for name in source.columns:
        value = F.col(f"`{name}`")
        if isinstance(frame.schema[name].dataType, StringType):
            value = _without_nulls(value, log_format)
        values.append(value.alias(raw(name)))
    # The whole row, so that equal rows hash alike; Spark reads it only where something asks for it.
    line = F.to_json(F.struct(*(F.col(f"`{name}`") for name in frame.columns)))
    return frame.select(*common, line.alias(LINE), F.lit(None).cast("string").alias(REASON), *values)


def _check_types(frame: DataFrame, source: Source, lists: set[str], times: set[str]) -> None:
    for name in source.columns:
        dtype = frame.schema[raw(name)].dataType
        element = dtype.elementType if isinstance(dtype, ArrayType) and name in lists else dtype
        if not isinstance(element, SCALAR_TYPES) and not (name in times and isinstance(dtype, TIME_TYPES)):
            raise LogError(
                f"{source.files[0]}: column {name!r} has type {dtype.simpleString()}: a raw column must be text, a "
                "number or a boolean (or, for a feature with a separator, an array of them)"
            )


def _join_lookup(spark: SparkSession, frame: DataFrame, lookup: Lookup, table: LookupTable) -> DataFrame:
    columns = {"key": [key for key in table.rows]}
    for name in table.columns:
        columns[raw(name)] = [_lookup_text(row[name], name) for row in table.rows.values()]
    schema = pyarrow.schema([(name, pyarrow.string()) for name in columns])
    side = spark.createDataFrame(pyarrow.table(columns, schema=schema))  # pyright: ignore[reportArgumentType]
    key = loose_text_of(F.col(raw(lookup.key)), frame.schema[raw(lookup.key)].dataType)
    log = frame.drop(*(raw(name) for name in table.columns))  # the lookup's column wins
    return log.join(F.broadcast(side), key == side["key"], "left").drop("key")


def _lookup_text(value: object, name: str) -> str | None:
    if isinstance(value, float) and not value.is_integer():
        return repr(value)
    try:
        return to_text(value)
    except ValueError as error:
        raise LogError(f"lookup column {name!r}: {error}") from error
