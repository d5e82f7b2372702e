"""Make built histories: the tasks that bring users' events together, and the state that the next build goes on with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.disk.dataset import BuiltHistory
from features.disk.user_histories import HistoriesWriter, UserHistories
from features.history import History, in_bursts, seen_events, sort_events
from features.schema import FeatureSchema, SequenceFeature
from pipeline.build.exchange import read_block, write_block
from pipeline.build.portions import hash_ranges
from pipeline.build.user_events import (
    EVENT_DWELL,
    EVENT_ROW,
    EVENT_SECONDS,
    IS_DROPPED,
    USER,
    built_sequences,
    held_columns,
    users_between,
    write_seen,
)
from pipeline.build.write_rows import FinishWork, with_ids


@dataclass(frozen=True)
class HistoryWork:
    """Arguments of all tasks that make histories.

    Attributes:
        folder: folder of the exchange.
        schema: the features.
        blocks: names of all blocks.
        base: ``history.parquet`` of the base; None: no events come before the log's own.
        newest: time of the newest row, of the bases too; None: no later build goes on with the events.
        finish: arguments of the tasks that turn codes into ids; None: blocks hold ids.
        later: part -> number of ids that are known, and the id that stands for those of the base that are not.
    """

    folder: str
    schema: FeatureSchema
    blocks: tuple[str, ...]
    base: str | None = None
    newest: int | None = None
    finish: FinishWork | None = None
    later: Mapping[str, tuple[int, int]] = field(default_factory=dict)


class HistoryTask(NamedTuple):
    """Users whose histories of one sequence are to be made.

    Attributes:
        number: place of the sequence in the schema.
        first: least hash of a user.
        end: hash behind the last.
    """

    number: int
    first: int
    end: int

    @property
    def name(self) -> str:
        """Name of the task's tables in the exchange."""
        return f"{self.number}-{self.first}"


_ROWS_A_TASK = 1_000_000
"""Rows whose histories one task makes, about."""


