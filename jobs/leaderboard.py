"""Models x datasets x seeds: train each, choose on validation, report test once, and say what is better than what.

Every cell goes through the programs a user would call. A finished cell is one JSON file, so a killed leaderboard goes
on where it was, and a finished one is only read again.
"""

import csv
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass as checked
from tqdm import tqdm

from features.disk.atomic import write_json
from features.disk.dataset import MANIFEST_NAME, DatasetManifest
from features.disk.object_store import ObjectPath
from features.disk.place import locate, scratch
from features.schema import STRICT
from jobs.cli.config import (
    Config,
    Entry,
    Texts,
    check_many_runs,
    check_names,
    is_saved_config,
    load_config,
    read_checked,
)
from jobs.cli.conventions import plain_parser, run_program
from jobs.cli.errors import ConfigError
from jobs.doctor import installed_versions
from jobs.pages.leaderboard_page import SPLITS, Row, last_split, render, verdict, with_deviation
from training.judge.comparison import paired_bootstrap
from training.judge.metrics import METRICS

VERSIONS = ("torch", "torchrec", "fbgemm-gpu", "petastorm", "ray", "numpy", "pyarrow")


@checked(frozen=True, config=STRICT)
class Model(Entry):
    """A model of the matrix."""

    seeds: tuple[int, ...] | None = None
    """None: the leaderboard's."""


