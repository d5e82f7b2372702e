"""render: the page of a leaderboard; and the words that say how its rows compare."""

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.pages import figures
from jobs.pages.markup import document, grid, note, table
from training.judge.comparison import Difference
from training.judge.metrics import METRICS

SPLITS = ("valid", "test")
Row = dict[str, Any]


def render(datasets: Mapping[str, str], rows: Sequence[Row], reference: str) -> str:
    """The whole page.

    Args:
        datasets: anchor -> name.
    """
    sections = {}
    for key, name in datasets.items():
        sections[key] = (name, _section([row for row in rows if row["dataset"] == name], reference))
    return document("Leaderboard", f"reference: {reference}", "", sections)


def _section(rows: Sequence[Row], reference: str) -> str:
    split = last_split(rows[0])
    metrics = [f"{s}_{m}" for s in SPLITS for m in METRICS if any(f"{s}_{m}" in row for row in rows)]
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
        if "compared_on" in row
    ]
    plots = {
        f"{split} AUC, mean and deviation over seeds": figures.deviations(rows, f"{split}_auc"),
        f"{split} logloss, mean and deviation over seeds": figures.deviations(rows, f"{split}_logloss"),
    }
    return (
        table(header, lines)
        + grid(plots)
        + f"<h3>Minus {reference}, same seeds and rows ({split})</h3>"
        + (
            table(["model", "seeds", "AUC, 95 % interval", "logloss, 95 % interval", "verdict"], compared)
            if compared
            else note("Only one model: nothing to compare.")
        )
    )


def last_split(row: Row) -> str:
    """The split that models are judged by: test where there is one."""
    return next(split for split in reversed(SPLITS) if f"{split}_auc" in row)


def with_deviation(row: Row, name: str) -> str:
    """A metric's mean over seeds with its standard deviation; empty where the metric is undefined."""
    if name not in row:  # undefined, or a result is older than the metric
        return ""
    deviation = row.get(f"{name}_std")
    return f"{row[name]:.6f}" + ("" if deviation is None else f" ± {deviation:.6f}")


def _interval(row: Row, metric: str) -> str:
    difference = _difference(row, metric)
    return f"{difference.mean:+.6f} ({difference.low:+.6f} to {difference.high:+.6f})"


def verdict(row: Row) -> str:
    """Whether a model is better or worse than the reference, by AUC and by logloss, as far as that is clear."""
    words = []
    for metric, better in (("auc", 1), ("logloss", -1)):
        difference = _difference(row, metric)
        word = "better" if better * difference.mean > 0 else "worse"
        words.append(f"{metric} {word if difference.is_clear else 'no clear difference'}")
    return ", ".join(words)


def _difference(row: Row, metric: str) -> Difference:
    """What ``_compare`` put into a row."""
    return Difference(row[f"{metric}_difference"], row[f"{metric}_low"], row[f"{metric}_high"])