def history_tasks(schema: FeatureSchema, num_rows: int) -> list[HistoryTask]:
    """Cut the users of every built sequence into ranges, a task each, of a log of about so many rows."""
    ranges = hash_ranges(num_rows // _ROWS_A_TASK + 1, 1 << 64)
    return [HistoryTask(number, *users) for number in built_sequences(schema) for users in ranges]


def task_names(tasks: Sequence[HistoryTask]) -> dict[int, tuple[str, ...]]:
    """List the names of the tasks' tables by the place of their sequence in the schema."""
    numbers = dict.fromkeys(task.number for task in tasks)
    return {number: tuple(task.name for task in tasks if task.number == number) for number in numbers}


class HistoryCounts(NamedTuple):
    """Counts of some users' histories, which add up.

    Attributes:
        num_events: events among the build's own rows.
        num_dropped: those of them that filters left out.
        num_rows: rows that see an event.
        num_seen: events that they see.
    """

    num_events: int = 0
    num_dropped: int = 0
    num_rows: int = 0
    num_seen: int = 0


def make_histories(work: HistoryWork, task: HistoryTask) -> HistoryCounts:
    """Bring the events of some users together, in order, and find those that each of their rows sees.

    Tables go to the exchange: ``past`` has the events, ``seen`` points into it, ``state`` has the events that a later
    build needs, if there is one.

    Raises:
        DatasetError: the base's events cannot be read.
    """
    folder = Path(work.folder)
    sequence = work.schema.sequence[task.number]
    history = sequence.history
    assert history is not None
    events = _events(work, task, sequence)
    users, times = events[USER].to_numpy(), events[EVENT_SECONDS].to_numpy()
    is_dropped = events[IS_DROPPED].to_numpy() | in_bursts(users, times, history.burst)
    kept = np.flatnonzero(~is_dropped)
    past = events.take(pa.array(kept)).select([EVENT_SECONDS, *held_columns(sequence)]).combine_chunks()
    write_block(folder, f"past-{task.name}", past)
    blocks = [read_block(folder, f"users-{task.number}-{name}") for name in work.blocks]
    rows = pa.concat_tables([users_between(block, task.first, task.end) for block in blocks])
    own = rows[USER].to_numpy(), rows[EVENT_SECONDS].to_numpy()
    seen = seen_events((users[kept], times[kept]), own, history.delay, sequence.max_length)
    write_seen(folder, task.name, rows, seen)
    if work.newest is not None:
        keep = needed_later(users, times, is_dropped, history, sequence.max_length, work.newest)
        state = events.set_column(events.column_names.index(IS_DROPPED), IS_DROPPED, pa.array(is_dropped))
        write_block(folder, f"state-{task.name}", state.take(pa.array(keep)).combine_chunks())
    is_own = events[EVENT_ROW].to_numpy() >= 0
    return HistoryCounts(
        int(is_own.sum()),
        int((is_own & is_dropped).sum()),
        int(np.count_nonzero(seen.counts)),
        int(seen.counts.sum()),
    )


def _events(work: HistoryWork, task: HistoryTask, sequence: SequenceFeature) -> pa.Table:
    """Collect the events of a task's users, in order; those of the base have negative rows, so they come before others
    of their time.
    """
    columns = [USER, EVENT_SECONDS, EVENT_ROW, IS_DROPPED, *held_columns(sequence)]
    parts = []
    if work.base is not None:
        found = UserHistories(Path(work.base), work.schema).read(sequence.name, task.first, task.end)
        own = {USER: found["user"], EVENT_SECONDS: found["time"], IS_DROPPED: found["is_dropped"]}
        own[EVENT_ROW] = pa.array(np.arange(-len(found), 0))
        own |= {part: _known_ids(work, part, found[column]) for part, column in sequence.part_columns.items()}
        own |= {EVENT_DWELL: found[sequence.dwell_column]} if sequence.dwell_column is not None else {}
        parts.append(pa.table(own).select(columns))
    for name in work.blocks:
        block = read_block(Path(work.folder), f"events-{task.number}-{name}")
        found = users_between(block, task.first, task.end)
        parts.append((found if work.finish is None else with_ids(work.finish, name, found)).select(columns))
    events = pa.concat_tables(parts).combine_chunks()
    order = sort_events(events[USER].to_numpy(), events[EVENT_SECONDS].to_numpy(), events[EVENT_ROW].to_numpy())
    if work.base is not None:
        order = order[~_read_again(*(events[name].to_numpy()[order] for name in (USER, EVENT_SECONDS, EVENT_ROW)))]
    return events.take(pa.array(order)).combine_chunks()


def _known_ids(work: HistoryWork, part: str, ids: pa.ChunkedArray) -> pa.Array:
    """Give one id to those of the base that a model does not know."""
    found = ids.to_numpy()
    if part in work.later:
        num_known, unknown = work.later[part]
        found = np.where(found < num_known, found, np.int32(unknown))
    return pa.array(found, pa.int32())


def _read_again(users: NDArray[np.uint64], times: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Find the events of the base whose rows the build reads again: it has events of the user at that moment."""
    if not len(rows):
        return np.zeros(0, bool)
    is_last = np.append((users[1:] != users[:-1]) | (times[1:] != times[:-1]), True)
    ends = np.flatnonzero(is_last)
    newest = rows[np.repeat(ends, np.diff(ends, prepend=-1))]
    return (rows < 0) & (newest >= 0)


def needed_later(
    users: NDArray[np.uint64],
    times: NDArray[np.int64],
    is_dropped: NDArray[np.bool_],
    history: History,
    length: int,
    newest: int,
) -> NDArray[np.intp]:
    """Find the events that a row later than the newest one may see, or that tell whether one of them is in a burst.

    Args:
        users: (E,) sorted as ``features.history.sort_events`` says.
        times: (E,) Unix seconds.
        is_dropped: (E,) events that filters leave out.
        history: rule of the history.
        length: largest number of events of a row.
        newest: time of the newest row.

    Returns:
        Their places, rising: of each user the last ``length`` events that every later row may see, and all after that.
    """
    bound = newest - history.delay
    is_late = (times > bound) & ~is_dropped
    if history.burst is not None:
        is_late = times > bound - history.burst.seconds
    settled = np.flatnonzero((times <= bound) & ~is_dropped)
    own = users[settled]
    is_last = np.ones(len(settled), bool)
    is_last[:-length] = own[length:] != own[:-length]
    is_late[settled[is_last]] = True
    return np.flatnonzero(is_late)


def describe_history(sequence: SequenceFeature, counts: Sequence[HistoryCounts]) -> BuiltHistory:
    """Describe a sequence's histories for the manifest, from the counts of all its tasks."""
    history = sequence.history
    assert history is not None
    total = HistoryCounts(*(sum(values) for values in zip(*counts, strict=True)))
    return BuiltHistory(history.of, history.where, history.delay, **total._asdict())


def write_state(writer: HistoriesWriter, folder: Path, sequence: SequenceFeature, tasks: Sequence[HistoryTask]) -> None:
    """Write the events of one sequence that a later build needs, users in the order of their hashes."""
    for task in tasks:
        state = read_block(folder, f"state-{task.name}")
        if len(state):
            parts = {column: state[part] for part, column in sequence.part_columns.items()}
            parts |= {sequence.dwell_column: state[EVENT_DWELL]} if sequence.dwell_column is not None else {}
            own = {"user": state[USER], "time": state[EVENT_SECONDS], "is_dropped": state[IS_DROPPED]}
            writer.write(sequence.name, own | parts)
