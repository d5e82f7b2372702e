"""Finish rows once everything is learnt, and write them: the tasks behind the exchange."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.arrow import pc
from features.disk.dataset import DataFile
from features.encode import Finisher, Prepared
from features.kinds import MISSING_ID
from features.learnt import Learnt
from features.ragged import Ragged
from features.schema import VOCABULARY_KINDS, FeatureSchema, SparseFeature
from pipeline.build.counts import (
    CODE,
    FEATURE,
    NUMBER,
    TEXT,
    ValueCounts,
    merge_counts,
    sum_counts,
    tokens_to_keep,
)
from pipeline.build.duplicates import later_rows
from pipeline.build.encode_rows import as_column, late_features
from pipeline.build.exchange import KEY, SPLIT, concat_sorted, read_block, rows_between, write_block
from pipeline.build.learn import known_tokens, least_counts, table_owners
from pipeline.build.user_events import histories_of
from pipeline.build.write import FileTask, describe_file, write_table
from pipeline.config import WriteConfig

# --------------------------------------------------------------------------------------------------------------- merge


@dataclass(frozen=True)
class MergeWork:
    """Arguments of all tasks that add counts up.

    Attributes:
        schema: the features.
        base: learnt state of the base dataset.
        folder: folder of the exchange.
        blocks: names of all blocks.
    """

    schema: FeatureSchema
    base: Learnt | None
    folder: str
    blocks: tuple[str, ...]


def merge_tokens(work: MergeWork, hashes: tuple[int, int]) -> tuple[str, dict[tuple[str, int], ValueCounts]]:
    """Add up the counts of the tokens whose hashes lie in some ranges.

    Returns:
        Name of the table of the tokens that may get an id, in the exchange, and the sums over all tokens.
    """
    folder = Path(work.folder)
    merged = merge_counts((read_block(folder, f"tokens-{name}") for name in work.blocks), TEXT, *hashes)
    kept = tokens_to_keep(
        merged, table_owners(work.schema), least_counts(work.schema), known_tokens(work.schema, work.base)
    )
    name = f"kept-{hashes[0]}"
    write_block(folder, name, kept.combine_chunks())
    return name, sum_counts(merged)


def merge_numbers(work: MergeWork, hashes: tuple[int, int]) -> str:
    """Add up the counts of the numbers whose hashes lie in some ranges; return the table's name in the exchange."""
    folder = Path(work.folder)
    merged = merge_counts((read_block(folder, f"numbers-{name}") for name in work.blocks), NUMBER, *hashes)
    name = f"values-{hashes[0]}"
    write_block(folder, name, merged.combine_chunks())
    return name


def merge_keys(folder: str, names: Sequence[str], hashes: tuple[int, int]) -> NDArray[np.uint64]:
    """List the rows whose keys lie between two hashes and that are duplicates of an earlier one."""
    return later_rows((read_block(Path(folder), name) for name in names), *hashes)


# -------------------------------------------------------------------------------------------------------------- number


@dataclass(frozen=True)
class FinishWork:
    """Arguments of all tasks that finish rows.

    Attributes:
        schema: the features.
        learnt: folder of what was learnt.
        folder: folder of the exchange.
        version: folder of the dataset's version.
        blocks: names of all blocks.
        config: shape of the files.
        histories: place of a built sequence in the schema -> names of the ranges of its users in the exchange.
    """

    schema: FeatureSchema
    learnt: str
    folder: str
    version: str
    blocks: tuple[str, ...]
    config: WriteConfig
    histories: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    @property
    def coded(self) -> tuple[SparseFeature, ...]:
        """Features whose values are codes in the exchange."""
        return tuple(f for f in self.schema.logged if f.encoding.kind in VOCABULARY_KINDS)


@cache
def _vocabulary(folder: str, name: str) -> tuple[pa.Array, NDArray[np.int32]]:
    """Vocabulary of a feature as tokens, and the id of each, with that of unknown ones behind the last."""
    table = read_block(Path(folder), f"ids-of-{name}")
    return table["token"].combine_chunks(), table["id"].to_numpy()


def write_vocabularies(folder: Path, learnt: Learnt) -> None:
    """Write the vocabularies as tables of tokens and ids into the exchange; the last token stands for unknown ones."""
    for name in learnt.vocabularies:
        ids = learnt.ids_of(name)
        tokens = pa.array([*ids, ""], pa.string())
        write_block(folder, f"ids-of-{name}", pa.table({"token": tokens, "id": [*ids.values(), learnt.oov_id(name)]}))


def number_codes(work: FinishWork, block: str) -> None:
    """Look the tokens of a block up: a table of ids by code goes to the exchange, one for each feature."""
    folder = Path(work.folder)
    counts = read_block(folder, f"tokens-{block}")
    features, codes = counts[FEATURE].to_numpy(), counts[CODE].to_numpy()
    numbers = {feature.name: number for number, feature in enumerate(work.schema.id_features)}
    ids: list[NDArray[np.int32]] = []
    for feature in work.coded:
        tokens, known = _vocabulary(work.folder, feature.learnt_name)
        own = np.flatnonzero(features == numbers[feature.name])
        places = pc.index_in(
            counts[TEXT].take(pa.array(own)).combine_chunks(), value_set=tokens.slice(0, len(tokens) - 1)
        )
        found = np.empty(len(own) + 1, np.int32)
        found[codes[own]] = known[places.fill_null(len(known) - 1).to_numpy(zero_copy_only=False)]
        found[-1] = known[-1]  # code -1, a missing value
        ids.append(found)
    offsets = np.cumsum([0, *map(len, ids)])
    values = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.concatenate(ids)))
    write_block(folder, f"ids-{block}", pa.table({"ids": values}))


