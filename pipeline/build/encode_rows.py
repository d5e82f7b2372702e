"""Encode the rows of a log as far as one block of them allows, measure them, and hand them to the exchange.

Ids that need no learnt state are final here. A value with a vocabulary becomes a code, its place among the block's
tokens; a number with quantiles, or one that is standardised, stays a number until everything is learnt.
"""

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.disk.dataset import SPLITS
from features.encode import Coded, Finisher, Hashed, Listed, Prepared, prepare, squared_tokens, transformed_numbers
from features.hashing import SPARK_SEED, hash_slices, mixed, salt_seed
from features.learnt import Learnt
from features.ragged import Ragged
from features.raw_block import RawBlock, RejectedLine
from features.read.log_reader import LogReader
from features.read.portions import Portion, PortionEnd
from features.schema import FeatureSchema, QuantilesEncoding, SparseFeature
from features.values import loose_texts, seconds
from pipeline.build.cardinality import ValueSketch
from pipeline.build.counts import Codes, number_counts, token_counts
from pipeline.build.duplicates import key_table
from pipeline.build.exchange import KEY, SPLIT, keys_of_rows, row_numbers, sort_rows, split_row_numbers, write_block
from pipeline.build.measure import Sums, TimeSpan, add_up
from pipeline.build.moments import Moments
from pipeline.build.oddities import Signs
from pipeline.build.sources import SourceFile, log_reader
from pipeline.build.split import draws_of, kept_in_sample, split_of
from pipeline.build.user_events import write_users
from pipeline.config import HashSplit, PipelineConfig

MISSING_CODE = -1
"""Code of a missing value, and of padding."""
NUM_SHOWN_LINES = 3
"""Rejected lines of a portion that a message may show."""


@dataclass(frozen=True)
class EncodeWork:
    """Arguments of all tasks that read.

    Attributes:
        schema: the features.
        config: the build's config.
        folder: folder of the exchange.
        one_in: of so many rows one is in the sample that head shares come from.
    """

    schema: FeatureSchema
    config: PipelineConfig
    folder: str
    one_in: int

    @cached_property
    def reader(self) -> LogReader:
        """Reader of the logs."""
        return log_reader(self.config, self.schema)


@dataclass(frozen=True)
class PortionTask:
    """One portion of one file to read.

    Attributes:
        number: its place among all portions of the build.
        source: its file.
        portion: what to read.
        duplicates: offsets of rows in the file that are duplicates of earlier ones, rising.
    """

    number: int
    source: SourceFile
    portion: Portion
    duplicates: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass
class PortionResult:
    """Answer of a task that encodes a portion.

    Attributes:
        end: where the reading began and ended.
        blocks: names of its blocks in the exchange.
        sums: sums over its good rows.
        num_duplicates: duplicates left out.
        num_left_out: negatives left out by sampling.
        reasons: why lines were rejected -> how many.
        first: the first rejected lines.
        rejected: file of all rejected lines in the exchange; None: there are none.
        num_tokens: distinct tokens of all blocks, counted in each of them.
        absent: columns that the file lacks, or keys that no line of a block has.
        matched: path of a lookup's table -> rows whose key it has.
        signs: signs of something odd.
    """

    end: PortionEnd
    blocks: list[str] = field(default_factory=list)
    sums: Sums = field(default_factory=Sums)
    num_duplicates: int = 0
    num_left_out: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: list[RejectedLine] = field(default_factory=list)
    rejected: str | None = None
    num_tokens: int = 0
    absent: tuple[str, ...] = ()
    matched: Counter[str] = field(default_factory=Counter)
    signs: Signs = field(default_factory=Signs)


@dataclass
class KeyResult:
    """Answer of a task that reads keys.

    Attributes:
        end: where the reading began and ended.
        tables: names of its tables in the exchange.
        num_incomplete: rows that cannot be compared, because a part of their key is missing.
        matched: path of a lookup's table -> rows whose key it has.
    """

    end: PortionEnd
    tables: list[str] = field(default_factory=list)
    num_incomplete: int = 0
    matched: Counter[str] = field(default_factory=Counter)


def late_features(schema: FeatureSchema) -> dict[str, str]:
    """Map each feature of the log whose ids need learnt state to its encoding's kind."""
    kinds = ("vocabulary", "log_squared", "quantiles")
    return {f.name: f.encoding.kind for f in schema.logged if f.encoding.kind in kinds}


# ----------------------------------------------------------------------------------------------------------------- read


