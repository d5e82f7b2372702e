"""StepTimes: where the time of a training step goes, for the one line that says what to make faster.

A mark costs one look at the clock. On CUDA the clock would only see kernels being queued, so there one step in a
hundred is timed, with the device synchronised at each mark.
"""

import time
from typing import Any

import torch
from torch import nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from training.model.embedding import FieldEmbedding

PARTS = ("input", "lookup", "exchange", "dense forward", "dense backward", "table backward", "optimizer", "other")
"""input: waiting for a batch. exchange: ids and vectors between ranks, and regrouping. table backward: gradients of the
looked-up rows, their exchange and update, and what is left of the reduction of the dense gradients."""
CUDA_INTERVAL = 100


class StepTimes:
    """Seconds of each part, over the steps that were timed."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """Watch ``model`` by hooks on its embedding; they stay as long as it lives."""
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.num_steps = 0
        self._cuda = device.type == "cuda"
        self._step = 0
        self._last: float | None = None
        for module in model.modules():
            if isinstance(module, FieldEmbedding):
                module.register_forward_pre_hook(lambda *_: self.mark("other"))
                module.register_forward_hook(self._after_embedding)
            if isinstance(module, ShardedEmbeddingBagCollection):
                for lookup in module._lookups:
                    lookup.register_forward_pre_hook(lambda *_: self.mark("exchange"))
                    lookup.register_forward_hook(lambda *_: self.mark("lookup"))

    def start(self) -> None:
        """A step begins: what follows, up to the first mark, is its wait for a batch."""
        self._step += 1
        timed = not self._cuda or self._step % CUDA_INTERVAL == 0
        self._last = self._now() if timed else None
        self.num_steps += timed

    def mark(self, part: str) -> None:
        """Since the last mark, the step did ``part``."""
        if self._last is None:
            return
        now = self._now()
        self.seconds[part] += now - self._last
        self._last = now

    def stop(self) -> None:
        """What follows belongs to no step."""
        self._last = None

    def summary(self) -> dict[str, Any]:
        """Seconds of a step, and each part's share of them."""
        total = sum(self.seconds.values())
        return {
            "seconds_per_step": total / max(1, self.num_steps),
            "shares": {part: value / total if total else 0.0 for part, value in self.seconds.items()},
        }

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _after_embedding(self, _module: nn.Module, _inputs: Any, streams: dict[str, torch.Tensor]) -> None:
        self.mark("exchange")
        for vectors in streams.values():
            if vectors.requires_grad and self._last is not None:
                vectors.register_hook(lambda _: self.mark("dense backward"))
