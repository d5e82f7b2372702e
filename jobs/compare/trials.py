"""Run the trials of a search under Ray Tune with ASHA; a finished trial is kept as one JSON file."""

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from features.disk.run_folder import CONFIG_NAME, METRICS_NAME, TENSORBOARD_NAME, RunFolder
from jobs.launch.connection import check_room, connect, ray_settings
from jobs.launch.tracking import check_tracking, tracked
from jobs.launch.worker import set_up_worker

os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the other one has a banner that verbose=0 leaves
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the results are our own files
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends the search, not one model of it
os.environ.update(ray_settings())

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from features.disk.atomic import write_json
from features.disk.dataset import DatasetManifest
from jobs.cli.config import Config, check_manifest, parse_config
from jobs.cli.conventions import place
from jobs.cli.errors import ConfigError
from jobs.compare.search import Search, SearchRow, Trial
from training.config import TrackingConfig
from training.judge.metrics import METRICS
from training.judge.scores import DivergedError
from training.judge.validation import check_validation

_log = logging.getLogger(__name__)


def run_search(search: Search, trials: dict[str, list[Trial]]) -> list[list[SearchRow]]:
    """Run every trial without a kept result, one model after the other.

    Args:
        search: the search of the TOML file.
        trials: model -> its trials.

    Returns:
        One list for each model, with one result for each of its trials, in their order.

    Raises:
        ValueError: a trial failed because of its data or config, or a kept result is of another config.
        RuntimeError: the process of a trial died.
    """
    for of_model in trials.values():
        _check_dataset(of_model[0].config)
        check_tracking(of_model[0].config.training.tracking)
    kept = {trial.result: _kept(trial) for of_model in trials.values() for trial in of_model}
    (Path(search.output) / "trials").mkdir(parents=True, exist_ok=True)
    try:
        with tqdm(total=len(kept), disable=None, unit="trial", dynamic_ncols=True) as bar:
            return [
                _run(search, of_model, [kept[trial.result] for trial in of_model], bar) for of_model in trials.values()
            ]
    finally:
        ray.shutdown()


def _check_dataset(config: Config) -> None:
    """Refuse a dataset that would fail every trial.

    Raises:
        ValueError: the dataset does not fit the config, or has no validation rows, or none of one class.
    """
    manifest = DatasetManifest.load(config.training.dataset)
    check_manifest(config, manifest)
    check_validation(manifest, config.training)
    if "valid" not in manifest.splits or not manifest.splits["valid"].num_rows:
        raise ValueError(f"{config.training.dataset} has no validation rows, and a search chooses by them")


def _kept(trial: Trial) -> SearchRow | None:
    """Read the result of a trial that an earlier call finished; None: there is none.

    Raises:
        ValueError: it is of another config, dataset or ASHA setting.
    """
    if not trial.result.exists():
        return None
    result = json.loads(trial.result.read_text(encoding="utf-8"))
    if not trial.is_answered_by(result["request"]):
        raise ValueError(
            f"{trial.result} is of another config, dataset or budget: delete it to run that trial again, or choose "
            "another --output"
        )
    return result


def _run(search: Search, trials: Sequence[Trial], kept: Sequence[SearchRow | None], bar: Any) -> list[SearchRow]:
    """Run a model's trials without a kept result; return one result for each trial, in their order.

    Raises:
        ValueError: a trial failed because of its data or config.
        RuntimeError: the process of a trial died.
    """
    record = _Record(trials, kept, bar)
    if None in kept:
        if not ray.is_initialized():
            logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # ``_tune`` tells its errors
            connect(search.parallel)
        check_room(1, trials[0].config.training.device == "cuda")
        _tune(search, trials, kept, record)
    else:
        bar.update(len(kept))
    return record.results()


def _tune(search: Search, trials: Sequence[Trial], kept: Sequence[SearchRow | None], record: "_Record") -> None:
    tasks = [
        {
            "config": trial.config.to_dict(),
            "dataset": str(place(trial.config.training.dataset)),
            "folder": str(trial.folder.absolute()),
            "parallel": search.parallel,
            "reports": _reports(result) if result else [],
        }
        for trial, result in zip(trials, kept, strict=True)
    ]
    # Kept trials first: they only tell ASHA what it knew, and new ones are then judged beside all of them.
    order = sorted(range(len(tasks)), key=lambda index: not tasks[index]["reports"])
    scheduler = ASHAScheduler(
        time_attr="epochs",
        metric="monitor",
        mode="max",
        max_t=search.max_epochs,
        grace_period=search.grace_epochs,
        reduction_factor=search.reduction_factor,
    )
    gpus = 1 if trials[0].config.training.device == "cuda" else 0
    with tempfile.TemporaryDirectory() as storage:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_work, tasks=tasks), {"cpu": 1, "gpu": gpus}),
            param_space={"index": tune.grid_search(order)},
            tune_config=tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=search.parallel),
            run_config=tune.RunConfig(storage_path=storage, name="search", callbacks=[record], verbose=0),
        )
        errors = tuner.fit().errors
    if errors:
        words = f"{len(errors)} trials of {trials[0].model.name} died; the finished ones are kept, so start it again"
        cause = getattr(errors[0], "cause", None)
        if isinstance(cause, ValueError):
            raise ValueError(f"{words} when this is mended: {cause}") from cause
        raise RuntimeError(words) from errors[0]


