"""Service: the version of a model that answers now, its replicas on Ray Serve, and how the next version takes over.

Each version is an application of Ray Serve of its own. A new one is started beside the old one, checks its artifact as
any does and replays the golden rows; when all its replicas are ready, every request that begins from then on goes to
it, and the old one ends when its last request has been answered. So an answer is of one version, and a version that
cannot be loaded changes nothing.

Ray Serve gives a request up whose replica dies. Scoring changes nothing, so such a request is sent again.
"""

import asyncio
import contextlib
import itertools
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve._private.common import ReplicaState
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from features.encoding import RawRow
from jobs.registry.found_artifact import FoundArtifact
from jobs.serving.score_request import ScoreRequest
from jobs.serving.scorer import BATCH_ROWS, Scorer, Scores
from jobs.serving.service_metrics import ServiceMetrics

_log = logging.getLogger(__name__)
MAX_TRIES = 5
"""Upper bound on retries, so that a poisonous request cannot crash replicas in a loop."""
RETRY_SECONDS = 60.0
"""After which a version that could not be loaded is tried again; at once, if another one is to serve."""
ONGOING = 64
"""Requests that a replica has at once; others wait in line, and beyond ``QUEUED`` they are turned away."""
QUEUED = 1024
_REASON = re.compile(r".*\b(?:[\w.]*Error|Exception): (?P<reason>.+)", re.DOTALL)


class ServiceError(ValueError):
    """A version cannot be served."""


@dataclass(frozen=True)
class ServiceConfig:
    """Of the service.

    Attributes:
        num_replicas: processes that score.
        num_threads: of each.
        batch_rows: that a replica scores at once; not less than one request's.
        seconds: that a request may take, after a replica has died, too.
        poll_seconds: between two looks at the registry.
        on_loopback: Ray's cluster is this machine alone.
    """

    num_replicas: int = 1
    num_threads: int = 1
    batch_rows: int = BATCH_ROWS
    seconds: float = 30.0
    poll_seconds: float = 2.0
    on_loopback: bool = True


@dataclass
class Served:
    """A version whose replicas are ready."""

    artifact: FoundArtifact
    application: str
    handle: DeploymentHandle[Any]
    columns: tuple[str, ...]
    """Raw columns that every row must have."""
    num_requests: int = field(default=0)
    """On their way now."""


