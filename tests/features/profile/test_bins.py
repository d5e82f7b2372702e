"""Edges against deciles and repeated values, counts whatever the batches."""

import numpy as np

from features.profile.bins import bin_counts, choose_bins, count, quantile_edges
from features.profile.distribution import DenseDistribution, SparseDistribution
from features.profile.id_counts import IdSample
from tests.stand_ins.tiny_counts import SCHEMA, parts
from tests.stand_ins.tiny_dataset import tiny_columns, tiny_schema


def test_edges_of_many_values_are_deciles_whatever_their_order(monkeypatch) -> None:
    values = np.random.default_rng(0).permutation(1_000).astype(np.float32)
    assert quantile_edges(values) == tuple(100.0 * k - 1 for k in range(1, 10))
    monkeypatch.setattr("features.profile.bins.NUM_QUANTILE_ROWS", 100)
    columns = {"a": np.ones(1_000, np.int32), "x": values}
    sampled = {"a": columns["a"][::10], "x": values[::10]}
    for size in (7, 250, 5_000):
        assert choose_bins(SCHEMA, parts(columns, size), 1_000)["x"] == quantile_edges(sampled["x"])
        assert choose_bins(SCHEMA, parts(columns, size), 901)["x"] == quantile_edges(sampled["x"])


def test_weights_count_as_repeated_values() -> None:
    random = np.random.default_rng(1)
    values, times = random.normal(size=200), random.integers(0, 5, 200)
    assert quantile_edges(values, times.astype(float)) == quantile_edges(np.repeat(values, times))


def test_frequent_values_have_bins_of_their_own() -> None:
    values = np.concatenate([np.zeros(600), np.linspace(1, 2, 400)]).astype(np.float32)
    edges = quantile_edges(values)
    assert edges[:2] == (0.0, float(np.nextafter(np.float32(0), np.float32(1))))
    assert bin_counts(values, edges)[:2].tolist() == [0, 600]
    # What was constant is seen to rise and to fall.
    constant = quantile_edges(np.full(100, 5, np.float32))
    assert [bin_counts(np.full(4, v, np.float32), constant).tolist() for v in (4.9, 5, 5.1)] == [
        [4, 0, 0],
        [0, 4, 0],
        [0, 0, 4],
    ]


def test_nothing_and_nan_have_no_edges() -> None:
    nan = np.full(3, np.nan, np.float32)
    assert quantile_edges(nan) == quantile_edges(nan[:0]) == ()
    found = count(SCHEMA, [{"a": np.array([0, 0, 5]), "x": nan}], {"a": (), "x": ()})
    assert found["x"] == DenseDistribution((), (0,), 3)
    assert found["a"] == SparseDistribution((), (), 1, 2, IdSample(0, (5,), (1,)))


def test_batches_of_the_tiny_dataset_do_not_matter() -> None:
    schema = tiny_schema()
    columns = tiny_columns(schema, 500, np.random.default_rng(2))
    bins = choose_bins(schema, parts(columns, 41), 500)
    assert bins == choose_bins(schema, [columns], 500)
    assert count(schema, parts(columns, 13), bins) == count(schema, [columns], bins)
