"""The loop: steps over the epochs' batches, evaluations at and between their ends, a checkpoint when it is time.

It is a generator of events without Ray, run files or progress bars; its caller adds those.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from features.disk.place import Place
from training.config import FusedOptimizer, TrainingConfig
from training.data.reader import Reader
from training.fit.allocator import return_unused_pages
from training.fit.pauses import PausedBatches, from_first_rank, next_evaluation
from training.fit.regularization import EmbeddingL2
from training.fit.schedule import Plateau, is_constant, lower, monitor_value, rate_factor
from training.fit.scoring import score_all
from training.fit.step import Step, matmul_precision, step_seed
from training.fit.step_times import StepTimes
from training.fit.window import TrainingWindow
from training.judge.calibration import Calibration
from training.judge.metrics import evaluate
from training.judge.scores import DivergedError
from training.sharding import checkpoint
from training.sharding.parallelize import ParallelModel
from training.sharding.tables import embedding_of

PROGRESS_SECONDS = 1.0
"""Least time between two progress events."""

CUDA_FETCH_INTERVAL = 20
"""Steps between two fetches of a loss from a GPU; each one waits for all queued kernels."""

Event = dict[str, Any]


@dataclass
class Progress:
    """Position of a run: everything that a checkpoint needs besides tensors.

    Attributes:
        epoch: current epoch, from 0.
        step_in_epoch: steps of it already done.
        step: optimizer steps in all.
        rows: real rows in all, over every rank.
        loss_sum: sum over the epoch's steps of the step loss.
        learning_rates: rates of the model's parts as the plateau rule left them, without warm-up and decay.
        best_step: step of the checkpoint that is shipped as of now. Where the time ran out inside an epoch, this may be
            a step that ``schedule`` knows nothing of, so that the run can go on as if it had not ended.
        evaluated_at: the run's seconds at its last evaluation.
        seconds: time spent in steps, in evaluation and in checkpoints, the same on every rank where a config asks for
            times.
        order: the row order that ``step_in_epoch`` is a position in (``RowOrder.to_json``); None in checkpoints of
            earlier versions.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    rows: int = 0
    loss_sum: float = 0.0
    schedule: Plateau = field(default_factory=Plateau)
    learning_rates: list[float] = field(default_factory=list)
    best_step: int | None = None
    evaluated_at: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "evaluate": 0.0, "checkpoint": 0.0})
    order: dict[str, Any] | None = None

    def is_over(self, config: TrainingConfig) -> bool:
        """Tell whether this config leaves nothing to train, whatever limit an earlier start had."""
        return self.ended_by(config) is not None

    def ended_by(self, config: TrainingConfig) -> str | None:
        """Name the config key that leaves nothing to train; None: there is something."""
        if self.epoch >= config.max_epochs:
            return "max_epochs"
        if self.schedule.is_over(config.schedule):
            return "schedule.patience"
        if config.max_minutes is not None and sum(self.seconds.values()) >= 60 * config.max_minutes:
            return "max_minutes"
        return None

    def epochs(self, epoch_steps: int) -> float:
        """Count the epochs that are done; a part of one is a fraction."""
        whole, steps = divmod(self.step_in_epoch, epoch_steps)
        return self.epoch + whole + (steps / epoch_steps if steps else 0)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON values that a checkpoint stores."""
        return {**vars(self), "schedule": self.schedule.state_dict()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        """Read what ``to_json`` returned."""
        return cls(**{**values, "schedule": Plateau(**values["schedule"])})


@dataclass
class Training:
    """Everything that one rank trains with: model, config, readers, device and the place of checkpoints."""

    parallel: ParallelModel
    config: TrainingConfig
    train_reader: Reader
    valid_reader: Reader | None
    device: torch.device
    checkpoints: Place
    correction: Calibration = field(default_factory=Calibration)
    """Correction of logits for negatives that the training split lacks."""

    def __post_init__(self) -> None:
        self.times = StepTimes(self.parallel.model, self.device)
        self.fetch_interval = CUDA_FETCH_INTERVAL if self.device.type == "cuda" else 1
        self.has_schedule = not is_constant(self.config.schedule)
        self.reads_clock = self.config.max_minutes is not None or self.config.evaluation.every_minutes is not None


def train(training: Training, progress: Progress, step: Step) -> Iterator[Event]:
    """Train from ``progress`` to the end; ``step`` is what ``make_step`` made.

    Yields evaluation, window and checkpoint events on every rank alike, and progress events by each rank's own clock.

    Raises:
        ReaderError: a row is missing, double or damaged.
        DivergedError: the loss is not finite.
    """
    config, parallel = training.config, training.parallel
    if progress.learning_rates:
        parallel.learning_rates = progress.learning_rates
    progress.learning_rates = parallel.learning_rates
    _set_rates(training, progress)
    if not progress.is_over(config):
        progress.best_step = progress.schedule.best_step
    while not progress.is_over(config):
        yield from _train_epoch(training, progress, step)
        if progress.step_in_epoch < training.train_reader.num_steps:  # training is over inside the epoch
            return
        if training.valid_reader is not None:
            yield _evaluate(training, training.valid_reader, progress)
        progress.epoch, progress.step_in_epoch, progress.loss_sum = progress.epoch + 1, 0, 0.0
        yield _save(training, progress)


def make_step(training: Training) -> Step:
    """Make the step; where looked-up rows are regularised, this reads the training split once.

    The loss that a step returns leaves the embedding L2 out, in both lanes.
    """
    parallel, optimizer = training.parallel, training.config.optimizer
    looked_up_l2 = None
    if isinstance(optimizer, FusedOptimizer) and optimizer.embedding_l2:
        batches = (batch.to(training.device) for batch in training.train_reader.batches(epoch=0))
        looked_up_l2 = EmbeddingL2(embedding_of(parallel.model), batches, optimizer.embedding_l2)
    return Step(parallel, training.config, training.device, training.times, looked_up_l2, _make_window(training))


def _make_window(training: Training) -> TrainingWindow | None:
    rows, batch_size = training.config.window_rows, training.config.global_batch_size
    return None if rows is None else TrainingWindow(-(-rows // batch_size), training.device)


def _set_rates(training: Training, progress: Progress) -> None:
    """Set the rates of the next step: what the plateau rule left of them, times the factor of warm-up and decay."""
    config, reader = training.config, training.train_reader
    factor = rate_factor(config.schedule, progress.step, reader.num_steps, config.max_epochs)
    training.parallel.learning_rates = [rate * factor for rate in progress.learning_rates]


def _train_epoch(training: Training, progress: Progress, step: Step) -> Iterator[Event]:
    """Train to the end of the epoch, or of the training inside it; what is due at the epoch's end is left to do."""
    config, reader = training.config, training.train_reader
    first, rank = progress.step_in_epoch, dist.get_rank()
    seeds = (step_seed(config.seed, progress.epoch, number, rank) for number in itertools.count(first))
    with contextlib.closing(reader.batches(progress.epoch, first)) as source:
        batches = PausedBatches(source, first)
        while True:
            planned = next_evaluation(config.evaluation, progress.step, progress.step_in_epoch, reader.num_steps)
            batches.pause = planned if training.valid_reader is not None else reader.num_steps
            yield from _train_to_pause(training, progress, step, batches, seeds)
            if progress.step_in_epoch == reader.num_steps:
                return
            yield from _evaluate_inside(training, progress, is_planned=progress.step_in_epoch == planned)
            if progress.is_over(config):
                return


