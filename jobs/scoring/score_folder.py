"""score_folder: score raw files on Spark's executors, one CSV file for each raw file, with its rows in order.

Each attempt of a task writes its part under a unique name, and the driver uses those of the attempts that Spark
accepts. Spark's own writers choose file names, distribute the rows over files, and do not keep their order.
"""

import os
import shutil
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from features.disk.atomic import new_folder, write_json
from features.disk.place import locate
from features.disk.relative_path import check_relative
from features.log_files import STORE, LogFile, local_copy, size_of
from features.read.portions import PORTION_BYTES, PortionEnd, check_file, count_lines, plan_portions
from features.read.streams import PACKED_SUFFIXES
from jobs.cli.conventions import local
from jobs.registry.found_artifact import REGISTRY, FoundArtifact, find_artifact
from jobs.scoring.log_histories import (
    FoundEvents,
    check_history,
    find_events,
    has_built_histories,
    make_log_histories,
    optional_columns,
    scoring_reader,
)
from jobs.scoring.score_rows import (
    LineCounts,
    Part,
    ScoreError,
    ScoreTask,
    Work,
    describe_histories,
    describe_lists,
    describe_values,
    header_of,
    load_predictor,
    score_portion,
    without_retry,
)
from pipeline.build.histories import HistoryCounts, HistoryTask, HistoryWork, make_histories
from pipeline.tasks import run_tasks

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from training.ship.predict import Predictor


class _Answered(Protocol):
    @property
    def end(self) -> PortionEnd: ...


_Answer = TypeVar("_Answer", bound=_Answered)

_EXCHANGE = "histories"
"""Folder of the histories' exchange inside a job's folder, gone with it."""
SCORES_SUMMARY_NAME = "_scores.json"
"""File of counts, which marks a folder of scores; the underscore makes readers of partitioned folders skip it."""
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class ScoreJob:
    """Scoring job, checked before Spark starts."""

    artifact: FoundArtifact
    predictor: "Predictor"
    logs: tuple[LogFile, ...]
    declared: Mapping[str, frozenset[str]]
    """Columns of a file's Delta table, as of ``FoundTables``."""
    files: dict[str, str]
    """Output paths: raw file -> path of its scores below ``output``."""
    output: Path
    notes: tuple[str, ...] = ()
    """Notes on files that are left out or named twice."""
    base: str | None = None
    """Dataset with the events that came before the logs' own."""


def plan_job(
    artifact: str, inputs: Sequence[str], output: str, registry: str = REGISTRY, base: str | None = None
) -> ScoreJob:
    """Check the artifact, replay its golden rows, and list the files.

    Args:
        artifact: folder, URL or version in ``registry``; its files must be readable by every executor.
        inputs: files, folders or globs.
        output: folder; an older folder of scores is replaced.
        registry: folder or address of the registry, for a version.
        base: dataset whose build left the events that came before; for a model whose histories are built.

    Raises:
        ArtifactError: the artifact cannot be used, or does not say what its logs look like.
        LogError: an input is missing.
        ScoreError: output and input lie within each other, two files would have one name, or the output is no folder of
            scores.
        DatasetError: there is a base, and the model has no built histories.
    """
    found = find_artifact(artifact, registry)
    predictor = load_predictor(found.place, found.sha256)
    check_history(predictor, base)
    folder = local(output).resolve()
    refuse_foreign(folder)
    inputs = [str(locate(given)) if given.startswith("file://") else given for given in inputs]
    logs, declared = predictor.log_reader.find_files({"input": inputs})
    files = [file.path for file in logs["input"].files]
    _check_apart(folder, inputs, files)
    outputs = name_outputs(inputs, files, predictor.log_reader.log_format.kind)
    notes = tuple(logs["input"].notes())
    return ScoreJob(found, predictor, logs["input"].files, declared, outputs, folder, notes, base)


def refuse_foreign(output: Path) -> None:
    """Raise ScoreError unless ``output`` is absent, an empty folder, or a folder of scores."""
    if not output.exists():
        return
    if not output.is_dir() or (not (output / SCORES_SUMMARY_NAME).is_file() and any(output.iterdir())):
        raise ScoreError(
            f"{output} exists and is no folder of scores (it has no {SCORES_SUMMARY_NAME}): choose another one"
        )


def _check_apart(output: Path, inputs: Sequence[str], files: Sequence[str]) -> None:
    """Refuse an output within the input, which the next job would read, or around it, which would replace the input."""
    folders = [Path(pattern).resolve() for pattern in inputs if Path(pattern).is_dir()]
    within: list[Path | str] = [folder for folder in folders if output.is_relative_to(folder)]
    # A folder that a glob matches is read as a whole.
    within += [
        glob for glob in inputs if any(path.match(str(Path(glob).absolute())) for path in (output, *output.parents))
    ]
    around = [file for file in files if Path(file).resolve().is_relative_to(output)]
    if within or around:
        raise ScoreError(f"{output} and the input {[*within, *around][0]} are one within the other: choose another one")


