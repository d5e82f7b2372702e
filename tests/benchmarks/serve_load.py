"""Latency and rows a second of ``jobs.serve`` under load, and requests that fail while versions and replicas change.

Without --url it starts a service of two small models itself; then, in a last phase, the other version is promoted, a
replica is killed and the first version is rolled back to, all under load. The client shares the machine's cores.
CPU time a request is counted by process too: on a busy machine it says what latency says on a quiet one.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

from features.disk.atomic import write_json
from jobs.cli.conventions import TOKEN
from jobs.registry.registry import Registry
from tests.stand_ins.tiny_model import NAME, raw_rows, register_tiny
from tests.stand_ins.tiny_service import TinyService, started

WARM_UP_SECONDS = 2.0


def main() -> int:
    arguments = _parser().parse_args()
    with ExitStack() as stack:
        service = registry = None
        url = arguments.url
        if url is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twinfocus-serve-")))
            registry, _ = register_tiny(folder, num_versions=2)
            more = ("--model", f"models:/{NAME}@champion", "--registry", registry.place)
            service = stack.enter_context(started(folder, *more, "--replicas", arguments.replicas))
            url = service.url
        rows = json.loads(arguments.rows_file.read_text()) if arguments.rows_file else raw_rows(1000)
        result = asyncio.run(_measure(arguments, url, rows, service, registry))
    print(json.dumps(result, indent=1))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.output, result)
    return int(any(phase["failed"] for phase in result["phases"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serve_load", description=__doc__)
    parser.add_argument("--url", help="of a service that runs; default: one is started")
    parser.add_argument("--rows-file", type=Path, metavar="JSON", help="list of raw rows for --url's model")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a phase")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8], help="clients at once, a phase for each")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 100], help="rows of a request, a phase for each")
    parser.add_argument("--replicas", type=int, default=2, help="of the service that is started")
    parser.add_argument("--steady", action="store_true", help="without the last phase, of changes")
    parser.add_argument("--output", type=Path, metavar="JSON")
    return parser


async def _measure(
    arguments: argparse.Namespace,
    url: str,
    rows: Sequence[dict[str, Any]],
    service: TinyService | None,
    registry: Registry | None,
) -> dict[str, Any]:
    token = os.environ.get(TOKEN)
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, headers=headers, connector=connector) as session:
        await _load(session, rows, 10, 4, WARM_UP_SECONDS)
        phases = []
        for num_rows in arguments.rows:
            for concurrency in arguments.concurrency:
                before = _cpu_seconds(service)
                phase = await _load(session, rows, num_rows, concurrency, arguments.seconds)
                spent = {name: seconds - before[name] for name, seconds in _cpu_seconds(service).items()}
                cpu = {name: round(1000 * seconds / phase["requests"], 3) for name, seconds in spent.items()}
                phases.append({**phase, "cpu_ms_per_request": cpu})
        if service is not None and registry is not None and not arguments.steady:
            load = asyncio.create_task(_load(session, rows, 10, max(arguments.concurrency), arguments.seconds + 60))
            events = await _disturb(service, registry, arguments.seconds)
            phases.append({**await load, "events": events})
    return {"cores": os.cpu_count(), "replicas": arguments.replicas, "phases": phases}


def _cpu_seconds(service: TinyService | None) -> dict[str, float]:
    """CPU seconds so far of this client and, where the service was started here, of server, replicas and Ray."""
    found = {"client": time.process_time()}
    if service is not None:
        server = psutil.Process(service.process.pid)
        replicas = {process.pid for process in service.replicas()}
        found |= {"server": _seconds(server), "replicas": 0.0, "ray": 0.0}
        for process in server.children(recursive=True):
            found["replicas" if process.pid in replicas else "ray"] += _seconds(process)
    return found


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


async def _load(
    session: aiohttp.ClientSession, rows: Sequence[dict[str, Any]], num_rows: int, concurrency: int, seconds: float
) -> dict[str, Any]:
    """Ask with so many clients for so long, each as soon as it is answered."""
    bodies = [
        json.dumps({"rows": rows[start : start + num_rows]}).encode()
        for start in range(0, max(1, len(rows) - num_rows), num_rows)
    ]
    latencies: list[float] = []
    versions: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    started_at = time.perf_counter()

    async def ask_on(client: int) -> None:
        number = client
        while time.perf_counter() < started_at + seconds:
            number += concurrency
            before = time.perf_counter()
            try:
                async with session.post("/v1/score", data=bodies[number % len(bodies)]) as answer:
                    found = await answer.json()
                if answer.status != 200 or len(found["scores"]) != num_rows or None in found["scores"]:
                    failures[f"{answer.status} {str(found)[:200]}"] += 1
                    continue
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                failures[f"{type(error).__name__}: {error}"] += 1
                continue
            latencies.append(time.perf_counter() - before)
            versions[str(found["version"])] += 1

    await asyncio.gather(*(ask_on(client) for client in range(concurrency)))
    took = time.perf_counter() - started_at
    p50, p99 = np.quantile(latencies, [0.5, 0.99]) * 1000 if latencies else (None, None)
    return {
        "rows_per_request": num_rows,
        "concurrency": concurrency,
        "seconds": round(took, 2),
        "requests": len(latencies) + failures.total(),
        "failed": failures.total(),
        "failures": dict(failures),
        "p50_ms": p50 and round(float(p50), 2),
        "p99_ms": p99 and round(float(p99), 2),
        "max_ms": round(max(latencies, default=0.0) * 1000, 1),
        "rows_per_second": round(len(latencies) * num_rows / took),
        "versions": dict(versions),
    }


async def _disturb(service: TinyService, registry: Registry, seconds: float) -> dict[str, float]:
    """Promote, kill, roll back; what was waited for in seconds."""
    await asyncio.sleep(seconds / 4)
    events = {"promoted": await _until(service, lambda: registry.promote(NAME, 2), lambda h: h["version"] == 2)}
    num_replicas = service.health()["replicas"]

    def kill() -> None:
        os.kill(service.replicas()[0].pid, signal.SIGKILL)

    await _until(service, kill, lambda h: h["replicas"] < num_replicas)
    events["replica back"] = await _until(service, lambda: None, lambda h: h["replicas"] == num_replicas)
    events["rolled back"] = await _until(service, lambda: registry.rollback(NAME), lambda h: h["version"] == 1)
    return events


async def _until(service: TinyService, act: Callable[[], Any], is_so: Callable[[dict[str, Any]], bool]) -> float:
    """Do something and wait until /healthz shows it, a minute at most."""
    started_at = time.perf_counter()
    await asyncio.to_thread(act)
    while time.perf_counter() < started_at + 60 and not is_so(await asyncio.to_thread(service.health)):
        await asyncio.sleep(0.1)
    return round(time.perf_counter() - started_at, 2)


if __name__ == "__main__":
    sys.exit(main())
