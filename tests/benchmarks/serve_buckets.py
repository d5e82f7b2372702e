"""CPU milliseconds and latency of requests with long histories, as events and as bucket tables, to one service.

    python -m tests.benchmarks.serve_buckets

The model is the default one; a row has two sequences of 1,000 events, of two parts and of one, read by ``sdim`` with
its defaults, and beside a table the two newest events of one, for ``short``. Requests of both forms take turns, so that
a busy machine is as busy for one as for the other; answers are held against each other. ``kilobytes`` are those of a
request's body.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from features.disk.atomic import write_json
from tests.stand_ins.bucket_artifacts import DEVICES, VISITS, make_rows, without_events, write_bucket_artifacts
from tests.stand_ins.tiny_service import TinyService, started
from training.config import DINHistory, HistoryConfig, ModelConfig, SDIMHistory

Body = tuple[str, bytes]
SEQUENCES: dict[str, HistoryConfig] = {"visits": SDIMHistory(short=DINHistory(length=2)), "devices": SDIMHistory()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000, help="of each of the two sequences")
    parser.add_argument("--requests", type=int, default=200, help="of each form")
    parser.add_argument("--candidates", type=int, default=100, help="of one user, in a request with shared columns")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="twinfocus-buckets-") as name:
        folder = write_bucket_artifacts(Path(name), arguments.events, ModelConfig(), SEQUENCES)
        with started(folder, "--artifact", folder / "float32") as service:
            found = {
                form: measure(service, bodies, arguments.requests) for form, bodies in make_bodies(service, arguments)
            }
    print(json.dumps(found, indent=1))
    if arguments.output:
        write_json(arguments.output, found)
    return 0


def make_bodies(service: TinyService, arguments: argparse.Namespace) -> list[tuple[str, dict[str, Body]]]:
    """Requests of one row, of the same user's candidates, and for tables."""
    [row] = [fill(row, arguments.events) for row in make_rows(1)]
    lists = {name: row[name] for name in (*VISITS, *DEVICES)}
    of_history = json.dumps([{k: v for k, v in lists.items() if "time" not in k}]).encode()
    [table] = json.loads(service.ask("/v1/buckets", of_history)[1])["tables"]
    kept = {name: value for name, value in without_events([row])[0].items() if name in VISITS}
    candidate = {name: value for name, value in row.items() if name not in lists}
    candidates = [{**candidate, "user": f"u{n % 40}", "price": n / 10} for n in range(arguments.candidates)]

    def shared(columns: dict[str, Any]) -> Body:
        return "/v1/score", json.dumps({"shared": columns, "candidates": candidates}).encode()

    def alone(columns: dict[str, Any]) -> Body:
        return "/v1/score", json.dumps([{**candidate, **columns}]).encode()

    return [
        (
            "one row",
            {"events": alone(lists), "table": alone({**kept, **table}), "no events": alone(dict.fromkeys(lists))},
        ),
        (f"{arguments.candidates} candidates", {"events": shared(lists), "table": shared({**kept, **table})}),
        ("making a table", {"events": ("/v1/buckets", of_history)}),
    ]


def fill(row: dict[str, Any], num_events: int) -> dict[str, Any]:
    """The row with so many events in both long sequences."""
    devices = ("mobile", "tablet", "watch")
    return {
        **row,
        "visits__user": [f"u{n % 50}" for n in range(num_events)],
        "visits__device": [devices[n % 3] for n in range(num_events)],
        "visits__time": [9_999 - n for n in range(num_events)],
        "devices__device": [devices[n % 2] for n in range(num_events)],
        "devices__dwell": [n % 90 for n in range(num_events)],
        "devices__time": [1 + n for n in range(num_events)],
    }


def measure(service: TinyService, bodies: dict[str, Body], num_requests: int) -> dict[str, Any]:
    """Ask in turns; CPU milliseconds of server and replica a request, and median latency."""
    seconds: dict[str, list[float]] = {form: [] for form in bodies}
    spent = dict.fromkeys(bodies, 0.0)
    answers: dict[str, Any] = {}
    for number in range(num_requests + 10):
        for form, (path, body) in bodies.items():
            before, started_at = cpu_seconds(service), time.perf_counter()
            status, text = service.ask(path, body)
            took, used = time.perf_counter() - started_at, cpu_seconds(service) - before
            assert status == 200, text
            answers[form] = json.loads(text)
            if number >= 10:
                seconds[form].append(took)
                spent[form] += used
    if "table" in bodies:
        pairs = zip(answers["events"]["scores"], answers["table"]["scores"], strict=True)
        assert max(abs(one - other) for one, other in pairs) < 1e-6
    return {
        form: {
            "cpu_ms": round(1000 * spent[form] / num_requests, 2),
            "p50_ms": round(1000 * statistics.median(seconds[form]), 2),
            "kilobytes": round(len(body) / 1000, 1),
        }
        for form, (_, body) in bodies.items()
    }


def cpu_seconds(service: TinyService) -> float:
    """CPU seconds so far of the server and its replicas."""
    processes = [psutil.Process(service.process.pid), *REPLICAS.setdefault(service.process.pid, service.replicas())]
    times = [process.cpu_times() for process in processes]
    return sum(one.user + one.system for one in times)


REPLICAS: dict[int, list[psutil.Process]] = {}


if __name__ == "__main__":
    sys.exit(main())
