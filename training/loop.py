"""The loop: batches to steps, an evaluation an epoch, a checkpoint when it is time.

It is a generator of events and knows nothing of Ray, files of a run or progress bars; whoever drives it does.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from features.storage import Place
from training import checkpoint
from training.allocator import return_unused_pages
from training.batch import Batch
from training.config import DenseOptimizer, TrainingConfig
from training.metrics import DivergedError
from training.metrics import evaluate as compute_metrics
from training.model.embedding import FieldEmbedding
from training.model.objective import OBJECTIVES
from training.parallelize import ParallelModel, gather
from training.reader import Reader
from training.regularization import EmbeddingL2
from training.schedule import Plateau, lower, monitor_value
from training.timing import StepTimes

PROGRESS_SECONDS = 1.0
"""Least time between two progress events."""

Event = dict[str, Any]


@dataclass
class Progress:
    """Where a run is: all a checkpoint needs besides tensors.

    Attributes:
        epoch: current epoch, from 0.
        step_in_epoch: steps of it already done.
        step: optimizer steps in all.
        rows: real rows in all, over every rank.
        loss_sum: sum over the epoch's steps of the step loss.
        seconds: time spent in steps, in evaluation and in checkpoints.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    rows: int = 0
    loss_sum: float = 0.0
    schedule: Plateau = field(default_factory=Plateau)
    learning_rates: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "evaluate": 0.0, "checkpoint": 0.0})

    def is_over(self, config: TrainingConfig) -> bool:
        """Whether nothing is left to train under this config, whatever limit an earlier start had."""
        return self.epoch >= config.max_epochs or self.schedule.is_over(config.schedule)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "schedule": self.schedule.state_dict(), "best_step": self.schedule.best_step}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        values = {k: v for k, v in values.items() if k != "best_step"}
        return cls(**{**values, "schedule": Plateau(**values["schedule"])})


@dataclass
class Training:
    """What one rank trains with."""

    parallel: ParallelModel
    config: TrainingConfig
    train_reader: Reader
    valid_reader: Reader | None
    device: torch.device
    checkpoints: Place

    def __post_init__(self) -> None:
        self.times = StepTimes(self.parallel.model, self.device)


Step = Callable[[Batch, int], tuple[Tensor, Tensor]]
"""One optimizer step as a function of (batch, seed): returns (data loss, real rows) over all ranks."""


def train(training: Training, progress: Progress, step: Step) -> Iterator[Event]:
    """Train from ``progress`` to the end; ``step`` is what ``make_step`` made.

    Yields evaluation and checkpoint events on every rank alike, and progress events by each rank's own clock.

    Raises:
        ReaderError: a row is missing, double or damaged.
        DivergedError: the loss is not finite.
    """
    config, parallel = training.config, training.parallel
    if progress.learning_rates:
        parallel.learning_rates = progress.learning_rates
    while not progress.is_over(config):
        yield from _train_epoch(training, progress, step)
        if training.valid_reader is not None:
            yield _evaluate_epoch(training, training.valid_reader, progress)
        progress.epoch, progress.step_in_epoch, progress.loss_sum = progress.epoch + 1, 0, 0.0
        yield _save(training, progress)


