"""Step: forward, backward and update of one batch, one after the other or with the next batch's exchange beside them.

Pipelined, the ids of the next batch travel between ranks, and the batch after it to the device, while this one is
trained with. TorchRec's TrainPipelineSparseDist orders that; what a step computes is the same, bit for bit.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from training.config import DenseOptimizer, TrainingConfig
from training.data.batch import Batch
from training.data.prefetch import prefetch
from training.fit.regularization import EmbeddingL2
from training.fit.step_times import StepTimes
from training.fit.window import TrainingWindow
from training.model.objective import OBJECTIVES
from training.sharding.parallelize import ParallelModel
from training.sharding.tables import LookUp

PINNED_BATCHES = 2
"""Number of batches that wait in page-locked memory for their copy to a GPU."""

PIPELINED_BATCHES = 3
"""Number of batches that TorchRec's pipeline holds at most, the one that is trained with included."""

StepResult = tuple[Tensor, Tensor]
"""Data loss (without the embedding L2) and number of real rows of a step, over all ranks."""


@dataclass
class _Sent:
    """Result of a step while the all-reduce of its loss is in flight."""

    loss: Tensor
    rows: Tensor
    work: Any


@dataclass
class Step:
    """One optimizer step as a function of (batch, seed), and its halves for a pipeline to run.

    Attributes:
        looked_up_l2: watches the model's embedding; None: looked-up rows are not regularised.
        window: takes in the rows of each step before it is trained with them; None: they are not measured.
    """

    parallel: ParallelModel
    config: TrainingConfig
    device: torch.device
    times: StepTimes
    looked_up_l2: EmbeddingL2 | None = None
    window: TrainingWindow | None = None

    def __post_init__(self) -> None:
        self._objective = OBJECTIVES[self.config.model.objective.kind](self.config.model.objective)
        self._world_size = dist.get_world_size()

    @property
    def batches_ahead(self) -> int:
        """Return how many more batches than there are results ``run`` may have taken, on any rank."""
        ahead = PIPELINED_BATCHES if self.config.is_pipelined else 0
        return ahead + (PINNED_BATCHES + 1 if self.device.type == "cuda" else 0)

    def __call__(self, batch: Batch, seed: int) -> StepResult:
        """Train with one batch that is on the device."""
        total, sent = self._forward(batch, seed)
        self.parallel.optimizer.zero_grad()
        total.backward()
        self._update()
        return self._receive(sent)

    def run(self, batches: Iterable[Batch], seeds: Iterator[int]) -> Generator[StepResult, None, None]:
        """Train with each of ``batches``, which may be on the host; a result is of a step that is done.

        Pipelined, up to two batches more than there are results have been taken; the last result comes after the last
        batch all the same. Closing the iterator leaves the model as it was found.
        """
        with contextlib.closing(self._prepared(batches)) as prepared:
            if self.config.is_pipelined:
                yield from self._run_pipelined(prepared, seeds)
            else:
                for batch in prepared:
                    yield self(batch.to(self.device, non_blocking=True), next(seeds))

    def _prepared(self, batches: Iterable[Batch]) -> Generator[Batch, None, None]:
        """Page-lock the batches for a GPU and time the wait for each."""
        with _closing(batches) as source:
            on_gpu = self.device.type == "cuda"
            with _closing(prefetch(lambda: _pin(source), PINNED_BATCHES) if on_gpu else source) as ready:
                while True:
                    self.times.mark("exchange")
                    batch = next(ready, None)
                    self.times.mark("input")
                    if batch is None:
                        return
                    yield batch

    def _run_pipelined(self, batches: Iterator[Batch], seeds: Iterator[int]) -> Iterator[StepResult]:
        pipeline = TrainPipelineSparseDist(
            LookUp(self.parallel.model),
            _Optimizer(self.parallel.optimizer.zero_grad, self._update),  # pyright: ignore[reportArgumentType]
            self.device,
            custom_model_fwd=lambda batch: self._forward(batch, next(seeds)),  # pyright: ignore[reportArgumentType]
        )
        try:
            while True:
                try:
                    sent = pipeline.progress(batches)
                except StopIteration:
                    return
                yield self._receive(sent)
        finally:
            pipeline.detach()  # evaluation runs the model's own forward

    def _forward(self, batch: Batch, seed: int) -> tuple[Tensor, _Sent]:
        """Run the forward pass; return the loss to call ``backward`` on, and the step's result."""
        torch.manual_seed(seed)
        weights = batch.weights[: batch.num_rows]
        totals = torch.stack([weights.sum().double(), weights.new_full((), batch.num_rows, dtype=torch.float64)])
        totals_work = dist.all_reduce(totals, async_op=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            logits = self.parallel.model(batch)
        if self.window is not None:
            self.window.add(logits.fused, batch.labels[: batch.num_rows], weights)
        self.times.mark("dense forward")
        _wait(totals_work)
        self.times.mark("reduction")
        loss = self._objective(logits, batch.labels[: batch.num_rows], weights, totals[0].float())
        reduced = loss.detach().clone()
        work = dist.all_reduce(reduced, async_op=True)
        total = loss if self.looked_up_l2 is None else loss + self.looked_up_l2.loss(batch)
        # Both DDP and TorchRec divide gradients by the world size; this loss is already a share of the whole.
        total = total * self._world_size
        self.times.mark("dense forward")
        self.times.watch_backward(total)
        return total, _Sent(reduced, totals[1], work)

    def _update(self) -> None:
        """Apply the gradients that ``backward`` left."""
        self.times.mark("reduction")
        config, parallel = self.config, self.parallel
        if isinstance(config.optimizer, DenseOptimizer):
            parallel.add_l2_gradients(config.optimizer.embedding_l2)
        if config.clip_gradient_norm is not None:
            parallel.clip_gradients(config.clip_gradient_norm)
        parallel.optimizer.step()
        self.times.mark("optimizer")

    def _receive(self, sent: _Sent) -> StepResult:
        _wait(sent.work)
        self.times.mark("reduction")
        return sent.loss, sent.rows


def step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """Derive a step's seed on one rank from its position alone, so that a resumed run needs no generator state."""
    return int(np.random.SeedSequence((seed, epoch, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextlib.contextmanager
def matmul_precision(config: TrainingConfig) -> Iterator[None]:
    """Set the precision of a GPU's float32 products within this context: TF32 if the config says so, else IEEE."""
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # pyright: ignore[reportAttributeAccessIssue]
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "tf32" if config.precision == "tf32" else "ieee"
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


@dataclass
class _Optimizer:
    """Optimizer for the pipeline: ``zero_grad`` runs before a step's forward, ``step`` after its backward."""

    zero_grad: Callable[[], None]
    step: Callable[[], None]


def _pin(batches: Iterator[Batch]) -> Generator[Batch, None, None]:
    for batch in batches:
        yield batch.pin_memory()


@contextlib.contextmanager
def _closing(batches: Iterable[Batch]) -> Iterator[Iterator[Batch]]:
    """Read ``batches`` within this context; a generator, which may hold files and a thread, is closed at its end."""
    try:
        yield iter(batches)
    finally:
        if isinstance(batches, Generator):
            batches.close()


def _wait(work: Any) -> None:
    if work is not None:
        work.wait()