def _blocks(
    work: EncodeWork, task: PortionTask, matched: Counter[str]
) -> Iterator[tuple[RawBlock, Prepared] | PortionEnd]:
    """Read and check a portion: blocks of good rows, with their rejected lines; the portion's end comes last."""
    source = task.source
    file, has_lists = source.file, work.config.input.format.candidates is not None
    reading = work.reader.read(task.portion, source.wanted, source.lookups, file.partition, matched, name=file.absolute)
    for raw in reading:
        prepared = prepare(work.schema, raw.columns, raw.lists, with_own=True, repeats=raw.repeats)
        if work.config.input.times is not None:
            raw, prepared = _in_times(work.schema, raw, prepared, work.config.input.times)
        if prepared.reason is not None and (prepared.reason >= 0).any():
            if has_lists:
                prepared = _with_whole_lists(raw, prepared, prepared.reason)
            assert prepared.reason is not None
            bad = np.flatnonzero(prepared.reason >= 0)
            rejected = [raw.reject(row, prepared.reasons[prepared.reason[row]]) for row in bad.tolist()]
            raw, prepared = raw.take(prepared.is_good, rejected), prepared.take(prepared.is_good)
        yield raw, prepared
    yield reading.end


BESIDE_REJECTED = "another candidate of its list is no row"
"""Reason why a candidate is rejected that is no worse than others."""


def _with_whole_lists(raw: RawBlock, prepared: Prepared, reason: NDArray[np.int32]) -> Prepared:
    """Reject all candidates of the lists that have a rejected one: half a list says something else than all of it."""
    is_beside = np.isin(raw.numbers, raw.numbers[reason >= 0]) & (reason < 0)
    if not is_beside.any():
        return prepared
    reasons = [*prepared.reasons, BESIDE_REJECTED]
    return replace(prepared, reasons=reasons, reason=np.where(is_beside, np.int32(len(reasons) - 1), reason))


def _in_times(
    schema: FeatureSchema, raw: RawBlock, prepared: Prepared, times: tuple[int, int]
) -> tuple[RawBlock, Prepared]:
    """Keep the rows between two times; all others, and lines that are no rows, count nowhere."""
    time = schema.timestamp
    assert time is not None
    moments, is_time = seconds(raw.columns[time.column], time.format, schema.values)
    keep = is_time & (moments >= times[0]) & (moments < times[1])
    reason = None if prepared.reason is None else prepared.reason[keep]
    kept = replace(prepared.take(keep), reasons=prepared.reasons, reason=reason)
    return replace(raw.take(keep), rejected=[]), kept


def read_keys(work: EncodeWork, task: PortionTask) -> KeyResult:
    """Read what tells duplicates in a portion, into the exchange.

    Raises:
        LogError: the file cannot be read.
    """
    result = KeyResult(PortionEnd(0, 0, 0))
    for found in _blocks(work, task, result.matched):
        if isinstance(found, PortionEnd):
            result.end = found
            break
        raw, prepared = found
        table, incomplete = key_table(
            [loose_texts(raw.columns[name], work.schema.values) for name in work.config.dedupe],
            prepared.own.get("timestamp"),
            _line_hashes(raw, SPARK_SEED),
            row_numbers(task.source.number, raw.offsets),
        )
        result.tables.append(f"keys-{task.number}-{len(result.tables)}")
        write_block(Path(work.folder), result.tables[-1], table)
        result.num_incomplete += incomplete
    return result


def _line_hashes(raw: RawBlock, seed: int) -> NDArray[np.uint64]:
    return hash_slices(raw.lines.data, raw.lines.starts, raw.lines.lengths, seed)


# --------------------------------------------------------------------------------------------------------------- encode


def encode_portion(work: EncodeWork, task: PortionTask) -> PortionResult:
    """Read, encode and measure a portion; its rows go to the exchange.

    Raises:
        LogError: the file cannot be read.
    """
    folder = Path(work.folder)
    result = PortionResult(PortionEnd(0, 0, 0))
    sums, absent = [], None
    rejected = RejectedFile(folder, f"rejected-{task.number}", task.source.file.absolute)
    with rejected:
        for found in _blocks(work, task, result.matched):
            if isinstance(found, PortionEnd):
                result.end = found
                break
            raw, prepared = found
            absent = absent & set(raw.absent) if absent is not None else set(raw.absent)
            for line in raw.rejected:
                rejected.add(line)
                result.reasons[line.reason] += 1
            result.first += raw.rejected[: NUM_SHOWN_LINES - len(result.first)]
            if len(task.duplicates):
                keep = ~np.isin(raw.offsets, task.duplicates)
                result.num_duplicates += int((~keep).sum())
                raw, prepared = raw.take(keep), prepared.take(keep)
            if work.config.sample.negatives < 1:
                keep = _kept(work, task, raw, prepared)
                result.num_left_out += int((~keep).sum())
                raw, prepared = raw.take(keep), prepared.take(keep)
            if len(raw):
                name = f"{task.number}-{len(result.blocks)}"
                block = _Block(work, task, raw, prepared)
                result.num_tokens += block.write(folder, name)
                result.blocks.append(name)
                sums.append(block.measure())
                result.signs.look_at(work.schema, raw, block.groups, prepared.own.get("timestamp"))
    result.rejected = rejected.name
    result.absent = tuple(sorted(absent or ()))
    result.sums = add_up(sums)
    return result