class Service:
    """Answers with the version that ``find`` names, and follows when that changes; ``start`` it first.

    Attributes:
        refused: the artifact that should serve and cannot, with the reason; None: the one that should serves.
        trouble: why nobody knows which one should; None: it is known.
        num_running: replicas of the version that serves.
    """

    def __init__(
        self,
        find: Callable[[], FoundArtifact],
        config: ServiceConfig,
        metrics: ServiceMetrics,
    ) -> None:
        self._find = find
        self.config, self.metrics = config, metrics
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._served: Served | None = None
        self._tried_at = 0.0
        self.refused: tuple[FoundArtifact, str] | None = None
        self.trouble: str | None = None
        self.num_running = 0

    @property
    def served(self) -> Served:
        """What answers now."""
        assert self._served is not None, "start comes first"
        return self._served

    def start(self) -> None:
        """Serve the first version.

        Raises:
            ServiceError: it cannot be loaded.
            ValueError: it cannot be found.
        """
        self._take_over(self._deploy(self._find()))
        self._set_running(self.config.num_replicas)

    async def score(self, request: ScoreRequest) -> tuple[FoundArtifact, Scores]:
        """The scores of a request's rows and the artifact that all of them are of.

        Raises:
            RequestError: a row lacks a column.
            TimeoutError: no replica has answered in time.
            RayServeException: too many requests wait already.
            RayActorError: every replica died of it.
        """
        async with asyncio.timeout(self.config.seconds):
            for number in itertools.count(1):
                with self._taken() as served:
                    rows = request.rows_of(served.columns)
                    try:
                        return served.artifact, await self._send(served, rows)
                    except RayActorError:
                        if number == MAX_TRIES:
                            raise
                self.metrics.retries.inc()
                await asyncio.sleep(0.05 * number)
        raise AssertionError

    async def _send(self, served: Served, rows: Sequence[RawRow]) -> Scores:
        return await served.handle.score.remote(rows) if rows else Scores([], {})

    @contextlib.contextmanager
    def _taken(self) -> Iterator[Served]:
        """The version that answers, which does not end meanwhile."""
        with self._lock:
            served = self.served
            served.num_requests += 1
        try:
            yield served
        finally:
            with self._lock:
                served.num_requests -= 1

    # ------------------------------------------------------------------------------------------------ the next version

    def follow(self, stopped: threading.Event) -> None:
        """Look again and again for what should serve, and after the replicas, until ``stopped``."""
        while not stopped.wait(self.config.poll_seconds):
            try:
                self._count()
                self._look()
            except (RayError, RayServeException) as error:
                self._set_trouble(f"Ray: {error}")

    def _look(self) -> None:
        """Let the version that should serve take over, if it is another one."""
        try:
            found = self._find()
        except (ValueError, OSError) as error:
            self._set_trouble(str(error))
            return
        self._set_trouble(None)
        if found == self.served.artifact:
            self.refused = None
            return
        if self.refused and self.refused[0] == found and time.monotonic() < self._tried_at + RETRY_SECONDS:
            return
        try:
            served = self._deploy(found)
        except ServiceError as error:
            self._tried_at = time.monotonic()
            if self.refused != (found, str(error)):
                _log.warning("%s is not served, %s stays: %s", found.title, self.served.artifact.title, error)
            self.refused = (found, str(error))
            self.metrics.refusals.inc()
            return
        before = self.served
        self._take_over(served)
        self.refused = None
        self._end(before)

    def _deploy(self, artifact: FoundArtifact) -> Served:
        """Start the replicas of a version, and wait until all of them are ready."""
        application = f"{artifact.name}-{next(self._numbers)}"
        config = self.config
        deployment = serve.deployment(Scorer).options(
            num_replicas=config.num_replicas,
            max_ongoing_requests=ONGOING,
            max_queued_requests=QUEUED,
            max_constructor_retry_count=1,
            health_check_period_s=2.0,
            graceful_shutdown_timeout_s=5.0,
            ray_actor_options={"num_cpus": 1},
        )
        bound = deployment.bind(
            artifact.place, artifact.sha256, config.num_threads, config.batch_rows, config.on_loopback
        )
        try:
            handle = serve.run(bound, name=application, route_prefix=None)
            columns = handle.columns.remote().result(timeout_s=config.seconds)
        except (RuntimeError, RayError, TimeoutError) as error:
            reason = self._reason(application) or str(error)
            serve.delete(application)
            raise ServiceError(reason) from error
        return Served(artifact, application, handle, tuple(columns))

    def _reason(self, application: str) -> str | None:
        """Why an application did not start: what its replicas raised, without the traceback."""
        found = serve.status().applications.get(application)
        for deployment in found.deployments.values() if found else ():
            if match := _REASON.fullmatch(deployment.message):
                return match["reason"].strip()
        return None

    def _take_over(self, served: Served) -> None:
        with self._lock:
            self._served = served
        self.metrics.set_version(served.artifact)
        _log.info("serves %s", served.artifact.title, extra=served.artifact.named)

    def _end(self, served: Served) -> None:
        """End a version when its last request has been answered."""
        deadline = time.monotonic() + 2 * self.config.seconds
        while served.num_requests and time.monotonic() < deadline:
            time.sleep(0.02)
        serve.delete(served.application)

    def end(self) -> None:
        """End the version that serves; its cluster may be another's."""
        with contextlib.suppress(RayError, RayServeException):
            serve.delete(self.served.application, _blocking=False)

    def _count(self) -> None:
        """Find out how many replicas run."""
        found = serve.status().applications.get(self.served.application)
        deployments = found.deployments.values() if found else ()
        self._set_running(sum(d.replica_states.get(ReplicaState.RUNNING, 0) for d in deployments))

    def _set_running(self, number: int) -> None:
        self.num_running = number
        self.metrics.replicas.set(number)

    def _set_trouble(self, trouble: str | None) -> None:
        if trouble and trouble != self.trouble:
            _log.warning("%s stays: %s", self.served.artifact.title, trouble)
        self.trouble = trouble
