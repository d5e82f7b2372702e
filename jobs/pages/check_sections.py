"""Sections on data checks and the gate, for the report of a run and for the page on retraining."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jobs.pages import check_figures
from jobs.pages.figure_style import dashed
from jobs.pages.markup import Mark, grid, note, table
from jobs.retraining.data_checks import LEVELS, Checks, Result
from jobs.retraining.shapes import KeptChecks, distances
from training.judge.gate import RuleResult, Verdict

NUM_UNMOVED = 2
"""Histograms that are shown where no feature is beyond its limit."""
LEVEL_MARKS = {"ok": Mark("ok", "good"), "warn": Mark("warn", "fair"), "stop": Mark("stop", "bad")}


def checks_section(found: Mapping[str, KeptChecks]) -> str:
    """Pictures and tables of what data checks said of some partitions, most of them on the newest one."""
    *older, newest = sorted(found)
    counts = ", ".join(f"{sum(r.level == level for r in found[newest].results)} {level}" for level in LEVELS)
    parts = [f"<p>{escape(f'{dashed(newest)} against the datasets before it: {counts}.')}</p>", pictures(found[newest])]
    drift = {date: distances(found[date]) for date in sorted(found) if distances(found[date])}
    if len(drift) > 1:
        parts.append(grid({"Distance of each feature to the datasets before, by day": check_figures.drift_map(drift)}))
    shown = [(newest, result) for result in [*_beyond(found[newest]), *_largest(found[newest])]]
    shown += [(date, result) for date in reversed(older) for result in _beyond(found[date])]
    title = "What is beyond its limit, and of each rule the largest value that is not"
    rows = [(dashed(date), *_row(result)) for date, result in shown]
    parts.append(
        f"<h3>{title}</h3>{table(('day', *_HEADER), rows)}" if rows else note("No rule had anything to check.")
    )
    return "".join(parts)


def pictures(checks: KeptChecks) -> str:
    """Of one partition: distances, rates and shapes, as far as they were checked."""
    plots, moved = {}, distances(checks)
    if moved:
        plots["Distance of each feature to the datasets before"] = check_figures.distances(moved)
    rates = check_figures.rates(checks.results)
    if rates is not None:
        plots["Rates, before and now"] = rates
    return (grid(plots) if plots else "") + shapes(checks)


def shapes(checks: KeptChecks) -> str:
    """Histograms of what is beyond its limit, else of what moved most, if they were kept."""
    beyond = [result.feature for result in distances(checks) if result.level != "ok"]
    names = [name for name in checks.shapes if name in beyond] or list(checks.shapes)[:NUM_UNMOVED]
    plots = {f"{name}: values before and now": check_figures.shape(checks.shapes[name]) for name in names}
    return grid(plots) if plots else ""


_HEADER = ("", "rule", "feature", "value", "reference", "threshold", "reason")


def _row(result: Result) -> tuple[Any, ...]:
    mark = LEVEL_MARKS[result.level]
    return mark, result.rule, result.feature, result.value, result.reference, result.threshold, result.reason


def _beyond(checks: Checks) -> list[Result]:
    """The gravest first."""
    return sorted((r for r in checks.results if r.level != "ok"), key=lambda result: -LEVELS.index(result.level))


def _largest(checks: Checks) -> list[Result]:
    """Of each rule the largest value that is ok."""
    found: dict[str, Result] = {}
    for result in checks.results:
        if result.level == "ok" and (result.rule not in found or result.value > found[result.rule].value):
            found[result.rule] = result
    return list(found.values())


def gate_section(verdict: Verdict, metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Each rule with both values, then the metrics of candidate and champion."""
    refused = [rule for rule in verdict.rules if not rule.passed]
    word = f"was refused by {len(refused)} of {len(verdict.rules)} rules" if refused else "passed every rule"
    hidden = len(verdict.rules) - len(verdict.shown)
    more = f", {hidden} more segments kept theirs" if hidden else ""
    rules = table(
        ("", "rule", "candidate", "champion", "threshold", "reason"), [_rule_row(rule) for rule in verdict.shown]
    )
    return f"<p>{escape(f'The candidate {word}{more}.')}</p>{rules}{_metrics(metrics)}"


def _rule_row(rule: RuleResult) -> Sequence[Any]:
    mark = Mark("ok", "good") if rule.passed else Mark("FAILED", "bad")
    return mark, rule.name, rule.candidate, rule.champion, rule.threshold, rule.reason


def _metrics(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    names = dict.fromkeys(name for values in metrics.values() for name in values)
    rows = [[side, *map(values.get, names)] for side, values in metrics.items()]
    return f"<h3>On the day that neither had seen</h3>{table(('', *names), rows)}" if rows else ""
