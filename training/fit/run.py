"""A run: its folder on disk, and ``train_rank``, which trains one rank of it from the config to the last metric.

The caller that starts the ranks (Ray Train, a test) forms the process group first.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from features.disk.dataset import DatasetManifest
from features.disk.place import Place, locate
from features.disk.run_folder import (
    CALIBRATION_NAME,
    CONFIG_NAME,
    METRICS_NAME,
    PLAN_NAME,
    RunError,
    RunFolder,
    evaluation_name,
)
from features.disk.trained_on import SplitRows
from features.schema import FeatureSchema
from features.vector_table import VectorTable
from training.config import CalibrationConfig, TrainingConfig, VectorsConfig, read_saved_training
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.data.row_order import RowOrder
from training.fit.loop import Event, Progress, Training, make_step, train
from training.fit.position import check_position
from training.fit.roofline import measure_limits, shares_of_limits
from training.fit.scoring import check_sample, score_all
from training.fit.vectors import describe_starts, keep_vectors, read_starts, settle_vectors
from training.from_data import Chosen, choose, with_chosen, with_values_of
from training.judge.calibration import Calibration, CalibrationError, fit_platt, fit_where_it_helps
from training.judge.metrics import curves, evaluate
from training.judge.validation import check_validation
from training.model.ctr_model import CTRModel
from training.sharding import checkpoint
from training.sharding.parallelize import parallelize
from training.sharding.transplant import Knowledge, Transplant, vectors_meaning


@dataclass(frozen=True)
class Run(RunFolder):
    """The folder of one training run, with its config as this package understands it."""

    def checkpoints_of(self, config: TrainingConfig) -> Place:
        """Return the place where this config keeps the run's checkpoints."""
        return self.checkpoints if config.checkpoint.folder is None else locate(config.checkpoint.folder)

    def config(self) -> TrainingConfig:
        """Read the training section that the run was started with.

        Raises:
            RunError: it is absent or damaged.
            PluginError: it needs a plugin that the user has not named.
        """
        return read_saved_training(self.read(CONFIG_NAME)["training"], self.path)

    def is_calibrated(self, wanted: CalibrationConfig) -> bool:
        """Tell whether the run has, or will have, a calibration; one that is wanted where it helps needs validation."""
        if wanted.kind == "none":
            return False
        has_ended = (self.path / METRICS_NAME).is_file()
        return not (wanted.only_where_it_helps and has_ended and "valid" not in self.read(METRICS_NAME))

    def correction(self) -> Calibration:
        """Correction of the run's logits for negatives that its training split lacks.

        Raises:
            RunError, DatasetError, PluginError: as ``config`` and ``trained_on``.
        """
        return Calibration.of_sample(self.trained_on().negatives_rate, self.config().sampled_negatives)


def build_model(
    dataset: Dataset,
    config: TrainingConfig,
    device: torch.device,
    vectors: Mapping[str, VectorTable] | None = None,
) -> CTRModel:
    """Build the network of a config over a dataset's tables.

    Args:
        device: device of the tables; ``meta`` when they are to be sharded.
        vectors: the config's fixed vectors; None: zeros.
    """
    return CTRModel(
        dataset.manifest.schema,
        dataset.num_embeddings(),
        config.model,
        seed=config.seed,
        pad_tables=config.pads_tables,
        device=device,
        mean_lengths=dataset.mean_lengths,
        vectors=vectors,
        dwell_cut_offs=dataset.dwell_cut_offs,
    )


def find_warm_start(config: TrainingConfig, dataset: Dataset) -> checkpoint.Checkpoint | None:
    """Find the checkpoint that a new run begins from; None where the config names no run.

    Raises:
        RunError, DatasetError: the named run's vocabularies are not the beginning of the dataset's, or its schema is
            another, and the config does not allow that; or it was trained on another rate of negatives.
        CheckpointError, StorageError: it has no checkpoint that can be read.
    """
    if config.warm_start is None:
        return None
    before = Run(Path(config.warm_start))
    is_other = before.trained_on().schema_fingerprint != dataset.manifest.schema_fingerprint
    if not config.warm_start_other_features:
        if is_other:
            raise RunError(
                f"training.warm_start: {before.path} was trained on another feature schema than {dataset.path} has; "
                "training.warm_start_other_features = true begins with what it knows of the features that are the same"
            )
        dataset.seen_by(before.learnt(dataset.manifest.schema))
    old, new = before.correction(), Calibration.of_sample(dataset.manifest.negatives_rate, config.sampled_negatives)
    if not math.isclose(old.offset, new.offset):
        raise RunError(
            f"training.warm_start: {before.path} was trained on {math.exp(old.offset):g} of its negatives and this run "
            f"on {math.exp(new.offset):g}, so its logits would begin off by the difference: build with the "
            "pipeline.sample of that run's dataset, or begin without a warm start"
        )
    known = before.config()
    if known.model.base_logit != config.model.base_logit:
        raise RunError(
            f"training.model.base_logit is {config.model.base_logit:g} and {before.path} was trained with "
            f"{known.model.base_logit:g}, so every logit would begin off by the difference: set that run's value"
        )
    return checkpoint.best(before.checkpoints_of(known))


