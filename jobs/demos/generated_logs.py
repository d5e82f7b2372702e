"""Generate logs into a folder, with a summary that has the best possible metrics on them."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.synthetic.generate import LogSpec, file_name, generate_chunks, write_chunk
from training.judge.metrics import evaluate, metric_texts
from training.judge.scores import Scores

LOGS_SUMMARY_NAME = "_summary.json"
"""File of the summary; the underscore makes readers of the folder, such as Spark, skip it."""


def generate(output: Path, spec: LogSpec) -> dict[str, Any]:
    """Write the logs and their summary into ``output``.

    Args:
        output: folder; logs generated there before are replaced.

    Raises:
        ValueError: the folder holds something else.
    """
    started = time.perf_counter()
    _clear(output)
    clicks, probabilities, files = [], [], 0
    with tqdm(total=spec.rows, unit="row", unit_scale=True, disable=None) as bar:
        for day, number, columns in generate_chunks(spec):
            write_chunk(output / file_name(day, number), columns)
            clicks.append(columns["click"])
            probabilities.append(columns["click_probability"])
            files += 1
            bar.update(len(columns["click"]))
    labels, probability = np.concatenate(clicks), np.concatenate(probabilities)
    oracle = evaluate(Scores.of(np.log(probability) - np.log1p(-probability), labels))
    summary = {
        "rows": spec.rows,
        "days": spec.days,
        "seed": spec.seed,
        "drift": spec.drift,
        "files": files,
        "click_rate": float(labels.mean()),
        "oracle": {"auc": oracle["auc"], "logloss": oracle["logloss"]},
        "seconds": round(time.perf_counter() - started, 3),
    }
    (output / LOGS_SUMMARY_NAME).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _clear(output: Path) -> None:
    """Make the folder, or remove logs that were generated there before; refuse any other file."""
    output.mkdir(parents=True, exist_ok=True)
    old = sorted(output.glob("day-*-part-*.csv.gz"))
    others = sorted({path.name for path in output.iterdir()} - {path.name for path in old} - {LOGS_SUMMARY_NAME})
    if others:
        raise ValueError(f"{output} holds {others[0]!r}, which is not a generated log: choose an empty folder")
    for path in [output / LOGS_SUMMARY_NAME, *old]:
        path.unlink(missing_ok=True)


def describe_logs(summary: dict[str, Any], output: str) -> str:
    """Describe generated logs in two lines."""
    oracle = ", ".join(metric_texts(summary["oracle"], *summary["oracle"]))
    return (
        f"{summary['rows']:,} rows of {summary['days']} days in {summary['files']} files, {summary['seconds']:.1f} s: "
        f"{output}\nclick rate {summary['click_rate']:.4f}; the best any model can do on them: {oracle}"
    )
