"""Text of the status of retraining, for a terminal."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from jobs.cli.text_table import text_table
from jobs.retraining.raw_partitions import dashed
from jobs.retraining.retraining_status import NUM_SHOWN, RetrainingStatus
from jobs.retraining.status_files import Outcome
from training.judge.metrics import METRICS

MAX_LISTED_NAMES = 6
"""Names of partitions in a sentence at most."""
MAX_REASON = 100
"""Characters of a reason in the table at most; the page shows more."""


def describe_status(status: RetrainingStatus) -> str:
    """Describe the status in some lines and a table of the last retrainings."""
    lines = [f"{status.model} in {status.root}, {status.at}", ""]
    lines += [f"{name:<11}{value}" for name, value in facts(status).items()]
    lines += [f"{'note':<11}{note}" for note in status.notes]
    header = ("day", "verdict", "by", "champion", "auc", "logloss", "why")
    rows = [_row(outcome, status) for outcome in reversed(status.outcomes[-NUM_SHOWN:])]
    return "\n".join([*lines, *(["", text_table([header, *rows])] if rows else [])])


def facts(status: RetrainingStatus) -> dict[str, str]:
    """Describe the status by subject, a sentence each; subjects without one are left out."""
    found = {
        "champion": _champion(status),
        "trained on": _knowledge(status),
        "at work": _work(status),
        "next": _next(status),
        "partitions": _partitions(status),
        "drift": _drift(status),
        "service": status.service.summary if status.service else "",
    }
    return {subject: sentence for subject, sentence in found.items() if sentence}


def _champion(status: RetrainingStatus) -> str:
    champion = status.champion
    if champion is None:
        return "not known" if status.registry_problem else "none yet"
    since = champion.promoted or champion.registered
    word = "promoted" if champion.promoted else "registered"
    return f"version {champion.version}, {word} {since} ({age(since, status.at)} ago)"


def _knowledge(status: RetrainingStatus) -> str:
    """Describe the champion's training partitions, and how many newer ones there are."""
    champion = status.champion
    if champion is None or not champion.trained_on:
        return ""
    if not champion.newer:
        behind = "there is nothing newer"
    else:
        behind = f"newest there {dashed(champion.newer[-1])}, {_plural(len(champion.newer), 'partition')} later"
    return f"{span(champion.trained_on)}; {behind}"


def _work(status: RetrainingStatus) -> str:
    """Tell whether a retraining is running, and which candidates have no verdict yet."""
    words = {True: "a retraining is at work", False: "no retraining", None: "not known on this system"}
    begun = f"; begun and not decided: {names(status.files.undecided)}" if status.files.undecided else ""
    return words[status.files.is_running] + begun


def _next(status: RetrainingStatus) -> str:
    """Describe the plan of the next retraining in a sentence."""
    todo = status.todo
    if todo is None:
        return ""
    parts = []
    if todo.build:
        parts.append(f"build and check {names(todo.build)}")
    if todo.test is not None:
        start = "from the champion" if todo.is_warm else "from nothing"
        checks = ", if its checks allow it" if todo.build else ""
        stop = f", stop by {dashed(todo.valid)}" if todo.valid else ""
        parts.append(f"train {start} on {names(todo.train)}{stop} and compare on {dashed(todo.test)}{checks}")
    return "; ".join(parts) or "nothing is new"


def _partitions(status: RetrainingStatus) -> str:
    """Count partitions by state; name those in unusual states and late ones."""
    counts = Counter(partition.state for partition in status.partitions)
    parts = []
    for state, count in counts.items():
        named = [partition.name for partition in status.partitions if partition.state == state]
        is_usual = state in ("trained on", "checked")
        parts.append(f"{count} {state}" + ("" if is_usual else f" ({names(named)})"))
    late = [partition.name for partition in status.partitions if partition.is_late]
    return ", ".join(parts) + (f"; late: {names(late)}" if late else "")


def _drift(status: RetrainingStatus) -> str:
    """List the features of the newest day that are beyond their drift limit."""
    if not status.drift:
        return ""
    day = max(status.drift)
    beyond = [result for result in status.drift[day] if result.level != "ok"]
    found = ", ".join(f"{result.feature} ({result.rule} {result.value:.3g})" for result in beyond[:MAX_LISTED_NAMES])
    more = f" and {len(beyond) - MAX_LISTED_NAMES} more" if len(beyond) > MAX_LISTED_NAMES else ""
    head = f"{dashed(day)}: {len(beyond)} of {_plural(len(status.drift[day]), 'feature')} beyond the limit"
    return head + (f": {found}{more}" if beyond else "")


def names(dates: Sequence[str]) -> str:
    """List partitions in a sentence, ``MAX_LISTED_NAMES`` at most."""
    shown = ", ".join(map(dashed, dates[:MAX_LISTED_NAMES]))
    return f"{shown} and {len(dates) - MAX_LISTED_NAMES} more" if len(dates) > MAX_LISTED_NAMES else shown


def span(dates: Sequence[str]) -> str:
    """Write partitions as first to last (number)."""
    if len(dates) == 1:
        return dashed(dates[0])
    return f"{dashed(dates[0])} to {dashed(dates[-1])} ({len(dates)})" if dates else ""


def age(since: str, now: str) -> str:
    """Write the time between two UTC times, ISO 8601, in the largest whole unit: days, hours or minutes."""
    seconds = (datetime.fromisoformat(now) - datetime.fromisoformat(since)).total_seconds()
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            return _plural(int(seconds // length), unit)
    return "less than a minute"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _row(outcome: Outcome, status: RetrainingStatus) -> tuple[str, ...]:
    scores = {"auc": outcome.auc, "logloss": outcome.logloss}
    auc, logloss = ("" if value is None else METRICS[name].text(value) for name, value in scores.items())
    reason = "; ".join(status.reasons(outcome))
    short = reason if len(reason) <= MAX_REASON else f"{reason[: MAX_REASON - 3]}..."
    champion = "" if outcome.champion_version is None else str(outcome.champion_version)
    return dashed(outcome.day or ""), outcome.verdict, outcome.stopped_by or "", champion, auc, logloss, short