def settle_training(
    config: TrainingConfig, manifest: DatasetManifest, run: Run | None = None
) -> tuple[TrainingConfig, tuple[Chosen, ...]]:
    """Give every setting that a config leaves open a value: that of the run it goes on with, or one from the data.

    Files of vectors get their digests and dimensions.

    Args:
        config: the training section.
        manifest: manifest of the dataset.
        run: run to go on with; None: a new one, which may begin from another (``training.warm_start``).

    Returns:
        The config, and the settings that were chosen from the data.

    Raises:
        RunError, PluginError: the run to go on with has no config that can be read.
        VectorFileError, StorageError: a file of vectors cannot be used.
    """
    config = replace(config, model=settle_vectors(config.model))
    if not config.from_data:
        return config, ()
    if run is None and config.warm_start is not None:
        run = Run(Path(config.warm_start))
    if run is not None:
        return with_values_of(config, run.config()), ()
    chosen = choose(config, manifest)
    return with_chosen(config, chosen), chosen


def find_transplant(config: TrainingConfig, dataset: Dataset) -> Transplant | None:
    """Say what a new run takes over from a run with other fixed vectors, or with other features or vocabularies.

    The latter is for a config that allows them (``find_warm_start``).

    Returns:
        None where the config names no run, or all that the run knows is the same.

    Raises:
        RunError, LearntError: the run is absent or damaged.
    """
    if config.warm_start is None:
        return None
    before, now = Run(Path(config.warm_start)), dataset.manifest.schema
    schema, vectors = before.schema(), before.config().model.vectors
    learnt = before.learnt(schema)
    is_same = schema.fingerprint == now.fingerprint and _same_vectors(vectors, config.model.vectors)
    if is_same and dataset.learnt.extends(learnt):
        return None
    return Transplant(Knowledge(schema, learnt, vectors), Knowledge(now, dataset.learnt), config.model)


def _same_vectors(before: Mapping[str, VectorsConfig], now: Mapping[str, VectorsConfig]) -> bool:
    """Tell whether two models have fixed vectors of the same meaning, in the same order."""
    return [(n, vectors_meaning(v)) for n, v in before.items()] == [(n, vectors_meaning(v)) for n, v in now.items()]


def train_rank(
    run: Run,
    config: TrainingConfig,
    on_event: Callable[[Event], None] = lambda event: None,
    schema: FeatureSchema | None = None,
) -> dict[str, Any]:
    """Train this rank to the end, from the newest checkpoint if there is one.

    Args:
        run: its folder must be visible to every rank; what is large in it may be elsewhere (``checkpoint.folder``).
        config: the training section.
        on_event: called on every rank, in the same order, with each event of the loop.
        schema: the config's features section, whose model choices (pooling) are taken; None: the dataset's.

    Returns:
        What rank 0 writes to metrics.json.

    Raises:
        ValueError subclasses: data, config or checkpoint cannot be used; the message says which and why.
        CalibrationError: nothing can be fitted; the metrics, of the model's own probabilities, are written before.
    """
    started = time.perf_counter()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", torch.cuda.current_device()) if config.device == "cuda" else torch.device("cpu")
    dataset = Dataset.open(config.dataset)
    if schema is not None:
        dataset = dataset.with_choices_of(schema)
    check_validation(dataset.manifest, config)
    vectors = keep_vectors(run, config.model, dataset)
    model = build_model(dataset, config, torch.device("meta"), vectors)
    is_new = not checkpoint.saved_steps(run.checkpoints_of(config))
    starts = read_starts(config.model, dataset, model.tables) if is_new else {}
    parallel = parallelize(model, config, device, starts)
    has_valid = dataset.has_split("valid")
    training = Training(
        parallel,
        config,
        Reader(dataset, "train", config, rank, world_size),
        Reader(dataset, "valid", config, rank, world_size, config.evaluation.sample_rows) if has_valid else None,
        device,
        run.checkpoints_of(config),
        Calibration.of_sample(dataset.manifest.negatives_rate, config.sampled_negatives),
    )
    if training.valid_reader is not None and config.evaluation.sample_rows is not None:
        check_sample(training.valid_reader, config, device)
    progress, order, warning = Progress(), RowOrder.of_training(dataset.manifest, config), None
    last = checkpoint.newest(training.checkpoints)
    if last is not None:
        warning = check_position(last, order)
        checkpoint.restore_checkpoint(last, parallel)
        progress = Progress.from_json(last.progress)
    elif (begun := find_warm_start(config, dataset)) is not None:
        transplant = find_transplant(config, dataset)
        if transplant is None:
            checkpoint.begin(begun, parallel)
        else:
            checkpoint.begin_with_others(begun, parallel, transplant)
            warning = transplant.describe()
    progress.order = order.to_json()
    if rank == 0:
        run.rewind(progress.step)
        if warning is not None:
            run.append({"event": "warning", "epoch": progress.epoch, "step": progress.step, "message": warning})
        run.write(PLAN_NAME, parallel.plan)
        if starts:
            found = describe_starts(config.model, model.tables, starts)
            run.append({"event": "pretrained", "epoch": progress.epoch, "step": progress.step, "features": found})
    step = make_step(training)
    startup = time.perf_counter() - started

    loss = None
    for event in train(training, progress, step):
        loss = event.get("train_loss", loss)
        if rank == 0:
            run.append(event)
        on_event(event)
    metrics, refusal = _summarise(training, progress, loss, startup), None
    if vectors:
        metrics["vectors"] = {name: table.summary() for name, table in vectors.items()}
    if has_valid:
        reader = Reader(dataset, "valid", config, rank, world_size)
        found, refusal = _evaluate_best(run, training, reader, SplitRows.of(dataset.manifest.split("valid")))
        metrics |= found
    if rank == 0:
        run.write(METRICS_NAME, metrics)
    dist.barrier()
    if refusal is not None:
        raise refusal
    return metrics


