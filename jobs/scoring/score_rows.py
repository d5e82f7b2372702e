"""score_rows: score rows of a raw log and write them as CSV, alike in one process and on Spark's executors."""

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

from features.disk.artifact import ArtifactError, digest_of_artifact
from features.disk.atomic import is_full, write_text
from features.log_format import LogError, LogFormat, Lookup
from features.rows import RawRow, RowError
from pipeline.executors.portions import Portion, read_portion

if TYPE_CHECKING:
    from training.ship.predict import Predictor

T = TypeVar("T")
CHUNK_ROWS = 16_384
HEADER = b"file,line,probability,error\r\n"
"""Header line of a file of scores."""
FAILED = "failed"
"""File with the error of a task that a retry cannot cure; tasks that start later stop at once."""

Scored = tuple[int, float | None, str]
"""Score of a row: line number, probability (None if malformed), and error ("" if none)."""


class ScoreError(ValueError):
    """Scoring failed, or the counts of rows do not agree."""


# --------------------------------------------------------------------------------------------------------- both engines


def write_scores(
    file: IO[str], name: str, predictor: "Predictor", lines: Iterable[tuple[int, RawRow | LogError]]
) -> tuple[int, int]:
    """Write one CSV line for every row of a raw file, in its order.

    Args:
        file: text file, opened without newline translation.
        name: name of the raw file in each line.
        predictor: the model.
        lines: line number and raw row, or the error of a line that cannot be read.

    Returns:
        Number of rows, and of malformed ones among them.

    Raises:
        MissingColumnError: the raw file lacks a column.
        LogError: the rest of the raw file cannot be read.
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
    """Score rows in chunks of ``CHUNK_ROWS``; a malformed row keeps its place, without a probability."""
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


def describe_scoring(num_rows: int, num_errors: int, output: Path) -> str:
    """Describe the result in one line."""
    return f"scored {num_rows - num_errors:,} of {num_rows:,} rows to {output}; {num_errors:,} malformed"


def exceeds_limit(num_rows: int, num_errors: int, predictor: "Predictor") -> bool:
    """Tell whether more rows are malformed than the artifact's config allows."""
    return num_errors > predictor.config["pipeline"]["quality"]["max_rejected_fraction"] * num_rows


# ------------------------------------------------------------------------------------------------------------ executors


@dataclass(frozen=True)
class Work:
    """Arguments of all tasks of a job."""

    artifact: str
    digest: str
    """Digest of the artifact (``digest_of_artifact``) when the driver checked it."""
    folder: str
    """Folder of the parts, which all executors and the driver can access."""
    log_format: LogFormat
    lookups: tuple[Lookup, ...]


class Part(NamedTuple):
    """Part: the scores of one portion, a CSV file without a header line."""

    name: str
    """File name in the job's folder."""
    num_bytes: int
    num_rows: int
    num_errors: int
    first_line: int | None
    """First line number; None: the part has no rows."""
    last_line: int | None


@cache
def load_predictor(artifact: str, digest: str) -> "Predictor":
    """Load the predictor once in a process, and check the sha256 of its files and its golden rows.

    Raises:
        ArtifactError: it cannot be used here, or has another digest than ``digest``.
    """
    from training.ship.predict import Predictor

    predictor = Predictor.load(artifact)
    if digest_of_artifact(artifact) != digest:  # asked after the files were read: each export has other digests
        raise ArtifactError(f"{artifact} was replaced while it was in use: score again, with the new one")
    return predictor


def score_portion(work: Work, portion: Portion) -> dict[str, Any]:
    """Score one portion in an executor; idempotent, each attempt writes a file of its own.

    Returns:
        The fields of a ``Part``; or ``failure``, an error of this or another task that a retry cannot cure.
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
    """Iterator that counts the items it has yielded."""

    def __init__(self, items: Iterable[T]) -> None:
        self.count = 0
        self._items = iter(items)

    def __next__(self) -> T:
        item = next(self._items)
        self.count += 1
        return item


def read_back(path: Path) -> Part:
    """Read a file of scores back from disk and count its rows and errors.

    Raises:
        ScoreError: a row has neither a score nor an error, or both, or line numbers do not increase.
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
