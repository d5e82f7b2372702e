"""CPU milliseconds of history encoders, forward and backward on one thread, beside a whole step without histories.

    python -m tests.benchmarks.histories
    python -m tests.benchmarks.histories --batch-size 1024 --mean 440 --longest 1024 --kinds din sdim

The step is that of the default model on 20 features, without its tables; ``of_step`` is the time of two sequences'
encoders in both streams over that of the step, and lengths are exponential, cut at the longest.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from features.disk.atomic import write_json
from training.config import MLPEncoder, ModelConfig
from training.fit.allocator import keep_freed_memory
from training.model.encoders import MLP
from training.model.histories import HISTORY_ENCODERS, EventVectors, HistoryEncoders

FEATURES, SEQUENCES = 20, ("clicks", "buys")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(HISTORY_ENCODERS), choices=HISTORY_ENCODERS)
    parser.add_argument("--batch-size", type=int, default=4_096)
    parser.add_argument("--parts", type=int, default=2)
    parser.add_argument("--mean", type=float, default=20, help="length of a history, before the cut")
    parser.add_argument("--longest", type=int, default=50)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--set", nargs="*", default=[], help="KEY=JSON of the encoders")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()  # as a worker does
    torch.set_num_threads(1)
    torch.manual_seed(0)
    step = least_milliseconds(arguments, make_step(arguments.batch_size))
    found: dict[str, Any] = {"step": step}
    settings = {key: json.loads(value) for key, value in (word.split("=", 1) for word in arguments.set)}
    for kind in arguments.kinds:
        run, num_events = make_histories(arguments, {"kind": kind, **settings})
        found[kind] = least_milliseconds(arguments, run)
        found[f"{kind} of_step"] = found[kind] / step
        found["events"] = num_events
    print(json.dumps(found, indent=1))
    if arguments.output:
        write_json(arguments.output, found)


def least_milliseconds(arguments: argparse.Namespace, run: Callable[[], Tensor]) -> float:
    """Least CPU time of a forward and backward pass."""
    least = float("inf")
    for _ in range(arguments.repeats):
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bfloat16"):
            result = run()
        result.float().square().mean().backward()
        least = min(least, time.process_time() - started)
    return round(1e3 * least, 1)


def make_step(batch_size: int) -> Callable[[], Tensor]:
    """The two default encoders on vectors of the features."""
    config = ModelConfig()
    nets, vectors = nn.ModuleList(), []
    for encoder, width in ((config.easy, config.easy_dim), (config.hard, config.embedding_dim)):
        assert isinstance(encoder, MLPEncoder)
        nets.append(MLP(encoder, FEATURES, width))
        vectors.append(torch.randn(batch_size, FEATURES, width, requires_grad=True))
    nothing = torch.empty(batch_size, FEATURES, 0)
    return lambda: torch.cat([net(x, nothing) for net, x in zip(nets, vectors, strict=True)], dim=1)


def make_histories(arguments: argparse.Namespace, config: dict[str, Any]) -> tuple[Callable[[], Tensor], int]:
    """All encoders of the sequences, and their number of events."""
    model = ModelConfig(sequences=dict.fromkeys(SEQUENCES, config))  # pyright: ignore[reportArgumentType]
    widths: Any = {"easy": model.easy_dim, "hard": model.embedding_dim}
    encoders = HistoryEncoders(model.sequences, dict.fromkeys(SEQUENCES, arguments.parts), widths)
    lengths = [
        torch.empty(arguments.batch_size).exponential_(1 / arguments.mean).long().clamp(max=arguments.longest)
        for _ in SEQUENCES
    ]
    histories: Any = {
        stream: {
            name: EventVectors(
                torch.randn(len(of), arguments.parts * width, requires_grad=True),
                torch.randn(int(of.sum()), arguments.parts * width, requires_grad=True),
                of,
            )
            for name, of in zip(SEQUENCES, lengths, strict=True)
        }
        for stream, width in widths.items()
    }
    return lambda: torch.cat([x.flatten(1) for x in encoders(histories).values()], dim=1), sum(
        int(of.sum()) for of in lengths
    )


if __name__ == "__main__":
    main()
