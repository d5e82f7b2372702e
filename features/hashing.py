"""One definition of raw text -> hash -> id, the same in Python and in Spark.

Spark's ``xxhash64`` chains its columns: the hash of one is the seed of the next, starting at 42. The functions here
are that rule in Python; ``pipeline.build.encode`` has it in Spark SQL, and golden vectors hold the two together.
"""

from collections.abc import Iterable

import xxhash

SPARK_SEED = 42
MISSING_ID = 0
"""Id of a missing value in every hashed or bucketed feature, and of padding in every table."""

_UINT64 = (1 << 64) - 1
_SIGN_BIT = 1 << 63


def hash_text(parts: Iterable[str], seed: int = SPARK_SEED) -> int:
    """Hash texts in order into one signed 64-bit integer, as Spark's ``xxhash64(part_1, part_2, ...)``.

    Args:
        parts: texts, hashed as UTF-8. The order matters, and so do the borders: ("a", "bc") differs from ("ab", "c").
        seed: signed or unsigned 64-bit start value.

    Returns:
        A signed 64-bit integer.
    """
    state = seed & _UINT64
    for part in parts:
        state = xxhash.xxh64_intdigest(part.encode("utf-8"), seed=state)
    return state - (1 << 64) if state & _SIGN_BIT else state


def hash_to_id(parts: Iterable[str], num_buckets: int, salt: str) -> int:
    """Map texts to an id in ``1 .. num_buckets - 1``; id 0 stays reserved for a missing value.

    Args:
        parts: the value, or one text a column for a cross.
        num_buckets: rows of the embedding table, at least 2.
        salt: hashed first, so that two features with equal values collide differently.

    Returns:
        ``1 + hash mod (num_buckets - 1)`` with the non-negative remainder.
    """
    return 1 + hash_text((salt, *parts)) % (num_buckets - 1)
