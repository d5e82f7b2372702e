"""Break jobs in every way known, count what they lose. Exits with 1 if rows were lost or doubled or a case fails."""

import argparse
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tests.chaos import data, training
from tests.chaos.outcome import Outcome, Skipped

CASES: dict[str, Callable[[Path, int], Outcome]] = {**training.CASES, **data.CASES}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        epilog="example:\n  python -m tests.chaos --seeds 5 --only worker-killed disk-full-in-checkpoint",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="times each case is run (default 2)")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/chaos/chaos.json"), metavar="FILE", help="default %(default)s"
    )
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error("--seeds must be 1 or more")
    names = [name for name in CASES if name in (arguments.only or CASES)]
    started = time.perf_counter()
    rows = run(names, arguments.seeds, arguments.output)
    _print_table(rows)
    print(f"{time.perf_counter() - started:.0f} s in all; {arguments.output}")
    return int(any(is_amiss(row) for row in rows))


def run(names: Sequence[str], num_seeds: int, output: Path) -> list[dict[str, Any]]:
    """Run cases, each with every seed, and keep the JSON file as far as they have come.

    A case gets an empty folder ``work/CASE/seed=N`` beside ``output``. Other folders in ``work`` are for what cases
    share and go in the end; that of a case that failed is kept.
    """
    work = output.parent.absolute() / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    rows = []
    with tqdm(total=len(names) * num_seeds, unit="case", disable=None, dynamic_ncols=True) as bar:
        for name in names:
            bar.set_description(name)
            rows.append({"case": name, "times": 0, "rows_lost": 0, "rows_doubled": 0, "weights_equal": None})
            rows[-1] |= {"seconds": 0.0, "failures": []}
            for seed in range(num_seeds):
                _run_once(rows[-1], work / name / f"seed={seed}", seed)
                bar.update()
            _write(output, rows)
            if is_amiss(rows[-1]):
                bar.write(f"{name} failed; its files are kept in {work / name}")
            else:
                shutil.rmtree(work / name)
    kept = {row["case"] for row in rows if is_amiss(row)}
    for folder in work.iterdir():
        if folder.name not in kept:
            shutil.rmtree(folder)
    return rows


def _run_once(row: dict[str, Any], folder: Path, seed: int) -> None:
    """Run a case with one seed and add what came of it to its row."""
    folder.mkdir(parents=True)
    started = time.perf_counter()
    row["times"] += 1
    try:
        outcome = CASES[row["case"]](folder, seed)
    except Skipped as reason:
        row["times"] -= 1
        row["skipped"] = str(reason)
    except Exception as error:
        (folder / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        row["failures"].append(f"seed {seed}: {type(error).__name__}: {error}")
    else:
        row["rows_lost"] += outcome.rows_lost
        row["rows_doubled"] += outcome.rows_doubled
        if outcome.weights_equal is not None:
            row["weights_equal"] = outcome.weights_equal and row["weights_equal"] is not False
    row["seconds"] = round(row["seconds"] + time.perf_counter() - started, 1)


def is_amiss(row: dict[str, Any]) -> bool:
    return bool(row["rows_lost"] or row["rows_doubled"] or row["weights_equal"] is False or row["failures"])


def _write(output: Path, rows: list[dict[str, Any]]) -> None:
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, output)


def _print_table(rows: list[dict[str, Any]]) -> None:
    words = {True: "equal", False: "DIFFER", None: "-"}
    print(f"{'case':<32}{'times':>6}{'rows lost':>11}{'rows doubled':>14}{'weights':>9}{'failed':>8}{'time':>8}")
    for row in rows:
        print(
            f"{row['case']:<32}{row['times']:>6}{row['rows_lost']:>11,}{row['rows_doubled']:>14,}"
            f"{words[row['weights_equal']]:>9}{len(row['failures']):>8}{row['seconds']:>6.0f} s"
        )
        for line in (*row["failures"], *([f"not run: {row['skipped']}"] if "skipped" in row else [])):
            print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
