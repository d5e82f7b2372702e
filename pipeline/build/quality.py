"""Data quality: too many rejected rows, and limits on the features' statistics."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from itertools import islice

from features.disk.dataset import FeatureStatistics
from features.log_format import LogError
from features.read.candidates import ListCounts
from features.schema import FeatureSchema
from pipeline.build.encode_rows import NUM_SHOWN_LINES, PortionResult, PortionTask
from pipeline.build.measure import Sums
from pipeline.build.oddities import Signs, tell_times
from pipeline.build.portions import first_rejected
from pipeline.config import QualityConfig, QualityLimits

_CURES = {
    "not UTF-8 text": 'set pipeline.input.format.encoding to the encoding of the files ("cp1252", "GBK", say)',
    "wrong number of columns": "see separator, quote and columns of pipeline.input.format",
    "badly quoted": "see quote and escape of pipeline.input.format",
    "not a JSON object": "a line of JSON lines is one object; an array, or an object over many lines, is none",
}
"""Reason why most lines are no rows -> what to look at."""


def check_rejected(
    tasks: Sequence[PortionTask],
    results: Sequence[PortionResult],
    total: Sums,
    schema: FeatureSchema,
    config: QualityConfig,
) -> int:
    """Refuse an input with too many malformed rows, or with no training row left.

    Returns:
        Number of rejected rows.

    Raises:
        LogError: names the first malformed rows by file, line and reason.
    """
    reasons = sum((result.reasons for result in results), Counter[str]())
    num_rejected = reasons.total()
    num_rows = sum(total.rows.values()) + num_rejected + sum(result.num_duplicates for result in results)
    if not num_rows:
        raise LogError("the input files have no rows")
    if num_rejected > config.max_rejected_fraction * num_rows:
        raise LogError(
            f"{num_rejected:,} of {num_rows:,} rows ({num_rejected / num_rows:.2%}) are malformed, more than "
            f"pipeline.quality.max_rejected_fraction = {config.max_rejected_fraction:g} allows. First: "
            + "; ".join([*first_rejected(tasks, results, NUM_SHOWN_LINES), *_cures(reasons, schema)])
        )
    _check_lists(tasks, results, config)
    if not total.rows.get("train"):
        signs = sum((result.signs for result in results), Signs())
        why = ["see pipeline.input.train and pipeline.split", *tell_times(schema, signs, sum(total.rows.values()))]
        raise LogError(f"no row is left for the training split: {'; '.join(why)}")
    return num_rejected


def _check_lists(tasks: Sequence[PortionTask], results: Sequence[PortionResult], config: QualityConfig) -> None:
    """Refuse an input with too many lists that are rejected as a whole, each of which is one line among many rows."""
    lists = add_lists(results)
    if lists is not None and lists.num_rejected > config.max_rejected_fraction * lists.num_lines:
        raise LogError(
            f"{lists.num_rejected:,} of {lists.num_lines:,} lists of candidates are malformed, more than "
            f"pipeline.quality.max_rejected_fraction = {config.max_rejected_fraction:g} allows. First: "
            + "; ".join(first_rejected(tasks, results, NUM_SHOWN_LINES))
        )


def add_lists(results: Sequence[PortionResult]) -> ListCounts | None:
    """Add up the counts of the lists of candidates; None: a line of the log is a row."""
    found = [result.end.lists for result in results if result.end.lists is not None]
    if not found:
        return None
    total = ListCounts()
    for lists in found:
        total.add(lists)
    return total


def _cures(reasons: Counter[str], schema: FeatureSchema) -> list[str]:
    """Say what to do about the most frequent reason, where that is known."""
    [(reason, _)] = reasons.most_common(1)
    label = schema.label_rule
    if reason in (f"column {label.column!r} is not a number", f"label {label.column!r} is not 0 or 1"):
        return [
            f'a label of other values is a rule: features.label = "{label.column} == VALUE" or "{label.column} >= 4"'
        ]
    return [_CURES[reason]] if reason in _CURES else []


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
        LogError: there are any and ``pipeline.quality.action`` is ``fail``.
    """
    found = beyond_limits(statistics, config)
    if found and config.action == "fail":
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        raise LogError("; ".join(islice(found, 5)) + more)
    return found
