"""Sections on data checks and the gate, for the report of a run and for the page on retraining."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from jobs.pages import check_figures
from jobs.pages.metric_values import with_metrics
from jobs.pages.values import Mark, Table
from jobs.retraining.data_checks import LEVELS, CheckResult, Checks
from jobs.retraining.raw_partitions import dashed
from jobs.retraining.shapes import KeptChecks, find_distances
from training.judge.gate import RuleResult, Verdict

NUM_UNMOVED = 2
"""Histograms shown if no feature is beyond its limit."""
LEVEL_MARKS = {"ok": Mark("ok", "good"), "warn": Mark("warn", "fair"), "stop": Mark("stop", "bad")}

Figures = dict[str, go.Figure]
"""Figures to show side by side: title -> figure."""


def checks_section(found: Mapping[str, KeptChecks]) -> dict[str, Any]:
    """Collect figures and a table of the data checks of some partitions; the newest gets the most.

    Args:
        found: partition -> its checks.

    Returns:
        What the macro ``checks`` of ``checks.html`` shows.
    """
    *older, newest = sorted(found)
    counts = ", ".join(f"{sum(r.level == level for r in found[newest].results)} {level}" for level in LEVELS)
    grids = [_rates_and_distances(found[newest]), _shapes(found[newest])]
    drift = {date: find_distances(found[date]) for date in sorted(found) if find_distances(found[date])}
    if len(drift) > 1:
        grids.append({"Distance of each feature to the datasets before, by day": check_figures.drift_map(drift)})
    shown = [(newest, result) for result in [*_beyond(found[newest]), *_largest(found[newest])]]
    shown += [(date, result) for date in reversed(older) for result in _beyond(found[date])]
    rows = [(dashed(date), *_row(result)) for date, result in shown]
    return {
        "summary": f"{dashed(newest)} against the datasets before it: {counts}.",
        "grids": [figures for figures in grids if figures],
        "table": Table(("day", *_HEADER), rows) if rows else None,
    }


def _rates_and_distances(kept: KeptChecks) -> Figures:
    """Draw the distances and rates that were checked on one partition."""
    figures: Figures = {}
    moved = find_distances(kept)
    if moved:
        figures["Distance of each feature to the datasets before"] = check_figures.draw_distances(moved)
    rates = check_figures.rates(kept.results)
    if rates is not None:
        figures["Rates, before and now"] = rates
    return figures


def _shapes(kept: KeptChecks) -> Figures:
    """Draw the kept histograms of features beyond their limit, or if there are none, of those that moved most."""
    beyond = [result.feature for result in find_distances(kept) if result.level != "ok"]
    names = [name for name in kept.shapes if name in beyond] or list(kept.shapes)[:NUM_UNMOVED]
    return {f"{name}: values before and now": check_figures.shape(kept.shapes[name]) for name in names}


_HEADER = ("", "rule", "feature", "value", "reference", "threshold", "reason")


def _row(result: CheckResult) -> tuple[Any, ...]:
    mark = LEVEL_MARKS[result.level]
    return mark, result.rule, result.feature, result.value, result.reference, result.threshold, result.reason


def _beyond(kept: Checks) -> list[CheckResult]:
    """Find the results beyond their limit, the most severe first."""
    return sorted((r for r in kept.results if r.level != "ok"), key=lambda result: -LEVELS.index(result.level))


def _largest(kept: Checks) -> list[CheckResult]:
    """Find the largest value of each rule that is ok."""
    found: dict[str, CheckResult] = {}
    for result in kept.results:
        if result.level == "ok" and (result.rule not in found or result.value > found[result.rule].value):
            found[result.rule] = result
    return list(found.values())


def gate_section(verdict: Verdict, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Collect each rule with both values, and the metrics of candidate and champion.

    Args:
        verdict: verdict of the gate.
        metrics: side ("candidate", "champion") -> metric -> value.

    Returns:
        What the macro ``gate`` of ``checks.html`` shows.
    """
    refused = [rule for rule in verdict.rules if not rule.passed]
    word = f"was refused by {len(refused)} of {len(verdict.rules)} rules" if refused else "passed every rule"
    hidden = len(verdict.rules) - len(verdict.shown)
    more = f", {hidden} more segments kept theirs" if hidden else ""
    names = dict.fromkeys(name for values in metrics.values() for name in values)
    rows = [[side, *with_metrics(values, *names)] for side, values in metrics.items()]
    header = ("", "rule", "candidate", "champion", "threshold", "reason")
    return {
        "summary": f"The candidate {word}{more}.",
        "rules": Table(header, map(_rule_row, verdict.shown)),
        "metrics": Table(("", *names), rows) if rows else None,
    }


def _rule_row(rule: RuleResult) -> Sequence[Any]:
    mark = Mark("ok", "good") if rule.passed else Mark("FAILED", "bad")
    return mark, rule.name, rule.candidate, rule.champion, rule.threshold, rule.reason
