"""Shapes worked out by hand: which ids have a bar of their own, and what is put together."""

from features.profile.distribution import DenseDistribution, SparseDistribution
from features.profile.id_counts import IdSample
from features.profile.profile import DataProfile
from jobs.retraining.data_checks import CheckResult, Checks
from jobs.retraining.shapes import NUM_FEATURES, NUM_IDS, find_distances, shapes


def profile(**features: SparseDistribution | DenseDistribution) -> DataProfile:
    return DataProfile("schema", "root", ("d",), 100, 10, dict.fromkeys(features, 0.0), {}, features)


def sparse(counts: list[int], rest: int = 0, missing: int = 0) -> SparseDistribution:
    return SparseDistribution(tuple(range(1, len(counts) + 1)), tuple(counts), rest, missing, IdSample())


def moved(*features: str) -> Checks:
    """The first moved most; what is no distance does not count."""
    results = [CheckResult("nulls", "x", 9.0, None, "at most 0.1 more", "ok")]
    results += [
        CheckResult("psi", name, 1.0 / (i + 1), None, "at most 0.25", "warn") for i, name in enumerate(features)
    ]
    return Checks(tuple(reversed(results)))


def test_small_ids_are_one_bar() -> None:
    before = sparse([50, 30, *[1] * 18], rest=2)
    now = sparse([0, 60, *[1] * 17, 21], missing=2)
    found = shapes(moved("user"), profile(user=now), profile(user=before))["user"]
    assert found["bins"][:2] == ("id 1", "id 2") and found["bins"][-2:] == ("other ids", "missing")
    assert "id 20" in found["bins"], "it came anew"
    assert len(found["bins"]) == NUM_IDS + 2
    of = {name: (a, b) for name, a, b in zip(found["bins"], found["current"], found["reference"], strict=True)}
    assert (of["id 1"], of["id 2"], of["id 20"], of["missing"]) == ((0, 0.5), (0.6, 0.3), (0.21, 0.01), (0.02, 0))
    # 20 - NUM_IDS = 6 ids of one value each on both sides, and the rest.
    assert of["other ids"] == (0.06, 0.08)


def test_bins_of_floats() -> None:
    before, now = (DenseDistribution((0.5, 0.5001, 2.0), counts, 0) for counts in ((1, 2, 3, 4), (4, 3, 2, 1)))
    found = shapes(moved("price"), profile(price=now), profile(price=before))["price"]
    assert found["bins"] == ("below 0.5", "0.5 to 0.5", "0.5 to 2", "2 up", "missing")
    assert (found["current"], found["reference"]) == ((0.4, 0.3, 0.2, 0.1, 0), (0.1, 0.2, 0.3, 0.4, 0))
    same = DenseDistribution((0.5, 0.5001, 0.5002), (1, 1, 1, 1), 0)
    found = shapes(moved("price"), profile(price=same), profile(price=same))["price"]
    assert len(set(found["bins"])) == 5, "bins of one name would be added up"
    assert shapes(moved("p"), *[profile(p=DenseDistribution((), (3,), 1))] * 2)["p"]["bins"] == ("all", "missing")


def test_only_what_moved_most_is_kept() -> None:
    names = [f"f{i}" for i in range(NUM_FEATURES + 3)]
    side = profile(**{name: sparse([1, 2]) for name in names})
    assert list(shapes(moved(*names), side, side)) == names[:NUM_FEATURES]
    assert [result.feature for result in find_distances(moved(*names))][:2] == ["f0", "f1"]
