"""Small helpers for Arrow arrays."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from features.encoding import MAX_NUMBER

compute: Any = pyarrow.compute
"""Module of Arrow's functions, which are made at run time, so that type checkers know none."""


def join_arrays(arrays: list[pa.Array], kind: pa.DataType) -> pa.Array:
    """Concatenate arrays of one type; a single one is returned as it is."""
    if len(arrays) == 1:
        return arrays[0]
    return pa.concat_arrays(arrays) if arrays else pa.nulls(0, kind)


def are_numbers(values: pa.Array) -> bool:
    """Tell whether all of some float64 are numbers that ``features.encoding.to_number`` takes; a null must be 0."""
    if not len(values):
        return True
    numbers = np.frombuffer(values.buffers()[1], np.float64, len(values), 8 * values.offset)
    return bool(numbers.max() <= MAX_NUMBER and numbers.min() >= -MAX_NUMBER)
