"""score_rows: score rows of a raw log and write them as CSV, alike in one process and on Spark's executors."""

import contextlib
import csv
import io
import os
import sys
import tempfile
import uuid
from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

from features.disk.artifact import ArtifactError, digest_of_artifact
from features.disk.atomic import is_full, write_text
from features.disk.dataset import SPLITS
from features.log_files import LogFile
from features.log_format import Candidates, LogError, LogFormat
from features.raw_block import RawBlock, Wanted
from features.read.candidates import ListCounts
from features.read.portions import Portion, PortionEnd
from features.rows import Columns
from features.schema import FeatureSchema
from features.unknown_values import ValueReport, ValueTally, name_unknown
from features.values import loose_texts
from pipeline.build.log_events import histories_of_block

if TYPE_CHECKING:
    from training.ship.predict import Predictor

_Answer = TypeVar("_Answer")

HEADER = b"file,line,probability,error\r\n"
"""Header line of a file of scores."""
LISTS_HEADER = b"file,line,position,list,candidate,probability,error\r\n"
"""Header line of a file of scores of candidates; a rejected list is a line without position, list and candidate."""
FAILED = "failed"
"""File with the error of a task that a retry cannot cure; tasks that start later stop at once."""


class ScoreError(ValueError):
    """Scoring failed, or the counts of rows do not agree."""


# --------------------------------------------------------------------------------------------------------- both engines


@dataclass
class LineCounts:
    """LineCounts of what was read and scored.

    Attributes:
        rows: lines that should be rows.
        errors: those of them that are malformed.
        absent: columns that none of the lines has; None: no line was read.
        values: counts of their missing and unknown values.
        lists: counts of their lists of candidates.
    """

    rows: int = 0
    errors: int = 0
    absent: frozenset[str] | None = None
    values: ValueTally = field(default_factory=ValueTally)
    lists: ListCounts = field(default_factory=ListCounts)

    def add(self, rows: int, errors: int, absent: Iterable[str] | None, values: ValueTally | None = None) -> None:
        """Add the counts of other lines."""
        self.rows, self.errors = self.rows + rows, self.errors + errors
        if values is not None:
            self.values.add(values)
        if absent is not None:
            self.absent = frozenset(absent) if self.absent is None else self.absent & frozenset(absent)

    def check(self, optional: Collection[str]) -> None:
        """Check that the logs have every column but those that they may lack.

        Raises:
            LogError: no line has one of them.
        """
        lacking = sorted((self.absent or frozenset()) - set(optional))
        if lacking and self.rows > self.errors:  # else no line may be an object, and each has its own error
            raise LogError(f"no line of the logs has {', '.join(map(repr, lacking))}, which the model needs")


@dataclass(frozen=True)
class MadeHistories:
    """Histories that were made of the logs to score (``jobs.scoring.log_histories``).

    Attributes:
        folder: folder of the exchange.
        names: place of a sequence in the schema -> names of the ranges of its users.
    """

    folder: str
    names: Mapping[int, tuple[str, ...]]

    def of_block(self, task: "ScoreTask", schema: FeatureSchema, block: RawBlock) -> Columns | None:
        """Collect the histories of a block's rows; None: the rows have their own."""
        if not task.made:
            return None
        names = {number: self.names[number] for number in task.made}
        return histories_of_block(Path(self.folder), names, schema, block, task.number)


