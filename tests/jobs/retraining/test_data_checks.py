"""Data checks on simulated days: what is broken stops, what is luck does not; and results worked out by hand."""

import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from features.profile.bins import choose_bins, count
from features.profile.distribution import DenseDistribution, DriftError, SparseDistribution
from features.profile.id_counts import IdSample
from features.profile.profile import DataProfile, measure, total
from features.rows import Columns
from features.schema import DenseFeature, FeatureSchema, HashEncoding, SparseFeature, VocabularyEncoding
from jobs.cli.data_checks_config import DataChecksConfig
from jobs.retraining.data_checks import Checks, Delivery, check_data, order_partitions

SCHEMA = FeatureSchema(
    "click",
    sparse=(
        SparseFeature("user", HashEncoding(100_000)),
        SparseFeature("tags", HashEncoding(500), separator="|", max_length=3),
        SparseFeature("device", VocabularyEncoding()),
    ),
    dense=(DenseFeature("price"),),
)
UNKNOWN = 5
"""Id of a device that is out of the vocabulary, or missing."""
DEFAULTS = DataChecksConfig()

Change = Callable[[Columns, dict[str, np.ndarray]], None]


def config(**tree: Any) -> DataChecksConfig:
    return TypeAdapter(DataChecksConfig).validate_python(tree)


def day(
    seed: int, reference: DataProfile | None = None, rows: int = 3_000, change: Change | None = None
) -> DataProfile:
    """A day of a log with a long tail of users, some values missing, and few clicks."""
    random = np.random.default_rng(seed)
    rows = int(rows * random.uniform(0.7, 1.4))
    lengths = random.integers(0, 4, rows)
    columns: Columns = {
        "user": (random.zipf(1.3, rows) % 99_999 + 1).astype(np.int32),
        "tags": np.where(np.arange(3) < lengths[:, None], random.zipf(1.5, (rows, 3)) % 499 + 1, 0).astype(np.int32),
        "tags__length": lengths.astype(np.int32),
        "device": random.choice([1, 2, 3, 4, UNKNOWN], rows, p=[0.5, 0.3, 0.1, 0.05, 0.05]).astype(np.int32),
        "price": random.lognormal(size=rows).astype(np.float32),
        "label": (random.random(rows) < 0.04 * random.uniform(0.8, 1.25)).astype(np.float32),
    }
    missing = {name: random.random(rows) < rate for name, rate in (("user", 0.05), ("device", 0.03), ("price", 0.3))}
    if change is not None:
        change(columns, missing)
    columns["user"][missing["user"]], columns["device"][missing["device"]] = 0, UNKNOWN
    columns["price"][missing["price"]] = 0
    is_known = ~missing["device"]
    bins = choose_bins(SCHEMA, [columns], rows) if reference is None else reference.bins
    return DataProfile(
        "schema",
        "root",
        (f"day {seed}",),
        rows,
        int(columns["label"].sum()),
        {**{name: float(m.mean()) for name, m in missing.items()}, "tags": float((lengths == 0).mean())},
        {"device": float((columns["device"][is_known] == UNKNOWN).mean()) if is_known.any() else 0.0},
        count(SCHEMA, [columns], bins),
    )


def week(seed: int, days: int = 7) -> DataProfile:
    first = day(1_000 * seed)
    return total([first, *(day(1_000 * seed + i, first) for i in range(1, days))])


def checked(profile: DataProfile, reference: DataProfile | None, settings: DataChecksConfig = DEFAULTS) -> Checks:
    [fingerprint] = profile.datasets
    return check_data(SimpleNamespace(fingerprint=fingerprint), profile, reference, settings)  # type: ignore[arg-type]


def beyond(checks: Checks) -> set[tuple[str, str | None, str]]:
    return {(r.rule, r.feature, r.level) for r in checks.results if r.level != "ok"}


# ---------------------------------------------------------------------------------------------------------- simulation


@pytest.mark.parametrize("days", [1, 7])
def test_an_ordinary_day_passes(days: int) -> None:
    found = [
        beyond(checked(day(1_000 * seed + 500, reference), reference))
        for seed in range(60)
        for reference in [week(seed, days)]
    ]
    assert found == [set()] * 60


def _empty(name: str) -> Change:
    return lambda columns, missing: missing[name].fill(True)


def _click(times: float) -> Change:
    def change(columns: Columns, missing: dict[str, np.ndarray]) -> None:
        random = np.random.default_rng(len(columns["label"]))
        columns["label"] = (random.random(len(columns["label"])) < 0.04 * times).astype(np.float32)

    return change


