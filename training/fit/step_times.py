"""StepTimes: seconds of each part of a training step, to see what to make faster.

A mark reads the clock once. On CUDA that would time the queueing of kernels only, so there one step in a hundred is
timed, with the device synchronised at each mark.
"""

import time
from collections import Counter
from typing import Any, Literal

import torch
from torch import nn

from training.model.embedding import EventStreams, Streams
from training.model.normalization import GlobalBatchNorm
from training.sharding.tables import embedding_of, kernels_of, lookups_of

COMMUNICATION = ("exchange", "reduction")
STEP_PARTS = (
    "input",
    "lookup",
    "dense forward",
    "dense backward",
    "table backward",
    "optimizer",
    *COMMUNICATION,
    "other",
)
"""Parts of a step. input: waiting for a batch. table backward: gradients of the looked-up rows and their update.
exchange: ids, vectors and the vectors' gradients between ranks, sorting them, and waiting for slower ranks. reduction:
of the dense gradients, of batch norm's moments, of weights and of losses, as far as a step waits for them: dense
gradients are reduced during the backward pass."""
CUDA_INTERVAL = 100
"""Steps between two timed ones on CUDA."""


class StepTimes:
    """Seconds of each part, over the steps that were timed: one in ``interval``."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """Watch ``model`` by hooks on its embedding; they stay as long as it lives."""
        self.seconds: dict[str, float] = dict.fromkeys(STEP_PARTS, 0.0)
        self.num_steps = 0
        self.num_batches, self.num_ids = 0, Counter[str]()
        """Batches of the timed steps (an epoch's last step has none), and their ids by feature, on this rank."""
        self._cuda = device.type == "cuda"
        self.interval = CUDA_INTERVAL if self._cuda else 1
        self._step = 0
        self._last: float | None = None
        embedding = embedding_of(model)
        embedding.register_forward_pre_hook(self._before_embedding)
        embedding.register_forward_hook(self._after_embedding)
        for module in model.modules():
            if isinstance(module, GlobalBatchNorm):
                module.on_wait = self._around_wait
        for lookup in lookups_of(model):
            lookup.register_forward_pre_hook(lambda *_: self.mark("exchange"))
            lookup.register_forward_hook(lambda *_: self.mark("lookup"))
        for kernel in kernels_of(model):
            kernel.emb_module.register_forward_hook(self._watch_update)

    def start(self) -> None:
        """Begin a step: the time up to the first mark is its wait for a batch."""
        self._step += 1
        timed = self._step % self.interval == 0
        self._last = self._now() if timed else None
        self.num_steps += timed

    def mark(self, part: str) -> None:
        """Add the time since the last mark to ``part``."""
        if self._last is None:
            return
        now = self._now()
        self.seconds[part] += now - self._last
        self._last = now

    def watch_backward(self, total: torch.Tensor) -> None:
        """Mark the parts of ``total.backward()`` by hooks."""
        if self._last is not None:
            total.register_hook(self._begin_backward)

    def stop(self) -> None:
        """End the step: the time that follows belongs to none."""
        self._last = None

    def summary(self) -> dict[str, Any]:
        """Compute the seconds of a step, and each part's share of them."""
        total = sum(self.seconds.values())
        shares = {part: value / total if total else 0.0 for part, value in self.seconds.items()}
        return {
            "seconds_per_step": total / max(1, self.num_steps),
            "shares": shares,
            "communication": sum(shares[part] for part in COMMUNICATION),
        }

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _before_embedding(self, _module: nn.Module, inputs: Any) -> None:
        self.mark("other")
        if self._last is not None:
            self.num_batches += 1
            self.num_ids.update(dict(zip(inputs[0].keys(), inputs[0].length_per_key(), strict=True)))

    def _after_embedding(self, _module: nn.Module, _inputs: Any, vectors: tuple[Streams, EventStreams]) -> None:
        self.mark("exchange")
        streams, histories = vectors
        events = [of.events_NE for of_stream in histories.values() for of in of_stream.values()]
        for tensor in (*streams.values(), *events):
            if tensor.requires_grad and self._last is not None:
                tensor.register_hook(lambda _: self.mark("dense backward"))

    def _around_wait(self, work: Literal["forward", "backward"] | None) -> None:
        self.mark("reduction" if work is None else f"dense {work}")

    def _begin_backward(self, _gradient: torch.Tensor) -> None:
        self.mark("exchange")  # of the next batch's ids, in a pipeline
        # DDP queues its last wait when the last gradient is there, so after this.
        torch.autograd.Variable._execution_engine.queue_callback(lambda: self.mark("table backward"))

    def _watch_update(self, _module: nn.Module, _inputs: Any, vectors: torch.Tensor) -> None:
        """Mark a kernel's node in the graph: it receives gradients of vectors and updates its rows."""
        if vectors.grad_fn is not None and self._last is not None:
            vectors.grad_fn.register_prehook(lambda _: self.mark("exchange"))
            vectors.grad_fn.register_hook(lambda *_: self.mark("table backward"))
