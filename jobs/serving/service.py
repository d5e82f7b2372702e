"""Service: the served version of a model, its replicas on Ray Serve, and the switch to the next version.

Each version is an application of Ray Serve of its own. A new one is started beside the old one, checks its artifact and
replays the golden rows. When all its replicas are ready, new requests go to it, and the old one ends after its last
request in flight. So each answer is of one version, and a version that cannot be loaded leaves the old one serving.

Ray Serve fails a request whose replica dies. Scoring is idempotent, so such a request is retried.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve._private.common import ReplicaState
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from features.bucket_tables import BucketPrecision
from features.unknown_values import ValueReport, ValueTally
from jobs.registry.found_artifact import FoundArtifact
from jobs.serving.row_schema import RowSchema
from jobs.serving.score_request import RequestError, ScoreRequest
from jobs.serving.scorer import SCORER_BATCH_ROWS, RequestScores, RequestTables, Scorer, ScoreWork
from jobs.serving.service_metrics import ServiceMetrics

_log = logging.getLogger(__name__)
_Found = TypeVar("_Found")
MAX_TRIES = 5
"""Upper bound on retries, so that a poisonous request cannot crash replicas in a loop."""
RETRY_SECONDS = 60.0
"""Seconds until a version that could not be loaded is tried again; another version is tried at once."""
ONGOING = 64
"""Concurrent requests of a replica; further ones are queued, and beyond ``QUEUED`` they are rejected."""
QUEUED = 1024
_REASON = re.compile(r".*\b(?:[\w.]*Error|Exception): (?P<reason>.+)", re.DOTALL)


class ServiceError(ValueError):
    """A version cannot be served."""


class BudgetError(Exception):
    """A client's time budget is over before there is an answer."""


@dataclass(frozen=True)
class ServiceConfig:
    """Config of a service.

    Attributes:
        num_replicas: processes that score.
        num_threads: threads of each replica.
        batch_rows: rows of a batch; at least the limit of a request.
        seconds: timeout of a request, retries included.
        poll_seconds: seconds between two looks at the registry.
        on_loopback: whether Ray's cluster is this machine alone.
    """

    num_replicas: int = 1
    num_threads: int = 1
    batch_rows: int = SCORER_BATCH_ROWS
    seconds: float = 30.0
    poll_seconds: float = 2.0
    on_loopback: bool = True


@dataclass
class Served:
    """Version with ready replicas."""

    artifact: FoundArtifact
    application: str
    handle: DeploymentHandle[Any]
    row_schema: RowSchema
    """Columns that a row of a request must have."""
    num_requests: int = field(default=0)
    """Requests in flight."""
    values: ValueTally = field(default_factory=ValueTally)
    """Counts of missing and unknown values in the rows that this version has scored here."""
    warned: set[str] = field(default_factory=set)
    """Warnings on values that the log has already."""

    def report_values(self) -> ValueReport:
        """Hold the counts of values against the dataset that the version was trained on."""
        return ValueReport(self.values, self.row_schema.value_rates, self.row_schema.schema)