def _train_to_pause(
    training: Training, progress: Progress, step: Step, batches: PausedBatches, seeds: Iterator[int]
) -> Iterator[Event]:
    """Train with the batches up to their pause, which comes earlier where the clock says so."""
    config, parallel, times = training.config, training.parallel, training.times
    parallel.model.train()
    started = shown = time.perf_counter()
    shown_rows = progress.rows
    sums = torch.zeros(2, dtype=torch.float64, device=training.device)
    times.start()
    with matmul_precision(config), contextlib.closing(step.run(batches, seeds)) as results:
        for loss, rows in results:
            progress.step, progress.step_in_epoch = progress.step + 1, progress.step_in_epoch + 1
            if parallel.average is not None:
                parallel.average.update(progress.step)
            sums += torch.stack([loss.double(), rows])
            is_last = progress.step_in_epoch == training.train_reader.num_steps
            is_saved = progress.step % config.checkpoint.every_steps == 0
            is_at_pause = progress.step_in_epoch == batches.pause
            is_window_full = step.window is not None and (is_last or progress.step % step.window.num_steps == 0)
            is_due = is_at_pause or is_saved or is_window_full
            is_fetched = is_due or progress.step_in_epoch % training.fetch_interval == 0
            value = _fetch(loss, sums, progress) if is_fetched else None
            if value is not None and _is_time(training, progress, time.perf_counter() - started):
                batches.pause = min(batches.pause, progress.step_in_epoch + step.batches_ahead)
                is_at_pause = progress.step_in_epoch == batches.pause
            if step.window is not None and is_window_full:
                yield _window_event(step.window, progress, progress.seconds["train"] + time.perf_counter() - started)
            times.mark("other")
            now = time.perf_counter()
            if value is not None and (now - shown >= PROGRESS_SECONDS or is_last):
                rate = (progress.rows - shown_rows) / (now - shown)
                yield _progress_event(training, progress, value, rate, progress.seconds["train"] + now - started)
                shown, shown_rows = time.perf_counter(), progress.rows
            if is_saved and not is_at_pause:
                progress.seconds["train"] += time.perf_counter() - started
                yield _save(training, progress)
                started = shown = time.perf_counter()
                parallel.model.train()
            if training.has_schedule:
                _set_rates(training, progress)
            times.start()
    times.stop()
    progress.seconds["train"] += time.perf_counter() - started
    _agree(training, progress)


