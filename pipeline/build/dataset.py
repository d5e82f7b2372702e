"""Build a dataset, step by step: read, learn, write, commit.

Spark hands out the work, and tries it again where an executor dies. What a task does to rows is in
``pipeline.build.encode_rows`` and ``pipeline.build.write_rows``; what follows from their answers is here.
"""

import dataclasses
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession

from features.disk.atomic import is_full
from features.disk.dataset import (
    DataFile,
    DatasetError,
    DatasetManifest,
    FeatureStatistics,
    Histories,
    Lists,
    Rejected,
    Sampled,
    Split,
)
from features.disk.object_store import ObjectPath
from features.disk.place import locate
from features.disk.user_histories import USER_HISTORIES_NAME, UserHistories, fetch_histories, write_histories
from features.dwell import add_counts
from features.learnt import Learnt
from features.log_files import STORE
from features.schema import VOCABULARY_KINDS, FeatureSchema
from pipeline.build.counts import NUM_HASH_RANGES, ValueCounts
from pipeline.build.encode_rows import (
    EncodeWork,
    PortionResult,
    PortionTask,
    duplicates_of,
    encode_portion,
    late_features,
    read_keys,
)
from pipeline.build.exchange import key_borders, read_block
from pipeline.build.histories import (
    HistoryWork,
    describe_history,
    history_tasks,
    make_histories,
    task_names,
    write_state,
)
from pipeline.build.learn import count_known, fit_learnt, rounded
from pipeline.build.measure import Sums, add_up, dense_statistics, sparse_statistics, splits_of
from pipeline.build.oddities import Signs, tell_oddities
from pipeline.build.portions import (
    REJECTED_LINES,
    describe_absent,
    fetch_file,
    hash_ranges,
    plan_tasks,
    read_all,
    whole_texts,
    write_rejected,
)
from pipeline.build.quality import add_lists, check_rejected, enforce_limits
from pipeline.build.sources import InputPlan, SourceFile, sample_step
from pipeline.build.user_events import built_sequences
from pipeline.build.write import (
    FileTask,
    commit,
    commit_to_store,
    id_chunks,
    max_ids,
    new_version,
    num_files,
    sequence_statistics,
    staging,
)
from pipeline.build.write_rows import (
    FinishWork,
    MergeWork,
    merge_keys,
    merge_numbers,
    merge_tokens,
    number_codes,
    write_file,
    write_vocabularies,
)
from pipeline.config import PipelineConfig, WriteConfig
from pipeline.session import SPARK_ERRORS, explain
from pipeline.tasks import TaskError, run_tasks

T = TypeVar("T")
_Answer = TypeVar("_Answer")

_TOKENS_A_TASK = 2_000_000
"""Distinct tokens of all blocks that one task adds up."""
EXCHANGE_NAME = "exchange"
"""Folder of the exchange inside a version, gone before the commit."""
LEARNT_FOLDER, REJECTED_FOLDER = "learnt", "rejected"
"""Folders inside a version: what was learnt, and the lines that are no rows."""
_KEYS_A_TASK = 5_000_000
"""Keys that one task compares, about."""


def build_dataset(
    spark: SparkSession, schema: FeatureSchema, pipeline: PipelineConfig, resolved: dict[str, Any], plan: InputPlan
) -> tuple[DatasetManifest, list[str]]:
    """Build one dataset and commit it; until then the old one stays as it is.

    Args:
        spark: a session.
        schema: what to make of the raw columns.
        pipeline: everything else.
        resolved: the whole config tree, for the manifest.
        plan: what to read.

    Returns:
        The manifest, and warnings for a person.

    Raises:
        LogError, DatasetError, LearntError, StorageError: one sentence about what is wrong with the input, the base or
            the output.
    """
    output = locate(pipeline.output)
    folder = _staging(spark, output, pipeline.write) if isinstance(output, ObjectPath) else output.absolute()
    try:
        with new_version(folder) as version:
            manifest, warnings = _Build(spark, schema, pipeline, resolved, plan, version).run()
            if isinstance(output, ObjectPath):
                warnings += commit_to_store(output, version, manifest)
            else:
                commit(output, version, manifest)
    except TaskError as error:
        raise DatasetError(str(error)) from error
    except SPARK_ERRORS as error:
        raise DatasetError(explain(error, folder)) from error
    except OSError as error:
        if is_full(error):
            raise DatasetError(explain(error, folder)) from error
        raise
    return manifest, warnings


