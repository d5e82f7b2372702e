"""ServiceMetrics: Prometheus metrics of a service, counted in the one process that all requests pass through."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from features.unknown_values import ValueRates, ValueTally
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
        self.table_requests = self._counter(
            "table_requests", "Requests for bucket tables, by their answer's status", "code"
        )
        self.table_rows = self._counter("table_rows", "Rows whose histories became bucket tables")
        self.over_budget = self._counter("over_budget", "Requests whose time budget was over before the answer")
        self._values = self._counter(
            "values",
            "Rows without a value (missing), values outside the vocabulary (unknown), all of a list (token)",
            "feature",
            "kind",
        )
        self._trained = Gauge(
            "twinfocus_trained_values",
            "Shares of missing and unknown values in the split that the version that answers was trained on",
            ["feature", "kind"],
            registry=self._all,
        )
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

    def set_version(self, artifact: FoundArtifact, value_rates: ValueRates) -> None:
        """Set the version that answers from now on, and the shares of values in the dataset that it was trained on."""
        self._trained.clear()
        for name, rates in value_rates.get("train", {}).items():
            for what, share in rates.items():
                self._trained.labels(name, what).set(share)
        self._version.clear()
        version = "" if artifact.version is None else str(artifact.version)
        self._version.labels(artifact.name, version, artifact.sha256).set(1)

    def add_values(self, tally: ValueTally) -> None:
        """Count the missing and unknown values of some rows."""
        for what, counts in (("missing", tally.missing), ("unknown", tally.unknown), ("token", tally.tokens)):
            for name, number in counts.items():
                self._values.labels(name, what).inc(number)

    def text(self) -> bytes:
        """Write all metrics in Prometheus' text format."""
        return generate_latest(self._all)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"twinfocus_{name}", description, labels, registry=self._all)
