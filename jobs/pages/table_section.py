"""Section of a report on table precisions: results of ``jobs.compare_tables``, float32 and quantised side by side."""

from collections.abc import Mapping
from typing import Any

from jobs.pages.metric_values import with_metrics
from jobs.pages.values import Table, percent


def rows(found: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Make the header and the lines of a table with one line for each precision.

    Args:
        found: what ``jobs.compare_tables`` wrote.
    """
    whole = found["precisions"][0]
    sizes = [timed["batch_size"] for timed in whole["latency"]]
    header = ["tables", "tables, MB", "of float32", "artifact, MB", "auc", "logloss", "calibration"]
    header += ["largest change of a probability", *(f"ms a batch of {size:,}" for size in sizes), "rows/s at most"]
    lines = []
    for entry in found["precisions"]:
        latency = entry["latency"]
        lines.append(
            [
                entry["tables"],
                entry["table_bytes"] / 1e6,
                percent(entry["table_bytes"] / whole["table_bytes"]),
                (entry["weight_bytes"] + found["vocabulary_bytes"]) / 1e6,
                *with_metrics(entry, "auc", "logloss", "calibration"),
                entry["max_difference"],
                *(timed["milliseconds"] for timed in latency),
                max(timed["rows_per_second"] for timed in latency),
            ]
        )
    return header, lines


def command(run: str) -> str:
    """Write the command that compares the tables of a run."""
    return f"python -m jobs.compare_tables --run {run}"


def section(found: Mapping[str, Any], run: str, best_step: int | None) -> dict[str, Any] | None:
    """Collect the content of the section; None: nothing was compared yet.

    Args:
        found: what ``jobs.compare_tables`` wrote; empty if it did not run.
        run: the run's folder, for the command.
        best_step: step of the checkpoint that is served now, if known.
    """
    if not found:
        return None
    outdated = None
    if best_step not in (None, found["step"]):
        outdated = f"This is of step {found['step']:,} and the best one is step {best_step:,} now: {command(run)}"
    about = (
        f"{found['precisions'][0]['rows']:,} rows of the split {found['split']} of {found['dataset']}; checkpoint of "
        f"step {found['step']:,}. Times are medians of a forward pass over encoded rows with {found['threads']} "
        "threads, the precisions taking turns. jobs.export --tables writes the artifact that serves one of them."
    )
    return {"outdated": outdated, "about": about, "precisions": Table(*rows(found))}
