"""One definition of raw text -> hash -> id: for one text, and for a batch of them in NumPy.

Spark's ``xxhash64`` chains its columns: the hash of one is the seed of the next, starting at 42. The functions here
are that rule; golden vectors and the xxhash package hold them.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

if TYPE_CHECKING:
    import pyarrow as pa
from numpy.typing import NDArray

SPARK_SEED = 42
MISSING_ID = 0
"""Id of a missing value in every hashed or bucketed feature, and of padding in every table."""

Hashes = NDArray[np.uint64]

_UINT64 = (1 << 64) - 1
_SIGN_BIT = 1 << 63
_P1, _P2, _P3, _P4, _P5 = (
    np.uint64(prime)
    for prime in (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
)
"""Primes of xxHash64 (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md)."""

_MIN_GROUP, _MIN_GROUP_PER_BYTE = 128, 6
"""Texts of one length from which on NumPy is faster than a call of xxhash each, and how many more a byte of them."""
_COUNTED_LENGTHS, _FEW_LENGTHS = 4096, 6
"""Texts shorter than the first number are grouped without sorting, where they have no more lengths than the second."""
_CHUNK = 1 << 15
"""Texts of one length that are hashed at a time, so that what lies between two steps stays in the cache."""


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


def salt_seed(salt: str) -> int:
    """Hash a salt to the seed of the texts that come after it, unsigned."""
    return xxhash.xxh64_intdigest(salt.encode("utf-8"), seed=SPARK_SEED)


def hashed_ids(hashes: Hashes, num_buckets: int | NDArray[np.int64]) -> NDArray[np.int32]:
    """Map hashes to ids in ``1 .. num_buckets - 1``, as ``hash_to_id``.

    Args:
        hashes: (n,) of whole values, salt included.
        num_buckets: rows of the embedding table, one number or one a hash.
    """
    return (np.mod(hashes.view(np.int64), num_buckets - 1) + 1).astype(np.int32)


def mixed(numbers: Hashes, seed: int | Hashes) -> Hashes:
    """Hash 64-bit numbers: xxHash64 of their eight bytes, little-endian.

    Args:
        numbers: (n,).
        seed: unsigned 64-bit start value, one or (n,).
    """
    with np.errstate(over="ignore"):
        state = _copies(_as_seeds(seed) + _P5, len(numbers))
        state += np.uint64(8)
        _add_eight(state, numbers)
        return _avalanche(state)


def hash_array(texts: "pa.Array", seeds: int | Hashes) -> Hashes:
    """Hash the values of an Arrow array of string or binary; a null is hashed as empty text.

    Args:
        texts: (n,) string, binary, or one of their large forms.
        seeds: unsigned 64-bit start values, one or (n,).

    Returns:
        (n,) xxHash64.
    """
    import pyarrow as pa  # schemas import this module, and pages of numbers alone do without Arrow

    n = len(texts)
    is_large = pa.types.is_large_string(texts.type) or pa.types.is_large_binary(texts.type)
    _, ends, values = texts.buffers()
    if not n:
        return np.empty(0, np.uint64)
    offsets = np.frombuffer(ends, np.int64 if is_large else np.int32)[texts.offset : texts.offset + n + 1]
    data = np.frombuffer(values, np.uint8) if values else np.empty(0, np.uint8)
    lengths = offsets[1:] - offsets[:-1]
    if texts.null_count:  # a null may have bytes of its own
        lengths *= texts.is_valid().to_numpy(zero_copy_only=False)
    return hash_slices(data, offsets[:-1], lengths, seeds)


def hash_slices(
    data: NDArray[np.uint8], starts: NDArray[np.integer], lengths: NDArray[np.integer], seeds: int | Hashes
) -> Hashes:
    """Hash pieces of one buffer of bytes.

    Args:
        data: (bytes,) contiguous.
        starts: (n,) where each piece begins.
        lengths: (n,) its bytes.
        seeds: unsigned 64-bit start values, one or (n,).

    Returns:
        (n,) xxHash64.
    """
    n = len(lengths)
    if n < _MIN_GROUP:
        return _hash_each(data, starts, lengths, seeds)
    found = np.empty(n, np.uint64)
    few: list[NDArray[np.intp]] = []
    for size, rows in _by_length(lengths):
        if rows is None:
            return _hash_group(data, starts, size, seeds)
        if len(rows) < _MIN_GROUP + _MIN_GROUP_PER_BYTE * size:
            few.append(rows)
        else:
            found[rows] = _hash_group(data, starts[rows], size, _take(seeds, rows))
    if few:
        rows = np.concatenate(few)
        found[rows] = _hash_each(data, starts[rows], lengths[rows], _take(seeds, rows))
    return found


def _by_length(lengths: NDArray[np.integer]) -> Iterator[tuple[int, NDArray[np.intp] | None]]:
    """Group indices by length; None: all of them."""
    longest = int(lengths.max())
    if longest < _COUNTED_LENGTHS:
        sizes = np.flatnonzero(np.bincount(lengths)).tolist()
        if len(sizes) == 1:
            yield sizes[0], None
            return
        if len(sizes) <= _FEW_LENGTHS:
            for size in sizes:
                yield size, np.flatnonzero(lengths == size)
            return
    # Sorting 16-bit numbers is a radix sort.
    narrow = lengths.astype(np.uint16) if longest < 1 << 16 else lengths
    order = np.argsort(narrow, kind="stable")
    ordered = narrow[order]
    borders = [0, *(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1).tolist(), len(lengths)]
    for first, end in pairwise(borders):
        yield int(ordered[first]), order[first:end]


def _take(seeds: int | Hashes, rows: NDArray[np.intp]) -> int | Hashes:
    return seeds[rows] if isinstance(seeds, np.ndarray) else seeds


def _as_seeds(seeds: int | Hashes) -> Any:
    return seeds if isinstance(seeds, np.ndarray) else np.uint64(seeds)


def _copies(value: Any, n: int) -> Hashes:
    """Return a new (n,) array of one value or of n values."""
    return value if isinstance(value, np.ndarray) else np.full(n, value)


def _hash_each(data: NDArray[np.uint8], starts: Any, lengths: Any, seeds: int | Hashes) -> Hashes:
    """Hash pieces by a call each."""
    digest, text = xxhash.xxh64_intdigest, memoryview(data)  # type: ignore[arg-type]
    pieces = zip(starts.tolist(), lengths.tolist(), strict=True)
    if isinstance(seeds, np.ndarray):
        hashed = [digest(text[at : at + size], seed) for (at, size), seed in zip(pieces, seeds.tolist(), strict=True)]
    else:
        hashed = [digest(text[at : at + size], seeds) for at, size in pieces]
    return np.array(hashed, np.uint64)


def _hash_group(data: NDArray[np.uint8], starts: Any, size: int, seeds: int | Hashes) -> Hashes:
    """Hash pieces of one length."""
    n = len(starts)
    if n <= _CHUNK:
        return _hash_chunk(data, starts, size, seeds)
    chunks = [slice(at, at + _CHUNK) for at in range(0, n, _CHUNK)]
    found = np.empty(n, np.uint64)
    for rows in chunks:
        found[rows] = _hash_chunk(data, starts[rows], size, seeds[rows] if isinstance(seeds, np.ndarray) else seeds)
    return found


def _hash_chunk(data: NDArray[np.uint8], starts: Any, size: int, seeds: int | Hashes) -> Hashes:
    n, seed = len(starts), _as_seeds(seeds)
    first = int(starts[0])
    # Pieces side by side need no gathering: their words are views with strides.
    is_dense = int(starts[-1]) - first == size * (n - 1) and bool((starts[1:] - starts[:-1] == size).all())

    def words(at: int, dtype: str) -> NDArray[Any]:
        width = np.dtype(dtype).itemsize
        if is_dense:
            return np.ndarray((n,), dtype, data, first + at, (size,))  # type: ignore[call-overload]
        every = np.ndarray((len(data) - width + 1,), dtype, data, 0, (1,))  # type: ignore[call-overload]
        return every[starts + at]

    with np.errstate(over="ignore"):
        at = 0
        if size >= 32:
            lanes = [_copies(seed + offset, n) for offset in (_P1 + _P2, _P2, np.uint64(0), np.uint64(0) - _P1)]
            while at + 32 <= size:
                for lane in lanes:
                    _add_lane(lane, words(at, "<u8"))
                    at += 8
            state = np.zeros(n, np.uint64)
            for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True):
                state += _rotated(lane, bits)
            for lane in lanes:
                lane *= _P2
                _rotate(lane, 31)
                lane *= _P1
                state ^= lane
                state *= _P1
                state += _P4
        else:
            state = _copies(seed + _P5, n)
        state += np.uint64(size)
        while at + 8 <= size:
            _add_eight(state, words(at, "<u8"))
            at += 8
        if at + 4 <= size:
            state ^= words(at, "<u4") * _P1
            _rotate(state, 23)
            state *= _P2
            state += _P3
            at += 4
        while at < size:
            state ^= words(at, "u1") * _P5
            _rotate(state, 11)
            state *= _P1
            at += 1
        return _avalanche(state)


def _rotate(numbers: Hashes, bits: int) -> None:
    """Rotate to the left in place."""
    low = numbers >> np.uint64(64 - bits)
    numbers <<= np.uint64(bits)
    numbers |= low


def _rotated(numbers: Hashes, bits: int) -> Hashes:
    copy = numbers.copy()
    _rotate(copy, bits)
    return copy


def _add_lane(lane: Hashes, words: Hashes) -> None:
    lane += words * _P2
    _rotate(lane, 31)
    lane *= _P1


def _add_eight(state: Hashes, words: Hashes) -> None:
    mixed_words = words * _P2
    _rotate(mixed_words, 31)
    mixed_words *= _P1
    state ^= mixed_words
    _rotate(state, 27)
    state *= _P1
    state += _P4


def _avalanche(state: Hashes) -> Hashes:
    for shift, prime in ((33, _P2), (29, _P3)):
        state ^= state >> np.uint64(shift)
        state *= prime
    state ^= state >> np.uint64(32)
    return state
