"""Cardinality: how many distinct values, and the share of the most frequent one, from hashes of values.

A vocabulary counts every value. A hashed or bucketed feature does not need to: a HyperLogLog sketch (Flajolet et al.,
2007) estimates the distinct values of all rows, and a sample of whole rows gives the head share. Where the sample is
all rows, both are exact.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_REGISTERS = 4096
RELATIVE_ERROR = 1.04 / NUM_REGISTERS**0.5
"""Standard deviation of an estimated cardinality, relative to it: 1.6 %."""
_INDEX_BITS = 12


@dataclass(frozen=True)
class ValueSketch:
    """Sketch of the values of one feature in one split.

    Attributes:
        num_values: number of values that are not missing.
        num_missing: number of rows without a value.
        registers: (4096,) uint8 registers of the sketch over all values.
        sample: (s,) uint64 distinct hashes of the values in the sampled rows.
        counts: (s,) int64 how often each occurs there.
    """

    num_values: int
    num_missing: int
    registers: NDArray[np.uint8]
    sample: NDArray[np.uint64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, hashes: NDArray[np.uint64], sampled: NDArray[np.bool_], num_missing: int) -> "ValueSketch":
        """Sketch the hashes of the values that are present; ``sampled`` says which lie in sampled rows."""
        registers = np.zeros(NUM_REGISTERS, np.uint8)
        index = (hashes >> np.uint64(64 - _INDEX_BITS)).astype(np.intp)
        np.maximum.at(registers, index, _rank(hashes))
        sample, counts = np.unique(hashes[sampled], return_counts=True)
        return cls(len(hashes), num_missing, registers, sample, counts)

    @classmethod
    def join(cls, parts: "list[ValueSketch]") -> "ValueSketch":
        """Join the sketches of several blocks; there is one at least."""
        hashes = np.concatenate([part.sample for part in parts])
        sample, places = np.unique(hashes, return_inverse=True)
        counts = np.bincount(places, np.concatenate([part.counts for part in parts]), len(sample)).astype(np.int64)
        return cls(
            num_values=sum(part.num_values for part in parts),
            num_missing=sum(part.num_missing for part in parts),
            registers=np.maximum.reduce([part.registers for part in parts]),
            sample=sample,
            counts=counts,
        )

    @property
    def is_exact(self) -> bool:
        """Tell whether the sample holds all values."""
        return int(self.counts.sum()) == self.num_values

    @property
    def cardinality(self) -> int:
        """Estimate the distinct values of all rows; exact where the sample holds all values."""
        if self.is_exact:
            return len(self.sample)
        return round(_estimate(self.registers))

    @property
    def head_share(self) -> float:
        """Share of the most frequent value among the values of the sample."""
        return float(self.counts.max() / self.counts.sum()) if len(self.counts) else 0.0


def _rank(hashes: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """One more than the number of zeros that the bits behind the register's index begin with."""
    width = 64 - _INDEX_BITS
    rest = (hashes & np.uint64((1 << width) - 1)).astype(np.float64)  # 52 bits: exact
    exponent = (rest.view(np.int64) >> 52) - 1023  # place of the highest bit
    return np.where(rest > 0, width - exponent, width + 1).astype(np.uint8)


def _estimate(registers: NDArray[np.uint8]) -> float:
    size = len(registers)
    raw = 0.7213 / (1 + 1.079 / size) * size * size / (2.0 ** -registers.astype(np.float64)).sum()
    empty = int((registers == 0).sum())
    return size * np.log(size / empty) if raw <= 2.5 * size and empty else raw
