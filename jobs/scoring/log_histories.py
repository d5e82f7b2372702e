"""Histories of raw logs that are scored, where the model's histories are built: made by the steps of a build.

Rows see the events of an earlier dataset (``--history``) and, where the log says what became of its rows, those of
earlier rows of the log. A file that has the columns of a history is used as it is.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from features.disk.dataset import DatasetError, DatasetManifest
from features.disk.user_histories import fetch_histories
from features.log_format import LogError
from features.read.log_reader import LogReader
from features.read.portions import PortionEnd
from features.schema import VOCABULARY_KINDS, FeatureSchema, SequenceFeature
from jobs.scoring.score_rows import MadeHistories, ScoreTask
from pipeline.build.histories import HistoryCounts, HistoryTask, HistoryWork, history_tasks, task_names
from pipeline.build.log_events import event_column, part_finisher, wanted_of_events, write_log_users
from pipeline.build.user_events import built_sequences

if TYPE_CHECKING:
    from training.ship.predict import Predictor


@dataclass(frozen=True)
class FoundEvents:
    """Answer of a task that looks for users and events.

    Attributes:
        end: where the reading began and ended.
        blocks: names of its blocks in the exchange.
        absent: columns that none of its lines has; None: it has no row.
        num_rows: number of its rows.
    """

    end: PortionEnd
    blocks: tuple[str, ...]
    absent: frozenset[str] | None
    num_rows: int


def has_built_histories(predictor: "Predictor") -> bool:
    """Tell whether the build of the model's dataset made histories."""
    return bool(built_sequences(predictor.schema))


def scoring_reader(predictor: "Predictor") -> LogReader:
    """Make the reader of raw logs to score, which may lack the columns of built histories."""
    reader, built = predictor.log_reader, built_sequences(predictor.schema).values()
    time = predictor.schema.timestamp
    if not built or time is None:
        return reader
    lists = {name for sequence in built for name in sequence.raw_lists}
    columns = tuple(dict.fromkeys([*reader.wanted.columns, time.column]))
    optional = reader.wanted.optional | lists | ({time.column} - set(predictor.schema.feature_columns))
    return replace(reader, wanted=replace(reader.wanted, columns=columns, optional=optional))


def optional_columns(predictor: "Predictor") -> frozenset[str]:
    """List the columns that no line of a log to score need have."""
    return scoring_reader(predictor).wanted.optional


def check_history(predictor: "Predictor", base: str | None) -> None:
    """Refuse a dataset of histories for a model that has none.

    Raises:
        DatasetError: the model's histories are not built.
    """
    if base is not None and not has_built_histories(predictor):
        raise DatasetError(f"--history {base}: the model has no histories that a build makes: leave it out")


def find_events(predictor: "Predictor", folder: Path, task: ScoreTask) -> FoundEvents:
    """Read a portion and write its users and events into the exchange.

    Raises:
        LogError: the file cannot be read.
    """
    schema, reader = predictor.schema, predictor.log_reader
    reader = replace(reader, wanted=wanted_of_events(schema, reader.log_format.optional))
    wanted = reader.wanted_of_file(task.tables, task.declared)
    finisher = part_finisher(schema, predictor.learnt)
    reading = reader.read(task.portion, wanted, task.tables, task.file.partition, name=task.file.absolute)
    names, absent, num_rows = [], None, 0
    for block in reading:
        absent = frozenset(block.absent) if absent is None else absent & frozenset(block.absent)
        if len(block):
            names.append(uuid.uuid4().hex)
            write_log_users(folder, names[-1], schema, finisher, block, task.number)
            num_rows += len(block)
    return FoundEvents(reading.end, tuple(names), absent, num_rows)


def make_log_histories(
    predictor: "Predictor",
    tasks: Sequence[ScoreTask],
    found: Sequence[FoundEvents],
    make: Callable[[HistoryWork, Sequence[HistoryTask]], list[HistoryCounts]],
    folder: Path,
    base: str | None,
) -> tuple[MadeHistories, list[ScoreTask]]:
    """Make the histories of the rows of all files that have none.

    Args:
        predictor: the model.
        tasks: portions of the files.
        found: what ``find_events`` found in each.
        make: makes the histories of some users, as ``pipeline.build.histories.make_histories`` does.
        folder: folder of the exchange.
        base: dataset with the events that came before; None: there are none.

    Returns:
        The histories, and the tasks, which know now which sequences were made for their rows.

    Raises:
        LogError: a file has neither histories nor what they are made of.
        DatasetError, StorageError: the dataset cannot be used with this model.
    """
    schema = predictor.schema
    absent = _absent_columns(tasks, found)
    made = {number: _made_for(schema, path, lacks) for number, (path, lacks) in absent.items()}
    if any(made.values()):
        _check_events(schema, absent, {place for places in made.values() for place in places}, base)
    work = HistoryWork(str(folder), schema, tuple(name for one in found for name in one.blocks))
    if base is not None:
        work = _with_base(work, predictor, base)
    ranges = history_tasks(schema, sum(one.num_rows for one in found)) if work.blocks else []
    make(work, ranges)
    return (
        MadeHistories(str(folder), task_names(ranges)),
        [replace(task, made=made.get(task.number, ())) for task in tasks],
    )


