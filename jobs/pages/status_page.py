"""render_status: the status page of retraining, one self-contained HTML file."""

from collections.abc import Sequence
from typing import Any

from jobs.pages import check_figures, daily_figures
from jobs.pages.check_sections import LEVEL_MARKS, Figures, checks_section, gate_section
from jobs.pages.metric_values import with_metrics
from jobs.pages.page import render_page
from jobs.pages.values import Mark, Table, percent
from jobs.retraining.raw_partitions import dashed
from jobs.retraining.retraining_status import NUM_SHOWN, RetrainingStatus
from jobs.retraining.status_files import Outcome
from jobs.retraining.status_text import age, facts, span

SHOWN_METRICS = ("auc", "logloss", "calibration", "ne")
MAX_REASONS = 5
"""Reasons of one retraining shown at most: a bad model fails in every segment, and its report has all reasons."""
VERDICT_MARKS = {
    "promoted": Mark("promoted", "good"),
    "refused": Mark("refused", "fair"),
    "stopped": Mark("stopped", "fair"),
    "failed": Mark("failed", "bad"),
    "interrupted": Mark("interrupted", "fair"),
}


def render_status(status: RetrainingStatus) -> str:
    """Make the whole page."""
    sections = {
        "now": "Now",
        "retrainings": "Retrainings",
        "metrics": "Metrics by day",
        "gate": "The last gate",
        "drift": "Drift by day",
        "checks": "The newest data checks",
        "data": "Data by day",
        "partitions": "Partitions",
        "champions": "Champions",
    }
    return render_page(
        "status.html",
        f"Retraining of {status.model}",
        f"{status.root}; registry {status.place}; as of {status.at}",
        sections,
        numbers=_numbers(status),
        facts=facts(status),
        notes=status.notes,
        outcomes=_outcomes(status),
        num_earlier=max(0, len(status.outcomes) - NUM_SHOWN),
        verdicts=status.root / "verdicts",
        metric_figures=_metric_figures(status),
        last_gate=_last_gate(status),
        drift_map=check_figures.drift_map(status.drift) if status.drift else None,
        newest_checks=_newest_checks(status),
        data_figures=_data_figures(status),
        partitions=_partitions(status),
        champions=_champions(status),
    )


def _numbers(status: RetrainingStatus) -> dict[str, Any]:
    """Collect the headline numbers."""
    champion = status.champion
    values: dict[str, Any] = {}
    if champion is not None:
        values["champion"] = f"version {champion.version}"
        values["since its promotion"] = age(champion.promoted or champion.registered, status.at)
        if champion.trained_on:
            values["newest day it has seen"] = dashed(champion.trained_on[-1])
            values["newer partitions there"] = len(champion.newer)
    if status.outcomes:
        last = status.outcomes[-1]
        values[f"last retraining, {dashed(last.day or '')}".removesuffix(", ")] = last.verdict
    if status.drift:
        newest = status.drift[max(status.drift)]
        values["features beyond their drift limit"] = sum(result.level != "ok" for result in newest)
    return values


def _outcomes(status: RetrainingStatus) -> Table | None:
    if not status.outcomes:
        return None
    header = ("day", "verdict", "version", "champion", "auc", "logloss", "trained on", "rows", "stopped by")
    return Table(header, (_outcome_row(outcome, status) for outcome in reversed(status.outcomes[-NUM_SHOWN:])))


def _outcome_row(outcome: Outcome, status: RetrainingStatus) -> list[Any]:
    return [
        dashed(outcome.day or ""),
        VERDICT_MARKS.get(outcome.verdict, outcome.verdict),
        outcome.version,
        outcome.champion_version,
        *with_metrics({"auc": outcome.auc, "logloss": outcome.logloss}, "auc", "logloss"),
        span(outcome.trained_on) or None,
        outcome.train_rows,
        _why(outcome.stopped_by, status.reasons(outcome)),
    ]


def _why(stopped_by: str | None, reasons: Sequence[str]) -> str | None:
    more = len(reasons) - MAX_REASONS
    shown = [*reasons[:MAX_REASONS], *([f"and {more} more"] if more > 0 else [])]
    return ": ".join(filter(None, (stopped_by, "; ".join(shown)))) or None


def _metric_figures(status: RetrainingStatus) -> Figures | None:
    compared = [outcome for outcome in status.outcomes if outcome.metrics]
    if not compared:
        return None
    return {
        f"{metric} on each new day": daily_figures.metric_by_day(compared, metric)
        for metric in SHOWN_METRICS
        if any(metric in values for outcome in compared for values in outcome.metrics.values())
    }


def _last_gate(status: RetrainingStatus) -> dict[str, Any] | None:
    judged = [outcome for outcome in status.outcomes if outcome.gate is not None]
    if not judged or judged[-1].gate is None:
        return None
    last = judged[-1]
    version = "" if last.version is None else f", version {last.version}"
    return {"title": dashed(last.day or "") + version, "found": gate_section(judged[-1].gate, last.metrics)}


def _newest_checks(status: RetrainingStatus) -> dict[str, Any] | None:
    if not status.files.checks:
        return None
    newest = max(status.files.checks)
    return checks_section({newest: status.files.checks[newest]})


def _data_figures(status: RetrainingStatus) -> Figures | None:
    built = [partition for partition in status.partitions if partition.rows is not None]
    if not built:
        return None
    found = {"Rows": daily_figures.rows_by_day(built), "Label rate": daily_figures.label_rate_by_day(built)}
    if any(partition.null_rates for partition in built):
        found["Missing values, where they change most"] = daily_figures.null_rates_by_day(built)
    return found


def _partitions(status: RetrainingStatus) -> Table | None:
    if not status.partitions:
        return None
    tones = {"stopped": "bad", "half built": "fair", "not ready": "fair", "not yet seen": "fair", "trained on": "good"}
    rows = [
        [
            dashed(partition.name),
            Mark(partition.state, tones.get(partition.state, "")),
            Mark("late", "fair") if partition.is_late else "",
            LEVEL_MARKS[partition.level] if partition.level else None,
            partition.rows,
            percent(partition.label_rate),
            "; ".join(partition.reasons) or None,
        ]
        for partition in reversed(status.partitions)
    ]
    return Table(("partition", "state", "", "checks", "rows", "label rate", "what checks say"), rows)


def _champions(status: RetrainingStatus) -> Table | None:
    if not status.promotions:
        return None
    serving = status.champion and status.champion.version
    last = max((p.number for p in status.promotions if p.version == serving and not p.undone), default=None)
    rows = []
    for promotion in reversed(status.promotions):
        state = Mark("rolled back", "fair") if promotion.undone else Mark("serving", "good")
        if not promotion.undone and promotion.number != last:
            state = "replaced"
        rows.append([f"version {promotion.version}", promotion.at, state])
    return Table(("champion", "promoted (UTC)", ""), rows)