def name_outputs(inputs: Sequence[str], files: Sequence[str], kind: str) -> dict[str, str]:
    """Name the scores of each raw file: its path below the inputs' common folder, with ``0.csv`` for ``0.csv.gz``.

    Returns:
        Raw file -> relative path of its scores.

    Raises:
        ScoreError: two files would have the same path, or a file and a folder.
        ValueError: a pattern climbs out of the folder that it begins with.
    """
    whole = set(files)
    fixed = [Path(given).parent if given in whole else _fixed_folder(given) for given in inputs]
    root = os.path.commonpath([os.path.normpath(folder.absolute()) for folder in fixed])
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for file in files:
        name = os.path.relpath(file, root)
        for suffix in (*PACKED_SUFFIXES, f".{kind}"):
            name = name.removesuffix(suffix)
        names[file] = check_relative(f"{name}.csv")
        other = owners.setdefault(names[file], file)
        if other != file:
            raise ScoreError(f"{other} and {file} would both be scored to {names[file]}: score them apart")
    folders = {str(folder): name for name in owners for folder in PurePath(name).parents}
    for name in owners.keys() & folders.keys():
        raise ScoreError(f"{owners[name]} would be scored to {name}, which is a folder too: score them apart")
    return names


def _fixed_folder(pattern: str) -> Path:
    """Return the fixed leading folder of a path or glob."""
    path = Path(pattern)
    if path.is_dir():
        return path
    return path.parent if path.is_file() else Path(*takewhile(lambda part: not set(part) & set("*?["), path.parts))


def score_folder(spark: "SparkSession", job: ScoreJob, portion_bytes: int = PORTION_BYTES) -> dict[str, Any]:
    """Score every file; the output appears atomically when all of it is written.

    Returns:
        The summary that is also in the output's ``_scores.json``.

    Raises:
        ScoreError: a task failed with an error that a retry cannot cure, or the counts of rows do not agree.
        TaskError: Spark failed.
        LogError: an input file or a lookup is missing.
        ReplacementError: another job is writing to the output.
    """
    with new_folder(job.output, refuse_foreign) as (new, scratch):
        tasks = _plan_tasks(spark, job, scratch, portion_bytes)
        work = Work(job.artifact.place, job.artifact.sha256, str(scratch))
        if has_built_histories(job.predictor):
            work, tasks = _make_histories(spark, job, work, tasks)
        parts, counts = _score_portions(spark, job, work, tasks)
        header = header_of(job.predictor.log_reader.log_format)
        files = [
            {"input": file, "output": name, **_lay(parts[file], header, scratch, new / name)}
            for file, name in job.files.items()
        ]
        rows, errors = (sum(file[key] for file in files) for key in ("rows", "errors"))
        summary = {"rows": rows, "scored": rows - errors, "errors": errors, "output": str(job.output)}
        summary |= {"artifact": job.artifact.named, "files": files}
        summary |= describe_lists(counts.lists) | describe_histories(tasks, job.predictor)
        summary |= describe_values(job.predictor.report_values(counts.values))
        write_json(new / SCORES_SUMMARY_NAME, summary)
    return summary


def _plan_tasks(spark: "SparkSession", job: ScoreJob, scratch: Path, portion_bytes: int) -> list[ScoreTask]:
    """Cut the files into portions, a task each, with the number of lines before it."""
    reader, tasks = scoring_reader(job.predictor), []
    stored = [log for log in job.logs if log.real.startswith(STORE)]
    copies = dict(zip(stored, run_tasks(spark, partial(_fetch, scratch), stored, job.output), strict=True))
    for number, log in enumerate(job.logs):
        copy = copies.get(log, log)
        size = size_of(copy.real)
        if not size:
            continue
        tables = reader.find_tables(log.real)
        declared = job.declared.get(log.real, frozenset())
        wanted = reader.wanted_of_file(tables, declared)
        check_file(copy.real, reader.log_format, wanted, copy.partition)
        for portion in plan_portions(copy.real, size, reader.log_format, portion_bytes):
            tasks.append(ScoreTask(copy, portion, wanted, tables, number=number, declared=declared))
    num_portions = Counter(task.file.path for task in tasks)
    cut = [task.portion for task in tasks if num_portions[task.file.path] > 1]
    found = run_tasks(spark, partial(count_lines, log_format=reader.log_format), cut, job.output)
    counts, before = dict(zip(cut, found, strict=True)), Counter[str]()
    for place, task in enumerate(tasks):
        tasks[place] = replace(task, before=before[task.file.path])
        before[task.file.path] += counts.get(task.portion, 0)
    return tasks


def _fetch(scratch: Path, log: LogFile) -> LogFile:
    folder = scratch / uuid.uuid4().hex
    folder.mkdir()
    return replace(log, real=str(local_copy(log.real, folder)))


