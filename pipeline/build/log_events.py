"""Users and events of a log that is scored: they go to the exchange as those of a build do.

What comes behind is a build's own: ``pipeline.build.histories`` brings the events of a user together, and
``pipeline.build.user_events.histories_of`` says what a row sees of them.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from features.disk.dataset import SPLITS
from features.encode import Finisher, prepare, rule_holds
from features.learnt import Learnt
from features.raw_block import RawBlock, Wanted
from features.read.log_reader import wanted_of_features
from features.rows import Columns
from features.schema import FeatureSchema, SequenceFeature, SparseFeature
from features.values import seconds
from pipeline.build.exchange import KEY, SPLIT, row_numbers
from pipeline.build.user_events import built_sequences, histories_of, write_users

_SPLIT = SPLITS[0]
"""Split of all rows in the exchange; the key of a row is its number."""


def event_column(schema: FeatureSchema, sequence: SequenceFeature) -> str:
    """Return the raw column that tells which rows are events of a built history."""
    return (sequence.history_rule or schema.label_rule).column


def wanted_of_events(schema: FeatureSchema, optional: tuple[str, ...]) -> Wanted:
    """List the raw columns that tell users and events; a log to score may lack all but the features' own.

    Args:
        schema: the features.
        optional: columns of features that a file may lack.
    """
    histories = [sequence for sequence in schema.sequence if sequence.history is not None]
    own = {name for sequence in histories for name in sequence.raw_lists}
    others = {event_column(schema, sequence) for sequence in histories}
    others |= {name for one in histories if one.history is not None for name in one.history.columns}
    others |= {schema.timestamp.column} if schema.timestamp else set()
    as_text = {one.history.of for one in histories if one.history is not None}
    wanted = wanted_of_features(
        schema, tuple(dict.fromkeys([*schema.feature_columns, *sorted(others)])), frozenset(as_text)
    )
    needed = {c for f in schema.logged for c in f.columns} | {f.source for f in schema.dense}
    return replace(wanted, optional=frozenset({*optional, *own, *(others - needed)}))


def part_features(schema: FeatureSchema) -> tuple[SparseFeature, ...]:
    """List the features that events of built histories hold."""
    parts = {part for sequence in built_sequences(schema).values() for part in sequence.parts}
    return tuple(feature for feature in schema.sparse if feature.name in parts)


def part_finisher(schema: FeatureSchema, learnt: Learnt) -> Finisher:
    """Make what turns the values of events into ids."""
    return Finisher(schema, learnt, [feature.name for feature in part_features(schema)])


def write_log_users(
    folder: Path, name: str, schema: FeatureSchema, finisher: Finisher, raw: RawBlock, file_number: int
) -> None:
    """Write the tables of users and events of one block of a log; malformed rows are in none.

    Rows of a log that is scored are in no split, so they are events whatever ``history.splits`` says.

    Args:
        folder: folder of the exchange.
        name: name of the block.
        schema: the features.
        finisher: what ``part_finisher`` returns.
        raw: the block, with the columns of ``wanted_of_events``; of a column that is missing no row is an event.
        file_number: place of the file among all files.
    """
    time, label, features = schema.timestamp, schema.label_rule, part_features(schema)
    assert time is not None
    made = [sequence.name for sequence in built_sequences(schema).values()]
    needed = {feature.name for feature in features}
    prepared = prepare(schema, raw.columns, raw.lists, needed, made=made, repeats=raw.repeats)
    moments, _ = seconds(raw.columns[time.column], time.format, schema.values)
    clicked = np.zeros(len(raw), np.bool_)
    if label.column in raw.columns:
        clicked = rule_holds(label, raw.columns[label.column], schema.values)
    good = prepared.is_good
    prepared = replace(prepared, own={"timestamp": moments, "label": clicked.astype(np.float32)})
    raw, prepared = raw.take(good), prepared.take(good)
    rows = row_numbers(file_number, raw.offsets)
    encoded = {feature.name: finisher.ids(feature, prepared)[0] for feature in features}
    keys = {KEY: rows, SPLIT: np.zeros(len(raw), np.uint8)}
    write_users(folder, name, _without_splits(schema), raw, prepared, pa.table({**keys, **encoded}), rows)


def _without_splits(schema: FeatureSchema) -> FeatureSchema:
    """Let rows of all splits be events."""
    sequences = [
        one if one.history is None else replace(one, history=replace(one.history, splits=SPLITS))
        for one in schema.sequence
    ]
    return replace(schema, sequence=tuple(sequences))


def histories_of_block(
    folder: Path, names: Mapping[int, tuple[str, ...]], schema: FeatureSchema, raw: RawBlock, file_number: int
) -> Columns:
    """Collect the histories of a block's rows: column of the files -> its rows' ids, newest first.

    Args:
        folder: folder of the exchange.
        names: place of a sequence in the schema -> names of the ranges of its users.
        schema: the features.
        raw: the block.
        file_number: place of the file among all files.
    """
    time = schema.timestamp
    assert time is not None
    moments, _ = seconds(raw.columns[time.column], time.format, schema.values)
    keys, found = row_numbers(file_number, raw.offsets), {}
    for number, ranges in names.items():
        found |= histories_of(folder, ranges, schema.sequence[number], _SPLIT, keys, moments)
    return found