def _splits(
    work: EncodeWork, task: PortionTask, raw: RawBlock, prepared: Prepared
) -> tuple[NDArray[np.uint8], pa.StringArray | None]:
    """Compute the splits of a block's rows, as places in ``SPLITS``; and the values of the split's column, if any."""
    rule, share, groups = work.config.split, None, None
    if isinstance(rule, HashSplit):
        own = _line_hashes(raw, salt_seed(rule.salt))
        if rule.column is not None:
            groups = loose_texts(raw.columns[rule.column], work.schema.values)
        share = draws_of(rule.salt, groups, own)
    return split_of(work.config, task.source.split, prepared.own.get("timestamp"), share, len(raw)), groups


def _kept(work: EncodeWork, task: PortionTask, raw: RawBlock, prepared: Prepared) -> NDArray[np.bool_]:
    """Find the rows that stay when negatives of the training split are sampled."""
    splits, _ = _splits(work, task, raw, prepared)
    droppable = (splits == SPLITS.index("train")) & (prepared.own["label"] == 0)
    hashes = _line_hashes(raw, salt_seed(work.config.sample.salt))
    return kept_in_sample(work.config.sample, hashes, raw.offsets, droppable)


class RejectedFile:
    """File of rejected lines in the exchange, made with the first of them; complete or not there."""

    def __init__(self, folder: Path, name: str, log: str) -> None:
        self._path, self._log = folder / name, log
        self._temporary = folder / f".{name}.{uuid.uuid4().hex}"
        self._file: Any = None
        self.name: str | None = None

    def __enter__(self) -> "RejectedFile":
        return self

    def add(self, line: RejectedLine) -> None:
        """Write one line."""
        if self._file is None:
            self._file = self._temporary.open("w", encoding="utf-8")
            self.name = self._path.name
        entry = {"file": self._log, "number": line.number, "line": line.text, "reason": line.reason}
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._file is not None:
            self._file.close()
            if error is None:
                os.replace(self._temporary, self._path)
            else:
                self._temporary.unlink(missing_ok=True)


