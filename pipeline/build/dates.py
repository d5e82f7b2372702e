"""Dates: number of rows of each raw file for each hour, day or month, by the timestamp in the row.

Rows that have no readable time belong to no date; they are written aside with their file, line and reason.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pyspark.sql import SparkSession

from features.disk.dataset import DatasetError
from features.disk.place import temporary_folder
from features.log_files import STORE
from features.raw_block import Wanted
from features.read.log_reader import LogReader
from features.read.portions import PortionEnd
from features.schema import FeatureSchema, Timestamp
from features.values import seconds
from pipeline.build.encode_rows import PortionTask, RejectedFile
from pipeline.build.portions import fetch_file, plan_tasks, read_all, write_rejected
from pipeline.build.sources import InputPlan
from pipeline.config import UNDATED, PipelineConfig
from pipeline.tasks import TaskError, run_tasks

Span = Literal["hour", "day", "month"]
_UNITS: dict[Span, str] = {"hour": "h", "day": "D", "month": "M"}
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_370_764_799
"""First and last second of the years 1 to 9998, which Python's calendar can exceed by a month."""


@dataclass(frozen=True)
class DateWork:
    """Arguments of all tasks: where the time is, what a date is, and the folder for rows without one."""

    time: Timestamp
    config: PipelineConfig
    schema: FeatureSchema
    span: Span
    folder: str

    @property
    def reader(self) -> LogReader:
        """Reader of times; of lists, it reads candidates and labels too, so that rows are counted as builds do."""
        log_format, name = self.config.input.format, self.time.column
        lists = log_format.candidates
        columns = (name,) if lists is None or lists.label is None else (name, lists.label)
        wanted = Wanted(columns, frozenset({name}), frozenset(), frozenset(log_format.optional))
        return LogReader(log_format, (), wanted, self.schema.values)


@dataclass
class DateResult:
    """Answer of a task that counts dates: rows of each date, and the file of the rows without one."""

    end: PortionEnd
    dates: Counter[str] = field(default_factory=Counter)
    rejected: str | None = None


def count_dates(
    spark: SparkSession, schema: FeatureSchema, pipeline: PipelineConfig, plan: InputPlan, span: Span, undated: Path
) -> dict[str, dict[str, int]]:
    """Count the rows of each date, in one pass over the raw files.

    Args:
        spark: a session.
        schema: the features; it has a timestamp.
        pipeline: what the logs look like.
        plan: the raw files.
        span: what a date is: 2014102807, 20141028 or 201410, in UTC.
        undated: folder to write the rows without a readable time to; it is not made where there are none.

    Returns:
        File -> date -> rows; ``UNDATED`` -> rows without one. Every row of a file counts once.

    Raises:
        LogError, DatasetError: one sentence about what is wrong with the input or the disk.
    """
    assert schema.timestamp is not None
    with temporary_folder() as folder:
        files = [
            fetch_file(str(folder), source) if source.file.real.startswith(STORE) else source for source in plan.files
        ]
        tasks = plan_tasks(files, pipeline.input.format, pipeline.spark.max_partition_bytes)
        work = DateWork(schema.timestamp, pipeline, schema, span, str(folder))
        try:
            results = read_all(tasks, lambda todo: run_tasks(spark, partial(_count, work), todo, undated, "read"))
        except TaskError as error:
            raise DatasetError(str(error)) from error
        counts: dict[str, Counter[str]] = {}
        for task, result in zip(tasks, results, strict=True):
            counts.setdefault(task.source.file.absolute, Counter()).update(result.dates)
        if any(result.rejected for result in results):
            write_rejected(folder, undated, tasks, results)
    return {file: dict(dates) for file, dates in counts.items() if dates}


def _count(work: DateWork, task: PortionTask) -> DateResult:
    result = DateResult(PortionEnd(0, 0, 0))
    name = work.time.column
    reader = work.reader
    wanted = reader.wanted_of_file(())
    reading = reader.read(task.portion, wanted, (), task.source.file.partition, name=task.source.file.absolute)
    with RejectedFile(Path(work.folder), f"rejected-{task.number}", task.source.file.absolute) as rejected:
        for raw in reading:
            found, is_time = seconds(raw.columns[name], work.time.format, work.schema.values)
            known = is_time & (found >= _FIRST_SECOND) & (found <= _LAST_SECOND)
            for date, count in _by_date(found[known], work.span):
                result.dates[date] += count
            reason = f"timestamp {name!r} is missing or unreadable"
            undated = [raw.reject(row, reason) for row in np.flatnonzero(~known).tolist()]
            for line in sorted([*raw.rejected, *undated], key=lambda line: line.offset):
                rejected.add(line)
                result.dates[UNDATED] += 1
        result.end = reading.end
    result.rejected = rejected.name
    return result


def _by_date(moments: "np.ndarray[tuple[int], np.dtype[np.int64]]", span: Span) -> Sequence[tuple[str, int]]:
    dates, counts = np.unique(moments.astype("datetime64[s]").astype(f"datetime64[{_UNITS[span]}]"), return_counts=True)
    return [(str(date).translate(_NO_MARKS), int(count)) for date, count in zip(dates, counts, strict=True)]


_NO_MARKS = {ord(mark): None for mark in "-T:"}
