"""Run the cells of a leaderboard with the programs that a user would call; finished cells are kept."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from features.disk.atomic import write_json
from features.disk.dataset import MANIFEST_NAME, DatasetManifest
from features.disk.object_store import ObjectPath
from features.disk.place import locate, scratch
from features.disk.run_folder import METRICS_NAME
from jobs.cli.config import Config, Entry, Texts, is_saved_config, load_config
from jobs.cli.config_arguments import hand_on
from jobs.compare.boosted_trees import train_trees
from jobs.compare.matrix import Cell
from jobs.doctoring.installed import installed_versions
from jobs.pages.leaderboard_page import REPORTED_SPLITS
from training.data.opened_dataset import Dataset
from training.fit.run import Run
from training.judge.metrics import evaluate
from training.judge.scores import Scores
from training.ship.export import load_best

VERSIONS = ("torch", "torchrec", "fbgemm-gpu", "petastorm", "ray", "numpy", "pyarrow", "lightgbm")


def run_all(cells: Sequence[Cell], configs: Mapping[Path, Config], parallel: int) -> list[dict[str, Any]]:
    """Run the cells, ``parallel`` at a time; return their results in the cells' order.

    Args:
        cells: cells of the matrix.
        configs: run folder of a cell -> its resolved config.
        parallel: cells that are trained at the same time.
    """
    with ThreadPoolExecutor(parallel) as pool, tqdm(total=len(cells), disable=None, unit="run") as bar:
        results = []
        for result in pool.map(lambda cell: run(cell, configs[cell.run]), cells):
            bar.set_description(f"{result['dataset']} {result['model']}", refresh=False)
            bar.update()
            results.append(result)
    return results


def build_missing_dataset(dataset: Entry, shared: Texts) -> None:
    """Build a dataset if it does not exist.

    Raises:
        ValueError: the build failed; ends with its own last line.
    """
    config = load_config(list(dataset.configs), [*shared, *dataset.overrides])
    folder = locate(config.training.dataset)
    if not (folder / MANIFEST_NAME).is_file():
        config = dataclasses.replace(
            config, pipeline=dataclasses.replace(config.pipeline, output=config.training.dataset)
        )
        log = scratch() / folder.name if isinstance(folder, ObjectPath) else folder
        _call("jobs.build_dataset", hand_on(config, log.with_suffix(".resolved.json")), log.with_suffix(".log"))


def run(cell: Cell, config: Config) -> dict[str, Any]:
    """Train and evaluate one cell, or read what an earlier call found."""
    manifest = DatasetManifest.load(config.training.dataset)
    if cell.result.exists():
        result = json.loads(cell.result.read_text(encoding="utf-8"))
        is_data = manifest.has_fingerprint(result["request"]["data"])
        if not is_data or not is_saved_config(result["request"]["config"], config):
            raise ValueError(
                f"{cell.result} is of another config or dataset: delete it and {cell.run} to run that cell again, or "
                "choose another --output"
            )
        return result
    cell.result.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "dataset": cell.dataset.name,
        "model": cell.model.name,
        "seed": cell.seed,
        "request": {"config": config.to_dict(), "data": manifest.fingerprint},
        "versions": {"python": sys.version.split()[0], **_versions()},
        **MAKERS[cell.model.library](cell, config),
    }
    write_json(cell.result, result)
    return result


def _train_network(cell: Cell, config: Config) -> dict[str, Any]:
    """Train, and evaluate the best checkpoint on validation and, if there is one, test."""
    cell.run.mkdir(parents=True, exist_ok=True)
    resolved = hand_on(config, cell.run / "resolved.json")
    _call("jobs.train", [*resolved, "--run", str(cell.run), "--resume"], cell.run / "train.log")
    torch.set_num_threads(1)  # other cells are training
    run_folder = Run(cell.run)
    best = load_best(run_folder)
    scores = {split: best.score(split) for split in filter(best.dataset.has_split, REPORTED_SPLITS)}
    train = run_folder.read(METRICS_NAME)
    about = {
        "parameters": best.model.num_parameters,
        "epochs": train["train"]["epochs"],
        "best_step": train["best_step"],
        "seconds": train["seconds"],
    }
    return about | _keep(cell, scores)


def _train_trees(cell: Cell, config: Config) -> dict[str, Any]:
    dataset = Dataset.open(config.training.dataset)
    splits = list(filter(dataset.has_split, REPORTED_SPLITS))
    about, scores = train_trees(dataset, config.training, splits)
    return about | _keep(cell, scores)


MAKERS = {"twinfocus": _train_network, "lightgbm": _train_trees}
"""Library of a model -> how a cell of it is trained and evaluated."""


def _keep(cell: Cell, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """Write each split's logits beside the result; return the metrics."""
    arrays = {f"{split}.{name}": array for split, of in scores.items() for name, array in vars(of).items()}
    with cell.scores.open("wb") as file:
        np.savez_compressed(file, **{name: array for name, array in arrays.items() if array is not None})
    return {split: evaluate(of) for split, of in scores.items()}


def _versions() -> dict[str, str]:
    installed = installed_versions()
    return {name: installed[name] for name in VERSIONS if name in installed}


def _call(module: str, arguments: Sequence[str], log: Path) -> None:
    """Run a program and append its output to ``log``.

    Raises:
        ValueError: it failed; ends with its own last line.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run([sys.executable, "-m", module, *arguments], stdout=file, stderr=file, check=False)  # noqa: S603
    if done.returncode:
        lines = log.read_text(encoding="utf-8").splitlines()
        last = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
        raise ValueError(f"{module} failed with exit code {done.returncode} (see {log}): {last}")