def _staging(spark: SparkSession, output: ObjectPath, config: WriteConfig) -> Path:
    if config.staging is None and not str(spark.sparkContext.master).startswith("local"):
        raise DatasetError(
            f"{output} is written by way of a folder that all executors see: name one as pipeline.write.staging"
        )
    return staging(output, config.staging)


class _Build:
    """One build, whose methods are its steps."""

    def __init__(
        self,
        spark: SparkSession,
        schema: FeatureSchema,
        pipeline: PipelineConfig,
        resolved: dict[str, Any],
        plan: InputPlan,
        version: Path,
    ) -> None:
        self.spark, self.schema, self.pipeline, self.resolved = spark, schema, pipeline, resolved
        self.plan, self.version = plan, version
        self.exchange = version / EXCHANGE_NAME
        self.warnings = plan.notes()
        self.unknown: dict[str, Counter[str]] = defaultdict(Counter)
        self.dwell: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)

    def run(self) -> tuple[DatasetManifest, list[str]]:
        """Take all steps; return the manifest, and warnings for a person."""
        self.exchange.mkdir()
        base = load_base(self.pipeline.base, self.schema)  # under the output's lock: it may be the output
        tasks = plan_tasks(self._files(), self.pipeline.input.format, self.pipeline.spark.max_partition_bytes)
        work = EncodeWork(
            self.schema,
            self.pipeline,
            str(self.exchange),
            sample_step(self.plan, self.pipeline.input.format),
        )
        if self.pipeline.dedupe:
            tasks = self._mark_duplicates(work, tasks)
        results = self._read(work, tasks)
        self.warnings += describe_absent(tasks, results, self.plan, self.pipeline.input.format)
        total = add_up(result.sums for result in results)
        num_rejected = check_rejected(tasks, results, total, self.schema, self.pipeline.quality)
        blocks = tuple(name for result in results for name in result.blocks)
        learnt, counts, known = self._learn(base, blocks, results, total)
        statistics = {
            split: sparse_statistics(total, counts, known, self.schema, learnt, split) for split in splits_of(total)
        }
        self.warnings += enforce_limits(statistics["train"], self.pipeline.quality)
        self._tell_oddities(tasks, results, total, statistics)
        work = self._number(blocks, learnt)
        work, histories = self._histories(work, total)
        files = self._write(work, total)
        if num_rejected:
            write_rejected(self.exchange, self.version / REJECTED_FOLDER, tasks, results)
        shutil.rmtree(self.exchange)
        manifest = self._describe(results, total, learnt, statistics, files, histories)
        self._account(manifest)
        manifest.check_ids(learnt)
        warnings = self.warnings + self._missing_splits(manifest)
        return dataclasses.replace(manifest, warnings=tuple(warnings)), warnings

    def _files(self) -> list[SourceFile]:
        """All files where tasks can read them: those of an object store are copied into the exchange."""
        files = list(self.plan.files)
        stored = [place for place, source in enumerate(files) if source.file.real.startswith(STORE)]
        fetched = self._tasks(partial(fetch_file, str(self.exchange)), [files[place] for place in stored], "fetch")
        for place, source in zip(stored, fetched, strict=True):
            files[place] = source
        return files

    def _tasks(self, act: Callable[[T], _Answer], items: Sequence[T], title: str) -> list[_Answer]:
        return run_tasks(self.spark, act, items, self.version, title)

    def _mark_duplicates(self, work: EncodeWork, tasks: list[PortionTask]) -> list[PortionTask]:
        """Find the rows whose key an earlier row has; the tasks will leave them out."""
        found = read_all(tasks, lambda todo: self._tasks(partial(read_keys, work), todo, "compare"))
        names = [name for keys in found for name in keys.tables]
        size = max(sum(read_block(self.exchange, name).num_rows for name in names) // _KEYS_A_TASK, 1)
        merge = partial(merge_keys, work.folder, names)
        rows = self._tasks(merge, hash_ranges(size, 1 << 64), "compare")
        duplicates = duplicates_of(np.concatenate(rows))
        incomplete = sum(keys.num_incomplete for keys in found)
        if incomplete:
            columns = ", ".join(self.pipeline.dedupe)
            self.warnings.append(
                f"{incomplete:,} rows lack a part of their key (pipeline.dedupe = {columns}): they could not be "
                "compared and are kept"
            )
        for name in names:
            (self.exchange / f"{name}.arrow").unlink()
        none = np.empty(0, np.int64)
        return [dataclasses.replace(task, duplicates=duplicates.get(task.source.number, none)) for task in tasks]

    def _read(self, work: EncodeWork, tasks: list[PortionTask]) -> list[PortionResult]:
        return read_all(tasks, lambda todo: self._tasks(partial(encode_portion, work), todo, "read"))

    def _learn(
        self, base: Learnt | None, blocks: tuple[str, ...], results: Sequence[PortionResult], total: Sums
    ) -> tuple[Learnt, dict[tuple[str, int], ValueCounts], dict[tuple[str, int], int]]:
        """Learn from the counts of the blocks, and save it.

        Returns:
            What was learnt, the sums over tokens, and how many values of each split and feature have a known token.
        """
        work = MergeWork(self.schema, base, str(self.exchange), blocks)
        kinds = set(late_features(self.schema).values())
        tokens, numbers, counts = None, None, {}
        if blocks and kinds & set(VOCABULARY_KINDS):
            ranges = hash_ranges(sum(r.num_tokens for r in results) // _TOKENS_A_TASK + 1, NUM_HASH_RANGES)
            merged = self._tasks(partial(merge_tokens, work), ranges, "count")
            tokens = pa.concat_tables([read_block(self.exchange, name) for name, _ in merged])
            for _, sums in merged:
                for key, values in sums.items():
                    counts[key] = counts.get(key, ValueCounts()) + values
        if blocks and "quantiles" in kinds:
            ranges = hash_ranges(total.rows.get("train", 0) // _TOKENS_A_TASK + 1, NUM_HASH_RANGES)
            merged_names = self._tasks(partial(merge_numbers, work), ranges, "count")
            numbers = pa.concat_tables([read_block(self.exchange, name) for name in merged_names])
        learnt = fit_learnt(self.schema, tokens, numbers, total.transformed, base)
        learnt.save(self.version / LEARNT_FOLDER)
        return learnt, counts, {} if tokens is None else count_known(self.schema, tokens, learnt)

    def _tell_oddities(
        self,
        tasks: Sequence[PortionTask],
        results: Sequence[PortionResult],
        total: Sums,
        statistics: dict[str, dict[str, FeatureStatistics]],
    ) -> None:
        matched: Counter[str] = Counter({path: 0 for source in self.plan.files for path in source.lookups})
        rows: Counter[str] = Counter()
        rejected: Counter[str] = Counter()
        for task, result in zip(tasks, results, strict=True):
            matched.update(result.matched)
            rows[task.source.file.absolute] += (
                sum(result.sums.rows.values()) + result.num_duplicates + result.num_left_out
            )
            rejected[task.source.file.absolute] += sum(result.reasons.values())
        nothing = [file for file, count in rejected.items() if count and not rows[file]]
        signs = sum((result.signs for result in results), Signs())
        unsplit = whole_texts(tasks, self.pipeline.input.format)
        left_out = _num_left_out(results)
        self.warnings += tell_oddities(
            self.schema, self.pipeline, total, left_out, signs, statistics, matched, nothing, unsplit
        )

    def _number(self, blocks: tuple[str, ...], learnt: Learnt) -> FinishWork:
        """Look every code up, and say what the tasks that write need."""
        saved = str(self.version / LEARNT_FOLDER)
        work = FinishWork(self.schema, saved, str(self.exchange), str(self.version), blocks, self.pipeline.write)
        if work.coded:
            write_vocabularies(self.exchange, learnt)
            self._tasks(partial(number_codes, work), blocks, "look up")
        return work

    def _histories(self, finish: FinishWork, total: Sums) -> tuple[FinishWork, Histories | None]:
        """Make the histories of the schema, and write the events that the next build needs."""
        sequences = built_sequences(self.schema)
        if not sequences:
            return finish, None
        base = self._base_histories()
        newest = max([base.newest if base else 0, *(span.newest for span in total.times.values())])
        came_before = str(base.path) if base else None
        work = HistoryWork(finish.folder, self.schema, finish.blocks, came_before, newest, finish)
        num_rows = sum(total.rows.values()) + (base.num_events if base else 0)
        tasks = history_tasks(self.schema, num_rows)
        counts = self._tasks(partial(make_histories, work), tasks, "histories")
        described = {}
        with write_histories(self.version / USER_HISTORIES_NAME, self.schema, newest) as writer:
            for number, sequence in sequences.items():
                own = [task for task in tasks if task.number == number]
                write_state(writer, self.exchange, sequence, own)
                of_sequence = [count for task, count in zip(tasks, counts, strict=True) if task.number == number]
                described[sequence.name] = describe_history(sequence, of_sequence)
        path = f"{self.version.name}/{USER_HISTORIES_NAME}"
        return dataclasses.replace(finish, histories=task_names(tasks)), Histories(path, described)

    def _base_histories(self) -> UserHistories | None:
        """Open the events that the base has left."""
        if self.pipeline.base is None:
            return None
        return fetch_histories(DatasetManifest.load(self.pipeline.base), self.pipeline.base, self.exchange)

    def _write(self, work: FinishWork, total: Sums) -> dict[str, tuple[DataFile, ...]]:
        """Write the files; ``self.unknown`` and ``self.dwell`` have counts of their events."""
        tasks = []
        for split in splits_of(total):
            rows = total.rows[split]
            borders = key_borders(self.exchange, work.blocks, split, rows, num_files(rows, self.pipeline.write))
            tasks += [FileTask(split, number, *keys) for number, keys in enumerate(pairwise(borders))]
        files: dict[str, list[DataFile]] = {split: [] for split in splits_of(total)}
        for one in self._tasks(partial(write_file, work), tasks, "write"):
            files[one.split].append(one.file)
            self.unknown[one.split].update(one.unknown)
            for sequence, counts in one.dwell.items():
                before = self.dwell[one.split].get(sequence, ())
                self.dwell[one.split][sequence] = add_counts(before, counts)
        for split, rows in total.rows.items():
            found = sum(file.num_rows for file in files[split])
            if found != rows:
                raise DatasetError(f"split {split!r} has {found} rows in its files where {rows} were counted")
        return {split: tuple(found) for split, found in files.items()}

    def _describe(
        self,
        results: Sequence[PortionResult],
        total: Sums,
        learnt: Learnt,
        statistics: dict[str, dict[str, FeatureStatistics]],
        files: dict[str, tuple[DataFile, ...]],
        histories: Histories | None,
    ) -> DatasetManifest:
        splits = {}
        for name, of_split in files.items():
            chunks = id_chunks(self.version.parent, of_split, self.schema)
            largest = max_ids(chunks, self.schema)
            sparse = {n: dataclasses.replace(s, max_id=largest[n]) for n, s in statistics[name].items()}
            rate = rounded(total.labels[name] / total.rows[name])
            truncated = {s.name: total.truncated.get((name, s.name), 0) for s in self.schema.sequence}
            unknown = self.unknown[name]
            own = largest, truncated, unknown, self.dwell[name]
            sequences = sequence_statistics(chunks, total.rows[name], self.schema, *own)
            splits[name] = Split(of_split, rate, sparse, dense_statistics(total, self.schema, name), sequences)
        reasons = sum((result.reasons for result in results), Counter())
        num_rejected, num_duplicates = sum(reasons.values()), sum(result.num_duplicates for result in results)
        num_left_out, rate = _num_left_out(results), self.pipeline.sample.negatives
        lists = add_lists(results) if self.pipeline.input.times is None else None
        return DatasetManifest(
            schema=self.schema,
            schema_fingerprint=self.schema.fingerprint,
            learnt_fingerprint=learnt.fingerprint,
            learnt_path=f"{self.version.name}/{LEARNT_FOLDER}",
            splits=splits,
            rejected=Rejected(
                num_rejected,
                dict(sorted(reasons.items())),
                f"{self.version.name}/{REJECTED_FOLDER}" if num_rejected else None,
            ),
            num_input_rows=sum(total.rows.values()) + num_left_out + num_rejected + num_duplicates,
            num_duplicates=num_duplicates,
            inputs=self.plan.inputs(),
            config=self.resolved,
            input_files=self.plan.input_files(),
            sampled=Sampled(rate, num_left_out) if rate < 1 else None,
            histories=histories,
            lists=None
            if lists is None
            else Lists(**{f.name: getattr(lists, f.name) for f in dataclasses.fields(Lists)}),
        )

    def _account(self, manifest: DatasetManifest) -> None:
        """Check that every input row is in a file, rejected or a duplicate, counted from what is on disk."""
        written = sum(split.num_rows for split in manifest.splits.values())
        rejected = 0
        if manifest.rejected.path is not None:
            with (self.version / REJECTED_FOLDER / REJECTED_LINES).open("rb") as lines:
                rejected = sum(1 for _ in lines)
        left_out = manifest.sampled.num_left_out if manifest.sampled else 0
        if manifest.lists is not None:
            others = manifest.num_input_rows - manifest.lists.num_candidates
            if not manifest.lists.num_rejected <= others <= rejected:
                raise DatasetError(
                    f"{manifest.lists.num_candidates} candidates were read, but {manifest.num_input_rows} input rows "
                    f"counted, {rejected} of them rejected: rows were lost; build again"
                )
        if written + left_out + rejected + manifest.num_duplicates != manifest.num_input_rows:
            raise DatasetError(
                f"{manifest.num_input_rows} input rows, but {written} written + {left_out} left out by sampling + "
                f"{rejected} rejected + {manifest.num_duplicates} duplicates: rows were lost; build again"
            )

    def _missing_splits(self, manifest: DatasetManifest) -> list[str]:
        expected = self.pipeline.expected_splits()
        return [f"split {name!r} has no rows" for name in sorted(expected - set(manifest.splits))]


def _num_left_out(results: Sequence[PortionResult]) -> int:
    return sum(result.num_left_out for result in results)


def load_base(folder: str | None, schema: FeatureSchema) -> Learnt | None:
    """Load the learnt state of the base dataset, which a new dataset extends; None without a base.

    Raises:
        DatasetError, LearntError, StorageError: it is no dataset, damaged, or of another schema, whose ids mean
            something else.
    """
    if folder is None:
        return None
    manifest = DatasetManifest.load(folder)
    if manifest.schema_fingerprint != schema.fingerprint:
        raise DatasetError(
            f"pipeline.base {folder} was built from another feature schema (fingerprint "
            f"{manifest.schema_fingerprint[:12]}) than the config's ({schema.fingerprint[:12]}): its ids mean "
            "something else; build without a base, or with the base's features"
        )
    return manifest.load_learnt(folder)
