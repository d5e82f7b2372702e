"""Small helpers for Arrow arrays."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.arrow import pc
from features.values import MAX_NUMBER


def join_arrays(arrays: list[pa.Array], kind: pa.DataType) -> pa.Array:
    """Concatenate arrays of one type; a single one is returned as it is."""
    if len(arrays) == 1:
        return arrays[0]
    return pa.concat_arrays(arrays) if arrays else pa.nulls(0, kind)


def null_where(values: pa.Array, mask: NDArray[np.bool_]) -> pa.Array:
    """Return an array with null where a mask says so.

    Not ``if_else``: in PyArrow 14 it returns other texts than it is given where they are a slice of an array.
    """
    if not mask.any():
        return values
    if not pa.types.is_string(values.type):
        return values.take(pa.array(np.arange(len(values)), mask=mask))
    is_valid = ~mask
    if values.null_count:
        is_valid &= values.is_valid().to_numpy(zero_copy_only=False)
    _, offsets, data = values.buffers()
    offsets = offsets.slice(4 * values.offset, 4 * (len(values) + 1))
    bits = pa.py_buffer(np.packbits(is_valid, bitorder="little"))
    return pa.StringArray.from_buffers(len(values), offsets, data, bits)


def null_texts(values: pa.Array, nulls: pa.Array) -> pa.Array:
    """Return texts with null for the empty text and for some others.

    Args:
        values: (n,) string.
        nulls: texts that mean missing, besides the empty one.
    """
    _, offsets, _ = values.buffers()
    ends = np.frombuffer(offsets, np.int32, len(values) + 1, 4 * values.offset)
    mask = ends[1:] == ends[:-1]
    if len(nulls):
        mask |= pc.is_in(values, nulls).to_numpy(zero_copy_only=False)
    elif np.count_nonzero(mask) == values.null_count:  # and nothing else is empty
        return values
    return null_where(values, mask)


def are_numbers(values: pa.Array) -> bool:
    """Tell whether all of some float64 are numbers that ``features.values.numbers`` takes; a null must be 0."""
    if not len(values):
        return True
    numbers = np.frombuffer(values.buffers()[1], np.float64, len(values), 8 * values.offset)
    return bool(numbers.max() <= MAX_NUMBER and numbers.min() >= -MAX_NUMBER)
