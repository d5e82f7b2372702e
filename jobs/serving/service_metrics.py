"""ServiceMetrics: Prometheus metrics of a service, counted in the one process that all requests pass through."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from jobs.registry.found_artifact import FoundArtifact

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the latency histogram's buckets, seconds."""


class ServiceMetrics:
    """Counters, gauges and the latency histogram of one service."""

    def __init__(self) -> None:
        self._all = CollectorRegistry()
        self.requests = self._counter("requests", "Requests to score, by the status they were answered with", "code")
        self.rows = self._counter("rows", "Rows that were scored, malformed ones too")
        self.row_errors = self._counter("row_errors", "Rows that were malformed")
        self.retries = self._counter("retries", "Requests sent to another replica because theirs had died")
        self.refusals = self._counter("refused_versions", "Times that a version could not be loaded")
        self.latency = Histogram(
            "twinfocus_request_seconds",
            "Seconds from a request's first byte to its answer",
            buckets=LATENCIES,
            registry=self._all,
        )
        self.replicas = Gauge("twinfocus_replicas", "Replicas that run", registry=self._all)
        self._version = Gauge(
            "twinfocus_model_version",
            "1 for the version that answers",
            ["name", "version", "sha256"],
            registry=self._all,
        )

    def set_version(self, artifact: FoundArtifact) -> None:
        """Set the version that answers from now on."""
        self._version.clear()
        version = "" if artifact.version is None else str(artifact.version)
        self._version.labels(artifact.name, version, artifact.sha256).set(1)

    def text(self) -> bytes:
        """Write all metrics in Prometheus' text format."""
        return generate_latest(self._all)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"twinfocus_{name}", description, labels, registry=self._all)
