"""Roofline: this machine's peak arithmetic and memory rates, and how near each part of a step comes to them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from training.config import TrainingConfig
from training.model.cost import FLOAT, Net
from training.model.ctr_model import CTRModel

SECONDS = 0.05
"""Seconds of each measurement."""
COPIED = 64 << 20
"""Bytes that the measurement of memory copies at a time."""
LEAST_WIDTH = 512
"""Least rows and columns of the matrices that are multiplied: smaller ones do not show what the machine can do."""
LOOKUP_PASSES, UPDATE_PASSES, ADAM_PASSES = 2, 3, 7
"""Reads and writes of a number. Look-up: row, pooled vector. Update of a row: gradient, row twice. Adam on a replicated
weight: weight, gradient and two moments are read, all but the gradient written."""


@dataclass(frozen=True)
class Limits:
    """Peak rates of one rank while the others wait.

    Attributes:
        flops: products and sums a second of a square layer, as wide as the network's widest and ``LEAST_WIDTH`` at
            least, at a rank's batch size.
        bytes_per_second: bytes read and written a second, copying memory.
    """

    flops: float
    bytes_per_second: float


def measure_limits(rows: int, width: int, config: TrainingConfig, device: torch.device) -> Limits:
    """Measure peak rates by multiplying matrices and copying memory.

    Args:
        rows: rows of a rank's part of a batch.
        width: width of the network's widest layer.
    """
    rows, width = max(rows, LEAST_WIDTH), max(width, LEAST_WIDTH)
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    left, right = (torch.ones(size, width, device=device, dtype=dtype) for size in (rows, width))
    source = torch.ones(COPIED, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return Limits(
        flops=2 * rows * width * width * _rate(lambda: torch.mm(left, right), device),
        bytes_per_second=2 * COPIED * _rate(lambda: target.copy_(source), device),
    )


def shares_of_limits(
    limits: Limits, model: CTRModel, rows: float, ids: Mapping[str, float], seconds: Mapping[str, float]
) -> dict[str, float]:
    """Compute each part's least time by the roofline over its measured time.

    Left out are parts that took no time, and parts that were faster than the roofline: of these it tells nothing, for
    their bytes stayed in the processor's caches, or others used the machine while it was measured.

    Args:
        model: trained model; its tables may be sharded.
        rows: rows of a rank's part of a batch.
        ids: feature -> ids of a rank's part of a batch.
        seconds: part of a step -> its seconds (training/fit/step_times.py).
    """
    net = Net.of(model)
    looked_up = FLOAT * sum(ids[name] * table.padded_width for table in model.tables for name in table.features)
    bandwidth = limits.bytes_per_second
    least = {
        "dense": rows * net.flops / limits.flops,
        "lookup": LOOKUP_PASSES * looked_up / bandwidth,
        "table backward": UPDATE_PASSES * looked_up / bandwidth,
        "optimizer": ADAM_PASSES * FLOAT * net.parameters / bandwidth,
    }
    taken = {**seconds, "dense": seconds["dense forward"] + seconds["dense backward"]}
    return {part: needed / taken[part] for part, needed in least.items() if needed <= taken[part] > 0}


def _rate(run: Callable[[], object], device: torch.device) -> float:
    """Measure calls per second: the best of those that fit into ``SECONDS``, as others may use the machine too."""

    def seconds() -> float:
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    seconds()  # the first touches the memory
    found, end = [seconds()], time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        found.append(seconds())
    return 1 / min(found)
