"""Scorer: what one replica of Ray Serve runs. It has one version of a model and scores several requests together."""

from collections.abc import Sequence
from typing import NamedTuple

from ray import serve

from features.encoding import RawRow
from jobs.launch.loopback import LOOPBACK
from jobs.scoring.score_rows import load_predictor, score_rows

BATCH_ROWS = 4096
"""Rows that are scored at once, of several requests; ``training.ship.predict`` takes as many."""


class Scores(NamedTuple):
    """What became of one request's rows."""

    scores: list[float | None]
    """None for a malformed row."""
    errors: dict[int, str]
    """Number of a malformed row, from 1 -> what is wrong with it."""


def _keep_to_loopback() -> None:
    """Let this process's gRPC servers listen on loopback.

    Ray Serve gives each replica one that un-pickles what anybody sends to it, on every interface and without Ray's
    token, and has no setting for its address. It is opened after the constructor.
    """
    from grpc.aio._server import Server

    listen = Server.add_insecure_port
    Server.add_insecure_port = lambda self, address: listen(self, address.replace("[::]", LOOPBACK))


class Scorer:
    """A replica. Requests that arrive while a batch is scored are the next batch: nobody waits for company."""

    def __init__(self, place: str, digest: str, num_threads: int, batch_rows: int, on_loopback: bool) -> None:
        """Load the artifact.

        Args:
            place, digest: as ``load_predictor``.
            num_threads: that it scores with.
            batch_rows: that it scores at once; a request's limit at least.
            on_loopback: the cluster is this machine alone.

        Raises:
            ArtifactError: it cannot be used here.
        """
        import torch

        if on_loopback:
            _keep_to_loopback()
        torch.set_num_threads(num_threads)
        self._predictor = load_predictor(place, digest)
        self.score.set_max_batch_size(batch_rows)  # type: ignore[attr-defined]

    async def columns(self) -> tuple[str, ...]:
        """Raw columns that every row must have."""
        return self._predictor.schema.feature_columns

    @serve.batch(max_batch_size=BATCH_ROWS, batch_wait_timeout_s=0.0, batch_size_fn=lambda items: sum(map(len, items)))
    async def score(self, requests: list[Sequence[RawRow]]) -> list[Scores]:
        """Score requests, each a list of rows with every column; one answer for each."""
        rows = [row for request in requests for row in request]
        scored = [found for chunk in score_rows(self._predictor, enumerate(rows)) for found in chunk]
        answers, start = [], 0
        for request in requests:
            own = scored[start : start + len(request)]
            errors = {number - start + 1: error for number, _, error in own if error}
            answers.append(Scores([None if score is None else float(score) for _, score, _ in own], errors))
            start += len(request)
        return answers
