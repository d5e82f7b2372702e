"""Convert raw values to text, numbers, tokens and times in Spark SQL: the twin of ``to_text`` and ``to_number``.

Training and scoring read the same raw value, so every rule here is one of ``features/encoding.py`` and tests hold the
two together.
"""

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    ByteType,
    DataType,
    DateType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    ShortType,
    StringType,
    TimestampNTZType,
    TimestampType,
)

from features.encoding import MAX_CATEGORY, MAX_NUMBER, NUMBER_PATTERN

INTEGRAL_TYPES = (ByteType, ShortType, IntegerType, LongType)
FLOAT_TYPES = (FloatType, DoubleType)
TIME_TYPES = (TimestampType, TimestampNTZType, DateType)
SCALAR_TYPES = (StringType, BooleanType, *INTEGRAL_TYPES, *FLOAT_TYPES)

_MAX_SECONDS = float(1 << 53)
_REGEX_META = set("\\^$.|?*+()[]{}")


def regex_literal(text: str) -> str:
    """Escape ``text`` as a Java pattern; one escaped character keeps Java's fast path for ``split``."""
    return "".join(f"\\{c}" if c in _REGEX_META else c for c in text)


def text_of(value: Column, dtype: DataType) -> Column:
    """Convert to canonical text; null for a missing value and where ``is_bad_text`` holds."""
    if isinstance(dtype, StringType):
        return F.nullif(value, F.lit(""))
    if isinstance(dtype, FLOAT_TYPES):
        return F.when(_is_whole(value), value.cast("double").try_cast("bigint").cast("string"))
    return value.cast("string")


def is_bad_text(value: Column, dtype: DataType) -> Column:
    """Whether a value that is not missing has no text: a number with a fraction."""
    if isinstance(dtype, FLOAT_TYPES):
        return value.isNotNull() & ~F.isnan(value) & ~_is_whole(value)
    return F.lit(False)


def _is_whole(value: Column) -> Column:
    number = value.cast("double")
    # Comparing with floor() would overflow: rint stays a double.
    return (F.abs(number) < F.lit(float(MAX_CATEGORY))) & (F.rint(number) == number)


def loose_text_of(value: Column, dtype: DataType) -> Column:
    """Convert to any text form, for columns that are carried, compared or split by alone."""
    if isinstance(dtype, StringType):
        return F.nullif(value, F.lit(""))
    if isinstance(dtype, FLOAT_TYPES):
        return F.coalesce(text_of(value, dtype), F.nullif(value.cast("string"), F.lit("NaN")))
    return F.to_json(value) if isinstance(dtype, ArrayType) else value.cast("string")


def number_of(value: Column, dtype: DataType) -> Column:
    """Convert to a finite double within float32's range; null for a missing value and where ``is_bad_number`` holds."""
    if isinstance(dtype, StringType):
        text = F.trim(value)
        number = F.when(text.rlike(NUMBER_PATTERN), text.try_cast("double"))
        number = F.coalesce(number, F.when(text == "true", 1.0), F.when(text == "false", 0.0))
    elif isinstance(dtype, BooleanType):
        number = F.when(value, 1.0).when(~value, 0.0)
    else:
        number = value.cast("double")
    return F.when(F.abs(number) <= F.lit(MAX_NUMBER), number)


def is_bad_number(value: Column, dtype: DataType, number: Column) -> Column:
    """Whether a value that is not missing is no finite number.

    Args:
        value: the raw value.
        dtype: its type.
        number: the column that ``number_of`` made of it.
    """
    if isinstance(dtype, StringType):
        return number.isNull() & value.isNotNull() & (F.trim(value) != "")
    if isinstance(dtype, FLOAT_TYPES):
        return number.isNull() & value.isNotNull() & ~F.isnan(value)
    return F.lit(False)


def tokens_of(value: Column, dtype: DataType, separator: str) -> Column:
    """Split a multi-valued value into all its non-empty tokens; an empty array for a missing value."""
    if isinstance(dtype, ArrayType):
        element = dtype.elementType
        texts = F.transform(value, lambda item: text_of(item, element))
        tokens = F.filter(texts, lambda text: text.isNotNull())
    else:
        tokens = F.filter(F.split(text_of(value, dtype), regex_literal(separator), -1), lambda text: text != F.lit(""))
    return F.coalesce(tokens, F.array().cast("array<string>"))


def is_bad_list(value: Column, dtype: DataType) -> Column:
    """Whether any element of an array column is a number with a fraction."""
    if isinstance(dtype, ArrayType):
        element = dtype.elementType
        return F.coalesce(F.exists(value, lambda item: is_bad_text(item, element)), F.lit(False))
    return is_bad_text(value, dtype)


def seconds_of(value: Column, dtype: DataType, time_format: str) -> Column:
    """Convert to Unix seconds (bigint); null for a missing or unreadable time."""
    if isinstance(dtype, TIME_TYPES):
        return F.unix_seconds(value.cast("timestamp"))
    if time_format in ("unix", "unix_ms"):
        number = number_of(value, dtype)
        seconds = number / F.lit(1000.0) if time_format == "unix_ms" else number
        return F.when(F.abs(seconds) < F.lit(_MAX_SECONDS), F.floor(seconds).cast("bigint"))
    # A null pattern result is a null time: try_to_timestamp never raises on data.
    return F.unix_seconds(F.try_to_timestamp(loose_text_of(value, dtype), F.lit(time_format)))
