"""Bucket tables: a text in a row that stands for a long history, for sequences whose encoder is ``sdim``.

A text is ``MODEL.PRECISION.DATA``: the id of the model that made it, the type of its numbers, and the base64 of these,
little-endian: of one stream after the other, the events' sums by signature, by its value and by channel.

Shapes: S signatures, V values of a signature, K width of an event.
"""

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from features.rows import RowError
from features.schema import FeatureSchema, SequenceFeature

BucketPrecision = Literal["float32", "float16"]
"""Type of the numbers of a bucket table; float16 takes half the bytes and has three digits."""
BUCKET_PRECISIONS: tuple[BucketPrecision, ...] = get_args(BucketPrecision)
MODEL_ID_LENGTH = 16
"""Characters of the id of the model that made a table."""

_SUFFIX = "__buckets"
_CURE = "make it again with the model that scores (POST /v1/buckets, or Predictor.buckets.make)"


@dataclass(frozen=True)
class BucketColumn:
    """Column of a row with the bucket table of one sequence.

    Attributes:
        name: name of the column, ``SEQUENCE__buckets``.
        sequence: name of the sequence.
        encoder: kind of the sequence's encoder.
        lists: raw columns that a table is made of.
        replaces: raw columns that a row with a table leaves out; empty where another encoder reads its newest events.
        shapes: stream -> (S, V, K) of its table, in the model's order; empty: the encoder has no bucket tables.
    """

    name: str
    sequence: str
    encoder: str
    lists: tuple[str, ...]
    replaces: tuple[str, ...]
    shapes: Mapping[str, tuple[int, int, int]]

    @classmethod
    def of(
        cls,
        sequence: SequenceFeature,
        encoder: str,
        shapes: Mapping[str, tuple[int, int, int]],
        *,
        keeps_events: bool = False,
    ) -> "BucketColumn":
        """Name the columns of a sequence.

        Args:
            sequence: the sequence.
            encoder: kind of its encoder.
            shapes: stream -> (S, V, K); empty: the encoder has no bucket tables.
            keeps_events: whether a row with a table has its newest events as well.
        """
        lists = tuple(name for name in sequence.raw_lists if not sequence.gaps or name != sequence.time_column)
        replaces = () if keeps_events else sequence.raw_lists
        return cls(f"{sequence.name}{_SUFFIX}", sequence.name, encoder, lists, replaces, shapes)

    @property
    def num_values(self) -> int:
        """Return the number of numbers in a table, of all streams together."""
        return sum(map(math.prod, self.shapes.values()))

    def num_characters(self, precision: BucketPrecision = "float32") -> int:
        """Return the length of a table's text."""
        num_bytes = self.num_values * np.dtype(precision).itemsize
        return MODEL_ID_LENGTH + len(precision) + 2 + 4 * math.ceil(num_bytes / 3)

    def write(self, model: str, tables: Mapping[str, NDArray[Any]], precision: BucketPrecision) -> str:
        """Write the text of one row's table.

        Args:
            model: id of the model that made it.
            tables: stream -> (S, V, K).
            precision: type of the numbers.

        Raises:
            RowError: a sum has no finite number of that type.
        """
        numbers = np.concatenate([tables[stream].ravel() for stream in self.shapes])
        with np.errstate(over="ignore"):
            stored = numbers.astype(np.dtype(precision).newbyteorder("<"))
        if not np.isfinite(stored).all():
            raise RowError(f"sequence {self.sequence!r}: a sum of its events is no finite {precision}: take float32")
        return f"{model}.{precision}.{base64.b64encode(stored.tobytes()).decode()}"

    def read(self, text: Any, model: str) -> dict[str, NDArray[np.float32]]:
        """Read the text of one row's table: stream -> (S, V, K).

        Raises:
            RowError: it is no table of this column, or another model's.
        """
        if not self.shapes:
            raise self.fault(
                f"the encoder of sequence {self.sequence!r} is {self.encoder!r}, and only 'sdim' reads bucket tables: "
                "leave the column out and send the events"
            )
        if not isinstance(text, str):
            raise self.fault(f"a bucket table is a text, not {type(text).__name__}: {_CURE}")
        maker, _, rest = text.partition(".")
        precision, _, data = rest.partition(".")
        if precision not in BUCKET_PRECISIONS or not data:
            raise self.fault(f"{text[:40]!r} is no MODEL.PRECISION.DATA of a bucket table: {_CURE}")
        if maker != model:
            raise self.fault(f"the bucket table is of model {maker[:40]!r} and not of {model!r}: {_CURE}")
        try:
            stored = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise self.fault(f"the bucket table is no base64 ({error}): {_CURE}") from None
        expected = self.num_values * np.dtype(precision).itemsize
        if len(stored) != expected:
            raise self.fault(f"the bucket table has {len(stored)} bytes where {expected} are due: {_CURE}")
        numbers = np.frombuffer(stored, np.dtype(precision).newbyteorder("<")).astype(np.float32)
        if not np.isfinite(numbers).all():
            raise self.fault(f"the bucket table has numbers that are not finite: {_CURE}")
        found, start = {}, 0
        for stream, shape in self.shapes.items():
            size = math.prod(shape)
            found[stream] = numbers[start : start + size].reshape(shape)
            start += size
        return found

    def check_events(self, row: Mapping[str, Any]) -> None:
        """Check that a row with a table has no events that the table stands for.

        Raises:
            RowError: it has.
        """
        for name in self.replaces:
            if (value := row.get(name)) is not None and (not hasattr(value, "__len__") or len(value)):
                raise self.fault(f"the bucket table stands for the events, and {name!r} has some too: leave one out")

    def fault(self, reason: str) -> RowError:
        """Make the error of a row whose table cannot be used."""
        return RowError(f"column {self.name!r}: {reason}")


def has_bucket_column(schema: FeatureSchema, sequence: SequenceFeature) -> bool:
    """Tell whether a sequence's bucket column is free: a feature may read a raw column of that name."""
    return f"{sequence.name}{_SUFFIX}" not in schema.feature_columns
