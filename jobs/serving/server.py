"""serve: run a service on Ray Serve behind an HTTP address, until a signal ends it."""

import argparse
import asyncio
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jobs.cli.conventions import EXIT_DATA, TOKEN
from jobs.cli.errors import ConfigError
from jobs.cli.logging import is_json
from jobs.launch.connection import connect, has_own_cluster
from jobs.registry.found_artifact import MODELS, FollowedVersion, FoundArtifact, find_artifact, open_registry
from jobs.serving.score_request import RequestLimits

_OFF = (
    "RAY_SERVE_LOG_TO_STDERR",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD",
)
"""Settings of Ray Serve that are switched off: with them a request changes threads, and replicas write to stderr."""
_log = logging.getLogger("jobs.serve")

if TYPE_CHECKING:
    from jobs.serving.service import Service, ServiceConfig


def serve(arguments: argparse.Namespace) -> int:
    """Serve as the command line of ``jobs.serve`` says; return the exit code.

    Raises:
        ConfigError: an option is wrong, or the address cannot be bound.
        ValueError: the artifact cannot be served.
    """
    check_options(arguments)
    find = _finder(arguments)
    find()  # what is not there is said before Ray starts
    signal.signal(signal.SIGTERM, _stop)
    with bound(arguments.host, arguments.port) as listener, _ray(arguments.replicas):
        # Here, because Ray has just taken them over; and not sooner ours, because importing it takes seconds.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        return _answer(arguments, find, listener)


def check_options(arguments: argparse.Namespace) -> None:
    """Check the options of the command line.

    Raises:
        ConfigError: names the option.
    """
    for name in ("replicas", "threads", "max_rows", "max_bytes", "max_value", "timeout", "poll"):
        if getattr(arguments, name) <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be more than 0")
    if arguments.model is not None and not arguments.model.startswith(MODELS):
        raise ConfigError(f"--model {arguments.model!r}: write {MODELS}NAME@ALIAS; --artifact takes a folder")
    if not _is_loopback(arguments.host) and not os.environ.get(TOKEN):
        raise ConfigError(
            f"--host {arguments.host} can be reached by others: set {TOKEN}; clients send it as a bearer token"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _finder(arguments: argparse.Namespace) -> Callable[[], FoundArtifact]:
    """Make a function that finds the artifact to serve now."""
    if arguments.model is None:
        found = find_artifact(arguments.artifact)
        return lambda: found
    registry = open_registry(arguments.registry)
    return FollowedVersion(registry, arguments.model).find


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Bind the address, so that a wrong one fails at once; connections are accepted only after the model is loaded."""
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
    """Run Ray Serve without its own HTTP proxy, on a local cluster or the one of RAY_ADDRESS."""
    for name in _OFF:
        os.environ.setdefault(name, "0")
    connect(2 * num_replicas + 1)  # two versions stand side by side during a promotion; these are numbers and not cores
    import ray
    from ray import serve

    try:
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
        yield
    finally:
        ray.shutdown()


def _answer(arguments: argparse.Namespace, find: Callable[[], FoundArtifact], listener: socket.socket) -> int:
    """Answer requests until a signal; those in flight are answered first."""
    import uvicorn
    from uvicorn.config import LOGGING_CONFIG

    from jobs.serving.score_api import make_api
    from jobs.serving.service import Service
    from jobs.serving.service_metrics import ServiceMetrics

    limits = RequestLimits(arguments.max_rows, arguments.max_bytes, arguments.max_value)
    service = Service(find, _service_config(arguments), ServiceMetrics())
    service.start()
    stopped = threading.Event()
    follower = threading.Thread(target=_follow, args=(service, stopped), daemon=True)
    follower.start()
    host, port, *_ = listener.getsockname()
    shown = f"[{host}]" if ":" in host else host
    api = make_api(service, limits, os.environ.get(TOKEN))
    server = uvicorn.Server(
        uvicorn.Config(
            api,
            log_config=None if is_json() else LOGGING_CONFIG,
            log_level="error",
            access_log=False,
            timeout_graceful_shutdown=int(arguments.timeout) + 1,
        )
    )
    listener.listen()  # a request that comes before uvicorn takes the socket waits, and is not refused
    _log.info("at http://%s:%d (/docs describes it)", shown, port)
    try:
        asyncio.run(server.serve(sockets=[listener]))  # ends with the signal, which it passes on to _stop
    finally:
        stopped.set()
        service.end()
    return 0


def _service_config(arguments: argparse.Namespace) -> "ServiceConfig":
    from jobs.serving.scorer import SCORER_BATCH_ROWS
    from jobs.serving.service import ServiceConfig

    return ServiceConfig(
        num_replicas=arguments.replicas,
        num_threads=arguments.threads,
        batch_rows=max(arguments.max_rows, SCORER_BATCH_ROWS),
        seconds=arguments.timeout,
        poll_seconds=arguments.poll,
        on_loopback=has_own_cluster(),
    )


def _follow(service: "Service", stopped: threading.Event) -> None:
    """Follow the registry; end the process if that fails, because promotions would go unnoticed."""
    try:
        service.follow(stopped)
    except BaseException as error:
        if not stopped.is_set():
            _log.critical("%s: %s", type(error).__name__, error)
            os._exit(EXIT_DATA)


def _stop(*_: Any) -> None:
    """Exit with code 0 on a signal."""
    raise SystemExit(0)
