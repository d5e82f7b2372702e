"""Built histories in the exchange: tables of users and events of each block, and what each row sees of them.

A task that reads writes two tables for each block and history, sorted by the hash of the user: its rows, and those of
them that are events, with the values that histories hold. A task that makes histories (``pipeline.build.histories``)
takes the users of a range of hashes from all blocks and writes their events in order, and which of them each row sees.
A task that writes files looks there. A power user's rows are in one range; nothing grows with the square of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.disk.dataset import SPLITS
from features.dwell import dwell_ids
from features.encode import Prepared, rule_holds
from features.history import Integers, Seen, user_hashes
from features.ragged import Ragged
from features.raw_block import RawBlock
from features.schema import FeatureSchema, SequenceFeature
from features.values import Mask, as_mask, loose_texts, numbers
from pipeline.build.exchange import KEY, SPLIT, read_block, rows_between, sort_rows, write_block

USER, EVENT_SECONDS, EVENT_ROW, IS_DROPPED = "event:user", "event:seconds", "event:row", "event:dropped"
"""Columns of the tables beside the parts; the colon keeps them apart from feature names."""
EVENT_DWELL = "event:dwell"
"""Column of dwell times in seconds, NaN where one is not known; only tables of sequences with dwell weights have it."""
_STOP, _COUNT = "seen:stop", "seen:count"
_COPIED = 1 << 22
"""Events that are copied at a time into a file's histories."""


def held_columns(sequence: SequenceFeature) -> list[str]:
    """List the columns of the tables that histories hold of an event, beside its time."""
    return [*sequence.parts, *([EVENT_DWELL] if sequence.dwell_weights else [])]


def built_sequences(schema: FeatureSchema) -> dict[int, SequenceFeature]:
    """Index the sequences that the build makes by their place among all of the schema."""
    return {place: sequence for place, sequence in enumerate(schema.sequence) if sequence.history is not None}


# ---------------------------------------------------------------------------------------------------------------- write


def write_users(
    folder: Path,
    name: str,
    schema: FeatureSchema,
    raw: RawBlock,
    prepared: Prepared,
    encoded: pa.Table,
    rows: NDArray[np.uint64],
) -> None:
    """Write the tables of users and events of one block.

    Args:
        folder: folder of the exchange.
        name: name of the block.
        schema: schema of the features.
        raw: good rows of the block.
        prepared: the same rows.
        encoded: the same rows as columns of ids or codes, with key and split.
        rows: (n,) their numbers in the whole input.
    """
    for number, sequence in built_sequences(schema).items():
        history = sequence.history
        assert history is not None
        users = loose_texts(raw.columns[history.of], schema.values)
        is_known = users.is_valid().to_numpy(zero_copy_only=False)
        own = {USER: pa.array(user_hashes(users)), EVENT_SECONDS: pa.array(prepared.own["timestamp"])}
        keys = {KEY: encoded[KEY], SPLIT: encoded[SPLIT]}
        _write_sorted(folder, f"users-{number}-{name}", {**own, **keys}, is_known)
        if (rule := sequence.history_rule) is None:
            is_event = prepared.own["label"] > 0
        else:
            is_event = rule_holds(rule, raw.columns[rule.column], schema.values)
        for_nothing = np.logical_and.reduce([_is_missing(prepared, part) for part in sequence.parts])
        is_short, held = np.zeros(len(raw), bool), {}
        if history.dwell is not None:
            dwell = numbers(raw.columns[history.dwell.column], schema.values)[0]
            is_short = history.is_short(dwell)
            held = {EVENT_DWELL: pa.array(dwell)} if sequence.dwell_weights else {}
        is_event &= np.isin(encoded[SPLIT].to_numpy(), [SPLITS.index(split) for split in history.splits])
        parts = {part: encoded[part] for part in sequence.parts}
        table = {**own, EVENT_ROW: pa.array(rows.view(np.int64)), IS_DROPPED: pa.array(is_short), **parts, **held}
        _write_sorted(folder, f"events-{number}-{name}", table, is_known & is_event & ~for_nothing)


def _is_missing(prepared: Prepared, part: str) -> Mask:
    """Find the rows without a value of a part; without any of them an event is none, as in histories of a log."""
    if part in prepared.coded:
        return as_mask(prepared.coded[part].texts.is_null())
    if part in prepared.numbers:
        return np.isnan(prepared.numbers[part])
    found = prepared.hashed[part].is_missing
    return np.zeros(prepared.num_rows, bool) if found is None else found


