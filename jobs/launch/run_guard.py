"""Guard of a run folder: one training at a time, and no --resume with another config or dataset."""

import dataclasses
import logging
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from features.disk.dataset import DatasetManifest
from features.disk.lock import lock
from features.disk.place import Place, locate
from features.disk.run_folder import (
    CHOSEN_NAME,
    CONFIG_NAME,
    LEARNT_NAME,
    METRICS_NAME,
    RESERVE_NAME,
    RUN_LOCK_NAME,
    WORKERS_LOCK_NAME,
)
from features.disk.trained_on import TrainedOn
from jobs.cli.config import Config, check_manifest, parse_config
from jobs.cli.conventions import absolute, place
from jobs.cli.errors import ConfigError
from pipeline.config import PipelineConfig
from training.config import ModelConfig
from training.data.opened_dataset import Dataset
from training.data.row_order import RowOrder
from training.fit.position import check_position
from training.fit.run import Run, find_transplant, find_warm_start, settle_training
from training.fit.vectors import changed_vectors, keep_vectors, without_paths
from training.judge.validation import check_validation
from training.sharding import checkpoint

_log = logging.getLogger(__name__)

COMPARED_ON_RESUME = (
    "warm_start",
    "warm_start_other_features",
    "model",
    "optimizer",
    "global_batch_size",
    "seed",
    "clip_gradient_norm",
    "precision",
    "ema_decay",
    "schedule",
    "evaluation",
    "monitor",
    "sampled_negatives",
)
"""Training keys that must not change on --resume, because the weights already depend on them."""

ORPHAN_SECONDS = 60.0
"""Seconds within which the workers of a killed training must have ended."""


def with_places(config: Config) -> Config:
    """Make the config's paths absolute, so that they mean the same in every worker."""
    training = dataclasses.replace(config.training, dataset=str(place(config.training.dataset)))
    if training.warm_start is not None:
        training = dataclasses.replace(training, warm_start=str(absolute(training.warm_start)))
    if training.model.vectors or training.model.pretrained:
        training = dataclasses.replace(training, model=_with_vector_places(training.model))
    if training.checkpoint.folder is not None:
        folder = str(place(training.checkpoint.folder))
        training = dataclasses.replace(training, checkpoint=dataclasses.replace(training.checkpoint, folder=folder))
    return dataclasses.replace(config, training=training)


def _with_vector_places(model: ModelConfig) -> ModelConfig:
    def placed(sources: dict[str, Any]) -> dict[str, Any]:
        return {
            name: dataclasses.replace(
                source,
                path=str(place(source.path)),
                ids_path=None if source.ids_path is None else str(place(source.ids_path)),
            )
            for name, source in sources.items()
        }

    return dataclasses.replace(model, vectors=placed(model.vectors), pretrained=placed(model.pretrained))


@contextmanager
def lock_run_folder(run_path: Path) -> Iterator[None]:
    """Hold the run folder's lock.

    Raises:
        LockedError: another training holds it.
        ValueError: the folder cannot be written."""
    message = f"another training is using {run_path}: wait for it or choose another --run"
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(run_path / RUN_LOCK_NAME, message))
        except OSError as error:
            raise ValueError(f"--run {run_path} cannot be written: {error.strerror}") from error
        yield


def take_over(run_path: Path) -> str:
    """Wait for the workers of an earlier, killed training to end, which takes some seconds.

    Returns:
        A new name of this training; workers of an earlier one that start later see that their name differs, and exit.

    Raises:
        LockedError: they do not end.
    """
    name = secrets.token_hex(8)
    message = (
        f"workers of an earlier training are still using {run_path}, though its program is gone: end the "
        "ray::RayTrainWorker processes, then --resume goes on"
    )
    with lock(run_path / WORKERS_LOCK_NAME, message, patience=ORPHAN_SECONDS, owner=name):
        return name


