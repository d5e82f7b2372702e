"""score_here: score raw logs into one CSV file, in this process."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from features.disk.atomic import replacing
from features.disk.place import temporary_folder
from features.log_files import local_copy, size_of
from features.raw_block import RawBlock
from features.read.portions import Portion
from jobs.cli.conventions import EXIT_DATA, local
from jobs.registry.found_artifact import find_artifact
from jobs.scoring.log_histories import (
    check_history,
    find_events,
    has_built_histories,
    make_log_histories,
    optional_columns,
    scoring_reader,
)
from jobs.scoring.score_rows import (
    LineCounts,
    MadeHistories,
    ScoreTask,
    describe_histories,
    describe_lists,
    describe_scoring,
    describe_values,
    exceeds_limit,
    header_of,
    print_remarks,
    write_scores,
)
from pipeline.build.histories import HistoryCounts, HistoryTask, HistoryWork, make_histories
from training.ship.predict import Predictor


def score_here(arguments: Namespace) -> int:
    """Score in this process; return the exit code.

    Args:
        arguments: arguments of ``jobs.score``.
    """
    artifact = find_artifact(arguments.artifact, arguments.registry)
    predictor = Predictor.load(artifact.place)
    check_history(predictor, arguments.history)
    output = local(arguments.output)
    reader, counts = scoring_reader(predictor), LineCounts()
    splits, declared = reader.find_files({"input": arguments.input})
    for note in splits["input"].notes():
        print(f"warning: {note}", file=sys.stderr)
    tasks = []
    for log in splits["input"].files:
        if size_of(log.real):
            tables, columns = reader.find_tables(log.real), declared.get(log.real, frozenset())
            wanted = reader.wanted_of_file(tables, columns)
            tasks.append(ScoreTask(log, Portion(log.real), wanted, tables, number=len(tasks), declared=columns))
    with (
        replacing(output) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
        temporary_folder() as exchange,
    ):
        file.write(header_of(reader.log_format).decode())
        histories, tasks = _histories(predictor, tasks, exchange, arguments.history)
        for task in tasks:
            with _on_disk(task) as copy:
                blocks = reader.read(
                    copy.portion, copy.wanted, copy.tables, copy.file.partition, name=copy.file.absolute
                )
                read = write_scores(file, copy, predictor, _shown(blocks, copy.file.path), histories)
            counts.add(read.rows, read.errors, read.absent, read.values)
            counts.lists.add(blocks.end.lists)
        counts.check(optional_columns(predictor))
    summary = {"rows": counts.rows, "errors": counts.errors, "output": str(output), "artifact": artifact.named}
    summary |= describe_lists(counts.lists) | describe_histories(tasks, predictor)
    summary |= describe_values(predictor.report_values(counts.values))
    output.with_name(output.name + ".json").write_text(json.dumps(summary) + "\n", encoding="utf-8")
    print(describe_scoring(counts.rows, counts.errors, output))
    print_remarks(summary)
    return EXIT_DATA if exceeds_limit(counts.rows, counts.errors, predictor) else 0


def _histories(
    predictor: Predictor, tasks: list[ScoreTask], exchange: Path, base: str | None
) -> tuple[MadeHistories | None, list[ScoreTask]]:
    """Make the histories of the rows, where the model's are built; None: it has no such histories."""
    if not has_built_histories(predictor):
        return None, tasks
    found = []
    for task in tasks:
        with _on_disk(task) as copy:
            found.append(find_events(predictor, exchange, copy))

    def make(work: HistoryWork, of_users: Sequence[HistoryTask]) -> list[HistoryCounts]:
        return [make_histories(work, users) for users in of_users]

    return make_log_histories(predictor, tasks, found, make, exchange, base)


@contextmanager
def _on_disk(task: ScoreTask) -> Iterator[ScoreTask]:
    """Give a task a copy of a file that is in an object store."""
    with temporary_folder() as folder:
        yield replace(task, portion=Portion(str(local_copy(task.file.real, folder))))


def _shown(blocks: Iterable[RawBlock], path: str) -> Iterator[RawBlock]:
    """Pass blocks on, and show on a terminal how many rows have passed."""
    with tqdm(disable=None, unit="row", desc=Path(path).name, leave=False) as bar:
        for block in blocks:
            yield block
            bar.update(len(block))
