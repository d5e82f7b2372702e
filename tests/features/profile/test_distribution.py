"""New ids against numbers worked out by hand, and of samples against those of all ids."""

from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest

from features.profile import id_counts
from features.profile.distribution import new_ids
from features.profile.id_counts import IdSample
from tests.stand_ins.tiny_counts import counted, sparse


def test_new_ids_by_hand() -> None:
    reference = sparse(sample=IdSample(0, (1, 2, 3), (5, 5, 1)))
    current = sparse(sample=IdSample(0, (1, 3, 4, 5, 6), (20, 7, 30, 10, 9)))
    found = new_ids(reference, current, min_count=10)
    assert asdict(found) == {"num_new": 2, "num_ids": 3, "num_new_values": 40, "num_values": 76}
    assert (found.id_share, found.value_share) == (2 / 3, 40 / 76)
    nothing = new_ids(reference, sparse(), 10)
    assert (nothing.id_share, nothing.value_share) == (0, 0)


def test_new_ids_of_samples_are_about_those_of_all(monkeypatch) -> None:
    random = np.random.default_rng(5)
    first, second = random.integers(1, 3_000, 60_000), random.integers(1_000, 4_000, 60_000)
    exact = counted(first), counted(second)
    assert [d.sample.level for d in exact] == [1, 1]
    monkeypatch.setattr(id_counts, "NUM_SAMPLED_IDS", 10_000)
    exact = counted(first), counted(second)
    truth = new_ids(*exact, min_count=10)
    distinct = {i for i, times in Counter(second.tolist()).items() if times >= 10}
    assert (truth.num_new, truth.num_ids) == (len(distinct - set(first.tolist())), len(distinct))
    monkeypatch.setattr(id_counts, "NUM_SAMPLED_IDS", 500)
    # Of two levels, the thinner sample decides.
    sampled = new_ids(exact[0], counted(second), min_count=10)
    assert sampled.num_ids <= 500
    assert sampled.id_share == pytest.approx(truth.id_share, abs=0.08)
    assert sampled.value_share == pytest.approx(truth.value_share, abs=0.08)
