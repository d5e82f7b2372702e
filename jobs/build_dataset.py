"""Raw logs in, a dataset out: Parquet files, what was learnt, and the manifest that both halves meet at.

Reads like the first rows of the spine: read, prepare, fit, encode, write, commit.
"""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from tqdm import tqdm

from features.dataset import DatasetError, DatasetManifest, Rejected, Split
from jobs.command import config_parser, parse_config_arguments, run_program
from jobs.config import Config, ConfigError
from pipeline.config import TimeSplit
from pipeline.encode import DUPLICATE, encode, prepare
from pipeline.ingest import REASON, read_logs
from pipeline.quality import Profile, check_rejected, enforce_limits, profile, sparse_statistics, write_rejected
from pipeline.session import SPARK_ERRORS, configure, explain, size_shuffles, start_spark
from pipeline.sources import Plan, plan_sources
from pipeline.split import parse_time
from pipeline.vocabulary import count_values, fit
from pipeline.write import commit, max_ids, new_version, write_files

SUMMARY_NAME = "build.json"
"""Counts and speed of the last build, for programs; the manifest is the truth about the dataset."""

_EXAMPLE = (
    "python -m jobs.build_dataset --config jobs/configs/frappe.toml pipeline.output=data/frappe\n"
    "  spark-submit --py-files dist/twinfocus.zip jobs/build_dataset.py --config jobs/configs/frappe.toml"
)


def main() -> int:
    parser = config_parser("jobs.build_dataset", "Turn raw logs into a dataset, with Spark.", _EXAMPLE)
    parser.add_argument("--verbose", action="store_true", help="show Spark's own log")
    arguments, config = parse_config_arguments(parser)
    check(config)
    plan = plan_sources(config.pipeline, config.features)
    spark = start_spark(config.pipeline.spark, arguments.verbose, plan.num_bytes())
    try:
        summary = build(spark, config, plan)
    finally:
        spark.stop()
    print(describe(summary))
    return 0


def check(config: Config) -> None:
    """Check what only the whole config shows.

    Raises:
        ConfigError: names the key.
    """
    pipeline, schema = config.pipeline, config.features
    if not pipeline.input.train:
        raise ConfigError("config key 'pipeline.input.train' is empty: give a path or a glob")
    known = {feature.name for feature in schema.sparse}
    unknown = sorted(set(pipeline.quality.features) - known)
    if unknown:
        raise ConfigError(f"config key 'pipeline.quality.features.{unknown[0]}': no sparse feature has this name")
    if isinstance(pipeline.split, TimeSplit):
        if schema.timestamp is None:
            raise ConfigError("config key 'pipeline.split': a time split needs features.timestamp")
        times = {name: getattr(pipeline.split, name) for name in ("valid_from", "test_from")}
        seconds = {}
        for name, text in times.items():
            try:
                seconds[name] = parse_time(text) if text is not None else None
            except ValueError as error:
                raise ConfigError(f"config key 'pipeline.split.{name}': {text!r} is no ISO date or time") from error
        if seconds["test_from"] is not None and seconds["test_from"] <= seconds["valid_from"]:
            raise ConfigError("config key 'pipeline.split.test_from' must be later than valid_from")


def build(spark: SparkSession, config: Config, plan: Plan | None = None) -> dict[str, Any]:
    """Build one dataset and commit it.

    Args:
        spark: a session; settings that the result depends on are pinned here.
        config: the whole config.
        plan: what to read, if already known.

    Returns:
        The summary that is also written to ``build.json``.

    Raises:
        LogError, DatasetError: one sentence about what is wrong with the input or the output.
    """
    started = time.perf_counter()
    configure(spark, config.pipeline.spark)
    plan = plan or plan_sources(config.pipeline, config.features)
    size_shuffles(spark, plan.num_bytes())
    output = Path(config.pipeline.output).absolute()
    try:
        with new_version(output) as version, tqdm(total=5, disable=None, unit="step") as bar:
            manifest, warnings = _build(spark, config, plan, version, bar)
            commit(output, version, manifest)
    except SPARK_ERRORS as error:
        raise DatasetError(f"Spark failed: {explain(error)}") from error
    summary = _summarise(manifest, warnings, output, time.perf_counter() - started)
    temporary = output / f".{SUMMARY_NAME}.{os.getpid()}"
    temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    temporary.replace(output / SUMMARY_NAME)
    return summary