def write_scores(
    file: IO[str],
    task: "ScoreTask",
    predictor: "Predictor",
    blocks: Iterable[RawBlock],
    histories: MadeHistories | None = None,
) -> LineCounts:
    """Write one CSV line for every line of a raw file, in its order.

    Args:
        file: text file, opened without newline translation.
        task: which rows of which raw file they are.
        predictor: the model.
        blocks: blocks of raw rows, as ``Predictor.log_reader`` reads them.
        histories: histories that were made of the logs; None: rows have their own.

    Raises:
        LogError: the raw file lacks a column, or its rest cannot be read.
    """
    counts, before = LineCounts(), task.before
    beginning = _csv_line(task.file.path, "")[:-2]
    lists = predictor.log_reader.log_format.candidates
    for block in blocks:
        made = histories.of_block(task, predictor.schema, block) if histories else None
        scores, faults = predictor.predict_block(block, counts.values, made)
        places = (block.numbers + before).tolist()
        named = None if lists is None else _name_candidates(block, lists)
        if named is None:
            lines = [f"{beginning}{n},{score:.9g},\r\n" for n, score in zip(places, scores.tolist(), strict=True)]
        else:
            found = zip(places, named, scores.tolist(), strict=True)
            lines = [f"{beginning}{n},{candidate},{score:.9g},\r\n" for n, candidate, score in found]
        for row, error in faults.items():
            more = "" if named is None else f"{named[row]},"
            lines[row] = f"{beginning}{places[row]},{more}{_csv_line('', error)}"
        for line in block.rejected:  # few, as a rule
            place = bisect(places, line.number + before)
            places.insert(place, line.number + before)
            more = [] if lists is None else ["", "", ""]
            lines.insert(place, _csv_line(task.file.path, line.number + before, *more, "", line.reason))
        file.writelines(lines)
        counts.add(len(lines), len(faults) + len(block.rejected), block.absent)
    return counts


def _csv_line(*values: Any) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue()


def _name_candidates(block: RawBlock, lists: Candidates) -> list[str]:
    """Write position, list and candidate of each row as a part of its CSV line."""
    columns = [block.columns[name] for name in (lists.position, lists.list_id, lists.name)]
    texts = [loose_texts(values).fill_null("").to_pylist() for values in columns]
    return [_csv_line(*found)[:-2] for found in zip(*texts, strict=True)]


def header_of(log_format: LogFormat) -> bytes:
    """Return the header line of scores of logs in a format."""
    return HEADER if log_format.candidates is None else LISTS_HEADER


def describe_lists(lists: ListCounts) -> dict[str, Any]:
    """Make the part of a summary that tells of lists of candidates; empty where there are none."""
    return {"lists": dict(vars(lists))} if lists.num_lines else {}


def describe_scoring(num_rows: int, num_errors: int, output: Path) -> str:
    """Describe the result in one line."""
    return f"scored {num_rows - num_errors:,} of {num_rows:,} rows to {output}; {num_errors:,} malformed"


def describe_histories(tasks: Iterable["ScoreTask"], predictor: "Predictor") -> dict[str, Any]:
    """Make the part of a summary that tells of built histories of the log; empty where all rows came with theirs.

    Args:
        tasks: what was scored.
        predictor: the model.
    """
    schema, pipeline = predictor.schema, predictor.config["pipeline"]
    made = [schema.sequence[place] for place in sorted({place for task in tasks for place in task.made})]
    narrowed = [one.name for one in made if one.history is not None and set(one.history.splits) != {*SPLITS}]
    unused = [f"history.splits of {name}" for name in narrowed] + (
        ["pipeline.dedupe"] if pipeline.get("dedupe") else []
    )
    if not made:
        return {}
    names = ", ".join(one.name for one in made)
    but = f"; {' and '.join(unused)} leave{'' if len(unused) > 1 else 's'} none of the log's rows out" if unused else ""
    return {"histories": f"histories made of the log's rows: {names}{but}"}


def describe_values(report: ValueReport) -> dict[str, Any]:
    """Make the part of a summary that tells of missing and unknown values."""
    return {"values": report.to_json(), "warnings": list(report.warnings().values())}