def prepare_run(run_path: Path, config: Config, resume: bool) -> Config:
    """Check dataset and run before any worker starts, and write down what the run is trained with; returns the config.

    Raises:
        ValueError: the dataset does not fit the config, or the run folder is used by another run.
    """
    dataset = Dataset.open(config.training.dataset)
    manifest = dataset.manifest
    check_manifest(config, manifest)
    run = Run(run_path)
    checkpoints = run.checkpoints_of(config.training)
    used = [folder for folder in {checkpoints, run.checkpoints, *_places_before(run)} if checkpoint.saved_steps(folder)]
    if used and not resume:
        more = "" if used == [run.checkpoints] else f", in {used[0]},"
        raise ValueError(
            f"{run_path} already holds a run{more}: add --resume to go on with it, or choose another --run"
        )
    training, chosen = settle_training(config.training, manifest, run if used else None)
    config = dataclasses.replace(config, training=training)
    for setting in chosen:
        _log.info("from the data: %s", setting)
    check_validation(manifest, config.training)
    find_warm_start(config.training, dataset)
    if used:
        for warning in _check_same(run, config, dataset, checkpoint.newest(checkpoints)):
            _log.warning(warning)
    else:
        _check_expected(config.training.dataset, manifest)
        keep_vectors(run, config.training.model, dataset)
        if (transplant := find_transplant(config.training, dataset)) is not None:
            _log.info(transplant.describe())
        run.history.unlink(missing_ok=True)
        run.write(CHOSEN_NAME, [dataclasses.asdict(setting) for setting in chosen])
    for ended in (run.failure, run.path / METRICS_NAME):  # how an earlier training ended says nothing of this one
        ended.unlink(missing_ok=True)
    (run_path / RESERVE_NAME).write_bytes(bytes(4096))
    run.write(CONFIG_NAME, config.to_dict())
    dataset.learnt.save(run_path / LEARNT_NAME)
    note = run.write_dataset(TrainedOn.of(dataset.path, manifest).to_json())
    if note is not None:
        _log.warning(note)
    return config


def _check_expected(dataset: str, manifest: DatasetManifest) -> None:
    """Refuse a dataset whose build was to have validation rows and has none.

    Raises:
        ValueError: names the dataset.
    """
    try:
        expected = TypeAdapter(PipelineConfig).validate_python(manifest.config.get("pipeline")).expected_splits()
    except ValidationError:  # no build wrote it, or one of another version
        return
    if "valid" in expected - {name for name, split in manifest.splits.items() if split.num_rows}:
        raise ValueError(
            f"{dataset} has no validation rows, though its build was to make some: nothing could be monitored; move "
            "the split's border (pipeline.split) or take more rows, and build again; or build without validation"
        )


def _places_before(run: Run) -> list[Place]:
    """List the checkpoint folder of the run's earlier config, if that names one."""
    if not (run.path / CONFIG_NAME).is_file():
        return []
    folder = run.read(CONFIG_NAME).get("training", {}).get("checkpoint", {}).get("folder")
    return [] if folder is None else [locate(folder)]


def _check_same(run: Run, config: Config, dataset: Dataset, last: checkpoint.Checkpoint | None) -> list[str]:
    """Check that a run may go on with a config and a dataset.

    Args:
        run: the run, with what it was trained with until now.
        config: what it would go on with.
        dataset: the config's.
        last: the newest checkpoint; None if there is none.

    Returns:
        Warnings: what is not as it was, or cannot be checked.

    Raises:
        ConfigError: the config has another value where the weights depend on it.
        ValueError: the dataset is another one, or the checkpoint is inside an epoch of other rows.
    """
    saved = parse_config(run.read(CONFIG_NAME), run.path)
    before, choices = saved.training, saved.features.model_choices
    if files := changed_vectors(before.model, config.training.model):
        raise ConfigError(
            f"--resume cannot go on with another file of vectors: {'; '.join(files)}: put the file back, or start a "
            "new --run"
        )
    then, now = (dataclasses.replace(t, model=without_paths(t.model)) for t in (before, config.training))
    changed = [f"training.{name}" for name in COMPARED_ON_RESUME if getattr(then, name) != getattr(now, name)]
    if before.reader.num_streams != config.training.reader.num_streams:
        changed.append("training.reader.num_streams")
    if before.checkpoint.folder != config.training.checkpoint.folder:
        changed.append("training.checkpoint.folder")
    chosen = config.features.model_choices
    changed += [name for name, value in choices.items() if name in chosen and chosen[name] != value]
    if changed:
        raise ConfigError(f"--resume cannot change {', '.join(changed)}: start a new --run")
    trained_on, manifest = run.trained_on(), dataset.manifest
    if (trained_on.schema_fingerprint, trained_on.learnt_fingerprint) != (
        manifest.schema_fingerprint,
        dataset.learnt.fingerprint,
    ):
        raise ValueError(f"{run.path} was trained on another dataset than {config.training.dataset}")
    position = last and check_position(last, RowOrder.of_training(manifest, config.training))
    difference = trained_on.difference(manifest)
    other = difference and f"{config.training.dataset} is not the dataset that {run.path} was trained on: {difference}"
    return [warning for warning in (other, position) if warning]
