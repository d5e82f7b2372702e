"""Tasks: one Python call for every item on Spark's executors, each with exactly one answer, however often Spark tries.

What a task leaves on disk is its own affair: Spark may run it twice, at once even, and takes one answer of it.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from pyspark import SparkContext
from pyspark.sql import SparkSession
from tqdm import tqdm

from features.disk.atomic import is_full
from features.disk.dataset import DatasetError
from features.log_format import LogError
from pipeline.config import SparkConfig
from pipeline.session import SPARK_ERRORS, explain, start_spark

T = TypeVar("T")
_Answer = TypeVar("_Answer")

_REFRESH_SECONDS = 0.5


class TaskError(ValueError):
    """A task failed as often as Spark tries, or Spark itself failed."""


def start_tasks(verbose: bool = False) -> SparkSession:
    """Start a session for ``run_tasks``; Java hands out tasks only, so little memory is enough."""
    return start_spark(SparkConfig(driver_memory="1g"), verbose)


def run_tasks(
    spark: SparkSession, act: Callable[[T], _Answer], items: Sequence[T], output: Path, title: str | None = None
) -> list[_Answer]:
    """Compute ``[act(item) for item in items]`` with a task for each item.

    Args:
        spark: a session.
        act: what executors can import, or a ``functools.partial`` of it. Its answers are pickled by Spark, as its tasks
            are.
        items: each goes to the executor that runs its task, and to no other.
        output: where the tasks write, for the words about a full disk.
        title: title of a progress bar; None: there is none.

    Raises:
        TaskError: a task has failed as often as Spark tries, or Spark itself has; in one sentence.
        LogError, DatasetError: raised by ``act``; the one of the first item that has any.
        OSError: raised by ``act`` on a full disk.
    """
    if not items:
        return []
    context = spark.sparkContext
    if str(context.master).startswith("local"):
        context.pythonExec = sys.executable  # and not the first python3 of PATH
    try:
        tasks = context.parallelize(list(items), len(items)).map(partial(_attempt, act))  # a partition for each
        with _progress(context, title, len(items)):
            answers = tasks.collect()
    except SPARK_ERRORS as error:
        if (interruption := _interruption(error)) is not None:
            raise interruption from error
        raise TaskError(explain(error, output)) from error
    if len(answers) != len(items):
        raise TaskError(f"{len(items)} tasks gave {len(answers)} answers")
    found = []
    for answer in answers:
        if isinstance(answer, _Failure):
            raise answer.error
        found.append(answer)
    return found


def _interruption(error: BaseException) -> KeyboardInterrupt | None:
    """Find the signal that came amid a question to Java: what Spark then asks to tidy up fails, and hides it."""
    found = error.__context__
    while found is not None and not isinstance(found, KeyboardInterrupt):
        found = found.__context__
    return found


@dataclass(frozen=True)
class _Failure:
    """An error that another try would meet again."""

    error: Exception


def _attempt(act: Callable[[T], _Answer], item: T) -> _Answer | _Failure:
    try:
        return act(item)
    except (LogError, DatasetError) as error:
        return _Failure(type(error)(str(error)))
    except OSError as error:
        if is_full(error):
            return _Failure(OSError(error.errno, error.strerror))
        raise


@contextmanager
def _progress(context: SparkContext, title: str | None, total: int) -> Iterator[None]:
    """Show how many tasks have ended, on a terminal alone."""
    with tqdm(total=total, desc=title, unit="task", disable=True if title is None else None, leave=False) as bar:
        if bar.disable:
            yield
            return
        tracker, ended = context.statusTracker(), threading.Event()

        def watch() -> None:
            while not ended.wait(_REFRESH_SECONDS):
                stages = map(tracker.getStageInfo, tracker.getActiveStageIds())
                bar.n = sum(stage.numCompletedTasks for stage in stages if stage is not None)
                bar.refresh()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            bar.n = total
