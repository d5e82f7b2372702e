"""Distributions counted from real files against naive counts, distances against numbers worked out by hand."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest

from features import drift
from features.dataset import DatasetError, DatasetManifest
from features.drift import (
    DataProfile,
    DenseDistribution,
    DriftError,
    IdSample,
    SparseDistribution,
    choose_bins,
    count,
    jensen_shannon,
    measure,
    new_ids,
    population_stability,
    psi,
    quantile_edges,
    total,
)
from features.encoding import Columns
from features.learnt import Learnt
from features.schema import DenseFeature, FeatureSchema, HashEncoding, SparseFeature
from features.storage import ObjectPath
from tests.object_store import Bucket
from tests.tiny_dataset import tiny_columns, tiny_schema

SCHEMA = FeatureSchema("y", sparse=(SparseFeature("a", HashEncoding(2**20)),), dense=(DenseFeature("x"),))


def dense(*counts: int, missing: int = 0) -> DenseDistribution:
    return DenseDistribution(tuple(map(float, range(len(counts) - 1))), counts, missing)


def sparse(*counts: int, rest: int = 0, missing: int = 0, sample: IdSample | None = None) -> SparseDistribution:
    return SparseDistribution(tuple(range(1, len(counts) + 1)), counts, rest, missing, sample or IdSample())


def parts(columns: Columns, size: int) -> Iterator[Columns]:
    """Columns cut into batches."""
    for start in range(0, len(next(iter(columns.values()))), size):
        yield {name: column[start : start + size] for name, column in columns.items()}


def counted(ids: np.ndarray, size: int = 1_000) -> SparseDistribution:
    columns = {"a": ids, "x": np.zeros(len(ids), np.float32)}
    found = count(SCHEMA, parts(columns, size), choose_bins(SCHEMA, parts(columns, size), len(ids)))["a"]
    assert isinstance(found, SparseDistribution)
    return found


# ----------------------------------------------------------------------------------------------------------- distances


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
    rare = drift.MIN_COUNT - 1
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


# ------------------------------------------------------------------------------------------------------------- counting


def naive(columns: Columns, name: str) -> Counter[int]:
    """Values of a sparse feature; None for missing ones."""
    found: Counter[int] = Counter()
    lengths = columns.get(f"{name}__length")
    for i, value in enumerate(columns[name]):
        values = [value] if lengths is None else value[: lengths[i]]
        found.update(int(v) for v in values)
        found[0] += int(lengths is not None and not lengths[i])
    return found


@pytest.mark.parametrize("batch_rows", [7, 10_000])
def test_a_dataset_is_counted_as_naively(make_dataset, monkeypatch, batch_rows: int) -> None:
    monkeypatch.setattr(drift, "BATCH_ROWS", batch_rows)
    monkeypatch.setattr(drift, "NUM_TOP_IDS", 10)
    data = make_dataset()
    profile = measure(data.path, data.manifest)
    columns = data.columns["train"]
    for feature in data.schema.sparse:
        expected, found = naive(columns, feature.name), profile.features[feature.name]
        assert isinstance(found, SparseDistribution)
        missing = expected.pop(0, 0)
        top = sorted(expected, key=lambda id_: (-expected[id_], id_))[:10]
        assert found.ids == tuple(top) and found.counts == tuple(expected[id_] for id_ in top)
        assert (found.rest, found.missing) == (expected.total() - sum(found.counts), missing)
        assert dict(zip(found.sample.ids, found.sample.counts, strict=True)) == expected
    for name in data.schema.dense_names:
        found, values = profile.features[name], np.sort(columns[name])
        assert isinstance(found, DenseDistribution)
        assert found.edges == tuple(values[math.ceil(len(values) * k / 10) - 1] for k in range(1, 10))
        ends = [-math.inf, *found.edges, math.inf]
        assert found.counts == tuple(int(((a <= values) & (values < b)).sum()) for a, b in pairwise(ends))
    assert (profile.num_rows, profile.num_positives) == (len(columns["label"]), int(columns["label"].sum()))
    assert profile.datasets == (data.manifest.fingerprint,) and set(profile.oov_rates) == {"device"}


def test_days_add_up_over_the_first_ones_bins(make_dataset) -> None:
    days = [make_dataset(name=f"day{i}", seed=i) for i in range(3)]
    first = measure(days[0].path, days[0].manifest)
    profiles = [first, *(measure(day.path, day.manifest, bins=first.bins) for day in days[1:])]
    summed = total(profiles)
    columns = {n: np.concatenate([d.columns["train"][n] for d in days]) for n in days[0].columns["train"]}
    assert summed.features == count(days[0].schema, [columns], first.bins)
    assert summed.num_rows == len(columns["label"]) and summed.label_rate == pytest.approx(columns["label"].mean())
    assert summed.datasets == tuple(day.manifest.fingerprint for day in days)
    with pytest.raises(DriftError, match="twice"):
        total([summed, profiles[1]])
    with pytest.raises(DriftError, match="other bins"):
        total([first, measure(days[1].path, days[1].manifest)])
    with pytest.raises(DriftError, match="needs a dataset"):
        total([])


def test_rates_add_up_by_rows() -> None:
    def profile(name: str, rows: int, rate: float) -> DataProfile:
        return DataProfile("s", "r", (name,), rows, 0, {"x": rate}, {"x": rate / 2}, {"x": dense(rows)})

    summed = total([profile("a", 100, 0.1), profile("b", 300, 0.5), profile("c", 600, 1.0)])
    assert summed.null_rates["x"] == pytest.approx((10 + 150 + 600) / 1_000)
    assert summed.oov_rates["x"] == pytest.approx((5 + 75 + 300) / 1_000)


def test_round_trip_and_damage(make_dataset, tmp_path) -> None:
    data, path = make_dataset(), tmp_path / "profile.json"
    profile = measure(data.path, data.manifest)
    profile.save(path)
    assert DataProfile.load(path) == profile
    assert [p.name for p in tmp_path.iterdir() if "profile" in p.name] == ["profile.json"]

    tree = asdict(profile)
    tree["features"]["age"]["counts"] = tree["features"]["age"]["counts"][1:]
    for text in ("{", "[]", json.dumps(tree), json.dumps({**asdict(profile), "null_rates": {}})):
        path.write_text(text)
        with pytest.raises(DriftError, match="is damaged"):
            DataProfile.load(path)
    with pytest.raises(DriftError, match="cannot be read"):
        DataProfile.load(tmp_path / "none.json")


def test_a_dataset_in_an_object_store_is_counted_as_on_disk(make_dataset, bucket: Bucket) -> None:
    data = make_dataset()
    place = ObjectPath(bucket.name, "day")
    place.upload(data.path)
    assert measure(str(place), DatasetManifest.load(place)) == measure(data.path, data.manifest)


def test_damaged_datasets_are_refused(make_dataset) -> None:
    data = make_dataset()
    file = data.manifest.split("train").files[1]
    path = data.path / file.path
    whole = path.read_bytes()
    path.write_bytes(b"\0" * len(whole))
    with pytest.raises(DatasetError, match="cannot be read"):
        measure(data.path, data.manifest)
    path.write_bytes(whole[:-1])
    with pytest.raises(DatasetError, match="it was cut or changed"):
        measure(data.path, data.manifest)
    path.write_bytes(whole)
    split = data.manifest.split("train")
    for changed, words in (
        (replace(split, files=(replace(split.files[0], row_groups=(64,)),)), "other row groups"),
        (replace(split, dense={}), "no statistics of price, row"),
        (replace(split, files=()), "no 'train' split"),
    ):
        with pytest.raises(DatasetError, match=words):
            measure(data.path, replace(data.manifest, splits={"train": changed}))
    with pytest.raises(DriftError, match="the features are"):
        measure(data.path, data.manifest, bins={"user": (1,)})


def test_ids_that_mean_something_else_are_not_compared(make_dataset, tmp_path) -> None:
    data = make_dataset()
    profile = measure(data.path, data.manifest)

    def with_learnt(learnt: Learnt) -> DataProfile:
        learnt.save(data.path / "v1" / "learnt")
        manifest = replace(data.manifest, learnt_fingerprint=learnt.fingerprint)
        return measure(data.path, manifest, bins=profile.bins)

    extended = Learnt({"device": ["mobile", "tablet", "watch"]}, out_of_vocabulary={"device": 3})
    again = Learnt({"device": ["mobile", "tablet", "watch"]})
    assert extended.extends(data.learnt) and not again.extends(data.learnt)
    with_learnt(extended).check_comparable(profile)
    with pytest.raises(DriftError, match=r"pipeline\.base"):
        with_learnt(again).check_comparable(profile)
    with pytest.raises(DriftError, match="schemas"):
        replace(profile, schema_fingerprint="0").check_comparable(profile)


# ----------------------------------------------------------------------------------------------------------- quantiles


def test_edges_of_many_values_are_deciles_whatever_their_order(monkeypatch) -> None:
    values = np.random.default_rng(0).permutation(1_000).astype(np.float32)
    assert quantile_edges(values) == tuple(100.0 * k - 1 for k in range(1, 10))
    monkeypatch.setattr(drift, "NUM_QUANTILE_ROWS", 100)
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
    assert drift.bin_counts(values, edges)[:2].tolist() == [0, 600]
    # What was constant is seen to rise and to fall.
    constant = quantile_edges(np.full(100, 5, np.float32))
    assert [drift.bin_counts(np.full(4, v, np.float32), constant).tolist() for v in (4.9, 5, 5.1)] == [
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


# ------------------------------------------------------------------------------------------------------- bounded memory


def test_frequent_ids_are_found_in_bounded_memory(monkeypatch) -> None:
    """Misra and Gries: of n values, an id with more than n / (capacity + 1) is never lost."""
    monkeypatch.setattr(drift, "NUM_COUNTED_IDS", 50)
    for seed in range(20):
        random = np.random.default_rng(seed)
        ids = np.concatenate([np.repeat([11, 22, 33], [900, 600, 300]), random.integers(100, 10**6, 5_000)])
        random.shuffle(ids)
        found = drift._FrequentIds()
        for part in np.array_split(ids, 40):
            found.add(*np.unique(part, return_counts=True))
            assert len(found.ids) <= 50
        assert found.top()[:3] == (11, 22, 33)
        truth = Counter(ids.tolist())
        short = [truth[i] - c for i, c in zip(found.ids.tolist(), found.counts.tolist(), strict=True)]
        assert min(short) >= 0 and max(short) <= len(ids) / 51


def test_a_sample_holds_exact_counts_of_the_same_ids_whatever_the_batches(monkeypatch) -> None:
    monkeypatch.setattr(drift, "NUM_SAMPLED_IDS", 64)
    ids = np.random.default_rng(0).zipf(1.3, 20_000) % 2**20 + 1
    found = counted(ids)
    truth = Counter(ids.tolist())
    sample = found.sample
    assert sample.level > 0 and 16 <= len(sample.ids) <= 64
    assert dict(zip(sample.ids, sample.counts, strict=True)) == {i: truth[i] for i in sample.ids}
    assert set(sample.ids) == {i for i in truth if drift._is_sampled(np.array([i]), sample.level)[0]}
    assert counted(ids, size=331).sample == sample
    halves = [
        count(SCHEMA, [{"a": half, "x": np.zeros(len(half), np.float32)}], {"a": found.ids, "x": ()})["a"]
        for half in (ids[:3_000], ids[3_000:])
    ]
    assert drift.add(*halves) == found == drift.add(*halves[::-1])


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
    monkeypatch.setattr(drift, "NUM_SAMPLED_IDS", 10_000)
    exact = counted(first), counted(second)
    truth = new_ids(*exact, min_count=10)
    distinct = {i for i, times in Counter(second.tolist()).items() if times >= 10}
    assert (truth.num_new, truth.num_ids) == (len(distinct - set(first.tolist())), len(distinct))
    monkeypatch.setattr(drift, "NUM_SAMPLED_IDS", 500)
    # Of two levels, the thinner sample decides.
    sampled = new_ids(exact[0], counted(second), min_count=10)
    assert sampled.num_ids <= 500
    assert sampled.id_share == pytest.approx(truth.id_share, abs=0.08)
    assert sampled.value_share == pytest.approx(truth.value_share, abs=0.08)


def test_batches_of_the_tiny_dataset_do_not_matter() -> None:
    schema = tiny_schema()
    columns = tiny_columns(schema, 500, np.random.default_rng(2))
    bins = choose_bins(schema, parts(columns, 41), 500)
    assert bins == choose_bins(schema, [columns], 500)
    assert count(schema, parts(columns, 13), bins) == count(schema, [columns], bins)