def _write_sorted(folder: Path, name: str, columns: Mapping[str, Any], keep: NDArray[np.bool_]) -> None:
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(columns[USER].to_numpy()[rows], kind="stable")]
    write_block(folder, name, pa.table(columns).take(pa.array(rows)).combine_chunks())


def users_between(table: pa.Table, first: int, end: int) -> pa.Table:
    """Take the rows of a table sorted by user whose users' hashes are from ``first`` to before ``end``."""
    users = table[USER].to_numpy()
    start, stop = (
        len(users) if bound >> 64 else int(np.searchsorted(users, np.uint64(bound))) for bound in (first, end)
    )
    return table.slice(start, stop - start)


# ----------------------------------------------------------------------------------------------------------------- read


def write_seen(folder: Path, name: str, rows: pa.Table, seen: Seen) -> None:
    """Write which events each row sees; a row that sees none is not in the table.

    Args:
        folder: folder of the exchange.
        name: name of the range.
        rows: key and split of each row.
        seen: what each of them sees, in the range's events.
    """
    has_any = np.flatnonzero(seen.counts)
    table = pa.table(
        {
            KEY: rows[KEY].to_numpy()[has_any],
            SPLIT: rows[SPLIT].to_numpy()[has_any],
            _STOP: seen.stops[has_any],
            _COUNT: seen.counts[has_any].astype(np.int32),
        }
    )
    write_block(folder, f"seen-{name}", sort_rows(table))


def histories_of(
    folder: Path,
    names: Sequence[str],
    sequence: SequenceFeature,
    split: str,
    keys: NDArray[np.uint64],
    seconds: Integers,
) -> dict[str, Ragged]:
    """Collect the histories of a file's rows: column of the files -> its rows' ids, newest first.

    Args:
        folder: folder of the exchange.
        names: names of the ranges of the sequence.
        sequence: the sequence.
        split: split of the rows.
        keys: (n,) the rows' keys, rising, of which no other file has one between them.
        seconds: (n,) the rows' times.
    """
    lengths = np.zeros(len(keys), np.int64)
    ranges: list[tuple[str, NDArray[np.intp], Seen]] = []
    for name in names if len(keys) else []:
        table = rows_between(read_block(folder, f"seen-{name}"), split, int(keys[0]), int(keys[-1]) + 1)
        seen = Seen(table[_STOP].to_numpy(), table[_COUNT].to_numpy().astype(np.int64))
        rows = np.searchsorted(keys, table[KEY].to_numpy())
        lengths[rows] = seen.counts
        ranges.append((name, rows, seen))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    columns = {column: np.empty(offsets[-1], np.int32) for column in sequence.keys}
    for name, rows, seen in ranges:
        events = read_block(folder, f"past-{name}")
        for few in _parts_of_size(seen.counts):
            rows_now = rows[few]
            places, own = Seen(seen.stops[few], seen.counts[few]).places()
            targets = np.arange(own[-1]) + np.repeat(offsets[:-1][rows_now] - own[:-1], seen.counts[few])
            for part, column in sequence.part_columns.items():
                columns[column][targets] = events[part].to_numpy()[places]
            if sequence.gap_column is None and sequence.dwell_column is None:
                continue
            ages = np.repeat(seconds[rows_now], seen.counts[few]) - events[EVENT_SECONDS].to_numpy()[places]
            if sequence.gap_column is not None:
                columns[sequence.gap_column][targets] = 1 + np.searchsorted(sequence.gaps, ages, side="right")
            if sequence.dwell_column is not None:
                assert sequence.history is not None
                dwell = events[EVENT_DWELL].to_numpy()[places]
                ids = np.where(sequence.history.knows_dwell(ages, dwell), dwell_ids(dwell), 0)
                columns[sequence.dwell_column][targets] = ids
    return {column: Ragged(values, offsets) for column, values in columns.items()}


def _parts_of_size(counts: Integers) -> Iterator[slice]:
    """Cut rows into slices of about ``_COPIED`` events, one row at least."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + _COPIED, side="right")), start + 1)
        yield slice(start, stop)
        start = stop