def _is_time(training: Training, progress: Progress, seconds: float) -> bool:
    """Tell by the first rank's clock whether an evaluation or the end of training is due.

    Args:
        seconds: those that ``progress`` does not count yet.
    """
    if not training.reads_clock:
        return False
    [now] = from_first_rank([sum(progress.seconds.values()) + seconds], training.device)
    end, minutes = training.config.max_minutes, training.config.evaluation.every_minutes
    is_due = minutes is not None and training.valid_reader is not None and now - progress.evaluated_at >= 60 * minutes
    return is_due or (end is not None and now >= 60 * end)


def _agree(training: Training, progress: Progress) -> None:
    """Count the first rank's seconds on every rank, where something depends on them."""
    if training.reads_clock:
        seconds = from_first_rank([*progress.seconds.values()], training.device)
        progress.seconds = dict(zip(progress.seconds, seconds, strict=True))


def _evaluate_inside(training: Training, progress: Progress, *, is_planned: bool) -> Iterator[Event]:
    """Evaluate at a pause inside an epoch, and save where that is the best, the end, or time for a checkpoint.

    Args:
        is_planned: no clock decided on this step.
    """
    config = training.config
    is_out_of_time = progress.ended_by(config) == "max_minutes"
    if training.valid_reader is not None:
        yield _evaluate(training, training.valid_reader, progress, is_extra=is_out_of_time and not is_planned)
    is_due = progress.step % config.checkpoint.every_steps == 0
    if is_due or progress.best_step == progress.step or progress.is_over(config):
        yield _save(training, progress)


def _fetch(loss: Tensor, sums: Tensor, progress: Progress) -> float:
    """Fetch this step's loss and the sums of losses and rows since the last fetch from the device.

    Raises:
        DivergedError: a loss since the last fetch is not finite; on every rank alike.
    """
    value, loss_sum, rows = torch.stack([loss.double(), *sums]).tolist()
    if not np.isfinite(loss_sum):
        raise DivergedError(f"the loss became {loss_sum} at step {progress.step}: lower the learning rates")
    sums.zero_()
    progress.rows, progress.loss_sum = progress.rows + int(rows), progress.loss_sum + loss_sum
    return value


def _progress_event(
    training: Training, progress: Progress, loss: float, rows_per_second: float, seconds: float
) -> Event:
    return {
        "event": "progress",
        "epoch": progress.epoch,
        "step": progress.step,
        "step_in_epoch": progress.step_in_epoch,
        "epoch_steps": training.train_reader.num_steps,
        "loss": loss,
        "learning_rate": training.parallel.learning_rates[-1],
        "rows_per_second": rows_per_second,
        "seconds": seconds,
    }


def _window_event(window: TrainingWindow, progress: Progress, seconds: float) -> Event:
    return {
        "event": "window",
        "epoch": progress.epoch,
        "step": progress.step,
        **window.take(),
        "seconds": seconds,
    }


def _evaluate(training: Training, reader: Reader, progress: Progress, *, is_extra: bool = False) -> Event:
    """Evaluate on validation, and lower the rates where that is not the best.

    Args:
        is_extra: the schedule takes no notice; it may be the best all the same.
    """
    started = time.perf_counter()
    config, parallel, schedule = training.config, training.parallel, progress.schedule
    metrics = evaluate(score_all(parallel, reader, training.device).calibrated(training.correction))
    value = monitor_value(metrics, config.monitor)
    if is_extra:
        is_best = schedule.is_better(value, config.schedule)
    else:
        is_best = schedule.update(value, progress.step, config.schedule)
    progress.best_step = progress.step if is_best else schedule.best_step
    event = {
        "event": "evaluation",
        "split": "valid",
        "epoch": progress.epoch,
        "epochs": progress.epochs(training.train_reader.num_steps),
        "step": progress.step,
        "train_loss": progress.loss_sum / max(1, progress.step_in_epoch),
        **metrics,
        "monitor": value,
        "best": is_best,
        "learning_rate": parallel.learning_rates[-1],
        **({"is_extra": True} if is_extra else {}),
    }
    if not is_best and not is_extra:
        progress.learning_rates = [lower(rate, config.schedule) for rate in progress.learning_rates]
        _set_rates(training, progress)
    progress.seconds["evaluate"] += time.perf_counter() - started
    _agree(training, progress)
    progress.evaluated_at = sum(progress.seconds.values())
    return {**event, "seconds": progress.seconds["train"]}


def _save(training: Training, progress: Progress) -> Event:
    started = time.perf_counter()
    folder, keep = training.checkpoints, training.config.checkpoint.keep
    checkpoint.save(folder, progress.step, training.parallel, progress.to_json())
    if dist.get_rank() == 0:
        # What a later start goes on with is the newest and the schedule's best.
        checkpoint.prune(folder, keep, progress.schedule.best_step)
    return_unused_pages()
    progress.seconds["checkpoint"] += time.perf_counter() - started
    _agree(training, progress)
    return {"event": "checkpoint", "epoch": progress.epoch, "step": progress.step}
