"""TokenTable: a vocabulary as a hash table in NumPy, looked up for a whole column at once."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.hashing import SPARK_SEED, Hashes, hash_array

_EMPTY = np.uint64(0)
_CHUNK = 1 << 15


def hash_tokens(tokens: pa.StringArray) -> Hashes:
    """Hash tokens for a ``TokenTable``, (n,): each as ``hash_text([token])``, unsigned; a null as empty text."""
    return hash_array(tokens, SPARK_SEED)


class TokenTable:
    """Ids of tokens by their 64-bit hashes: open addressing, at most half full.

    Texts are not compared: that an unknown token has the hash of one of a million known ones happens once in 10^13.
    """

    def __init__(self, ids: dict[str, int], unknown: int) -> None:
        """Build the table.

        Args:
            ids: token -> id.
            unknown: id of every other token.

        Raises:
            ValueError: two of the tokens have one hash.
        """
        hashes = _filled(hash_tokens(pa.array(list(ids), pa.string())))
        if len(np.unique(hashes)) < len(hashes):
            raise ValueError("two tokens of a vocabulary have one hash: leave one of them out")
        bits = max(2 * len(hashes), 2).bit_length()
        self.unknown = unknown
        self._shift, self._mask = np.uint64(64 - bits), np.int64((1 << bits) - 1)
        self._keys = np.full(1 << bits, _EMPTY)
        self._ids = np.full(1 << bits, unknown, np.int32)
        values = np.fromiter(ids.values(), np.int32, len(ids))
        places = (hashes >> self._shift).astype(np.int64)
        while len(hashes):
            is_free = self._keys[places] == _EMPTY
            self._keys[places[is_free]] = hashes[is_free]  # of two at one place, the last stays
            is_in = self._keys[places] == hashes
            self._ids[places[is_in]] = values[is_in]
            hashes, values = hashes[~is_in], values[~is_in]
            places = (places[~is_in] + 1) & self._mask

    def lookup(self, hashes: Hashes) -> NDArray[np.int32]:
        """Look up the ids of hashed tokens, (n,)."""
        found = np.empty(len(hashes), np.int32)
        for at in range(0, len(hashes), _CHUNK):
            found[at : at + _CHUNK] = self._lookup(hashes[at : at + _CHUNK])
        return found

    def _lookup(self, hashes: Hashes) -> NDArray[np.int32]:
        hashes = _filled(hashes)
        places = (hashes >> self._shift).astype(np.int64)
        keys = self._keys[places]
        is_known = keys == hashes
        found = np.where(is_known, self._ids[places], np.int32(self.unknown))
        rows = np.flatnonzero(~is_known & (keys != _EMPTY))
        places = places[rows]
        while len(rows):
            places = (places + 1) & self._mask
            keys = self._keys[places]
            is_known = keys == hashes[rows]
            found[rows[is_known]] = self._ids[places[is_known]]
            is_open = ~is_known & (keys != _EMPTY)
            rows, places = rows[is_open], places[is_open]
        return found


def _filled(hashes: Hashes) -> Hashes:
    """Give the hash that marks an empty place another value."""
    is_marker = hashes == _EMPTY
    return np.where(is_marker, np.uint64(1), hashes) if is_marker.any() else hashes
