"""Ranking of a leaderboard: means over seeds, differences to the reference, files and text."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from features.disk.atomic import write_json
from jobs.cli.text_table import text_table
from jobs.compare.matrix import Cell, Leaderboard
from jobs.pages.leaderboard_page import (
    REPORTED_SPLITS,
    LeaderboardRow,
    last_split,
    render_leaderboard,
    verdict,
    with_deviation,
)
from training.judge.comparison import paired_bootstrap
from training.judge.metrics import METRICS, UNDEFINED, remarks


def summarise(
    leaderboard: Leaderboard, cells: Sequence[Cell], results: Sequence[dict[str, Any]]
) -> list[LeaderboardRow]:
    """Summarise the results, one row a dataset and model, best validation AUC first.

    Returns:
        Rows of means and deviations over seeds, and of the difference to the reference.
    """
    rows = []
    for dataset in leaderboard.datasets:
        of: dict[str, dict[int, tuple[Cell, dict[str, Any]]]] = {}
        for cell, result in zip(cells, results, strict=True):
            if cell.dataset is dataset:
                of.setdefault(cell.model.name, {})[cell.seed] = (cell, result)
        found = []
        for model, by_seed in of.items():
            of_model = [result for _, result in by_seed.values()]
            row = {"dataset": dataset.name, "model": model, **_statistics(of_model)}
            if model != leaderboard.reference:
                row |= _compare(by_seed, of[leaderboard.reference], row, leaderboard.num_resamples)
            found.append(row)
        rows += sorted(found, key=lambda row: -row.get("valid_auc", -math.inf))
    return rows


def _statistics(results: Sequence[dict[str, Any]]) -> LeaderboardRow:
    row: LeaderboardRow = {"seeds": len(results), "parameters": results[0]["parameters"]}
    for split in REPORTED_SPLITS:
        for metric in METRICS:
            values = [result[split].get(metric) for result in results if split in result]
            if values and None not in values:
                row[f"{split}_{metric}"] = float(np.mean(values))
                row[f"{split}_{metric}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    row["epochs"] = float(np.mean([result["epochs"] for result in results]))
    row["train_seconds"] = float(np.mean([result["seconds"]["train"] for result in results]))
    return row


def _compare(
    model: dict[int, Any], reference: dict[int, Any], row: LeaderboardRow, num_resamples: int
) -> LeaderboardRow:
    """Compare a model with the reference by a paired bootstrap on one split, over the seeds that both have.

    Returns:
        More of the model's row; ``compared_on`` is None where they share no seed or the split has one class alone.
    """
    seeds, split = sorted(set(model) & set(reference)), last_split(row)
    if not seeds or f"{split}_auc" not in row:
        return {"compared_on": None}
    ours, theirs = ([_load(by_seed[seed][0].scores, split) for seed in seeds] for by_seed in (model, reference))
    first = ours[0]
    for other in (*ours, *theirs):
        if not all(np.array_equal(other[name], first[name]) for name in first if name != "logits"):
            raise ValueError("two runs of one dataset scored other rows: delete the results and run them again")
    differences = paired_bootstrap(
        [o["logits"] for o in ours],
        [t["logits"] for t in theirs],
        first["labels"],
        first["weights"],
        first.get("group_ids"),
        num_resamples=num_resamples,
    )
    compared: LeaderboardRow = {"compared_on": split, "compared_seeds": len(seeds)}
    for metric, difference in differences.items():
        compared |= {
            f"{metric}_difference": difference.mean,
            f"{metric}_low": difference.low,
            f"{metric}_high": difference.high,
        }
    return compared


def _load(path: Path, split: str) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        prefix = f"{split}."
        return {name.removeprefix(prefix): file[name] for name in file.files if name.startswith(prefix)}


def write_leaderboard(output: Path, leaderboard: Leaderboard, rows: Sequence[LeaderboardRow]) -> None:
    """Write the rows as CSV, JSON and a page into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (output / "leaderboard.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    write_json(output / "leaderboard.json", rows)
    page = render_leaderboard(
        {dataset.folder: dataset.name for dataset in leaderboard.datasets}, rows, leaderboard.reference
    )
    (output / "leaderboard.html").write_text(page, encoding="utf-8")


def describe_leaderboard(rows: Sequence[LeaderboardRow]) -> str:
    """Lay the rows out for a terminal, a line each."""
    lines = []
    for row in rows:
        split = last_split(row)
        ending = "reference" if "compared_on" not in row else verdict(row) if row["compared_on"] else "not compared"
        auc, logloss = (with_deviation(row, f"{split}_{metric}") or UNDEFINED for metric in ("auc", "logloss"))
        words = remarks({name.removeprefix(f"{split}_"): value for name, value in row.items()})
        ending = "; ".join([ending, *words])
        seeds = f"{row['seeds']} seeds"
        lines.append((row["dataset"], row["model"], seeds, f"{split} auc {auc}", f"logloss {logloss}", ending))
    return text_table(lines)