# --------------------------------------------------------------------------------------------------------------- write


class WrittenFile(NamedTuple):
    """A file that was written, with counts that only its rows tell.

    Attributes:
        split: its split.
        file: its description.
        unknown: column of a sequence with a vocabulary -> its ids that are out of it.
        dwell: sequence with dwell weights -> its events by the id of their dwell time, from 0.
    """

    split: str
    file: DataFile
    unknown: dict[str, int]
    dwell: dict[str, tuple[int, ...]]


def write_file(work: FinishWork, task: FileTask) -> WrittenFile:
    """Write one file of a split: its rows from all blocks, in the order of their keys."""
    folder, version = Path(work.folder), Path(work.version)
    parts = []
    for name in work.blocks:
        rows = rows_between(read_block(folder, name), task.split, task.first_key, task.end_key)
        if len(rows):
            parts.append(with_ids(work, name, rows))
    table, order = concat_sorted(parts)
    finished = _finish(work, table.drop_columns([KEY, SPLIT])).take(pa.array(order))
    if work.histories:
        finished = _with_histories(work, task.split, finished, table[KEY].to_numpy()[order])
    path = version / task.split / f"part-{task.number:05d}.parquet"
    path.parent.mkdir(exist_ok=True)
    groups = write_table(finished, path, work.config)
    file = describe_file(path, version, groups)
    return WrittenFile(task.split, file, _count_unknown(work, finished), _count_dwell(work, finished))


def _count_unknown(work: FinishWork, rows: pa.Table) -> dict[str, int]:
    """Count the events out of their vocabulary, by column."""
    found = {}
    for part in work.schema.parts:
        if part.encoding.kind in VOCABULARY_KINDS:
            _, known = _vocabulary(work.folder, part.learnt_name)
            ids = Ragged.of_arrow(rows[part.name].combine_chunks()).flat
            found[part.name] = int(np.count_nonzero(ids == known[-1]))
    return found


def _count_dwell(work: FinishWork, rows: pa.Table) -> dict[str, tuple[int, ...]]:
    """Count the events of each dwell time's id, by sequence."""
    parts = [part for part in work.schema.parts if part.is_dwell]
    flat = {part.sequence: Ragged.of_arrow(rows[part.name].combine_chunks()).flat for part in parts}
    return {name: tuple(np.bincount(ids).tolist()) for name, ids in flat.items()}


def _with_histories(work: FinishWork, split: str, rows: pa.Table, keys: NDArray[np.uint64]) -> pa.Table:
    """Put the columns of built histories beside the others of a file, in the files' order."""
    columns = dict(zip(rows.column_names, rows.columns, strict=True))
    seconds = rows["timestamp"].to_numpy()
    for number, names in work.histories.items():
        found = histories_of(Path(work.folder), names, work.schema.sequence[number], split, keys, seconds)
        columns |= {name: lists.to_arrow() for name, lists in found.items()}
    features = [column.name for column in work.schema.columns]
    return pa.table({name: columns[name] for name in dict.fromkeys([*features, *columns])})


def with_ids(work: FinishWork, block: str, rows: pa.Table) -> pa.Table:
    """Turn the codes of a block's rows into ids; a feature whose column is not there is left out."""
    if not work.coded:
        return rows
    lists = read_block(Path(work.folder), f"ids-{block}")["ids"].chunk(0)
    columns = dict(zip(rows.column_names, rows.columns, strict=True))
    for place, feature in enumerate(work.coded):
        if feature.name not in columns:
            continue
        ids = lists[place].values.to_numpy()
        columns[feature.name] = as_column(_ids_of_codes(rows[feature.name].combine_chunks(), ids))
    return pa.table(columns)


def _ids_of_codes(codes: pa.Array, ids: NDArray[np.int32]) -> NDArray[np.int32] | Ragged:
    """Look codes up; code -1 is a missing value, which has the last id, or padding of lists of one length."""
    if pa.types.is_list(codes.type):
        rows = Ragged.of_arrow(codes)
        return Ragged.of(ids[rows.flat], rows.lengths)
    if not pa.types.is_fixed_size_list(codes.type):
        return ids[codes.to_numpy()]
    flat = codes.flatten().to_numpy()
    return np.where(flat < 0, MISSING_ID, ids[flat]).reshape(len(codes), codes.type.list_size)


def _finish(work: FinishWork, table: pa.Table) -> pa.Table:
    """Turn numbers that waited for learnt state into ids and floats; put the columns into the files' order."""
    late = [name for name, kind in late_features(work.schema).items() if kind == "quantiles"]
    standardised = [feature for feature in work.schema.dense if feature.standardise]
    # Not set_column: it copies the list of columns, and 600 of them are no rare schema.
    columns = dict(zip(table.column_names, table.columns, strict=True))
    if late or standardised:
        finisher = Finisher(work.schema, _load_learnt(work.learnt, work.schema), late)
        for feature in work.schema.sparse:
            if feature.name in late:
                prepared = Prepared(len(table), numbers={feature.name: table[feature.name].to_numpy()})
                columns[feature.name] = pa.array(finisher.ids(feature, prepared)[0])
        for feature in standardised:
            values = finisher.standardised(feature, columns[feature.name].to_numpy())
            columns[feature.name] = pa.array(values.astype(np.float32))
    return pa.table(columns)


@cache
def _load_learnt(folder: str, schema: FeatureSchema) -> Learnt:
    return Learnt.load(Path(folder), schema)