def _summarise(training: Training, progress: Progress, loss: float | None, startup: float) -> dict[str, Any]:
    return {
        "train": {
            "rows": progress.rows,
            "epochs": progress.epochs(training.train_reader.num_steps),
            "ended_by": progress.ended_by(training.config),
            "steps": progress.step,
            "loss": loss,
            "rows_per_second": progress.rows / max(progress.seconds["train"], 1e-9),
            "reader_rows_per_second": training.train_reader.rows_per_second * dist.get_world_size(),
            **training.times.summary(),
            "reader_shares": _shares(training.train_reader.seconds),
            "of_limit": _shares_of_limits(training, progress) if dist.get_rank() == 0 else {},
        },
        "best_step": progress.best_step,
        "seconds": {"startup": startup, **progress.seconds},
    }


def _shares(seconds: Mapping[str, float]) -> dict[str, float]:
    total = sum(seconds.values())
    return {part: value / total if total else 0.0 for part, value in seconds.items()}


def _shares_of_limits(training: Training, progress: Progress) -> dict[str, float]:
    """Compute each part's share of the roofline on this rank; for "input", of the reader's own rate."""
    times, config, world_size = training.times, training.config, dist.get_world_size()
    if not times.num_batches:
        return {}  # nothing was left to train
    (model,) = (part for part in training.parallel.model.modules() if isinstance(part, CTRModel))
    width = max((part.out_features for part in model.modules() if isinstance(part, nn.Linear)), default=1)
    rows = progress.rows / progress.step / world_size
    seconds = {part: total / times.num_batches for part, total in times.seconds.items()}
    ids = {name: total / times.num_batches for name, total in times.num_ids.items()}
    limits = measure_limits(config.global_batch_size // world_size, width, config, training.device)
    rate = rows / sum(seconds.values())
    return {
        "input": rate / training.train_reader.rows_per_second,
        **shares_of_limits(limits, model, rows=rows, ids=ids, seconds=seconds),
    }


def _evaluate_best(
    run: Run, training: Training, reader: Reader, rows: SplitRows
) -> tuple[dict[str, Any], CalibrationError | None]:
    """Evaluate the best checkpoint on the validation split, as it will be served; rank 0 keeps metrics and curves.

    Calibrated metrics are in sample by the two fitted numbers, so the raw ones stand beside them.

    Returns:
        The metrics, and the error where nothing could be fitted: then the metrics are the raw ones, and the finished
        training is kept.
    """
    best = checkpoint.best(training.checkpoints)
    checkpoint.restore_checkpoint(best, training.parallel)
    scores = score_all(training.parallel, reader, training.device).calibrated(training.correction)
    summary: dict[str, Any] = {"best_step": best.step}  # a run that evaluated nothing has a best checkpoint too
    refusal = None
    wanted = training.config.calibration
    if wanted.kind == "platt":
        fit = fit_where_it_helps if wanted.only_where_it_helps else fit_platt
        try:
            calibration = fit(scores.logits, scores.labels, scores.weights)
        except CalibrationError as error:
            refusal = error
        else:
            summary["valid_uncalibrated"] = evaluate(scores)
            summary["platt"] = calibration.to_json()
            scores = scores.calibrated(calibration)
    summary["valid"] = evaluate(scores)
    if dist.get_rank() == 0:
        if "platt" in summary:
            run.write(CALIBRATION_NAME, {"step": best.step, **summary["platt"], "fitted_on": asdict(rows)})
        run.write(evaluation_name("valid"), {"metrics": summary["valid"], "curves": curves(scores)})
    return summary, refusal
