"""Estimated statistics against exact ones of the same rows."""

import pytest

from pipeline.build import estimate

FEATURES = {
    "label": "click",
    "sparse": [
        {"name": "user", "encoding": {"kind": "hash", "num_buckets": 500}},
        {"name": "age", "encoding": {"kind": "boundaries", "boundaries": [20, 40]}},
        {"name": "tags", "separator": "|", "max_length": 2, "encoding": {"kind": "hash", "num_buckets": 50}},
        {"name": "city", "encoding": {"kind": "vocabulary"}},
    ],
}
NUM_ROWS = 4_000


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.csv"
    lines = ["user,age,tags,city,click"]
    for i in range(NUM_ROWS):
        # A third of the rows has one user, the others share 400, and every tenth row has none.
        user = "" if i % 10 == 0 else "u0" if i % 3 == 0 else f"u{i % 400 + 1}"
        lines.append(f"{user},{i % 60 if i % 5 else ''},a|b,c{i % 7},{i % 2}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_estimates_are_close_to_the_counts(build, log, monkeypatch):
    pipeline = {"input": {"train": log}, "split": {"kind": "hash", "valid": 0.2, "test": 0.0}}
    exact, _ = build(FEATURES, pipeline, "exact")
    monkeypatch.setattr(estimate, "EXACT_ROWS", NUM_ROWS // 2)
    estimated, _ = build(FEATURES, pipeline, "estimated")

    for split in ("train", "valid"):
        ours, truth = estimated.split(split).sparse, exact.split(split).sparse
        assert {name for name in ours if ours[name].is_estimated} == {"user", "age"}
        assert not any(statistics.is_estimated for statistics in truth.values())
        for name in ("tags", "city"):
            assert ours[name] == truth[name]
        for name in ("user", "age"):
            assert ours[name].null_rate == pytest.approx(truth[name].null_rate, abs=1e-12)
            assert ours[name].cardinality == pytest.approx(truth[name].cardinality, rel=4 * estimate.RELATIVE_ERROR)
            assert ours[name].max_id == truth[name].max_id
            assert ours[name].head_share == pytest.approx(truth[name].head_share, abs=0.04)
        assert ours["user"].collision_rate == pytest.approx(truth["user"].collision_rate, abs=0.06)
        assert ours["age"].collision_rate is None
    assert estimated.learnt_fingerprint == exact.learnt_fingerprint
    again, _ = build(FEATURES, pipeline, "again")
    assert again.splits["train"].sparse == estimated.splits["train"].sparse


@pytest.mark.parametrize(("cardinality", "num_ids"), [(0, 10), (1, 10), (5, 3), (1_000, 999), (2_000_000, 999_999)])
def test_expected_collisions(cardinality, num_ids):
    # A value shares its id unless each of the others goes elsewhere.
    alone = 1.0
    for _ in range(cardinality - 1):
        alone *= (num_ids - 1) / num_ids
    expected = 1 - alone if cardinality else 0
    assert estimate.expected_collision_rate(cardinality, num_ids) == pytest.approx(expected, abs=1e-9)
