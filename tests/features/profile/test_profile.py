"""Profiles measured from real files against naive counts."""

import json
import math
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest

from features.disk.dataset import DatasetError, DatasetManifest
from features.disk.object_store import ObjectPath
from features.learnt import Learnt
from features.profile import id_counts
from features.profile.bins import count
from features.profile.distribution import DenseDistribution, DriftError, SparseDistribution
from features.profile.profile import DataProfile, measure, total
from features.rows import Columns
from tests.stand_ins.object_store import Bucket
from tests.stand_ins.tiny_counts import dense


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
    monkeypatch.setattr("features.profile.profile.PROFILE_BATCH_ROWS", batch_rows)
    monkeypatch.setattr(id_counts, "NUM_TOP_IDS", 10)
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
