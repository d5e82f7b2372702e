"""The page on retraining: one file that holds everything and opens without a network."""

from collections.abc import Sequence
from html import escape
from typing import Any

from jobs.pages import check_figures, daily_figures
from jobs.pages.check_sections import LEVEL_MARKS, checks_section, gate_section
from jobs.pages.figure_style import dashed
from jobs.pages.markup import Mark, cards, document, grid, note, percent, table
from jobs.retraining.retraining_status import NUM_SHOWN, RetrainingStatus
from jobs.retraining.status_files import Outcome
from jobs.retraining.status_text import age, facts, span

METRICS = ("auc", "logloss", "calibration", "ne")
MAX_REASONS = 5
"""Of one retraining in the table; its candidate's report has all: a model that is broken fails in every segment."""
VERDICT_MARKS = {
    "promoted": Mark("promoted", "good"),
    "refused": Mark("refused", "fair"),
    "stopped": Mark("stopped", "fair"),
    "failed": Mark("failed", "bad"),
}


def render(status: RetrainingStatus) -> str:
    """The whole page."""
    sections = {
        "now": ("Now", _now(status)),
        "retrainings": ("Retrainings", _retrainings(status)),
        "metrics": ("Metrics by day", _metrics(status)),
        "gate": ("The last gate", _gate(status)),
        "drift": ("Drift by day", _drift(status)),
        "checks": ("The newest data checks", _checks(status)),
        "data": ("Data by day", _data(status)),
        "partitions": ("Partitions", _partitions(status)),
        "champions": ("Champions", _champions(status)),
    }
    subtitle = f"{status.root}; registry {status.place}; as of {status.at}"
    return document(f"Retraining of {status.model}", subtitle, _cards(status), sections)


def _cards(status: RetrainingStatus) -> str:
    champion, values = status.champion, {}
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
    return cards(values)


def _now(status: RetrainingStatus) -> str:
    lines = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts(status).items())
    return f"<dl>{lines}</dl>{''.join(map(note, status.notes))}"


def _retrainings(status: RetrainingStatus) -> str:
    if not status.outcomes:
        return note("Nothing has been retrained yet.")
    header = ("day", "verdict", "version", "champion", "auc", "logloss", "trained on", "rows", "stopped by")
    shown = status.outcomes[-NUM_SHOWN:]
    more = len(status.outcomes) - len(shown)
    found = table(header, (_outcome_row(outcome, status) for outcome in reversed(shown)))
    return found + (note(f"{more} earlier ones are in {status.root / 'verdicts'}.") if more else "")


def _outcome_row(outcome: Outcome, status: RetrainingStatus) -> list[Any]:
    return [
        dashed(outcome.day or ""),
        VERDICT_MARKS.get(outcome.verdict, outcome.verdict),
        outcome.version,
        outcome.champion_version,
        outcome.auc,
        outcome.logloss,
        span(outcome.trained_on) or None,
        outcome.train_rows,
        _why(outcome.stopped_by, status.reasons(outcome)),
    ]


def _why(stopped_by: str | None, reasons: Sequence[str]) -> str | None:
    more = len(reasons) - MAX_REASONS
    shown = [*reasons[:MAX_REASONS], *([f"and {more} more"] if more > 0 else [])]
    return ": ".join(filter(None, (stopped_by, "; ".join(shown)))) or None


def _metrics(status: RetrainingStatus) -> str:
    compared = [outcome for outcome in status.outcomes if outcome.metrics]
    if not compared:
        return note("No candidate has been measured yet.")
    plots = {
        f"{metric} on each new day": daily_figures.metric_by_day(compared, metric)
        for metric in METRICS
        if any(metric in values for outcome in compared for values in outcome.metrics.values())
    }
    about = "On each day, candidate and champion score rows that neither was trained on; a cross was refused."
    return f'<p class="soft">{escape(about)}</p>{grid(plots)}'


def _gate(status: RetrainingStatus) -> str:
    judged = [outcome for outcome in status.outcomes if outcome.gate is not None]
    if not judged or judged[-1].gate is None:
        return note("No candidate has been judged yet.")
    last = judged[-1]
    version = "" if last.version is None else f", version {last.version}"
    return f"<p>{escape(dashed(last.day or '') + version)}</p>{gate_section(judged[-1].gate, last.metrics)}"


def _drift(status: RetrainingStatus) -> str:
    if not status.drift:
        return note("No day has been compared with the days before it yet.")
    about = "Distance of each feature to the days before, over its limit: blue keeps it, orange and red do not."
    return f'<p class="soft">{escape(about)}</p>{grid({"": check_figures.drift_map(status.drift)})}'


def _checks(status: RetrainingStatus) -> str:
    if not status.files.checks:
        return note("No partition has been checked yet.")
    newest = max(status.files.checks)
    return checks_section({newest: status.files.checks[newest]})


def _data(status: RetrainingStatus) -> str:
    built = [partition for partition in status.partitions if partition.rows is not None]
    if not built:
        return note("No partition has been built yet.")
    plots = {"Rows": daily_figures.rows_by_day(built), "Label rate": daily_figures.label_rate_by_day(built)}
    if any(partition.null_rates for partition in built):
        plots["Missing values, where they change most"] = daily_figures.null_rates_by_day(built)
    return grid(plots)


def _partitions(status: RetrainingStatus) -> str:
    if not status.partitions:
        return note("No partition is known.")
    tones = {"stopped": "bad", "half built": "fair", "not yet seen": "fair", "trained on": "good"}
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
    return table(("partition", "state", "", "checks", "rows", "label rate", "what checks say"), rows)


def _champions(status: RetrainingStatus) -> str:
    if not status.promotions:
        return note("No version has been promoted yet.")
    serving = status.champion and status.champion.version
    last = max((p.number for p in status.promotions if p.version == serving and not p.undone), default=None)
    rows = []
    for promotion in reversed(status.promotions):
        state = Mark("rolled back", "fair") if promotion.undone else Mark("serving", "good")
        if not promotion.undone and promotion.number != last:
            state = "replaced"
        rows.append([f"version {promotion.version}", promotion.at, state])
    return table(("champion", "promoted (UTC)", ""), rows)
