"""What Platt calibration is worth on rows it was not fitted on, from the scores that a leaderboard keeps.

    python -m tests.benchmarks.calibration --results runs/leaderboards/frappe/results --model tf4ctr

Fitted on half of the validation split's groups (users) and measured on the other half, and the other way round.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.judge.calibration import fit_platt
from training.judge.metrics import ece, logloss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--model", required=True, help="as in the file names")
    arguments = parser.parse_args()
    files = sorted(arguments.results.glob(f"*--{arguments.model}--seed=*.npz"))
    if not files:
        parser.error(f"{arguments.results} holds no scores of {arguments.model}")
    print("| scores | logloss | calibrated | ECE | calibrated |\n|---|---|---|---|---|")
    for file in files:
        print(f"| {file.stem} | " + " | ".join(f"{value:.6f}" for value in measure(file)) + " |")


def measure(file: Path) -> NDArray[np.float64]:
    """Logloss before and after, ECE before and after; means of the two halves."""
    with np.load(file, allow_pickle=False) as arrays:
        logits, labels, weights, groups = (
            arrays[f"valid.{name}"] for name in ("logits", "labels", "weights", "group_ids")
        )
    names = np.random.default_rng(0).permutation(np.unique(groups))
    first = np.isin(groups, names[: len(names) // 2])
    halves = []
    for fitted, measured in ((first, ~first), (~first, first)):
        calibration = fit_platt(logits[fitted], labels[fitted], weights[fitted])
        raw, rest = logits[measured], (labels[measured], weights[measured])
        served = calibration.apply(raw)
        halves.append([logloss(raw, *rest), logloss(served, *rest), ece(raw, *rest), ece(served, *rest)])
    return np.mean(halves, axis=0)


if __name__ == "__main__":
    main()
