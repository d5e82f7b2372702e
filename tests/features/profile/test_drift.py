"""Distances against numbers worked out by hand, and against what luck alone makes."""

import math

import numpy as np
import pytest

from features.profile.bins import choose_bins, count
from features.profile.distribution import DriftError
from features.profile.drift import MIN_COUNT, jensen_shannon, population_stability, psi
from features.rows import Columns
from tests.stand_ins.tiny_counts import SCHEMA, dense, sparse


def test_distances_by_hand() -> None:
    first, second = dense(50, 50), dense(80, 20)
    # Smoothed by 0.5 a bin: shares of 50.5 and 50.5 against 80.5 and 20.5, of 101 each.
    p, q = (0.5, 0.5), (80.5 / 101, 20.5 / 101)
    by_hand = (q[0] - p[0]) * math.log(q[0] / p[0]) + (q[1] - p[1]) * math.log(q[1] / p[1])
    assert psi(first, second) == pytest.approx(by_hand, abs=1e-12)
    assert by_hand == pytest.approx(0.406287, abs=1e-6)
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    entropy = [-sum(share * math.log2(share) for share in shares) for shares in (p, q, middle)]
    assert jensen_shannon(first, second) == pytest.approx(entropy[2] - (entropy[0] + entropy[1]) / 2, abs=1e-12)


@pytest.mark.parametrize("distance", [psi, jensen_shannon])
def test_distances_are_symmetric_and_0_for_equal_shares(distance) -> None:
    first, second = sparse(400, 300, rest=200, missing=100), sparse(300, 400, rest=250, missing=50)
    assert distance(first, first) == 0
    assert distance(first, sparse(4_000, 3_000, rest=2_000, missing=1_000)) < 1e-4
    assert distance(first, second) == pytest.approx(distance(second, first), abs=1e-12)
    assert distance(first, second) > 0.001


def test_no_common_bin_is_one_bit() -> None:
    assert jensen_shannon(dense(10**6, 0), dense(0, 10**6)) == pytest.approx(1, abs=1e-4)
    assert psi(dense(10**6, 0), dense(0, 10**6)) > 20


def test_rare_bins_are_compared_as_one() -> None:
    rare = MIN_COUNT - 1
    first, second = sparse(500, rare, 20, rest=10, missing=3), sparse(400, 1, 60, rest=5, missing=9)
    expected = population_stability(np.array([500, rare + 30, 3]), np.array([400, 66, 9]))
    assert psi(first, second) == pytest.approx(expected, abs=1e-12)


def test_a_bin_is_rare_if_a_small_dataset_has_to_have_few_of_it() -> None:
    # Of 100 values, 3 % are 3: too few to tell 6 and none from, though the reference has 300 of each.
    assert psi(sparse(9_400, 300, 300), sparse(94, 6, 0)) == psi(sparse(9_400, rest=600), sparse(94, rest=6)) < 0.001


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (dense(0, 1_000, 0), dense(0, 0, 1_000)),
        (dense(1_000, 0), dense(0, 1_000)),
        (sparse(1_000), sparse(0, rest=1_000)),
        (sparse(1_000), sparse(0, missing=1_000)),
    ],
)
def test_values_where_none_were_are_seen(old, new) -> None:
    assert psi(old, new) > 5 and jensen_shannon(old, new) > 0.9


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DriftError, match="other bins"):
        psi(dense(1, 2), dense(1, 2, 3))
    with pytest.raises(DriftError, match="other bins"):
        psi(dense(1, 2), sparse(1))
    with pytest.raises(DriftError, match="without values"):
        psi(dense(1, 2), dense(0, 0))


@pytest.mark.parametrize("num_rows", [300, 3_000, 30_000])
def test_luck_is_not_drift_and_drift_is_not_luck(num_rows: int) -> None:
    """A long tail, a short list and a number; the reference is of as many rows, which is the least it can be."""
    same, other = [], []
    for seed in range(100 if num_rows < 10_000 else 20):
        random = np.random.default_rng(seed)

        def day(shift: float, random=random) -> Columns:
            ids = random.zipf(1.2, num_rows) % 2**20
            return {"a": ids, "x": (random.normal(size=num_rows) + shift).astype(np.float32)}

        first = day(0)
        bins = choose_bins(SCHEMA, [first], num_rows)
        days = [count(SCHEMA, [columns], bins) for columns in (first, day(0), day(1))]
        same += [psi(days[0][name], days[1][name]) for name in ("a", "x")]
        other.append(psi(days[0]["x"], days[2]["x"]))
    assert max(same) < 0.2
    assert min(other) > 0.5
