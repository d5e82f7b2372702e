"""Tasks: one Python call for every item on Spark's executors, each with exactly one answer, however often Spark tries.

What a task leaves on disk is its own affair: Spark may run it twice, at once even, and takes one answer of it.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow
from pyspark.sql import SparkSession

from pipeline.config import SparkConfig
from pipeline.session import SPARK_ERRORS, explain, start_spark

T = TypeVar("T")

LOCAL_MASTER = "local[*,4]"
"""Master of a local session: all cores, four tries as on a cluster; local[*] fails with the first dead worker."""


class TaskError(ValueError):
    """A task failed as often as Spark tries, or Spark itself failed."""


def start_tasks(under_spark_submit: bool, verbose: bool = False) -> SparkSession:
    """Start a session for ``run_tasks``; Java hands out tasks only, so little memory is enough."""
    master = None if under_spark_submit else LOCAL_MASTER
    return start_spark(SparkConfig(master=master, driver_memory="1g"), verbose)


def run_tasks(spark: SparkSession, act: Callable[[T], Any], items: Sequence[T], output: Path) -> list[Any]:
    """Compute ``[act(item) for item in items]`` with a task for each item.

    Args:
        spark: a session.
        act: what executors can import, or a ``functools.partial`` of it; returns what JSON can hold.
        items: each is pickled for the executors.
        output: where the tasks write, for the words about a full disk.

    Raises:
        TaskError: a task has failed as often as Spark tries, or Spark itself has; in one sentence.
        LogError: an input file cannot be read.
    """
    if not items:
        return []
    if str(spark.sparkContext.master).startswith("local"):
        spark.sparkContext.pythonExec = sys.executable  # and not the first python3 of PATH

    def run(batches: Iterable[pyarrow.RecordBatch]) -> Iterator[pyarrow.RecordBatch]:
        for batch in batches:
            numbers = batch.column(0).to_pylist()
            answers = [json.dumps(act(items[number])) for number in numbers]
            yield pyarrow.RecordBatch.from_arrays(
                [pyarrow.array(numbers, pyarrow.int64()), pyarrow.array(answers, pyarrow.string())], ["task", "answer"]
            )

    try:
        numbers = spark.range(0, len(items), 1, len(items))  # a partition, and so a task, for each
        answers = numbers.mapInArrow(run, "task bigint, answer string").collect()
    except SPARK_ERRORS as error:
        raise TaskError(explain(error, output)) from error
    found = {row["task"]: json.loads(row["answer"]) for row in answers}
    if len(answers) != len(items) or sorted(found) != list(range(len(items))):
        raise TaskError(f"{len(items)} tasks gave {len(answers)} answers, of {len(found)} tasks")
    return [found[number] for number in range(len(items))]
