"""Build a dataset, step by step: read, prepare, fit, encode, write, commit."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from tqdm import tqdm

from features.disk.atomic import is_full
from features.disk.dataset import DataFile, DatasetError, DatasetManifest, FeatureStatistics, Rejected, Split
from features.disk.object_store import ObjectPath
from features.disk.place import locate
from features.learnt import Learnt
from features.schema import FeatureSchema
from pipeline.build.encode import DUPLICATE, encode, prepare_rows
from pipeline.build.estimate import estimate_statistics, features_to_estimate
from pipeline.build.ingest import REASON, read_logs
from pipeline.build.quality import Profile, check_rejected, enforce_limits, profile, sparse_statistics, write_rejected
from pipeline.build.sources import InputPlan
from pipeline.build.vocabulary import count_values, fit_learnt
from pipeline.build.write import commit, commit_to_store, max_ids, new_version, staging, write_files
from pipeline.config import PipelineConfig, TimeSplit, WriteConfig
from pipeline.session import SPARK_ERRORS, configure, explain, size_shuffles


def build_dataset(
    spark: SparkSession, schema: FeatureSchema, pipeline: PipelineConfig, resolved: dict[str, Any], plan: InputPlan
) -> tuple[DatasetManifest, list[str]]:
    """Build one dataset and commit it; until then the old one stays as it is.

    Args:
        spark: a session; settings that the result depends on are pinned here.
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
    configure(spark, pipeline.spark)
    size_shuffles(spark, plan.num_bytes())
    output = locate(pipeline.output)
    folder = _staging(spark, output, pipeline.write) if isinstance(output, ObjectPath) else output.absolute()
    try:
        with new_version(folder) as version, tqdm(total=5, disable=None, unit="step") as bar:
            manifest, warnings = _build(spark, schema, pipeline, resolved, plan, version, bar)
            if isinstance(output, ObjectPath):
                bar.set_description("upload")
                warnings += commit_to_store(output, version, manifest)
            else:
                commit(output, version, manifest)
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


def _build(
    spark: SparkSession,
    schema: FeatureSchema,
    pipeline: PipelineConfig,
    resolved: dict[str, Any],
    plan: InputPlan,
    version: Path,
    bar: tqdm,
) -> tuple[DatasetManifest, list[str]]:
    bar.set_description("read")
    base = load_base(pipeline.base, schema)  # under the output's lock: it may be the output
    prepared = prepare_rows(read_logs(spark, pipeline, schema, plan), schema, pipeline).persist(
        StorageLevel.MEMORY_AND_DISK
    )
    counts: DataFrame | None = None
    try:
        seen = profile(prepared, schema)
        check_rejected(prepared, seen, pipeline.quality, pipeline.input.format)
        _step(bar, "fit")
        rows = prepared.filter(F.col(REASON).isNull() & ~F.col(DUPLICATE))
        estimated = features_to_estimate(schema, seen)
        counted = [name for name in schema.sparse_names if name not in estimated]
        counts = count_values(rows, schema, counted).persist(StorageLevel.MEMORY_AND_DISK)
        learnt = fit_learnt(rows, counts, schema, base)
        learnt.save(version / "learnt")
        _step(bar, "profile")
        statistics = sparse_statistics(spark, counts, schema, learnt, seen)
        for split, found in estimate_statistics(rows, schema, estimated, seen).items():
            statistics[split] |= found
        warnings = enforce_limits(statistics["train"], pipeline.quality)
        _step(bar, "write")
        files = write_files(spark, encode(spark, rows, schema, learnt), seen.rows, pipeline.write, version)
        if seen.num_rejected:
            write_rejected(prepared, version / "rejected")
        _step(bar, "check")
    finally:
        with contextlib.suppress(*SPARK_ERRORS):  # if Spark is gone, what failed first is to be told
            if counts is not None:
                counts.unpersist()
            prepared.unpersist()
    manifest = _describe(schema, resolved, plan, seen, learnt, statistics, files, version)
    _account(manifest, seen, version)
    manifest.check_ids(learnt)
    _step(bar, "done")
    return manifest, warnings + _missing_splits(pipeline, manifest)


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


def _describe(
    schema: FeatureSchema,
    resolved: dict[str, Any],
    plan: InputPlan,
    seen: Profile,
    learnt: Learnt,
    statistics: dict[str, dict[str, FeatureStatistics]],
    files: dict[str, tuple[DataFile, ...]],
    version: Path,
) -> DatasetManifest:
    splits = {}
    for name, split_files in files.items():
        largest = max_ids(version.parent, split_files, schema)
        sparse = {n: dataclasses.replace(s, max_id=largest[n]) for n, s in statistics[name].items()}
        ordered = {n: sparse[n] for n in schema.sparse_names}
        splits[name] = Split(split_files, seen.label_rates[name], ordered, seen.dense[name])
    return DatasetManifest(
        schema=schema,
        schema_fingerprint=schema.fingerprint,
        learnt_fingerprint=learnt.fingerprint,
        learnt_path=f"{version.name}/learnt",
        splits=splits,
        rejected=Rejected(seen.num_rejected, seen.reasons, f"{version.name}/rejected" if seen.num_rejected else None),
        num_input_rows=seen.num_input_rows,
        num_duplicates=seen.num_duplicates,
        inputs=plan.inputs(),
        config=resolved,
    )


def _step(bar: tqdm, name: str) -> None:
    bar.update()
    bar.set_description(name)


def _account(manifest: DatasetManifest, seen: Profile, version: Path) -> None:
    """Check that every input row is in a file, rejected or a duplicate, counted from what is on disk."""
    written = sum(split.num_rows for split in manifest.splits.values())
    rejected = 0
    if manifest.rejected.path is not None:
        with (version / "rejected" / "rejected.jsonl").open("rb") as lines:
            rejected = sum(1 for _ in lines)
    if written + rejected + manifest.num_duplicates != seen.num_input_rows:
        raise DatasetError(
            f"{seen.num_input_rows} input rows, but {written} written + {rejected} rejected + "
            f"{manifest.num_duplicates} duplicates: rows were lost; build again"
        )


def _missing_splits(pipeline: PipelineConfig, manifest: DatasetManifest) -> list[str]:
    expected = set(pipeline.inputs())
    rule = pipeline.split
    if rule.kind != "files":
        expected |= {name for name, key in (("valid", "valid"), ("test", "test")) if getattr(rule, key, None)}
    if isinstance(rule, TimeSplit):
        expected |= {"valid"} | ({"test"} if rule.test_from else set())
    return [f"split {name!r} has no rows" for name in sorted(expected - set(manifest.splits))]
