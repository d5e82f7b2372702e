"""Generate ad-like raw logs whose click probability is known, for the demo, the tests and trying things out.

Also says what the best possible AUC and logloss on these rows are, so that a model's result can be read.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jobs.cli.conventions import plain_parser, run_program
from pipeline.synthetic.generate import LogSpec, file_name, generate_chunks, write_chunk

SUMMARY_NAME = "_summary.json"
"""Begins with an underscore so that readers of the folder, Spark included, pass over it."""


def main() -> int:
    arguments = _parse_arguments()
    spec = LogSpec(arguments.rows, arguments.days, arguments.seed, arguments.click_rate, drift=arguments.drift)
    summary = generate(Path(arguments.output), spec)
    print(
        f"{summary['rows']:,} rows of {summary['days']} days in {summary['files']} files, {summary['seconds']:.1f} s: "
        f"{arguments.output}\nclick rate {summary['click_rate']:.4f}; the best any model can do on them: "
        f"{_shown(summary['oracle'])}"
    )
    return 0


def generate(output: Path, spec: LogSpec) -> dict[str, Any]:
    """Write the logs and their summary into ``output``.

    Args:
        output: folder; logs generated there before are replaced.

    Raises:
        ValueError: the folder holds something else.
    """
    from training.judge.metrics import evaluate

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
    oracle = evaluate(np.log(probability) - np.log1p(-probability), labels)
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
    (output / SUMMARY_NAME).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _parse_arguments() -> argparse.Namespace:
    parser = plain_parser(
        "jobs.generate_logs",
        "Generate ad-like raw logs with a known click probability (column click_probability).",
        "python -m jobs.generate_logs --output runs/logs --rows 1000000 --days 10 --seed 7",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the logs; made if absent")
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="rows in all (default: %(default)s)")
    parser.add_argument("--days", type=int, default=10, metavar="D", help="from 2024-01-01 on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="same seed, same files (default: %(default)s)")
    parser.add_argument("--click-rate", type=float, default=0.24, metavar="P", help="mean click probability")
    parser.add_argument(
        "--drift", type=float, default=0.0, metavar="D", help="share of users, ads and tastes that is new each day"
    )
    return parser.parse_args()


def _clear(output: Path) -> None:
    """Make the folder, or remove the logs generated there before, and only those."""
    output.mkdir(parents=True, exist_ok=True)
    old = sorted(output.glob("day-*-part-*.csv.gz"))
    others = sorted({path.name for path in output.iterdir()} - {path.name for path in old} - {SUMMARY_NAME})
    if others:
        raise ValueError(f"{output} holds {others[0]!r}, which is not a generated log: choose an empty folder")
    for path in [output / SUMMARY_NAME, *old]:
        path.unlink(missing_ok=True)


def _shown(oracle: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {'undefined' if value is None else f'{value:.6f}'}" for name, value in oracle.items())


if __name__ == "__main__":
    run_program(main)