def _unknown(columns: Columns, missing: dict[str, np.ndarray]) -> None:
    columns["device"][:] = UNKNOWN


def _renamed(columns: Columns, missing: dict[str, np.ndarray]) -> None:
    columns["device"] += 10  # a vocabulary that goes on gives new values ids behind all others


def _cents(columns: Columns, missing: dict[str, np.ndarray]) -> None:
    columns["price"] *= 100


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_empty("user"), ("nulls", "user", "stop")),
        (_empty("device"), ("nulls", "device", "stop")),
        (_empty("price"), ("nulls", "price", "stop")),
        (_click(3), ("label rate", None, "stop")),
        (_click(0.2), ("label rate", None, "stop")),
        (_click(0), ("label rate", None, "stop")),
        (_unknown, ("out of vocabulary", "device", "stop")),
        (_renamed, ("new values", "device", "stop")),
        (_cents, ("psi", "price", "warn")),
    ],
)
def test_a_broken_day_is_seen(change: Change, expected: tuple[str, str, str]) -> None:
    for seed in range(20):
        reference = week(seed)
        checks = checked(day(1_000 * seed + 500, reference, change=change), reference)
        assert expected in beyond(checks) and checks.level == expected[2]


@pytest.mark.parametrize("rows", [300, 30_000])
def test_a_day_of_a_tenth_or_ten_times_the_rows_stops(rows: int) -> None:
    reference = week(0)
    assert ("rows", None, "stop") in beyond(checked(day(500, reference, rows), reference))


def test_few_rows_do_not_stop_by_luck() -> None:
    for seed in range(100):
        reference = total([first := day(1_000 * seed, rows=300), day(1_000 * seed + 1, first, rows=300)])
        assert checked(day(1_000 * seed + 500, reference, rows=300), reference).level != "stop"


# ------------------------------------------------------------------------------------------------------ results by hand