def _build(
    spark: SparkSession, config: Config, plan: Plan, version: Path, bar: tqdm
) -> tuple[DatasetManifest, list[str]]:
    schema, pipeline = config.features, config.pipeline
    bar.set_description("read")
    prepared = prepare(read_logs(spark, pipeline, schema, plan), schema, pipeline)
    prepared.persist(StorageLevel.MEMORY_AND_DISK)
    counts: DataFrame | None = None
    try:
        seen = profile(prepared, schema)
        check_rejected(prepared, seen, pipeline.quality, pipeline.input.format)
        _step(bar, "fit")
        rows = prepared.filter(F.col(REASON).isNull() & ~F.col(DUPLICATE))
        counts = count_values(rows, schema).persist(StorageLevel.MEMORY_AND_DISK)
        learnt = fit(rows, counts, schema)
        learnt.save(version / "learnt")
        _step(bar, "profile")
        statistics = sparse_statistics(spark, counts, schema, learnt, seen)
        warnings = enforce_limits(statistics["train"], pipeline.quality)
        _step(bar, "write")
        files = write_files(spark, encode(spark, rows, schema, learnt), seen.rows, pipeline.write, version)
        if seen.num_rejected:
            write_rejected(prepared, version / "rejected")
        _step(bar, "check")
    finally:
        if counts is not None:
            counts.unpersist()
        prepared.unpersist()
    splits = {}
    for name, split_files in files.items():
        largest = max_ids(version.parent, split_files, schema)
        sparse = {n: dataclasses.replace(s, max_id=largest[n]) for n, s in statistics[name].items()}
        ordered = {n: sparse[n] for n in schema.sparse_names}
        splits[name] = Split(split_files, seen.label_rates[name], ordered, seen.dense[name])
    manifest = DatasetManifest(
        schema=schema,
        schema_fingerprint=schema.fingerprint,
        learnt_fingerprint=learnt.fingerprint,
        learnt_path=f"{version.name}/learnt",
        splits=splits,
        rejected=Rejected(seen.num_rejected, seen.reasons, f"{version.name}/rejected" if seen.num_rejected else None),
        num_input_rows=seen.num_input_rows,
        num_duplicates=seen.num_duplicates,
        inputs=plan.inputs(),
        config=config.to_dict(),
    )
    _account(manifest, seen, version)
    manifest.check_ids(learnt)
    _step(bar, "done")
    return manifest, warnings + _missing_splits(config, manifest)


def _step(bar: tqdm, name: str) -> None:
    bar.update()
    bar.set_description(name)


def _account(manifest: DatasetManifest, seen: Profile, version: Path) -> None:
    """Every input row must be in a file, among the rejected or a duplicate, counted from what is on disk."""
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


def _missing_splits(config: Config, manifest: DatasetManifest) -> list[str]:
    expected = set(config.pipeline.inputs())
    rule = config.pipeline.split
    if rule.kind != "files":
        expected |= {name for name, key in (("valid", "valid"), ("test", "test")) if getattr(rule, key, None)}
    if isinstance(rule, TimeSplit):
        expected |= {"valid"} | ({"test"} if rule.test_from else set())
    return [f"split {name!r} has no rows" for name in sorted(expected - set(manifest.splits))]


def _summarise(manifest: DatasetManifest, warnings: list[str], output: Path, seconds: float) -> dict[str, Any]:
    return {
        "dataset": str(output),
        "rows": manifest.num_input_rows,
        "splits": {
            name: {
                "rows": split.num_rows,
                "files": len(split.files),
                "row_groups": sum(len(file.row_groups) for file in split.files),
                "bytes": sum(file.num_bytes for file in split.files),
                "label_rate": split.label_rate,
            }
            for name, split in manifest.splits.items()
        },
        "rejected": manifest.rejected.num_rows,
        "reasons": manifest.rejected.reasons,
        "duplicates": manifest.num_duplicates,
        "warnings": warnings,
        "seconds": round(seconds, 3),
        "rows_per_second": round(manifest.num_input_rows / seconds, 1),
    }


def describe(summary: dict[str, Any]) -> str:
    """The summary for a person."""
    lines = [f"warning: {warning}" for warning in summary["warnings"]]
    lines.append(f"{summary['rows']:,} rows read")
    for name, split in summary["splits"].items():
        lines.append(
            f"  {name:<6}{split['rows']:>12,} rows, {split['files']} files, {split['row_groups']} row groups, "
            f"{split['bytes'] / 1e6:.1f} MB, label rate {split['label_rate']:.4f}"
        )
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in summary["reasons"].items())
    lines.append(f"  rejected {summary['rejected']:,}" + (f" ({reasons})" if reasons else ""))
    lines.append(f"  duplicates {summary['duplicates']:,}")
    lines.append(f"{summary['dataset']}: {summary['seconds']:.1f} s, {summary['rows_per_second']:,.0f} rows/s")
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
