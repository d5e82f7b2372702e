"""Data checks: rules that a new dataset must pass to be trained on, compared with earlier datasets.

A rate fails its rule only if it is beyond the limit by more than its sampling error.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from features.disk.dataset import DatasetManifest
from features.profile.distribution import Distribution, DriftError, SparseDistribution, new_ids
from features.profile.drift import jensen_shannon, psi
from features.profile.profile import DataProfile
from jobs.cli.data_checks_config import (
    DataChecksConfig,
    FeatureLimits,
    LabelLimits,
    RowLimits,
)
from jobs.cli.text_table import text_table

STANDARD_ERRORS = 1.96
"""Standard errors by which a rate must be beyond its limit to fail: one-sided confidence of 97.5 %."""

Level = Literal["ok", "warn", "stop"]
LEVELS: tuple[Level, ...] = ("ok", "warn", "stop")

# ---------------------------------------------------------------------------------------------------------- the checks


@dataclass(frozen=True)
class CheckResult:
    """Result of one rule on one feature, or on the whole dataset."""

    rule: str
    feature: str | None
    value: float
    reference: float | None
    threshold: str
    level: Level
    reason: str = ""
    limit: float | None = None
    """Largest value that is ok; None: the rule has no such number, or it depends on the reference."""


@dataclass(frozen=True)
class Checks:
    """Results of all rules on one dataset."""

    results: tuple[CheckResult, ...]

    @property
    def level(self) -> Level:
        """Most severe level of all results."""
        return LEVELS[max((LEVELS.index(result.level) for result in self.results), default=0)]

    def to_json(self) -> dict[str, Any]:
        """Return level and results as JSON values."""
        return {"level": self.level, "results": [asdict(result) for result in self.results]}

    def table(self) -> str:
        """Lay the results out as text: those not ok, the most severe first, then the largest ok value of each rule."""
        rows = [("", "rule", "feature", "value", "reference", "threshold", "")]
        rows += [_cells(result, result.feature or "") for result in self._grave()]
        for of_rule in _by_rule(r for r in self.results if r.level == "ok").values():
            largest = max(of_rule, key=lambda result: result.value)
            others = f" and {len(of_rule) - 1} below" if len(of_rule) > 1 else ""
            rows.append(_cells(largest, f"{largest.feature or ''}{others}"))
        counts = ", ".join(f"{sum(r.level == level for r in self.results)} {level}" for level in reversed(LEVELS))
        return f"{text_table(rows)}\n{counts}"

    def _grave(self) -> list[CheckResult]:
        beyond = [result for result in self.results if result.level != "ok"]
        return sorted(beyond, key=lambda result: -LEVELS.index(result.level))


def _cells(result: CheckResult, feature: str) -> tuple[str, ...]:
    reference = "" if result.reference is None else f"{result.reference:.6g}"
    return result.level, result.rule, feature, f"{result.value:.6g}", reference, result.threshold, result.reason


def _by_rule(results: Iterable[CheckResult]) -> dict[str, list[CheckResult]]:
    groups: dict[str, list[CheckResult]] = {}
    for result in results:
        groups.setdefault(result.rule, []).append(result)
    return groups


def check_data(
    manifest: DatasetManifest, profile: DataProfile, reference: DataProfile | None, config: DataChecksConfig
) -> Checks:
    """Check a dataset against those before it.

    Args:
        manifest: manifest of the dataset.
        profile: profile of the dataset (``features.profile.profile.measure``), in the reference's bins if there is one.
        reference: sum of the profiles of earlier datasets (``features.profile.profile.total``); None: there are none,
            and only rules without a comparison are checked.

    Raises:
        DriftError: the profile is of another dataset, or cannot be compared with the reference.
        ValueError: the config names a feature that the dataset has not.
    """
    strange = set(config.features) - set(profile.features)
    if strange:
        raise ValueError(f"data checks name features that are none: {', '.join(sorted(strange))}")
    if profile.datasets != (manifest.fingerprint,):
        raise DriftError("the profile is not of this dataset: measure again")
    results = [_classes(profile, config.labels), *_oov(profile, reference, config)]
    if reference is not None:
        profile.check_comparable(reference)
        if manifest.fingerprint in reference.datasets:
            raise DriftError("the dataset is a part of its own reference")
        results = [
            _rows(profile, reference, config.rows),
            _labels(profile, reference, config.labels),
            *_nulls(profile, reference, config),
            *results,
            *_categories(profile, reference, config),
            *_drift(profile, reference, config),
        ]
    return Checks(tuple(result for result in results if result is not None))


def _rows(profile: DataProfile, reference: DataProfile, limits: RowLimits) -> CheckResult | None:
    if limits.min_ratio is None and limits.max_ratio is None:
        return None
    mean = reference.num_rows / len(reference.datasets)
    ratio = profile.num_rows / mean if mean else math.inf
    is_beyond = ratio < (limits.min_ratio or 0) or ratio > (limits.max_ratio or math.inf)
    reason = f"{ratio:.3g} times the rows of a mean dataset"
    level = limits.action if is_beyond else "ok"
    return CheckResult("rows", None, float(profile.num_rows), mean, _band(limits), level, reason)


def _labels(profile: DataProfile, reference: DataProfile, limits: LabelLimits) -> CheckResult | None:
    """Check the ratio of label rates on the log scale, with the standard error of a log risk ratio."""
    if limits.min_ratio is None and limits.max_ratio is None:
        return None
    logs, variance = [], 0.0
    for side in (profile, reference):
        positive, rows = side.num_positives + 0.5, side.num_rows + 1
        logs.append(math.log(positive / rows))
        variance += 1 / positive - 1 / rows
    log_ratio, slack = logs[0] - logs[1], STANDARD_ERRORS * math.sqrt(variance)
    is_low = limits.min_ratio is not None and log_ratio + slack < math.log(limits.min_ratio)
    is_high = limits.max_ratio is not None and log_ratio - slack > math.log(limits.max_ratio)
    reason = f"{math.exp(log_ratio):.3g} times the reference's"
    level = limits.action if is_low or is_high else "ok"
    return CheckResult("label rate", None, profile.label_rate, reference.label_rate, _band(limits), level, reason)


def _classes(profile: DataProfile, limits: LabelLimits) -> CheckResult | None:
    if not limits.both_classes or 0 < profile.num_positives < profile.num_rows:
        return None
    reason = f"every label is {int(profile.num_positives > 0)}"
    return CheckResult("classes", None, 1.0, None, "both classes", limits.action, reason)


def _band(limits: RowLimits | LabelLimits) -> str:
    ends = [("at least", limits.min_ratio), ("at most", limits.max_ratio)]
    return " and ".join(f"{words} {ratio:g}" for words, ratio in ends if ratio is not None) + " times"


def _nulls(profile: DataProfile, reference: DataProfile, config: DataChecksConfig) -> Iterator[CheckResult]:
    for name, rate in profile.null_rates.items():
        limit = _limit(config.nulls.max_rise, _own(config, name).max_null_rise)
        if limit is None:
            continue
        before = reference.null_rates[name]
        variance = _variance(rate, profile.num_rows) + _variance(before, reference.num_rows)
        is_beyond = rate - before - STANDARD_ERRORS * math.sqrt(variance) > limit
        level = config.nulls.action if is_beyond else "ok"
        yield CheckResult("nulls", name, rate, before, f"at most {limit:g} more", level)


def _oov(profile: DataProfile, reference: DataProfile | None, config: DataChecksConfig) -> Iterator[CheckResult]:
    for name, rate in profile.oov_rates.items():
        limit = _limit(config.oov.max_rate, _own(config, name).max_oov_rate)
        if limit is None:
            continue
        error = math.sqrt(_variance(rate, profile.num_rows * (1 - profile.null_rates[name])))
        level = config.oov.action if rate - STANDARD_ERRORS * error > limit else "ok"
        before = None if reference is None else reference.oov_rates.get(name)
        yield CheckResult("out of vocabulary", name, rate, before, f"at most {limit:g}", level, limit=limit)


def _variance(rate: float, rows: float) -> float:
    return rate * (1 - rate) / rows if rows else 0.0


def _categories(profile: DataProfile, reference: DataProfile, config: DataChecksConfig) -> Iterator[CheckResult]:
    limits = config.categories
    for name, current in profile.features.items():
        before = reference.features[name]
        if not isinstance(current, SparseDistribution) or not isinstance(before, SparseDistribution):
            continue
        own, found = _own(config, name), new_ids(before, current, limits.min_count)
        reason = f"{found.num_new} of {found.num_ids} categories with {limits.min_count} or more values are new"
        for rule, limit, share in (
            ("new values", _limit(limits.max_value_share, own.max_new_value_share), found.value_share),
            ("new categories", _limit(limits.max_share, own.max_new_share), found.id_share),
        ):
            if limit is not None:
                level = limits.action if share > limit else "ok"
                yield CheckResult(rule, name, share, None, f"at most {limit:g}", level, reason, limit)


def _drift(profile: DataProfile, reference: DataProfile, config: DataChecksConfig) -> Iterator[CheckResult]:
    distance = {"psi": psi, "js": jensen_shannon}[config.drift.distance]
    for name, current in profile.features.items():
        limit = _limit(config.drift.max_distance, _own(config, name).max_distance)
        if limit is None or not _has_values(current) or not _has_values(reference.features[name]):
            continue
        value = distance(reference.features[name], current)
        level = config.drift.action if value > limit else "ok"
        yield CheckResult(config.drift.distance, name, value, None, f"at most {limit:g}", level, limit=limit)


def _has_values(distribution: Distribution) -> bool:
    return any(distribution.counts) or distribution.rest + distribution.missing > 0


def _own(config: DataChecksConfig, name: str) -> FeatureLimits:
    return config.features.get(name, FeatureLimits())


def _limit(general: float | None, own: float | None) -> float | None:
    return general if own is None else own


# ------------------------------------------------------------------------------------------------------------ the order


@dataclass(frozen=True)
class Delivery:
    """Delivery: name and file digests of a dataset."""

    name: str
    """Name that sorts by time, such as ``2024-01-05``."""
    content: tuple[str, ...]
    """Digests (sha256) of its files, in any order."""

    @classmethod
    def of(cls, name: str, manifest: DatasetManifest) -> "Delivery":
        """Make the delivery of a dataset from its manifest."""
        return cls(name, tuple(file.sha256 for split in manifest.splits.values() for file in split.files))


@dataclass(frozen=True)
class Order:
    """Order: deliveries by what to do with them; those done and unchanged are in no group."""

    new: tuple[Delivery, ...]
    """Deliveries to train on, oldest first."""
    late: tuple[Delivery, ...]
    """Deliveries not trained on but older than the newest that was; oldest first."""
    duplicates: Mapping[str, str]
    """Deliveries with the files of another: name -> name of the other, one that is done or else the oldest."""
    changed: tuple[Delivery, ...]
    """Deliveries that are done but have other files now."""


def order_partitions(found: Sequence[Delivery], done: Sequence[Delivery]) -> Order:
    """Group deliveries by what to do with them.

    Args:
        found: existing deliveries, in any order.
        done: deliveries that were trained on.

    Raises:
        ValueError: a name occurs twice.
    """
    contents = {delivery.name: sorted(delivery.content) for delivery in done}
    if len(contents) < len(done) or len({delivery.name for delivery in found}) < len(found):
        raise ValueError("deliveries need names that differ")
    owners = {tuple(content): name for name, content in contents.items()}
    newest = max(contents, default="")
    new, late, changed, duplicates = [], [], [], {}
    for delivery in sorted(found, key=lambda delivery: delivery.name):
        content = sorted(delivery.content)
        if contents.get(delivery.name) == content:
            continue
        owner = owners.get(tuple(content)) if content else None
        if owner not in (None, delivery.name):
            duplicates[delivery.name] = owner
        elif delivery.name in contents:
            changed.append(delivery)
        else:
            owners[tuple(content)] = delivery.name
            (late if delivery.name < newest else new).append(delivery)
    return Order(tuple(new), tuple(late), duplicates, tuple(changed))
