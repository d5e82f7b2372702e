"""Data quality: too many rejected rows, and limits on the features' statistics."""

from collections.abc import Sequence
from dataclasses import fields
from itertools import islice

from features.disk.dataset import DatasetError, FeatureStatistics
from pipeline.build.encode_rows import NUM_SHOWN_LINES, PortionResult, PortionTask
from pipeline.build.measure import Sums
from pipeline.build.portions import first_rejected
from pipeline.config import QualityConfig, QualityLimits


def check_rejected(
    tasks: Sequence[PortionTask], results: Sequence[PortionResult], total: Sums, config: QualityConfig
) -> int:
    """Refuse an input with too many malformed rows, or with no training row left.

    Returns:
        Number of rejected rows.

    Raises:
        DatasetError: names the first malformed rows by file, line and reason.
    """
    num_rejected = sum(sum(result.reasons.values()) for result in results)
    num_rows = sum(total.rows.values()) + num_rejected + sum(result.num_duplicates for result in results)
    if not num_rows:
        raise DatasetError("the input files have no rows")
    if num_rejected > config.max_rejected_fraction * num_rows:
        raise DatasetError(
            f"{num_rejected:,} of {num_rows:,} rows ({num_rejected / num_rows:.2%}) are malformed, more than "
            f"pipeline.quality.max_rejected_fraction = {config.max_rejected_fraction:g} allows. First: "
            + "; ".join(first_rejected(tasks, results, NUM_SHOWN_LINES))
        )
    if not total.rows.get("train"):
        raise DatasetError("no row is left for the training split: see pipeline.input.train and pipeline.split")
    return num_rejected


def beyond_limits(statistics: dict[str, FeatureStatistics], config: QualityConfig) -> list[str]:
    """List the limits that features of the training split exceed, a sentence each."""
    rates = {"max_null_rate": "null_rate", "max_oov_rate": "oov_rate", "max_collision_rate": "collision_rate"}
    found = []
    for name, values in statistics.items():
        own = config.features.get(name, QualityLimits())
        for limit in fields(QualityLimits):  # pyright: ignore[reportArgumentType]
            bound = getattr(own, limit.name)
            bound = getattr(config.limits, limit.name) if bound is None else bound
            rate = getattr(values, rates[limit.name])
            if bound is not None and rate is not None and rate > bound:
                found.append(f"feature {name!r}: {rates[limit.name]} {rate:.4f} is beyond {limit.name} = {bound:g}")
    return found


def enforce_limits(statistics: dict[str, FeatureStatistics], config: QualityConfig) -> list[str]:
    """Collect warnings about features that exceed their limits.

    Raises:
        DatasetError: there are any and ``pipeline.quality.action`` is ``fail``.
    """
    found = beyond_limits(statistics, config)
    if found and config.action == "fail":
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        raise DatasetError("; ".join(islice(found, 5)) + more)
    return found
