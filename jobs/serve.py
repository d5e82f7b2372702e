"""Serve a model over HTTP on Ray Serve: raw rows in, click probabilities out, by the version that is champion now."""

import argparse
import asyncio
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jobs.cli.conventions import EXIT_DATA, plain_parser, run_program
from jobs.cli.errors import ConfigError
from jobs.launch.loopback import LOOPBACK, loopback_settings
from jobs.registry.found_artifact import MODELS, REGISTRY, FoundArtifact, find_artifact, find_in, open_registry
from jobs.serving.score_request import TOKEN, Limits

if TYPE_CHECKING:
    from jobs.serving.service import Service, ServiceConfig

_EXAMPLE = (
    "python -m jobs.serve --model models:/ctr@champion --registry /shared/retrain/registry\n"
    "  python -m jobs.serve --artifact runs/demo/artifact --port 8080 --replicas 2\n"
    '  curl http://127.0.0.1:8080/v1/score -d \'{"rows": [{"user": "u1", "movie": "m7"}]}\'\n'
    "  python -m jobs.models rollback --registry /shared/retrain/registry    # taken up within seconds"
)


def main() -> int:
    arguments = _parser().parse_args()
    _check(arguments)
    find = _finder(arguments)
    find()  # what is not there is said before Ray starts
    signal.signal(signal.SIGTERM, _stop)
    with _bound(arguments.host, arguments.port) as listener, _ray(arguments.replicas):
        # Here, because Ray has just taken them over; and not sooner ours, because importing it takes seconds.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        return _serve(arguments, find, listener)


def _parser() -> argparse.ArgumentParser:
    limits = Limits()
    parser = plain_parser(
        "jobs.serve",
        "Serve a model over HTTP: POST /v1/score, GET /healthz, /metrics, /docs, /openapi.json. Where "
        f"{TOKEN} is set, all but /healthz ask for it as a bearer token.",
        _EXAMPLE,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="NAME", help=f"{MODELS}NAME@ALIAS, which is followed, or {MODELS}NAME/VERSION")
    what.add_argument(
        "--artifact", metavar="DIR", help="folder, file:// or s3:// URL of an artifact without a registry"
    )
    parser.add_argument("--registry", default=REGISTRY, metavar="DIR|URL", help=f"of --model (default: {REGISTRY})")
    parser.add_argument("--host", default=LOOPBACK, help=f"address to listen at (default: {LOOPBACK})")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default: 8000)")
    for name, default, what_for in (
        ("--replicas", 1, "processes that score"),
        ("--threads", 1, "of each replica"),
        ("--max-rows", limits.rows, "rows of one request"),
        ("--max-bytes", limits.body, "bytes of its body"),
        ("--max-value", limits.value, "characters of one value"),
    ):
        parser.add_argument(name, type=int, default=default, metavar="N", help=f"{what_for} (default: {default})")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="of one request (default: 30)")
    parser.add_argument(
        "--poll", type=float, default=2.0, metavar="SECONDS", help="between two looks at the registry (default: 2)"
    )
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Raises ConfigError: the command line makes no service."""
    for name in ("replicas", "threads", "max_rows", "max_bytes", "max_value", "timeout", "poll"):
        if getattr(arguments, name) <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be more than 0")
    if arguments.model is not None and not arguments.model.startswith(MODELS):
        raise ConfigError(f"--model {arguments.model!r}: write {MODELS}NAME@ALIAS; --artifact takes a folder")
    if not _is_loopback(arguments.host) and not os.environ.get(TOKEN):
        raise ConfigError(
            f"--host {arguments.host} can be reached by others: set {TOKEN}, which they will have to bear"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _finder(arguments: argparse.Namespace) -> Callable[[], FoundArtifact]:
    """What says which artifact is to be served now."""
    if arguments.model is None:
        found = find_artifact(arguments.artifact)
        return lambda: found
    registry = open_registry(arguments.registry)
    return lambda: find_in(registry, arguments.model)


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """The address to listen at, so that a wrong one is known at once; nobody is let in before the model is there."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With the protocol's name: only then asyncio sends each part of an answer at once (TCP_NODELAY), and not
        # after the client has confirmed the one before, which may take 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host {host} --port {port}: {error}") from error
    with listener:
        yield listener


@contextmanager
def _ray(num_replicas: int) -> Iterator[None]:
    """Ray Serve without its own HTTP proxy, on a cluster of our own or the one of RAY_ADDRESS."""
    is_own = "RAY_ADDRESS" not in os.environ
    if is_own:
        os.environ.update(loopback_settings())
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    import ray
    from ray import serve

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if is_own:
        # Two versions stand side by side during a promotion; these are numbers and not cores.
        cores = 2 * num_replicas + 1
        ray.init(address="local", num_cpus=cores, include_dashboard=False, _node_ip_address=LOOPBACK, **quiet)
    else:
        ray.init(**quiet)
    try:
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
        yield
    finally:
        ray.shutdown()


def _serve(arguments: argparse.Namespace, find: Callable[[], FoundArtifact], listener: socket.socket) -> int:
    """Answer until a signal says that it is enough; requests that are on their way are answered first."""
    import uvicorn

    from jobs.serving.score_api import make_api
    from jobs.serving.service import Service
    from jobs.serving.service_metrics import ServiceMetrics

    limits = Limits(arguments.max_rows, arguments.max_bytes, arguments.max_value)
    service = Service(find, _service_config(arguments), ServiceMetrics(), _log)
    service.start()
    stopped = threading.Event()
    follower = threading.Thread(target=_follow, args=(service, stopped), daemon=True)
    follower.start()
    host, port, *_ = listener.getsockname()
    shown = f"[{host}]" if ":" in host else host
    api = make_api(service, limits, os.environ.get(TOKEN))
    server = uvicorn.Server(
        uvicorn.Config(api, log_level="error", access_log=False, timeout_graceful_shutdown=int(arguments.timeout) + 1)
    )
    _log(f"at http://{shown}:{port} (/docs describes it)")
    try:
        asyncio.run(server.serve(sockets=[listener]))  # ends with the signal, which it passes on to _stop
    finally:
        stopped.set()
        service.end()
    return 0


def _service_config(arguments: argparse.Namespace) -> "ServiceConfig":
    from jobs.serving.scorer import BATCH_ROWS
    from jobs.serving.service import ServiceConfig

    return ServiceConfig(
        num_replicas=arguments.replicas,
        num_threads=arguments.threads,
        batch_rows=max(arguments.max_rows, BATCH_ROWS),
        seconds=arguments.timeout,
        poll_seconds=arguments.poll,
        on_loopback="RAY_ADDRESS" not in os.environ,
    )


def _follow(service: "Service", stopped: threading.Event) -> None:
    """Without a follower nobody would hear of a promotion: then there had better be no service."""
    try:
        service.follow(stopped)
    except BaseException as error:
        if not stopped.is_set():
            print(f"error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(EXIT_DATA)


def _log(message: str) -> None:
    print(message, flush=True)


def _stop(*_: Any) -> None:
    """End in order; it is what was asked for."""
    raise SystemExit(0)


if __name__ == "__main__":
    run_program(main)