class _Block:
    """One block of good rows on its way to the exchange."""

    def __init__(self, work: EncodeWork, task: PortionTask, raw: RawBlock, prepared: Prepared) -> None:
        self._schema, self._work, self._raw, self._prepared = work.schema, work, raw, prepared
        self._rows = row_numbers(task.source.number, raw.offsets)
        self._keys = keys_of_rows(self._rows)
        self._splits, self.groups = _splits(work, task, raw, prepared)
        self._coded = {
            **prepared.coded,
            **{name: _squares(prepared, name) for name in self._named("log_squared")},
        }

    def _named(self, kind: str) -> list[str]:
        return [f.name for f in self._schema.logged if f.encoding.kind == kind]

    def write(self, folder: Path, name: str) -> int:
        """Write the block's rows, and counts of its tokens and numbers; return the number of distinct tokens."""
        table = self._table()
        write_block(folder, name, sort_rows(table))
        write_users(folder, name, self._schema, self._raw, self._prepared, table, self._rows)
        num_tokens = 0
        numbers = {f.name: n for n, f in enumerate(self._schema.id_features)}
        if self._coded:
            tokens = token_counts(
                {
                    numbers[feature]: Codes(part.codes, part.tokens, self._splits_of_values(part.lengths))
                    for feature, part in self._coded.items()
                }
            )
            write_block(folder, f"tokens-{name}", tokens)
            num_tokens = len(tokens)
        if quantiles := self._named("quantiles"):
            values = {numbers[feature]: (self._prepared.numbers[feature], self._splits) for feature in quantiles}
            write_block(folder, f"numbers-{name}", number_counts(values))
        return num_tokens

    def _splits_of_values(self, lengths: NDArray[np.int64] | None) -> NDArray[np.uint8]:
        return self._splits if lengths is None else np.repeat(self._splits, lengths)

    def _table(self) -> pa.Table:
        prepared, schema = self._prepared, self._schema
        late = late_features(schema)
        early = Finisher(schema, Learnt(), [f.name for f in schema.logged if f.name not in late])
        columns: dict[str, Any] = {KEY: self._keys, SPLIT: self._splits}
        for feature in schema.logged:
            if feature.name in self._coded:
                part = self._coded[feature.name]
                lengths = (
                    np.ones(prepared.num_rows, np.int32) if part.lengths is None else part.lengths.astype(np.int32)
                )
                columns |= feature.kind.to_columns(part.codes, lengths, feature, padding=MISSING_CODE)
            elif isinstance(feature.encoding, QuantilesEncoding):
                columns[feature.name] = prepared.numbers[feature.name]
            else:
                columns |= feature.kind.to_columns(*early.ids(feature, prepared), feature)
        for dense in schema.dense:
            values = transformed_numbers(dense, prepared.numbers[dense.name])
            columns[dense.name] = values if dense.standardise else values.astype(np.float32)
        columns |= prepared.own
        arrays = {name: as_column(values) for name, values in columns.items()}
        return pa.table({**arrays, **prepared.carried})

    def measure(self) -> Sums:
        """Sum the block's rows up."""
        sums, prepared = Sums(), self._prepared
        sampled = self._keys < np.uint64((1 << 64) // self._work.one_in) if self._work.one_in > 1 else None
        for code in np.unique(self._splits).tolist():
            split, own = SPLITS[code], self._splits == code
            part = prepared if own.all() else prepared.take(own)
            in_sample = np.ones(part.num_rows, bool) if sampled is None else sampled[own]
            sums.rows[split] = part.num_rows
            sums.labels[split] = float(part.own["label"].sum(dtype=np.float64))
            if (times := part.own.get("timestamp")) is not None:
                sums.times[split] = TimeSpan(int(times.min()), int(times.max()))
            for feature in self._schema.sparse:
                self._measure_sparse(sums, split, feature, part, in_sample)
            for sequence in self._schema.sequence:
                if sequence.history is None:
                    dropped = _dropped(part, sequence.keys[0])
                    sums.truncated[split, sequence.name] = 0 if dropped is None else int(dropped.sum())
            for dense in self._schema.dense:
                values = part.numbers[dense.name]
                sums.dense[split, dense.name] = Moments.of(values[~np.isnan(values)])
                if split == "train" and dense.standardise:
                    sums.transformed[dense.name] = Moments.of(transformed_numbers(dense, values))
        return sums

    def _measure_sparse(
        self, sums: Sums, split: str, feature: SparseFeature, part: Prepared, sampled: NDArray[np.bool_]
    ) -> None:
        name = feature.name
        if feature.encoding.kind == "vocabulary":
            coded = part.coded[name]
            missing = coded.texts.null_count if coded.lengths is None else (coded.lengths == 0).sum()
            sums.missing[split, name] = int(missing)
        else:
            hashes, lengths, is_missing = _hashes(part, name)
            if lengths is None:
                hashes, sampled = (hashes[~is_missing], sampled[~is_missing]) if is_missing.any() else (hashes, sampled)
            else:
                sampled = np.repeat(sampled, lengths)
            sums.sketches[split, name] = ValueSketch.of(hashes, sampled, int(is_missing.sum()))
        dropped = _dropped(part, name)
        if dropped is not None:
            sums.truncated[split, name] = int(dropped.sum())


def _hashes(part: Prepared, name: str) -> tuple[NDArray[np.uint64], NDArray[np.int64] | None, NDArray[np.bool_]]:
    """Hashes of a feature's values, their number in each row (None: one), and the rows without a value."""
    if name in part.hashed:
        found = part.hashed[name]
        missing = found.is_missing if found.lengths is None else found.lengths == 0
        return found.hashes, found.lengths, np.zeros(part.num_rows, bool) if missing is None else missing
    values = part.numbers[name]
    return mixed((values + 0.0).view(np.uint64), SPARK_SEED), None, np.isnan(values)


def _dropped(part: Prepared, name: str) -> NDArray[np.int64] | None:
    found: Hashed | Coded | Listed | None = part.hashed.get(name) or part.coded.get(name) or part.listed.get(name)
    return None if found is None else found.dropped


def _squares(prepared: Prepared, name: str) -> Coded:
    """Tokens of the Criteo rule; a missing number has none."""
    listed = prepared.listed.get(name)
    values = prepared.numbers[name] if listed is None else listed.values
    tokens = pa.array(squared_tokens(values), mask=np.isnan(values)).cast(pa.string())
    return Coded(tokens) if listed is None else Coded(tokens, listed.lengths, listed.dropped)


def as_column(values: NDArray[Any] | Ragged) -> pa.Array:
    """Convert (n,) values, (n, width) as lists of one length, or ragged rows as lists, to an Arrow array."""
    if isinstance(values, Ragged):
        return values.to_arrow()
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def duplicates_of(rows: NDArray[np.uint64]) -> Mapping[int, NDArray[np.int64]]:
    """Group the numbers of duplicate rows by file: number of the file -> offsets, rising."""
    files, offsets = split_row_numbers(np.sort(rows))
    return {int(number): offsets[files == number] for number in np.unique(files)}
