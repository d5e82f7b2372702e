"""Portions of a build: plan them, read them all, and put their answers together in the order of the input."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Protocol, TypeVar

from features.log_files import local_copy
from features.log_format import LogError, LogFormat
from features.read.portions import PortionEnd, misplaced, plan_portions
from pipeline.build.encode_rows import PortionResult, PortionTask
from pipeline.build.sources import InputPlan, SourceFile


class _Result(Protocol):
    @property
    def end(self) -> PortionEnd: ...


class _RejectingResult(_Result, Protocol):
    @property
    def rejected(self) -> str | None: ...


PortionAnswer = TypeVar("PortionAnswer", bound=_Result)

_MAX_FILES = 3
"""Files that a warning names."""
REJECTED_LINES = "rejected.jsonl"
"""File of the lines that are no rows: JSON lines of file, number, line and reason."""


def fetch_file(folder: str, source: SourceFile) -> SourceFile:
    """Copy a file of an object store to a folder, where its portions are read.

    Raises:
        LogError, StorageError: it cannot be fetched.
    """
    own = Path(folder) / f"input-{source.number}"
    own.mkdir(exist_ok=True)
    return replace(source, file=replace(source.file, real=str(local_copy(source.file.real, own))))


def plan_tasks(files: Sequence[SourceFile], log_format: LogFormat, num_bytes: int) -> list[PortionTask]:
    """Cut every file of a build into portions of about ``num_bytes``, a task each.

    Raises:
        LogError: a file cannot be read or is no text.
    """
    tasks: list[PortionTask] = []
    for source in files:
        if not source.num_bytes:
            continue
        for portion in plan_portions(source.file.real, source.num_bytes, log_format, num_bytes):
            tasks.append(PortionTask(len(tasks), source, portion))
    return tasks


def whole_texts(tasks: Sequence[PortionTask], log_format: LogFormat) -> dict[str, int]:
    """Map each text file that cannot be cut, and so is one portion, to its bytes."""
    if not log_format.is_text:
        return {}
    return {task.source.file.absolute: task.source.num_bytes for task in tasks if task.portion.end is None}


def read_all(tasks: list[PortionTask], read: Callable[[list[PortionTask]], list[PortionAnswer]]) -> list[PortionAnswer]:
    """Read every portion, and once more those that began inside a row of the one before.

    Args:
        tasks: all tasks in order; a portion that began too early is replaced in this list.
        read: reads some of them, an answer each.
    """
    results = read(tasks)
    while wrong := _misplaced(tasks, results):
        for place, task in wrong.items():
            tasks[place] = task
        for place, result in zip(wrong, read(list(wrong.values())), strict=True):
            results[place] = result
    return results


def _misplaced(tasks: Sequence[PortionTask], results: Sequence[_Result]) -> dict[int, PortionTask]:
    places: dict[int, list[int]] = defaultdict(list)
    for place, task in enumerate(tasks):
        places[task.source.number].append(place)
    found = {}
    for of_file in places.values():
        wrong = misplaced([tasks[place].portion for place in of_file], [results[place].end for place in of_file])
        found |= {of_file[i]: replace(tasks[of_file[i]], portion=portion) for i, portion in wrong.items()}
    return found


def write_rejected(
    exchange: Path, folder: Path, tasks: Sequence[PortionTask], results: Sequence[_RejectingResult]
) -> None:
    """Write all rejected lines to ``rejected.jsonl`` in the order of the input, numbered as in their files.

    Args:
        exchange: folder of the tasks' own files of rejected lines.
        folder: folder to make.
        tasks: all tasks.
        results: their answers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / REJECTED_LINES).open("w", encoding="utf-8") as file:
        for before, result in zip(_lines_before(tasks, results), results, strict=True):
            if result.rejected is not None:
                with (exchange / result.rejected).open(encoding="utf-8") as lines:
                    for text in lines:
                        line = json.loads(text)
                        line["number"] += before
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def first_rejected(tasks: Sequence[PortionTask], results: Sequence[PortionResult], limit: int) -> list[str]:
    """Describe the first rejected lines by file, number, reason and text."""
    found: list[str] = []
    for task, before, result in zip(tasks, _lines_before(tasks, results), results, strict=True):
        for line in result.first[: limit - len(found)]:
            place = f"{task.source.file.absolute} line {line.number + before}"
            found.append(f"{place}: {line.reason}: {line.text[:120]!r}")
    return found


def _lines_before(tasks: Sequence[PortionTask], results: Sequence[_Result]) -> Iterator[int]:
    """Count the lines of each portion's file that lie before it."""
    before: dict[int, int] = defaultdict(int)
    for task, result in zip(tasks, results, strict=True):
        yield before[task.source.number]
        before[task.source.number] += result.end.num_lines


def hash_ranges(count: int, end: int) -> list[tuple[int, int]]:
    """Cut 0 to before ``end`` into ``count`` near-equal ranges, ``end`` at most."""
    count = min(count, end)
    borders = [number * end // count for number in range(count + 1)]
    return list(pairwise(borders))


def describe_absent(
    tasks: Sequence[PortionTask], results: Sequence[PortionResult], plan: InputPlan, log_format: LogFormat
) -> list[str]:
    """Say which files lack columns, or have no rows; their values count as missing.

    Raises:
        LogError: a key that the config does not call optional is in no line of any file.
    """
    lacking: dict[str, dict[str, bool]] = defaultdict(dict)
    made = frozenset() if log_format.candidates is None else {log_format.candidates.list_id}
    for task, result in zip(tasks, results, strict=True):
        file, names = task.source.file.absolute, [name for name in task.source.wanted.columns if name not in made]
        if set(names) <= set(result.absent):
            continue  # none of its lines is an object: that is told of them
        for name in names:
            lacking[name][file] = lacking[name].get(file, True) and name in result.absent
    said = []
    empty = [source.file.path for source in plan.files if not source.num_bytes]
    if empty:
        said.append(f"no rows, because they are empty: {_listed(empty)}")
    for name, files in lacking.items():
        without = [file for file, lacks in files.items() if lacks]
        if not without:
            continue
        if len(without) == len(files) and name not in log_format.optional:
            raise LogError(
                f"{_listed(without)}: no line has {name!r}; if quieter files may lack it, name it in "
                "pipeline.input.format.optional"
            )
        said.append(f"column {name!r} is missing in all rows of {_listed(without)}")
    return said


def _listed(files: Sequence[str]) -> str:
    more = f" and {len(files) - _MAX_FILES:,} more" if len(files) > _MAX_FILES else ""
    return ", ".join(files[:_MAX_FILES]) + more
