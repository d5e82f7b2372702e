"""Scorer: a replica of Ray Serve, which holds one version of a model and scores several requests in one batch."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ray import serve

from features.bucket_tables import BucketPrecision
from features.rows import RawRow, RowError
from features.unknown_values import ValueTally
from jobs.launch.loopback import LOOPBACK
from jobs.scoring.score_rows import load_predictor
from jobs.serving.row_schema import RowSchema

if TYPE_CHECKING:
    from training.ship.predict import Predictor

SCORER_BATCH_ROWS = 4096
"""Rows of a batch over several requests; ``training.ship.predict`` uses the same size."""


class ScoreWork(NamedTuple):
    """Rows of one request on their way to a replica."""

    rows: Sequence[RawRow]
    """Rows with all columns of the model."""
    deadline: float | None
    """Unix time after which nobody waits for the answer; None: there is none."""


class RequestScores(NamedTuple):
    """Scores of one request's rows."""

    scores: list[float | None]
    """Probabilities in the order of the rows; None for a malformed row."""
    errors: dict[int, str]
    """Errors of malformed rows: number of the row, from 1 -> error."""
    values: ValueTally | None = None
    """Counts of missing and unknown values in all rows of the batch; None: another answer of the batch has them."""


class RequestTables(NamedTuple):
    """Bucket tables of one request's rows."""

    tables: list[dict[str, str] | None]
    """Column of a bucket table -> its text, in the order of the rows; None for a malformed row."""
    errors: dict[int, str]
    """Errors of malformed rows: number of the row, from 1 -> error."""


def _keep_to_loopback() -> None:
    """Make this process's gRPC servers listen on loopback alone.

    Ray Serve opens one for each replica, after the constructor: on every interface, without Ray's token, un-pickling
    its input, and without a setting for its address.
    """
    from grpc.aio._server import Server

    listen = Server.add_insecure_port
    Server.add_insecure_port = lambda self, address: listen(self, address.replace("[::]", LOOPBACK))


class Scorer:
    """Replica of one version. Requests that arrive while a batch is scored form the next batch; there is no delay."""

    def __init__(self, place: str, digest: str, num_threads: int, batch_rows: int, on_loopback: bool) -> None:
        """Load the artifact.

        Args:
            place: folder or URL of the artifact.
            digest: its digest, as for ``load_predictor``.
            num_threads: threads of scoring.
            batch_rows: rows of a batch; at least the limit of a request.
            on_loopback: whether the cluster is this machine alone.

        Raises:
            ArtifactError: it cannot be used here.
        """
        import torch

        if on_loopback:
            _keep_to_loopback()
        torch.set_num_threads(num_threads)
        self._predictor = load_predictor(place, digest)
        self.score.set_max_batch_size(batch_rows)  # type: ignore[attr-defined]

    async def row_schema(self) -> RowSchema:
        """Return what a row of a request must have."""
        predictor = self._predictor
        buckets = tuple(predictor.buckets.columns.values())
        return RowSchema.of(predictor.schema, predictor.config, predictor.value_rates, buckets)

    async def bucket_tables(self, rows: Sequence[RawRow], precision: BucketPrecision) -> RequestTables:
        """Make the bucket tables of the rows of a request."""
        return make_bucket_tables(self._predictor, rows, precision)

    @serve.batch(
        max_batch_size=SCORER_BATCH_ROWS,
        batch_wait_timeout_s=0.0,
        batch_size_fn=lambda items: sum(len(item.rows) for item in items),
    )
    async def score(self, requests: list[ScoreWork]) -> list[RequestScores | None]:
        """Score a batch of requests; return the scores of each, None where its deadline is over."""
        return score_in_time(self._predictor, requests)


def score_in_time(predictor: "Predictor", requests: Sequence[ScoreWork]) -> list[RequestScores | None]:
    """Score requests in one batch; None for one whose deadline is over, of which no row is computed."""
    now = time.time()
    todo = [request for request in requests if request.deadline is None or request.deadline > now]
    rows = [row for request in todo for row in request.rows]
    tally = ValueTally()
    scores, errors = _score_rows(predictor, rows, tally)
    answers: list[RequestScores | None] = []
    start = 0
    for request in requests:
        if request.deadline is not None and request.deadline <= now:
            answers.append(None)
            continue
        end = start + len(request.rows)
        own = {row - start + 1: error for row, error in errors.items() if start <= row < end}
        answers.append(RequestScores(scores[start:end], own, None if start else tally))
        start = end
    return answers


def _score_rows(
    predictor: "Predictor", rows: Sequence[RawRow], tally: ValueTally
) -> tuple[list[float | None], dict[int, str]]:
    """Score rows; return probabilities, None for a malformed row, and malformed row, from 0 -> its error."""
    counted = ValueTally()
    try:
        scores = predictor.predict(rows, counted).tolist()
    except RowError:
        errors = {place: error for place, row in enumerate(rows) if (error := predictor.find_error(row))}
    else:
        tally.add(counted)
        return scores, {}
    found = iter(predictor.predict([row for place, row in enumerate(rows) if place not in errors], tally).tolist())
    return [None if place in errors else next(found) for place in range(len(rows))], errors


def make_bucket_tables(
    predictor: "Predictor", rows: Sequence[RawRow], precision: BucketPrecision = "float32"
) -> RequestTables:
    """Make bucket tables of raw histories; a malformed row has an error, and the others their tables."""
    buckets = predictor.buckets
    errors: dict[int, str] = {}
    tables: list[dict[str, str] | None] = []
    try:
        return RequestTables([*buckets.make(rows, precision)], {})
    except RowError:
        for number, row in enumerate(rows, start=1):
            try:
                tables += buckets.make([row], precision)
            except RowError as error:
                errors[number] = str(error).removeprefix("row 1: ")
                tables.append(None)
    return RequestTables(tables, errors)
