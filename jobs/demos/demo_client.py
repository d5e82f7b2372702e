"""DemoClient: a client that sends the same rows to a server all the time and records the answers.

The record shows whether the champion was served throughout: no request failed, the versions that answered are the
champions in their order, none answered before its promotion, and the scores are those of their artifacts.
"""

import itertools
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from features.history import UserEvent, UserHistory
from features.schema import FeatureSchema, SequenceFeature

SECONDS_BETWEEN = 0.2
PICKED_UP_SECONDS = 60.0
"""Seconds within which a promoted version must answer."""


@dataclass(frozen=True)
class RequestOutcome:
    """Outcome of one request.

    Attributes:
        at: Unix time of sending.
        seconds: duration of the request.
        error: failure in words; empty: none.
        version: version that answered; None: the request failed.
        scores: probabilities of the rows, in their order.
    """

    at: float
    seconds: float
    error: str
    version: int | None = None
    scores: tuple[float, ...] = ()


class DemoClient:
    """Client that sends requests from a background thread, from ``start`` to ``stop``."""

    def __init__(self, address: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.address, self.rows = address, rows
        self.answers: list[RequestOutcome] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._ask_on, daemon=True)

    def is_ready(self) -> bool:
        """Tell whether the server's /healthz says that it can answer."""
        try:
            with urllib.request.urlopen(f"{self.address}/healthz", timeout=5):  # nosec B310
                return True
        except OSError:
            return False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread after the request in flight has been answered."""
        self._stopped.set()
        self._thread.join()

    def saw(self, version: int) -> bool:
        """Wait until this version answers; return whether it did within ``PICKED_UP_SECONDS``."""
        deadline = time.monotonic() + PICKED_UP_SECONDS
        while time.monotonic() < deadline:
            if self.answers and self.answers[-1].version == version:
                return True
            time.sleep(SECONDS_BETWEEN)
        return False

    def describe(self) -> str:
        """Describe all requests in one line."""
        failed = sum(bool(answer.error) for answer in self.answers)
        by_version = Counter(answer.version for answer in self.answers if not answer.error)
        slowest = max((answer.seconds for answer in self.answers), default=0.0)
        versions = ", ".join(f"version {version}: {number:,}" for version, number in by_version.items())
        return f"{len(self.answers):,} requests, {failed} failed, the slowest took {slowest:.2f} s; {versions}"

    def _ask_on(self) -> None:
        while not self._stopped.wait(SECONDS_BETWEEN):
            self.answers.append(ask(self.address, self.rows))


def ask(address: str, rows: Sequence[Mapping[str, Any]], timeout: float = 30.0) -> RequestOutcome:
    """Send one request; an error goes into the answer's ``error``."""
    at, started = time.time(), time.perf_counter()
    body = json.dumps({"rows": list(rows)}).encode()
    request = urllib.request.Request(f"{address}/v1/score", body, {"Content-Type": "application/json"})
    if token := os.environ.get("TWINFOCUS_TOKEN"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:  # nosec B310
            found = json.load(response)
        version, scores, error = int(found["version"]), tuple(found["scores"]), ""
        if found["errors"] or len(scores) != len(rows):
            version, error = None, f"{len(scores)} scores of {len(rows)} rows, errors: {found['errors']}"
    except (OSError, ValueError, KeyError) as failure:
        version, scores, error = None, (), f"{type(failure).__name__}: {failure}"
    return RequestOutcome(at, time.perf_counter() - started, error, version, scores)


def with_histories(
    rows: Sequence[Mapping[str, str]], log: Sequence[Mapping[str, str]], schema: FeatureSchema
) -> list[dict[str, Any]]:
    """Give raw rows their histories in the columns of the schema's sequences, as an online store of events does.

    Args:
        rows: rows to score.
        log: earlier rows; those with label 1 are events.
        schema: features of the model, with histories of labelled rows and times in Unix seconds.
    """
    time, found = schema.timestamp, [dict[str, Any](row) for row in rows]
    assert time is not None
    features = {feature.name: feature for feature in schema.sparse}
    for sequence in schema.sequence:
        assert sequence.history is not None
        stores: dict[str, UserHistory] = {}
        for number, row in enumerate(log):
            if row[schema.label_rule.column] == "1":
                store = stores.setdefault(row[sequence.history.of], UserHistory(sequence.history))
                store.add(UserEvent(int(row[time.column]), number, row, _dwell_of(row, sequence)))
        raw = {column: features[part].columns[0] for part, column in sequence.raw_part_columns.items()}
        raw |= {sequence.time_column: time.column} if sequence.gaps else {}
        for row in found:
            store = stores.get(row[sequence.history.of], UserHistory(sequence.history))
            events = store.at(int(row[time.column]), sequence.max_length)
            row |= {column: [event.value[name] for event in events] for column, name in raw.items()}
            if sequence.dwell_weights:
                row[sequence.raw_dwell_column] = [event.dwell for event in events]
    return found


def _dwell_of(row: Mapping[str, str], sequence: SequenceFeature) -> float | None:
    """Return how long the user of an event stayed, where the history's rule reads it and the row says it."""
    assert sequence.history is not None
    dwell = sequence.history.dwell
    return float(row[dwell.column]) if dwell is not None and row[dwell.column] else None


def find_wrong(
    answers: Sequence[RequestOutcome], promoted: Sequence[tuple[int, float]], expected: Mapping[int, Sequence[float]]
) -> list[str]:
    """List the evidence that the champion was not served throughout; empty: it was.

    Args:
        answers: in the order of their requests.
        promoted: versions and the Unix times when they became champion, in order.
        expected: version -> the rows' probabilities, computed from its artifact.
    """
    if not answers:
        return ["nobody was asked"]
    wrong = []
    failed = [answer.error for answer in answers if answer.error]
    if failed:
        wrong.append(f"{len(failed)} of {len(answers)} requests failed, the first with {failed[0]}")
    answered = [(answer, answer.version) for answer in answers if answer.version is not None]
    seen = [version for version, _ in itertools.groupby(version for _, version in answered)]
    if seen != [version for version, _ in promoted]:
        wrong.append(f"versions {seen} answered, but champions were {[version for version, _ in promoted]}")
    times = dict(promoted)
    for answer, version in answered:
        if version in times and answer.at + answer.seconds < times[version]:
            wrong.append(f"version {version} answered before it was promoted")
        if (
            version in expected
            and max(abs(a - b) for a, b in zip(answer.scores, expected[version], strict=True)) > 1e-6
        ):
            wrong.append(f"version {version} answered {answer.scores}, but its artifact gives {expected[version]}")
    return list(dict.fromkeys(wrong))
