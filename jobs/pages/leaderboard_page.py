"""render_leaderboard: the page of a leaderboard; verdict and others: texts of its cells."""

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.pages import figures
from jobs.pages.page import render_page
from jobs.pages.values import Table
from training.judge.comparison import Difference
from training.judge.metrics import METRICS

REPORTED_SPLITS = ("valid", "test")
"""Reported splits; models are compared on the last one that exists."""

LeaderboardRow = dict[str, Any]
"""Row of a leaderboard: means, deviations and the difference to the reference, of one model on one dataset."""


def render_leaderboard(datasets: Mapping[str, str], rows: Sequence[LeaderboardRow], reference: str) -> str:
    """Make the whole page.

    Args:
        datasets: anchor -> name of each dataset.
        rows: rows of all datasets, in order.
        reference: model that the others are compared with.
    """
    boards = {key: _board([row for row in rows if row["dataset"] == name]) for key, name in datasets.items()}
    return render_page(
        "leaderboard.html", "Leaderboard", f"reference: {reference}", datasets, boards=boards, reference=reference
    )


def _board(rows: Sequence[LeaderboardRow]) -> dict[str, Any]:
    """Collect the tables and figures of one dataset."""
    split = last_split(rows[0])
    metrics = [f"{s}_{m}" for s in REPORTED_SPLITS for m in METRICS if any(f"{s}_{m}" in row for row in rows)]
    header = ["model", "seeds", "parameters", *(name.replace("_", " ") for name in metrics), "epochs", "s of training"]
    lines = [
        [
            row["model"],
            row["seeds"],
            row["parameters"],
            *(with_deviation(row, name) for name in metrics),
            row["epochs"],
            row["train_seconds"],
        ]
        for row in rows
    ]
    compared = [
        [row["model"], row["compared_seeds"], _interval(row, "auc"), _interval(row, "logloss"), verdict(row)]
        for row in rows
        if row.get("compared_on")
    ]
    columns = ("model", "seeds", "AUC, 95 % interval", "logloss, 95 % interval", "verdict")
    return {
        "split": split,
        "models": Table(header, lines),
        "figures": {
            f"{split} {title}, mean and deviation over seeds": figures.deviations(rows, f"{split}_{name}")
            for title, name in (("AUC", "auc"), ("logloss", "logloss"))
            if f"{split}_{name}" in metrics
        },
        "compared": Table(columns, compared) if compared else None,
    }


def last_split(row: LeaderboardRow) -> str:
    """Choose the split that models are compared on: test if there is one, else valid; one with an AUC if any has it."""
    found = [
        split for metric in ("auc", "logloss") for split in reversed(REPORTED_SPLITS) if f"{split}_{metric}" in row
    ]
    return found[0] if found else REPORTED_SPLITS[0]


def with_deviation(row: LeaderboardRow, name: str) -> str:
    """Write a metric's mean over seeds with its standard deviation; empty if the metric is undefined.

    Args:
        row: row of a leaderboard.
        name: split and metric, such as ``test_auc``.
    """
    if name not in row:  # undefined, or a result is older than the metric
        return ""
    metric, deviation = METRICS[name.partition("_")[2]], row.get(f"{name}_std")
    return metric.text(row[name]) + ("" if deviation is None else f" ± {metric.text(deviation)}")


def _interval(row: LeaderboardRow, metric: str) -> str:
    found = _difference(row, metric)
    mean, low, high = (METRICS[metric].text(value, "+") for value in (found.mean, found.low, found.high))
    return f"{mean} ({low} to {high})"


def verdict(row: LeaderboardRow) -> str:
    """Say for AUC and logloss whether a model is better or worse than the reference, or not clearly different."""
    words = []
    for metric in ("auc", "logloss"):
        better = METRICS[metric].sign
        difference = _difference(row, metric)
        word = "better" if better * difference.mean > 0 else "worse"
        words.append(f"{metric} {word if difference.is_clear else 'no clear difference'}")
    return ", ".join(words)


def _difference(row: LeaderboardRow, metric: str) -> Difference:
    """Read a row's difference to the reference."""
    return Difference(row[f"{metric}_difference"], row[f"{metric}_low"], row[f"{metric}_high"])
