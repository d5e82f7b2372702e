"""Ids counted in bounded memory against exact counts of all of them."""

from collections import Counter

import numpy as np

from features.profile import id_counts
from features.profile.bins import count
from features.profile.distribution import add
from features.profile.id_counts import FrequentIds
from tests.stand_ins.tiny_counts import SCHEMA, counted


def test_frequent_ids_are_found_in_bounded_memory(monkeypatch) -> None:
    """Misra and Gries: of n values, an id with more than n / (capacity + 1) is never lost."""
    monkeypatch.setattr(id_counts, "NUM_COUNTED_IDS", 50)
    for seed in range(20):
        random = np.random.default_rng(seed)
        ids = np.concatenate([np.repeat([11, 22, 33], [900, 600, 300]), random.integers(100, 10**6, 5_000)])
        random.shuffle(ids)
        found = FrequentIds()
        for part in np.array_split(ids, 40):
            found.add(*np.unique(part, return_counts=True))
            assert len(found.ids) <= 50
        assert found.top()[:3] == (11, 22, 33)
        truth = Counter(ids.tolist())
        short = [truth[i] - c for i, c in zip(found.ids.tolist(), found.counts.tolist(), strict=True)]
        assert min(short) >= 0 and max(short) <= len(ids) / 51


def test_a_sample_holds_exact_counts_of_the_same_ids_whatever_the_batches(monkeypatch) -> None:
    monkeypatch.setattr(id_counts, "NUM_SAMPLED_IDS", 64)
    ids = np.random.default_rng(0).zipf(1.3, 20_000) % 2**20 + 1
    found = counted(ids)
    truth = Counter(ids.tolist())
    sample = found.sample
    assert sample.level > 0 and 16 <= len(sample.ids) <= 64
    assert dict(zip(sample.ids, sample.counts, strict=True)) == {i: truth[i] for i in sample.ids}
    assert set(sample.ids) == {i for i in truth if id_counts._is_sampled(np.array([i]), sample.level)[0]}
    assert counted(ids, size=331).sample == sample
    halves = [
        count(SCHEMA, [{"a": half, "x": np.zeros(len(half), np.float32)}], {"a": found.ids, "x": ()})["a"]
        for half in (ids[:3_000], ids[3_000:])
    ]
    assert add(*halves) == found == add(*halves[::-1])