class Service:
    """Service of the version that ``find`` returns, switched when that changes; call ``start`` first.

    Attributes:
        refused: artifact that should serve but cannot be loaded, with the reason; None: there is none.
        trouble: error of the last look at the registry or at Ray; None: it succeeded.
        num_running: running replicas of the served version.
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
        """Version that answers now."""
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

    async def score(self, request: ScoreRequest, deadline: float | None = None) -> tuple[FoundArtifact, RequestScores]:
        """Score a request's rows; return the scores and the artifact, one and the same for all rows.

        Args:
            request: the rows.
            deadline: Unix time at which the client's time budget ends; None: it has none.

        Raises:
            RequestError: a row lacks a column.
            BudgetError: the time budget is over; a replica that learns it before it computes does not compute.
            TimeoutError: no replica has answered in time.
            RayServeException: the queue is full.
            RayActorError: the replica died in each of ``MAX_TRIES`` tries.
        """

        async def ask(served: Served) -> RequestScores:
            rows = request.rows_of(served.row_schema)
            if not rows:
                return RequestScores([], {})
            scores = await served.handle.score.remote(ScoreWork(rows, deadline))
            if scores is None:
                raise BudgetError
            if scores.values is not None:
                served.values.add(scores.values)
                self.metrics.add_values(scores.values)
            return scores

        return await self._in_time(ask, deadline)

    async def make_tables(
        self, request: ScoreRequest, precision: BucketPrecision, deadline: float | None = None
    ) -> tuple[FoundArtifact, RequestTables]:
        """Make the bucket tables of a request's histories; return them and the artifact that made them.

        Args:
            request: rows with histories.
            precision: type of the tables' numbers.
            deadline: as for ``score``.

        Raises:
            RequestError: a row lacks a column, the model has no bucket tables, or they are longer than a body may be.
            BudgetError, TimeoutError, RayServeException, RayActorError: as ``score``.
        """

        async def ask(served: Served) -> RequestTables:
            made = served.row_schema.made
            if not made:
                raise RequestError(
                    f"{served.artifact.title} has no sequence whose encoder is 'sdim': send the events", 409
                )
            rows = request.rows_of(served.row_schema.of_histories)
            size, limit = len(rows) * sum(column.num_characters(precision) for column in made), request.limits.body
            if size > limit:
                raise RequestError(f"the tables of {len(rows)} rows are {size} bytes, more than {limit}", 413)
            if not rows:
                return RequestTables([], {})
            return await served.handle.bucket_tables.remote(rows, precision)

        return await self._in_time(ask, deadline)

    async def _in_time(
        self, ask: Callable[[Served], Awaitable[_Found]], deadline: float | None
    ) -> tuple[FoundArtifact, _Found]:
        left = math.inf if deadline is None else deadline - time.time()
        if left <= 0:
            raise BudgetError
        try:
            async with asyncio.timeout(min(left, self.config.seconds)):
                return await self._try(ask)
        except TimeoutError:
            if left < self.config.seconds:
                raise BudgetError from None
            raise

    async def _try(self, ask: Callable[[Served], Awaitable[_Found]]) -> tuple[FoundArtifact, _Found]:
        for number in itertools.count(1):
            with self._taken() as served:
                try:
                    return served.artifact, await ask(served)
                except RayActorError:
                    if number == MAX_TRIES:
                        raise
            self.metrics.retries.inc()
            await asyncio.sleep(0.05 * number)
        raise AssertionError

    @contextlib.contextmanager
    def _taken(self) -> Iterator[Served]:
        """Hold the served version, so that it is not ended before the request is answered."""
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
        """Poll the registry and the number of replicas until ``stopped`` is set."""
        while not stopped.wait(self.config.poll_seconds):
            try:
                self._count()
                self._warn_of_values()
                self._look()
            except (RayError, RayServeException) as error:
                self._set_trouble(f"Ray: {error}")

    def _warn_of_values(self) -> None:
        """Log each feature once that has far more missing or unknown values than the model's dataset had."""
        served = self.served
        for name, sentence in served.report_values().warnings().items():
            if name not in served.warned:
                served.warned.add(name)
                _log.warning("%s: %s", served.artifact.title, sentence, extra=served.artifact.named)

    def _look(self) -> None:
        """Find the version that should serve, and switch to it if it is another one."""
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
        """Start the replicas of a version and wait until all are ready.

        Raises:
            ServiceError: it cannot be loaded."""
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
            logging_config={"log_level": "ERROR", "enable_access_log": False},
        )
        bound = deployment.bind(
            artifact.place, artifact.sha256, config.num_threads, config.batch_rows, config.on_loopback
        )
        try:
            handle = serve.run(bound, name=application, route_prefix=None)
            row_schema = handle.row_schema.remote().result(timeout_s=config.seconds)
        except (RuntimeError, RayError, TimeoutError) as error:
            reason = self._reason(application) or str(error)
            serve.delete(application)
            raise ServiceError(reason) from error
        return Served(artifact, application, handle, row_schema)

    def _reason(self, application: str) -> str | None:
        """Return the error that kept an application's replicas from starting, without traceback; None: not known."""
        found = serve.status().applications.get(application)
        for deployment in found.deployments.values() if found else ():
            if match := _REASON.fullmatch(deployment.message):
                return match["reason"].strip()
        return None

    def _take_over(self, served: Served) -> None:
        with self._lock:
            self._served = served
        self.metrics.set_version(served.artifact, served.row_schema.value_rates)
        _log.info("serves %s", served.artifact.title, extra=served.artifact.named)

    def _end(self, served: Served) -> None:
        """End a version after its last request in flight."""
        deadline = time.monotonic() + 2 * self.config.seconds
        while served.num_requests and time.monotonic() < deadline:
            time.sleep(0.02)
        serve.delete(served.application)

    def end(self) -> None:
        """End the served version; the cluster itself may be shared and stays."""
        with contextlib.suppress(RayError, RayServeException):
            serve.delete(self.served.application, _blocking=False)

    def _count(self) -> None:
        """Count the running replicas."""
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