def _absent_columns(tasks: Sequence[ScoreTask], found: Sequence[FoundEvents]) -> dict[int, tuple[str, frozenset[str]]]:
    """Map each file that has rows to its path and the columns that none of its lines has."""
    absent: dict[int, tuple[str, frozenset[str]]] = {}
    for task, one in zip(tasks, found, strict=True):
        if one.absent is not None:
            _, before = absent.get(task.number, ("", one.absent))
            absent[task.number] = task.file.path, before & one.absent
    return absent


def _made_for(schema: FeatureSchema, path: str, absent: frozenset[str]) -> tuple[int, ...]:
    """List the sequences whose histories are to be made for a file: it has none of their columns.

    Raises:
        LogError: it has some of them, or not what histories are made of.
    """
    places = []
    for place, sequence in built_sequences(schema).items():
        lacking = [name for name in sequence.raw_lists if name in absent]
        if not lacking:
            continue
        if len(lacking) < len(sequence.raw_lists):
            raise LogError(
                f"{path} has a part of the columns of sequence {sequence.name!r}, and lacks {_listed(lacking)}: add "
                "them, or leave all of them out to have the histories made"
            )
        assert sequence.history is not None and schema.timestamp is not None
        if unknown := [name for name in (sequence.history.of, schema.timestamp.column) if name in absent]:
            raise LogError(
                f"{path} has no column {_listed(unknown)}, without which the history {sequence.name!r} of a row is not "
                f"known: add it, or give rows their history in the columns {_listed(sequence.raw_lists)}"
            )
        places.append(place)
    return tuple(places)


def _check_events(
    schema: FeatureSchema, absent: dict[int, tuple[str, frozenset[str]]], places: set[int], base: str | None
) -> None:
    """Check that there are events for the histories that are to be made.

    Raises:
        LogError: there are none, or a column of a filter is missing.
    """
    for place in sorted(places):
        sequence = schema.sequence[place]
        assert sequence.history is not None
        column = event_column(schema, sequence)
        telling = [(path, lacks) for path, lacks in absent.values() if column not in lacks]
        if not telling and base is None:
            raise LogError(_no_events(sequence, column))
        dwell = sequence.history.dwell
        for path, lacks in telling:
            if dwell is not None and dwell.column in lacks:
                raise LogError(
                    f"{path} has no column {dwell.column!r}, which says which of its rows are events of the history "
                    f"{sequence.name!r}: add it, or leave column {column!r} out so that none is"
                )


def _no_events(sequence: SequenceFeature, column: str) -> str:
    return (
        f"nothing says what the histories of sequence {sequence.name!r} are: give a log with column {column!r}, so "
        "that earlier rows of it are events, or --history DATASET, whose build left the events that came before, or "
        f"rows with their own history in the columns {_listed(sequence.raw_lists)}"
    )


def _with_base(work: HistoryWork, predictor: "Predictor", base: str) -> HistoryWork:
    """Let rows see what a dataset's build has left.

    Raises:
        DatasetError, LearntError, StorageError: it is no dataset, has no histories, or its ids mean something else.
    """
    schema, learnt = predictor.schema, predictor.learnt
    manifest = DatasetManifest.load(base).with_choices_of(schema)
    known = manifest.load_learnt(base)
    if not (known.extends(learnt) or learnt.extends(known)):
        raise DatasetError(
            f"--history {base} was built with other vocabularies (learnt state {known.fingerprint[:12]}) than the "
            f"model's ({learnt.fingerprint[:12]}), and neither goes on with the other: its ids mean something else"
        )
    state = fetch_histories(manifest, base, Path(work.folder))
    coded = [feature for feature in schema.sparse if feature.encoding.kind in VOCABULARY_KINDS]
    later = {f.name: (learnt.num_embeddings(f), learnt.oov_id(f.name)) for f in coded}
    return replace(work, base=str(state.path.absolute()), later=later)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
