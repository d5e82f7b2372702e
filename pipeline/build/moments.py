"""Moments: count, mean, deviation and bounds of numbers, added up from parts without losing digits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Moments:
    """Sums over some numbers.

    Attributes:
        count: number of them.
        mean: their mean; 0 if there are none.
        squares: sum of the squared distances from the mean.
        minimum: smallest one; infinite if there are none.
        maximum: largest one; minus infinite if there are none.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    minimum: float = float("inf")
    maximum: float = float("-inf")

    @classmethod
    def of(cls, numbers: NDArray[np.float64]) -> "Moments":
        """Compute the sums over an array without NaN."""
        if not len(numbers):
            return cls()
        mean = float(numbers.mean())
        distances = numbers - mean
        return cls(len(numbers), mean, float(distances @ distances), float(numbers.min()), float(numbers.max()))

    def __add__(self, other: "Moments") -> "Moments":
        """Join two parts (Chan, Golub and LeVeque, 1979)."""
        count = self.count + other.count
        if not count:
            return self
        step = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + step * other.count / count,
            squares=self.squares + other.squares + step * step * self.count * other.count / count,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
        )

    @property
    def deviation(self) -> float:
        """Compute the population's standard deviation; 0 for no numbers."""
        return (self.squares / self.count) ** 0.5 if self.count else 0.0