def make_step(training: Training) -> Step:
    """Make the step; where looked-up rows are regularised, this reads the training split once.

    The loss that a step returns leaves the embedding L2 out, in both lanes.
    """
    parallel, config = training.parallel, training.config
    objective = OBJECTIVES[config.model.objective.kind](config.model.objective)
    is_dense_lane, embedding_l2 = isinstance(config.optimizer, DenseOptimizer), config.optimizer.embedding_l2
    looked_up_l2 = _watch_look_ups(training, embedding_l2) if embedding_l2 and not is_dense_lane else None
    world_size, mark = dist.get_world_size(), training.times.mark

    def step(batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        weights = batch.weights[: batch.num_rows]
        totals = torch.stack([weights.sum().double(), torch.tensor(batch.num_rows, device=weights.device).double()])
        dist.all_reduce(totals)
        with torch.autocast(training.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits = parallel.model(batch)
        loss = objective(logits, batch.labels[: batch.num_rows], weights, totals[0].float())
        parallel.optimizer.zero_grad()
        total = loss if looked_up_l2 is None else loss + looked_up_l2.loss(batch)
        mark("dense forward")
        # Both DDP and TorchRec divide gradients by the world size; this loss is already a share of the whole.
        (total * world_size).backward()
        mark("table backward")
        if is_dense_lane:
            parallel.add_l2_gradients(embedding_l2)
        if config.clip_gradient_norm is not None:
            parallel.clip_gradients(config.clip_gradient_norm)
        parallel.optimizer.step()
        mark("optimizer")
        return loss.detach(), totals[1]

    return step


def _watch_look_ups(training: Training, strength: float) -> EmbeddingL2:
    (embedding,) = (part for part in training.parallel.model.modules() if isinstance(part, FieldEmbedding))
    batches = (batch.to(training.device) for batch in training.train_reader.batches(epoch=0))
    return EmbeddingL2(embedding, batches, strength)


def _train_epoch(training: Training, progress: Progress, step: Step) -> Iterator[Event]:
    config, parallel = training.config, training.parallel
    parallel.model.train()
    rank = dist.get_rank()
    started = shown = time.perf_counter()
    shown_rows = progress.rows
    times = training.times
    times.start()
    for batch in training.train_reader.batches(progress.epoch, progress.step_in_epoch):
        times.mark("input")
        seed = step_seed(config.seed, progress.epoch, progress.step_in_epoch, rank)
        loss, rows = step(batch.to(training.device), seed)
        dist.all_reduce(loss)
        value = float(loss)
        if not np.isfinite(value):
            raise DivergedError(f"the loss became {value} at step {progress.step + 1}: lower the learning rates")
        progress.step, progress.step_in_epoch = progress.step + 1, progress.step_in_epoch + 1
        if parallel.average is not None:
            parallel.average.update(progress.step)
        progress.rows, progress.loss_sum = progress.rows + int(rows), progress.loss_sum + value
        times.mark("other")
        now = time.perf_counter()
        is_last = progress.step_in_epoch == training.train_reader.num_steps
        if now - shown >= PROGRESS_SECONDS or is_last:
            rate = (progress.rows - shown_rows) / (now - shown)
            yield _progress_event(training, progress, value, rate, progress.seconds["train"] + now - started)
            shown, shown_rows = time.perf_counter(), progress.rows
        if progress.step % config.checkpoint.every_steps == 0 and not is_last:
            progress.seconds["train"] += time.perf_counter() - started
            yield _save(training, progress)
            started = shown = time.perf_counter()
            parallel.model.train()
        times.start()
    times.stop()
    progress.seconds["train"] += time.perf_counter() - started


def step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """Seed of one rank's step: dropout depends on the position alone, so a resumed run needs no generator state."""
    return int(np.random.SeedSequence((seed, epoch, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))


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


def _evaluate_epoch(training: Training, reader: Reader, progress: Progress) -> Event:
    started = time.perf_counter()
    config, parallel = training.config, training.parallel
    metrics = compute_metrics(*score_all(parallel, reader, training.device))
    value = monitor_value(metrics, config.monitor)
    is_best = progress.schedule.update(value, progress.step, config.schedule)
    event = {
        "event": "evaluation",
        "split": "valid",
        "epoch": progress.epoch,
        "step": progress.step,
        "train_loss": progress.loss_sum / max(1, progress.step_in_epoch),
        **metrics,
        "monitor": value,
        "best": is_best,
        "learning_rate": parallel.learning_rates[-1],
    }
    if not is_best:
        parallel.learning_rates = [lower(rate, config.schedule) for rate in parallel.learning_rates]
    progress.learning_rates = parallel.learning_rates
    progress.seconds["evaluate"] += time.perf_counter() - started
    return {**event, "seconds": progress.seconds["train"]}


def _save(training: Training, progress: Progress) -> Event:
    started = time.perf_counter()
    folder, keep = training.checkpoints, training.config.checkpoint.keep
    checkpoint.save(folder, progress.step, training.parallel, progress.to_json())
    if dist.get_rank() == 0:
        checkpoint.prune(folder, keep, progress.schedule.best_step)
    return_unused_pages()
    progress.seconds["checkpoint"] += time.perf_counter() - started
    return {"event": "checkpoint", "epoch": progress.epoch, "step": progress.step}


Scores = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]
"""Logits, labels, weights and group ids (or None) of real rows, each (rows,)."""


def score(model: nn.Module, reader: Reader, device: torch.device) -> Scores:
    """Score this rank's rows of a split, in reading order."""
    model.eval()
    logits, labels, weights, group_ids = [], [], [], []
    with torch.no_grad():
        for batch in reader.batches(epoch=0):
            rows = slice(batch.num_rows)
            logits.append(model(batch.to(device)).fused.double().cpu())
            labels.append(batch.labels[rows])
            weights.append(batch.weights[rows])
            if batch.group_ids is not None:
                group_ids.append(batch.group_ids[rows])
    parts = [torch.cat(part).numpy() if part else None for part in (logits, labels, weights, group_ids)]
    return parts[0], parts[1], parts[2], parts[3]  # pyright: ignore[reportReturnType]


def score_all(parallel: ParallelModel, reader: Reader, device: torch.device) -> Scores:
    """Score every rank's rows of a split with the weights that would be shipped, on every rank, in rank order."""
    with parallel.shipped_weights():
        return gather_scores(score(parallel.model, reader, device))


def gather_scores(scores: Scores) -> Scores:
    """Put all ranks' scores together, on every rank, in rank order."""
    if dist.get_world_size() == 1:
        return scores
    gathered = [_gather(part) for part in scores]
    return gathered[0], gathered[1], gathered[2], gathered[3]  # pyright: ignore[reportReturnType]


def _gather(part: np.ndarray | None) -> np.ndarray | None:
    if part is None:
        return None
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    return gather(torch.from_numpy(part).to(device)).cpu().numpy()
