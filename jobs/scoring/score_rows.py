"""Rows of a raw log -> lines of a file of scores, the same on this machine alone and on Spark's executors."""

import contextlib
import csv
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

from features.disk.artifact import ArtifactError, digest_of
from features.disk.atomic import is_full, write_text
from features.encoding import RawRow, RowError
from features.rawlog import LogError, LogFormat, Lookup
from pipeline.executors.portions import Portion, read_portion

if TYPE_CHECKING:
    from training.ship.predict import Predictor

T = TypeVar("T")
CHUNK_ROWS = 16_384
HEADER = b"file,line,probability,error\r\n"
"""First line of a file of scores."""
FAILED = "failed"
"""File with the words of a task that another try cannot help: tasks that have not begun do not begin."""

Scored = tuple[int, float | None, str]
"""Line number, probability (None for a malformed row), and what is wrong with the row ("" if nothing)."""


class ScoreError(ValueError):
    """Scores cannot be given, or do not add up to the rows that were read."""


# --------------------------------------------------------------------------------------------------------- both engines


def write_scores(
    file: IO[str], name: str, predictor: "Predictor", lines: Iterable[tuple[int, RawRow | LogError]]
) -> tuple[int, int]:
    """Write one CSV line for every row of a raw file, in its order.

    Args:
        file: text file, opened without newline translation.
        name: what the raw file is called in each line.

    Returns:
        Rows, and those of them that are malformed.

    Raises:
        MissingColumnError: a column is missing, which is no single row's fault.
        LogError: the raw file cannot be read on.
    """
    writer = csv.writer(file)
    num_rows = num_errors = 0
    for scored in score_rows(predictor, lines):
        for number, probability, error in scored:
            writer.writerow([name, number, "" if probability is None else f"{probability:.9g}", error])
            num_errors += bool(error)
        num_rows += len(scored)
    return num_rows, num_errors


def score_rows(predictor: "Predictor", lines: Iterable[tuple[int, RawRow | LogError]]) -> Iterator[list[Scored]]:
    """Score chunk by chunk; a row that cannot be encoded keeps its place."""
    iterator = iter(lines)
    while chunk := list(islice(iterator, CHUNK_ROWS)):
        errors = {number: str(row) for number, row in chunk if isinstance(row, LogError)}
        good = {number: row for number, row in chunk if not isinstance(row, LogError)}
        try:
            probabilities = predictor.predict(list(good.values()))
        except RowError:
            errors |= {number: error for number, row in good.items() if (error := predictor.find_error(row))}
            good = {number: row for number, row in good.items() if number not in errors}
            probabilities = predictor.predict(list(good.values()))
        scores = dict(zip(good, probabilities, strict=True))
        yield [(number, scores.get(number), errors.get(number, "")) for number, _ in chunk]


def describe(num_rows: int, num_errors: int, output: Path) -> str:
    """The summary for a person."""
    return f"scored {num_rows - num_errors:,} of {num_rows:,} rows to {output}; {num_errors:,} malformed"


def exceeds_limit(num_rows: int, num_errors: int, predictor: "Predictor") -> bool:
    """Whether more rows are malformed than the artifact's config allows."""
    return num_errors > predictor.config["pipeline"]["quality"]["max_rejected_fraction"] * num_rows


# ------------------------------------------------------------------------------------------------------------ executors


@dataclass(frozen=True)
class Work:
    """What every task of a job is told."""

    artifact: str
    digest: str
    """What ``digest_of`` said of the artifact when the driver checked it."""
    folder: str
    """Where the tasks write, seen by all executors and the driver."""
    log_format: LogFormat
    lookups: tuple[Lookup, ...]


class Part(NamedTuple):
    """The scores of one portion, without a header line."""

    name: str
    """File in the job's folder."""
    num_bytes: int
    num_rows: int
    num_errors: int
    first_line: int | None
    """None: it has no rows."""
    last_line: int | None


@cache
def load_predictor(artifact: str, digest: str) -> "Predictor":
    """The predictor of a process, loaded once and checked like any: every file's sha256, then the golden rows.

    Raises:
        ArtifactError: it cannot be used here, or is no longer the one that ``digest`` was taken of.
    """
    from training.ship.predict import Predictor

    predictor = Predictor.load(artifact)
    if digest_of(artifact) != digest:  # asked after the files were read: each export has other digests
        raise ArtifactError(f"{artifact} was replaced while it was in use: score again, with the new one")
    return predictor


def score_portion(work: Work, portion: Portion) -> dict[str, Any]:
    """Score one portion in an executor; may be run twice, each time to a file of its own.

    Returns:
        The fields of a ``Part``; or ``failure``, this task's or another's, which another try would not mend.
    """
    folder = Path(work.folder)
    if not folder.is_dir():
        return {"failure": f"{folder} is not there for an executor: give an --output on storage that all of them see"}
    if (folder / FAILED).exists():
        return {"failure": (folder / FAILED).read_text(encoding="utf-8")}
    try:
        return _score_portion(work, portion, folder)._asdict()
    except ValueError as error:
        failure = str(error) or repr(error)
    except OSError as error:
        if not is_full(error):
            raise  # Spark tries again
        failure = f"no space is left for {folder} or for temporary files in {tempfile.gettempdir()}: make room there"
    with contextlib.suppress(OSError):  # where the disk is full
        write_text(folder / FAILED, failure, errors="replace")
    return {"failure": failure}


def _score_portion(work: Work, portion: Portion, folder: Path) -> Part:
    import torch

    torch.set_num_threads(1)  # Spark has a process for every core
    predictor = load_predictor(work.artifact, work.digest)
    path = folder / f"{uuid.uuid4().hex}.csv"
    lines = Counted(read_portion(portion, work.log_format, work.lookups))
    with path.open("w", encoding="utf-8", newline="") as file:
        write_scores(file, portion.file, predictor, lines)
        file.flush()
        os.fsync(file.fileno())
    part = read_back(path)
    if part.num_rows != lines.count:
        raise ScoreError(f"{portion.file}: {lines.count} rows were read, but {part.num_rows} are in {path}")
    return part


class Counted(Iterator[T]):
    """An iterator that knows how many items it has given."""

    def __init__(self, items: Iterable[T]) -> None:
        self.count = 0
        self._items = iter(items)

    def __next__(self) -> T:
        item = next(self._items)
        self.count += 1
        return item


def read_back(path: Path) -> Part:
    """What a file of scores holds, counted from the disk.

    Raises:
        ScoreError: a row has neither a score nor an error, or both, or is not below the one before it.
    """
    num_rows = num_errors = last = 0
    first = None
    with path.open(encoding="utf-8", newline="") as file:
        for _, line, probability, error in csv.reader(file):
            if bool(probability) == bool(error) or int(line) <= last:
                raise ScoreError(f"{path}: line {line} has no score and no error, or both, or comes twice")
            last = int(line)
            first = first or last
            num_rows += 1
            num_errors += bool(error)
    return Part(path.name, path.stat().st_size, num_rows, num_errors, first, last or None)