def _reports(result: SearchRow) -> list[SearchRow]:
    """List a kept result's reports, to replay them to ASHA."""
    return [*result["evaluations"], *([_divergence(result["error"])] if result["error"] else [])]


def _divergence(error: str) -> SearchRow:
    return {"epochs": 0, "monitor": -math.inf, "error": error}  # at epoch 0 ASHA ignores it


def _work(sampled: dict[str, Any], tasks: list[dict[str, Any]]) -> None:
    """Run one trial in its own process; ASHA stops it inside a report, between steps."""
    task = tasks[sampled["index"]]
    for kept in task["reports"]:
        tune.report(kept)
    if task["reports"]:
        return
    started = time.perf_counter()
    resolved = parse_config(task["config"])
    config = dataclasses.replace(resolved.training, dataset=task["dataset"])
    set_up_worker(task["parallel"], config.threads_per_worker)
    import torch.distributed as dist

    from training.fit.run import Run, settle_training, train_rank

    config, _ = settle_training(config, DatasetManifest.load(task["dataset"]))
    run = Run(Path(task["folder"]))
    shutil.rmtree(run.path, ignore_errors=True)
    run.path.mkdir()
    run.write(CONFIG_NAME, dataclasses.replace(resolved, training=config).to_dict())
    backend = "nccl" if config.device == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)

    def report(event: dict[str, Any]) -> None:
        if event["event"] == "evaluation":
            metrics = {name: event[name] for name in ("monitor", *METRICS)}
            tune.report({"epochs": event["epochs"], "seconds": time.perf_counter() - started, **metrics})

    try:
        train_rank(run, config, report, resolved.features)
    except DivergedError as error:  # a rate that is too high ends a trial, not the search
        tune.report(_divergence(str(error)))


class _Record(tune.Callback):
    """Recorder of the trials' reports; it writes the file of a finished trial and removes its folder."""

    def __init__(self, trials: Sequence[Trial], kept: Sequence[SearchRow | None], bar: Any) -> None:
        self._trials, self._bar = trials, bar
        self._found: dict[int, SearchRow] = {index: row for index, row in enumerate(kept) if row}
        self._evaluations: dict[int, list[SearchRow]] = {}
        self._errors: dict[int, str] = {}

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: SearchRow, **info: Any) -> None:
        index = trial.config["index"]
        if "error" in result:
            self._errors[index] = result["error"]
        else:
            kept = {name: result.get(name) for name in ("epochs", "seconds", "monitor", *METRICS)}
            self._evaluations.setdefault(index, []).append(kept)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        index = trial.config["index"]
        ours, evaluations = self._trials[index], self._evaluations.get(index, [])
        if index not in self._found:
            self._found[index] = _describe(ours, evaluations, self._errors.get(index))
            write_json(ours.result, {"request": ours.request(), **self._found[index], "evaluations": evaluations})
            self._track(ours, ours.config.training.tracking, self._errors.get(index))
            shutil.rmtree(ours.folder)
        best = max((e["monitor"] for found in self._evaluations.values() for e in found), default=math.nan)
        self._bar.set_description(f"{ours.model.name} {best:.5f}", refresh=False)
        self._bar.update()

    def _track(self, trial: Trial, tracking: TrackingConfig, failure: str | None) -> None:
        """Record a finished trial's history, before its folder goes; a store that is gone does not end the search."""
        run = RunFolder(trial.folder)
        events_folder = Path(trial.search.output) / TENSORBOARD_NAME / trial.result.stem
        try:
            with (
                contextlib.suppress(DivergedError),
                tracked(run, tracking, run.read(CONFIG_NAME), events_folder) as record,
            ):
                record(run.events())
                if failure is not None:
                    raise DivergedError(failure)  # the MLflow run's status is FAILED
        except ConfigError as error:
            _log.warning("%s is not recorded in MLflow: %s", trial.name, error)
            self._track(trial, dataclasses.replace(tracking, mlflow=None), failure)

    def results(self) -> list[SearchRow]:
        return [
            {name: value for name, value in self._found[index].items() if name not in ("request", "evaluations")}
            for index in range(len(self._trials))
        ]


def _describe(trial: Trial, evaluations: Sequence[SearchRow], error: str | None) -> SearchRow:
    """Make a trial's result: metrics of its best epoch, seconds from its start to its last evaluation."""
    best = max(evaluations, key=lambda e: e["monitor"], default=None)
    epochs = evaluations[-1]["epochs"] if evaluations else 0
    ended_itself = error is not None or (trial.folder / METRICS_NAME).exists()
    return {
        "model": trial.model.name,
        "trial": trial.number,
        "overrides": trial.values,
        **{name: best and best[name] for name in ("monitor", *METRICS)},
        "best_epoch": best and best["epochs"],
        "epochs": epochs,
        "seconds": evaluations[-1]["seconds"] if evaluations else 0.0,
        "stopped_early": not ended_itself and epochs < trial.search.max_epochs,
        "error": error,
    }