def _make_histories(
    spark: "SparkSession", job: ScoreJob, work: Work, tasks: list[ScoreTask]
) -> tuple[Work, list[ScoreTask]]:
    """Make the histories of the logs' rows; returns what the tasks that score need for them."""
    exchange = Path(work.folder) / _EXCHANGE
    exchange.mkdir()
    found = _read_all(spark, partial(find_in_portion, work), tasks, job.output, "histories")

    def make(histories: HistoryWork, of_users: Sequence[HistoryTask]) -> list[HistoryCounts]:
        return run_tasks(spark, partial(make_histories, histories), of_users, job.output, "histories")

    made, tasks = make_log_histories(job.predictor, tasks, found, make, exchange, job.base)
    return replace(work, histories=made), tasks


def find_in_portion(work: Work, task: ScoreTask) -> FoundEvents | str:
    """Look for users and events of one portion in an executor; idempotent, each attempt writes blocks of its own.

    Returns:
        What was found; or an error of this or another task that a retry cannot cure.
    """
    return without_retry(_find_in_portion, work, task)


def _find_in_portion(work: Work, task: ScoreTask, folder: Path) -> FoundEvents:
    return find_events(load_predictor(work.artifact, work.digest), folder / _EXCHANGE, task)


def _read_all(
    spark: "SparkSession",
    act: Callable[[ScoreTask], _Answer | str],
    tasks: list[ScoreTask],
    output: Path,
    title: str,
    forget: Callable[[_Answer], None] = lambda _: None,
) -> list[_Answer]:
    """Read every portion on the executors, and once more those that began inside a row of the one before.

    Args:
        spark: a session.
        act: reads one portion; an error that a retry cannot cure is a text.
        tasks: all tasks in order; one that began too early is replaced in this list.
        output: where the tasks write.
        title: title of the progress bar.
        forget: drops the answer of a task that is replaced.

    Raises:
        ScoreError: a task failed.
    """

    def run(todo: Sequence[ScoreTask]) -> list[_Answer]:
        answers: list[_Answer] = []
        for answer in run_tasks(spark, act, todo, output, title):
            if isinstance(answer, str):
                raise ScoreError(answer)
            answers.append(answer)
        return answers

    found = run(tasks)
    # What the bytes alone said about a portion's beginning holds as long as no row has ends of lines in quotes.
    while wrong := _misjudged(tasks, [answer.end for answer in found]):
        for place, task in wrong.items():
            tasks[place] = task
            forget(found[place])
        for place, answer in zip(wrong, run(list(wrong.values())), strict=True):
            found[place] = answer
    return found


def _score_portions(
    spark: "SparkSession", job: ScoreJob, work: Work, tasks: list[ScoreTask]
) -> tuple[dict[str, list[Part]], LineCounts]:
    """Score portions on the executors.

    Returns:
        Raw file -> its parts in order, whose files are in the job's folder; and the counts of all lines.
    """
    folder = Path(work.folder)
    found = _read_all(
        spark, partial(score_portion, work), tasks, folder, "score", lambda part: (folder / part.name).unlink()
    )
    parts: dict[str, list[Part]] = defaultdict(list)
    counts = LineCounts()
    for task, part in zip(tasks, found, strict=True):
        parts[task.file.path].append(part)
        counts.add(part.num_rows, part.num_errors, part.absent, part.values)
        counts.lists.add(part.end.lists)
    counts.check(optional_columns(job.predictor))
    return parts, counts


def _misjudged(tasks: Sequence[ScoreTask], ends: Sequence[PortionEnd]) -> dict[int, ScoreTask]:
    """Find the tasks that began inside a row of the one before, or whose lines were numbered from another one."""
    wrong, before = {}, 0
    for place, (task, end) in enumerate(zip(tasks, ends, strict=True)):
        begin = end.begin
        if place and tasks[place - 1].file == task.file:
            begin, before = ends[place - 1].end, before + ends[place - 1].num_lines
        else:
            before = 0
        if (begin, before) != (end.begin, task.before):
            wrong[place] = replace(task, portion=replace(task.portion, start=begin), before=before)
    return wrong


def _lay(parts: Sequence[Part], header: bytes, scratch: Path, to: Path) -> dict[str, int]:
    """Concatenate the parts of one raw file below a header, and check that no line is repeated and no byte is lost."""
    last = 0
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("wb") as file:
        file.write(header)
        for part in parts:
            path = scratch / part.name
            if part.first_line is not None:
                if part.first_line <= last or part.last_line is None:
                    raise ScoreError(f"{to.name}: line {part.first_line} comes twice, or after line {last}")
                last = part.last_line
            with path.open("rb") as source:
                shutil.copyfileobj(source, file, _COPY_BYTES)
            path.unlink()
    if to.stat().st_size != len(header) + sum(part.num_bytes for part in parts):
        raise ScoreError(f"{to.name} has {to.stat().st_size} bytes, others than the executors wrote")
    return {"rows": sum(part.num_rows for part in parts), "errors": sum(part.num_errors for part in parts)}