@checked(frozen=True, config=STRICT)
class Leaderboard:
    """A leaderboard's TOML file."""

    output: str
    """Folder of the page and its tables."""
    datasets: Annotated[tuple[Entry, ...], Field(min_length=1)]
    models: Annotated[tuple[Model, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    reference: str
    """Model that every other one is compared with, over the seeds that both have."""
    overrides: Texts = ()
    """For every cell."""
    parallel: Annotated[int, Field(ge=1)] = 1
    """Cells trained at the same time; give each its share of the cores with training.threads_per_worker."""
    num_resamples: Annotated[int, Field(ge=1)] = 500
    """Of the bootstrap."""
    cells_folder: str | None = None
    """Folder of the finished runs, which several leaderboards may share; None: ``output``."""

    def __post_init__(self) -> None:
        check_names("datasets", self.datasets)
        check_names("models", self.models)
        if self.reference not in {model.name for model in self.models}:
            raise ValueError(f"reference {self.reference!r} is not the name of a model")

    def cells(self) -> Iterator["Cell"]:
        """Every run of the matrix, seed by seed, so that all models have a first result early."""
        folder = Path(self.cells_folder or self.output)
        most = max(len(model.seeds or self.seeds) for model in self.models)
        for i in range(most):
            for dataset in self.datasets:
                for model in self.models:
                    seeds = model.seeds or self.seeds
                    if i < len(seeds):
                        yield Cell(folder, dataset, model, seeds[i], self.overrides)


@dataclass(frozen=True)
class Cell:
    """One run; ``folder`` is where it and its result are kept."""

    folder: Path
    dataset: Entry
    model: Model
    seed: int
    shared: Texts

    @property
    def run(self) -> Path:
        return self.folder / "runs" / self.dataset.folder / self.model.folder / f"seed={self.seed}"

    @property
    def result(self) -> Path:
        return self.folder / "results" / f"{self.dataset.folder}--{self.model.folder}--seed={self.seed}.json"

    @property
    def scores(self) -> Path:
        return self.result.with_suffix(".npz")

    @property
    def configs(self) -> Texts:
        return (*self.dataset.configs, *self.model.configs)

    @property
    def overrides(self) -> Texts:
        seed = f"training.seed={self.seed}"
        return (*self.shared, *self.dataset.overrides, *self.model.overrides, seed)

    def config(self) -> Config:
        """The resolved config.

        Raises:
            ConfigError: names the model beside the key.
        """
        try:
            return load_config(list(self.configs), list(self.overrides))
        except ConfigError as error:
            raise ConfigError(f"{self.model.name} on {self.dataset.name}: {error}") from error


def main() -> int:
    parser = plain_parser(
        "jobs.leaderboard",
        "Train a matrix of models, datasets and seeds; compare them on validation and, once, on test.",
        "python -m jobs.leaderboard --config jobs/configs/leaderboards/frappe.toml",
    )
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--output", metavar="DIR", help="instead of the config's")
    arguments = parser.parse_args()
    leaderboard = read_checked(arguments.config, Leaderboard)
    if arguments.output:
        leaderboard = dataclasses.replace(leaderboard, output=arguments.output)
    cells = list(leaderboard.cells())
    configs = {cell.run: cell.config() for cell in cells}  # a wrong key is told before hours are spent
    check_many_runs(configs.values())
    for dataset in leaderboard.datasets:
        _build(dataset, leaderboard.overrides)
    started = time.perf_counter()
    with ThreadPoolExecutor(leaderboard.parallel) as pool, tqdm(total=len(cells), disable=None, unit="run") as bar:
        results = []
        for result in pool.map(lambda cell: _run(cell, configs[cell.run]), cells):
            bar.set_description(f"{result['dataset']} {result['model']}", refresh=False)
            bar.update()
            results.append(result)
    rows = summarise(leaderboard, cells, results)
    _write(Path(leaderboard.output), leaderboard, rows)
    _print(rows, Path(leaderboard.output), len(cells), time.perf_counter() - started)
    return 0


# ------------------------------------------------------------------------------------------------------------- running


def _build(dataset: Entry, shared: Texts) -> None:
    config = load_config(list(dataset.configs), [*shared, *dataset.overrides])
    folder = locate(config.training.dataset)
    if not (folder / MANIFEST_NAME).is_file():
        output = f"pipeline.output={config.training.dataset}"
        arguments = [*_config_arguments(dataset.configs), *shared, *dataset.overrides, output]
        log = scratch() / folder.name if isinstance(folder, ObjectPath) else folder
        _call("jobs.build_dataset", arguments, log.with_suffix(".log"))


def _run(cell: Cell, config: Config) -> dict[str, Any]:
    """Train and evaluate one cell, or read what an earlier call found."""
    data = DatasetManifest.load(config.training.dataset).fingerprint
    if cell.result.exists():
        result = json.loads(cell.result.read_text(encoding="utf-8"))
        if result["request"]["data"] != data or not is_saved_config(result["request"]["config"], config):
            raise ValueError(
                f"{cell.result} is of another config or dataset: delete it and {cell.run} to run that cell again, or "
                "choose another --output"
            )
        return result
    cell.run.mkdir(parents=True, exist_ok=True)
    cell.result.parent.mkdir(parents=True, exist_ok=True)
    arguments = [*_config_arguments(cell.configs), "--run", str(cell.run), "--resume", *cell.overrides]
    _call("jobs.train", arguments, cell.run / "train.log")
    result = {
        "dataset": cell.dataset.name,
        "model": cell.model.name,
        "seed": cell.seed,
        "request": {"config": config.to_dict(), "data": data},
        "versions": {"python": sys.version.split()[0], **_versions()},
        **_evaluate(cell),
    }
    write_json(cell.result, result)
    return result


def _evaluate(cell: Cell) -> dict[str, Any]:
    """Metrics of the best checkpoint on validation and, where there is one, test; per-row logits beside the result."""
    import torch

    from training.fit.run import Run
    from training.judge.metrics import evaluate
    from training.ship.export import load_best

    torch.set_num_threads(1)  # other cells are training
    run = Run(cell.run)
    best = load_best(run)
    metrics, arrays = {}, {}
    for split in filter(best.dataset.has_split, SPLITS):
        logits, labels, weights, group_ids = best.score(split)
        metrics[split] = evaluate(logits, labels, weights, group_ids)
        named = {"logits": logits, "labels": labels, "weights": weights, "group_ids": group_ids}
        arrays |= {f"{split}.{name}": array for name, array in named.items() if array is not None}
    with cell.scores.open("wb") as file:
        np.savez_compressed(file, **arrays)
    train = run.read("metrics.json")
    return {
        "parameters": best.model.num_parameters,
        "epochs": train["train"]["epochs"],
        "best_step": train["best_step"],
        "seconds": train["seconds"],
        **metrics,
    }


def _versions() -> dict[str, str]:
    installed = installed_versions()
    return {name: installed[name] for name in VERSIONS if name in installed}


def _config_arguments(configs: Texts) -> list[str]:
    return [word for path in configs for word in ("--config", path)]


def _call(module: str, arguments: Sequence[str], log: Path) -> None:
    """Run a program, its output in ``log``.

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


# ----------------------------------------------------------------------------------------------------------- reporting


def summarise(leaderboard: Leaderboard, cells: Sequence[Cell], results: Sequence[dict[str, Any]]) -> list[Row]:
    """One row a dataset and model, best validation AUC first: means, deviations and the difference to the reference."""
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
                row |= _compare(by_seed, of[leaderboard.reference], last_split(row), leaderboard.num_resamples)
            found.append(row)
        rows += sorted(found, key=lambda row: -row["valid_auc"])
    return rows


def _statistics(results: Sequence[dict[str, Any]]) -> Row:
    row: Row = {"seeds": len(results), "parameters": results[0]["parameters"]}
    for split in SPLITS:
        for metric in METRICS:
            values = [result[split].get(metric) for result in results if split in result]
            if values and None not in values:
                row[f"{split}_{metric}"] = float(np.mean(values))
                row[f"{split}_{metric}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    row["epochs"] = float(np.mean([result["epochs"] for result in results]))
    row["train_seconds"] = float(np.mean([result["seconds"]["train"] for result in results]))
    return row


def _compare(model: dict[int, Any], reference: dict[int, Any], split: str, num_resamples: int) -> Row:
    """The model minus the reference on one split, over the seeds that both have."""
    seeds = sorted(set(model) & set(reference))
    if not seeds:
        return {}
    ours, theirs = ([_load(by_seed[seed][0].scores, split) for seed in seeds] for by_seed in (model, reference))
    rows = ours[0]
    for other in (*ours, *theirs):
        if not all(np.array_equal(other[name], rows[name]) for name in rows if name != "logits"):
            raise ValueError("two runs of one dataset scored other rows: delete the results and run them again")
    differences = paired_bootstrap(
        [o["logits"] for o in ours],
        [t["logits"] for t in theirs],
        rows["labels"],
        rows["weights"],
        rows.get("group_ids"),
        num_resamples=num_resamples,
    )
    row: Row = {"compared_on": split, "compared_seeds": len(seeds)}
    for metric, difference in differences.items():
        row |= {
            f"{metric}_difference": difference.mean,
            f"{metric}_low": difference.low,
            f"{metric}_high": difference.high,
        }
    return row


def _load(path: Path, split: str) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        prefix = f"{split}."
        return {name.removeprefix(prefix): file[name] for name in file.files if name.startswith(prefix)}


def _write(output: Path, leaderboard: Leaderboard, rows: Sequence[Row]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (output / "leaderboard.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    write_json(output / "leaderboard.json", rows)
    page = render({dataset.folder: dataset.name for dataset in leaderboard.datasets}, rows, leaderboard.reference)
    (output / "leaderboard.html").write_text(page, encoding="utf-8")


def _print(rows: Iterable[Row], output: Path, num_runs: int, seconds: float) -> None:
    for row in rows:
        split = last_split(row)
        ending = verdict(row) if "compared_on" in row else "reference"
        print(
            f"{row['dataset']:<14} {row['model']:<16} {row['seeds']} seeds  {split} auc "
            f"{with_deviation(row, f'{split}_auc')}  logloss {with_deviation(row, f'{split}_logloss')}  {ending}"
        )
    print(f"{num_runs} runs, {seconds:.0f} s; {output}/leaderboard.html, .csv and .json")


if __name__ == "__main__":
    run_program(main)
