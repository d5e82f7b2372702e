"""All cases with all seeds: each run in an empty folder, what came of them put together by case."""

import contextlib
import multiprocessing
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from features.disk.atomic import write_json
from tests.chaos import data, exporting, retraining, training
from tests.chaos.outcome import Outcome, Skipped

Case = Callable[[Path, int], Outcome]
GROUPS: dict[str, dict[str, Case]] = {
    "jobs": {**training.CASES, **data.CASES, **exporting.CASES},
    "retrain": retraining.CASES,
}
CASES: dict[str, Case] = {name: case for group in GROUPS.values() for name, case in group.items()}


def run(names: Sequence[str], num_seeds: int, output: Path, at_once: int = 1) -> list[dict[str, Any]]:
    """Run cases, each with every seed, and keep the JSON file as far as they have come.

    A case gets an empty folder ``work/CASE/seed=N`` beside ``output``. Other folders in ``work`` are for what the cases
    of a seed share and go in the end; that of a case that failed is kept. All cases of a seed run one after the other
    in one process, and up to ``at_once`` such processes beside each other: mostly they wait.
    """
    work = output.parent.absolute() / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    rows = {
        name: {"case": name, "times": 0, "rows_lost": 0, "rows_doubled": 0, "weights_equal": None} for name in names
    }
    for row in rows.values():
        row |= {"seconds": 0.0, "failures": []}
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(names) * num_seeds, unit="case", disable=None, dynamic_ncols=True))
        context = multiprocessing.get_context("spawn")
        lanes = [stack.enter_context(ProcessPoolExecutor(1, context)) for _ in range(min(at_once, num_seeds))]
        running = {
            lanes[seed % len(lanes)].submit(_run_once, CASES[name], work / name / f"seed={seed}", seed): (name, seed)
            for name in names
            for seed in range(num_seeds)
        }
        left = dict.fromkeys(names, num_seeds)
        for done in as_completed(running):
            name, seed = running[done]
            _add(rows[name], done.result(), seed)
            bar.update()
            left[name] -= 1
            if left[name]:
                continue
            write_json(output, [row for row in rows.values() if not left[row["case"]]])
            if is_amiss(rows[name]):
                bar.write(f"{name} failed; its files are kept in {work / name}")
            else:
                shutil.rmtree(work / name)
    kept = {name for name, row in rows.items() if is_amiss(row)}
    for folder in work.iterdir():
        if folder.name not in kept:
            shutil.rmtree(folder)
    return [*rows.values()]


@dataclass(frozen=True)
class _Result:
    """What came of one case with one seed: an outcome, or why there is none."""

    seconds: float
    outcome: Outcome | None = None
    skipped: str | None = None
    failure: str | None = None


def _run_once(case: Case, folder: Path, seed: int) -> _Result:
    folder.mkdir(parents=True)
    started = time.perf_counter()
    try:
        outcome = case(folder, seed)
    except Skipped as reason:
        return _Result(time.perf_counter() - started, skipped=str(reason))
    except Exception as error:
        (folder / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return _Result(time.perf_counter() - started, failure=f"{type(error).__name__}: {error}")
    return _Result(time.perf_counter() - started, outcome)


def _add(row: dict[str, Any], result: _Result, seed: int) -> None:
    row["seconds"] = round(row["seconds"] + result.seconds, 1)
    if result.skipped is not None:
        row["skipped"] = result.skipped
        return
    row["times"] += 1
    if result.failure is not None:
        row["failures"] = sorted([*row["failures"], f"seed {seed}: {result.failure}"])
    if result.outcome is not None:
        row["rows_lost"] += result.outcome.rows_lost
        row["rows_doubled"] += result.outcome.rows_doubled
        if result.outcome.weights_equal is not None:
            row["weights_equal"] = result.outcome.weights_equal and row["weights_equal"] is not False


def is_amiss(row: dict[str, Any]) -> bool:
    return bool(row["rows_lost"] or row["rows_doubled"] or row["weights_equal"] is False or row["failures"])