def by_hand(rows: int = 10_000, positives: int = 1_000, name: str = "old", null_rate: float = 0.0, **parts: Any):
    user = parts.get("user") or SparseDistribution((1, 2), (rows // 2, 0), rows // 2, 0, IdSample(0, (1, 2), (60, 40)))
    return DataProfile(
        "schema",
        "root",
        (name,),
        rows,
        positives,
        {"user": null_rate, "price": 0.0},
        {"user": parts.get("oov_rate", 0.0)},
        {"user": user, "price": DenseDistribution((0.0,), parts.get("price", (rows // 2, rows // 2)), 0)},
    )


def result(checks: Checks, rule: str, feature: str | None = None):
    [found] = [r for r in checks.results if (r.rule, r.feature) == (rule, feature)]
    return found


@pytest.mark.parametrize(
    ("rows", "level"), [(2_999, "stop"), (3_000, "ok"), (10_000, "ok"), (30_000, "ok"), (30_001, "stop")]
)
def test_rows_are_held_against_a_mean_day(rows: int, level: str) -> None:
    reference = total([by_hand(5_000, name="a"), by_hand(15_000, name="b")])
    found = result(checked(by_hand(rows, name="new"), reference), "rows")
    assert (found.level, found.value, found.reference) == (level, rows, 10_000)
    assert found.threshold == "at least 0.3 and at most 3 times"


@pytest.mark.parametrize(
    ("positives", "level"),
    # 0.5 added, ln(positives / 1000) must be beyond ln 2 by 1.96 sqrt(1 / positives + 1 / 1000 - 2 / 10000).
    [(2_145, "ok"), (2_146, "stop"), (449, "ok"), (448, "stop"), (0, "stop")],
)
def test_a_label_rate_must_clearly_leave_its_band(positives: int, level: str) -> None:
    assert result(checked(by_hand(positives=positives, name="new"), by_hand()), "label rate").level == level


@pytest.mark.parametrize(
    # 0.1 and 1.96 sqrt(0.106 * 0.894 / 10000) are 0.1060.
    ("null_rate", "level"),
    [(0.1, "ok"), (0.1059, "ok"), (0.1062, "stop"), (1.0, "stop")],
)
def test_nulls_must_clearly_rise(null_rate: float, level: str) -> None:
    found = result(checked(by_hand(null_rate=null_rate, name="new"), by_hand()), "nulls", "user")
    assert (found.level, found.value, found.reference) == (level, null_rate, 0.0)
    assert found.limit is None  # it depends on the reference
    assert result(checked(by_hand(name="new"), by_hand(null_rate=1.0)), "nulls", "user").level == "ok"


def test_rates_of_one_dataset_need_no_reference() -> None:
    checks = checked(by_hand(oov_rate=0.95, null_rate=1.0), None)
    assert beyond(checks) == {("out of vocabulary", "user", "stop")} and len(checks.results) == 1
    assert checked(by_hand(oov_rate=0.9), None).level == "ok"


def test_new_categories_by_hand() -> None:
    user = SparseDistribution((1, 2), (5_000, 0), 5_000, 0, IdSample(0, (1, 2, 8, 9), (20, 19, 35, 9)))
    new = by_hand(user=user, name="new")
    found = result(checked(new, by_hand()), "new values", "user")
    assert (found.value, found.level) == (35 / 83, "ok")
    assert found.reason == "1 of 3 categories with 10 or more values are new"
    strict = config(categories={"max_value_share": 0.42, "max_share": 0.3, "min_count": 9, "action": "warn"})
    checks = checked(new, by_hand(), strict)
    assert result(checks, "new values", "user").value == 44 / 83
    assert result(checks, "new categories", "user").value == 2 / 4
    assert beyond(checks) == {("new values", "user", "warn"), ("new categories", "user", "warn")}


def test_drift_by_either_distance() -> None:
    new = by_hand(price=(9_000, 1_000), name="new")
    found = result(checked(new, by_hand()), "psi", "price")
    assert found.value == pytest.approx(0.4 * np.log(1.8) - 0.4 * np.log(0.2), rel=1e-3) and found.level == "warn"
    assert (found.limit, found.threshold) == (0.25, "at most 0.25")
    js = result(checked(new, by_hand(), config(drift={"distance": "js", "action": "stop"})), "js", "price")
    assert 0 < js.value < 0.25 and js.level == "ok"
    assert checked(new, by_hand(), config(drift={"max_distance": 0.2, "action": "stop"})).level == "stop"


def test_a_feature_may_have_limits_of_its_own() -> None:
    new = by_hand(null_rate=0.5, oov_rate=1.0, price=(9_000, 1_000), name="new")
    assert {feature for _, feature, _ in beyond(checked(new, by_hand()))} == {"user", "price"}
    own = {"user": {"max_null_rise": 0.6, "max_oov_rate": 1.0}, "price": {"max_distance": 2.0}}
    assert checked(new, by_hand(), config(features=own)).level == "ok"
    strict = config(features={"price": {"max_distance": 0.1}}, drift={"max_distance": None})
    assert ("psi", "price", "warn") in beyond(checked(new, by_hand(), strict))
    with pytest.raises(ValueError, match="none: cost, prise"):
        checked(new, by_hand(), config(features={"prise": {}, "cost": {}}))


def test_every_rule_can_be_switched_off_or_made_a_warning() -> None:
    user = SparseDistribution((1, 2), (0, 0), 10_000, 0, IdSample(0, (7,), (100,)))
    broken = by_hand(200_000, 0, "new", 1.0, oov_rate=1.0, user=user, price=(200_000, 0))
    rules = {
        "rows": {"min_ratio": None, "max_ratio": None},
        "labels": {"min_ratio": None, "max_ratio": None, "both_classes": False},
        "nulls": {"max_rise": None},
        "oov": {"max_rate": None},
        "categories": {"max_value_share": None},
        "drift": {"max_distance": None},
    }
    seen = {rule for rule, _, _ in beyond(checked(broken, by_hand()))}
    assert seen == {"rows", "label rate", "classes", "nulls", "out of vocabulary", "new values", "psi"}
    assert checked(broken, by_hand(), config(**rules)).results == ()
    warnings = checked(broken, by_hand(), config(**{group: {"action": "warn"} for group in rules}))
    assert warnings.level == "warn" and {rule for rule, _, _ in beyond(warnings)} == seen


def test_one_end_of_a_band_can_be_open() -> None:
    settings = config(rows={"min_ratio": None}, labels={"max_ratio": None})
    checks = checked(by_hand(10, 9, "new"), by_hand(), settings)
    assert {r.rule for r in checks.results if r.level == "stop"} == set()
    assert result(checks, "rows").threshold == "at most 3 times"
    assert result(checks, "label rate").threshold == "at least 0.5 times"


def test_what_cannot_be_compared_is_refused() -> None:
    old, new = by_hand(), by_hand(name="new")
    with pytest.raises(DriftError, match="not of this dataset"):
        check_data(SimpleNamespace(fingerprint="other"), new, old, DEFAULTS)  # type: ignore[arg-type]
    with pytest.raises(DriftError, match="its own reference"):
        checked(old, total([new, old]))
    with pytest.raises(DriftError, match="schemas"):
        checked(new, replace(old, schema_fingerprint="other"))
    for wrong in ({"row": {}}, {"nulls": {"max_rise": 2}}, {"rows": {"action": "fail"}}, {"rows": {"min_ratio": 0}}):
        with pytest.raises(ValidationError):
            config(**wrong)


def test_table_and_json() -> None:
    new = by_hand(null_rate=0.5, price=(9_000, 1_000), name="new")
    checks = checked(new, by_hand())
    assert json.loads(json.dumps(checks.to_json())) == checks.to_json()
    assert checks.to_json()["level"] == "stop" and len(checks.to_json()["results"]) == len(checks.results)
    lines = checks.table().splitlines()
    assert lines[0].split() == ["rule", "feature", "value", "reference", "threshold"]
    assert [line.split()[:3] for line in lines[1:3]] == [["stop", "nulls", "user"], ["warn", "psi", "price"]]
    assert lines[-1] == "1 stop, 1 warn, 6 ok"
    assert len({line.find("at ") for line in lines[1:-1] if "at " in line}) == 1
    of_user = checked(by_hand(name="new", price=(4_900, 5_100)), by_hand()).table()
    assert "price and 1 below" in of_user


def test_real_datasets(make_dataset) -> None:
    first, second = (make_dataset(name=f"day{i}", seed=i) for i in range(2))
    reference = measure(first.path, first.manifest)
    profile = measure(second.path, second.manifest, bins=reference.bins)
    checks = check_data(second.manifest, profile, reference, DEFAULTS)
    assert checks.level == "ok"
    assert {r.feature for r in checks.results if r.rule == "psi"} == {*first.schema.sparse_names, "row", "price"}
    assert {r.feature for r in checks.results if r.rule == "new values"} == set(first.schema.sparse_names)
    fewer = make_dataset(((30,),), name="day2")
    profile = measure(fewer.path, fewer.manifest, bins=reference.bins)
    assert ("rows", None, "stop") in beyond(check_data(fewer.manifest, profile, reference, DEFAULTS))


# ----------------------------------------------------------------------------------------------------------- the order


def deliveries(**content: str) -> list[Delivery]:
    return [Delivery(name, tuple(text)) for name, text in content.items()]


def test_partitions_in_order() -> None:
    done = deliveries(d02="ab", d03="cd", d05="ef")
    found = deliveries(d07="gh", d06="ij", d02="ba", d03="cx", d04="kl", d01="mn", d08="fe", d09="hg", d10="", d11="")
    for seed in range(50):
        np.random.default_rng(seed).shuffle(found)  # type: ignore[arg-type]
        order = order_partitions(found, done)
        assert [delivery.name for delivery in order.new] == ["d06", "d07", "d10", "d11"]
        assert [delivery.name for delivery in order.late] == ["d01", "d04"]
        assert order.duplicates == {"d08": "d05", "d09": "d07"}
        assert [delivery.name for delivery in order.changed] == ["d03"]


def test_at_first_all_partitions_are_new() -> None:
    found = deliveries(b="1", a="2")
    assert order_partitions(found, []) == order_partitions(found[::-1], [])
    assert order_partitions(found, []).new == (found[1], found[0])
    nothing = order_partitions(found, found)
    assert not (nothing.new or nothing.late or nothing.duplicates or nothing.changed)


def test_some_of_the_same_files_are_no_duplicate() -> None:
    order = order_partitions(deliveries(b="12", c="1", d="122"), deliveries(a="123"))
    assert len(order.new) == 3 and not order.duplicates


def test_names_must_differ() -> None:
    twice = deliveries(a="1") * 2
    for found, done in ((twice, []), ([], twice)):
        with pytest.raises(ValueError, match="names that differ"):
            order_partitions(found, done)


def test_a_delivery_is_all_files_of_a_dataset(make_dataset) -> None:
    data = make_dataset()
    delivery = Delivery.of("day", data.manifest)
    assert sorted(delivery.content) == sorted(f.sha256 for s in data.manifest.splits.values() for f in s.files)
    assert len(delivery.content) == 5