def print_remarks(summary: Mapping[str, Any]) -> None:
    """Print what the scores rest on, and on stderr a warning for each feature with far more unknown values than it had.

    Args:
        summary: with what ``describe_lists``, ``describe_histories`` and ``describe_values`` made.
    """
    lists = summary.get("lists", {})
    if lists.get("num_cut"):
        print(
            f"labels were cut off the candidates of {lists['num_cut']:,} of {lists['num_lists']:,} lists: if the log "
            "has no labels and its ids end so, give each id a label, such as N17-1-0"
        )
    if "histories" in summary:
        print(summary["histories"])
    if unknown := name_unknown(summary["values"]):
        print(unknown)
    for warning in summary["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)


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
    histories: MadeHistories | None = None
    """Histories that were made of the logs."""


@dataclass(frozen=True)
class ScoreTask:
    """One portion of one raw file to score.

    Attributes:
        file: the raw file, on disk.
        portion: what to read.
        wanted: columns to read of its file.
        tables: tables of the lookups of its file.
        before: number of lines before the portion in its file.
        number: place of the file among all files.
        declared: columns of its file's Delta table.
        made: places of the sequences in the schema whose histories were made for its rows.
    """

    file: LogFile
    portion: Portion
    wanted: Wanted
    tables: tuple[str, ...]
    before: int = 0
    number: int = 0
    declared: frozenset[str] = frozenset()
    made: tuple[int, ...] = ()


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
    end: PortionEnd
    """Beginning and end of the reading in its file."""
    absent: frozenset[str] | None
    """Columns that none of its lines has, as ``LineCounts.absent``."""
    values: ValueTally
    """Counts of missing and unknown values."""


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


def score_portion(work: Work, task: ScoreTask) -> Part | str:
    """Score one portion in an executor; idempotent, each attempt writes a file of its own.

    Returns:
        The part; or an error of this or another task that a retry cannot cure.
    """
    return without_retry(_score_portion, work, task)


def without_retry(act: Callable[[Work, ScoreTask, Path], _Answer], work: Work, task: ScoreTask) -> _Answer | str:
    """Do what a task does in an executor, in its job's folder.

    Returns:
        The answer; or an error of this or another task that a retry cannot cure.
    """
    folder = Path(work.folder)
    if not folder.is_dir():
        return f"{folder} is not there for an executor: give an --output on storage that all of them see"
    if (folder / FAILED).exists():
        return (folder / FAILED).read_text(encoding="utf-8")
    try:
        return act(work, task, folder)
    except ValueError as error:
        failure = str(error) or repr(error)
    except OSError as error:
        if not is_full(error):
            raise  # Spark tries again
        failure = f"no space is left for {folder} or for temporary files in {tempfile.gettempdir()}: make room there"
    with contextlib.suppress(OSError):  # where the disk is full
        write_text(folder / FAILED, failure, errors="replace")
    return failure


def _score_portion(work: Work, task: ScoreTask, folder: Path) -> Part:
    import torch

    torch.set_num_threads(1)  # Spark has a process for every core
    predictor = load_predictor(work.artifact, work.digest)
    path = folder / f"{uuid.uuid4().hex}.csv"
    reading = predictor.log_reader.read(
        task.portion, task.wanted, task.tables, task.file.partition, name=task.file.absolute
    )
    with path.open("w", encoding="utf-8", newline="") as file:
        counts = write_scores(file, task, predictor, reading, work.histories)
        file.flush()
        os.fsync(file.fileno())
    part = read_back(path, reading.end, counts.absent, counts.values)
    if part.num_rows != counts.rows:
        raise ScoreError(f"{task.file.path}: {counts.rows} rows were read, but {part.num_rows} are in {path}")
    return part


def read_back(
    path: Path, end: PortionEnd, absent: frozenset[str] | None = None, values: ValueTally | None = None
) -> Part:
    """Read a file of scores back from disk and count its rows and errors.

    Raises:
        ScoreError: a row has neither a score nor an error, or both, or line numbers, and places in a list, do not
            increase.
    """
    num_rows = num_errors = 0
    last = 0, 0
    first = None
    with path.open(encoding="utf-8", newline="") as file:
        for _, line, *candidate, probability, error in csv.reader(file):
            place = int(line), int(candidate[0]) if candidate and candidate[0] else 0
            if bool(probability) == bool(error) or place <= last:
                raise ScoreError(f"{path}: line {line} has no score and no error, or both, or comes twice")
            last = place
            first = first or last[0]
            num_rows += 1
            num_errors += bool(error)
    tally = values or ValueTally()
    return Part(path.name, path.stat().st_size, num_rows, num_errors, first, last[0] or None, end, absent, tally)
