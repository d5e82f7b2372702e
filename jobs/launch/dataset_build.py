"""Dataset build under Spark: config checks across sections, the build, its summary as build.json and as text."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from features.disk.atomic import write_json
from features.disk.dataset import BUILD_NAME, DatasetManifest
from features.disk.object_store import ObjectPath
from features.disk.place import Place, temporary_folder
from features.schema import FeatureSchema
from features.times import TimePatternError, check_time_format
from jobs.cli.config import Config
from jobs.cli.conventions import place
from jobs.cli.errors import ConfigError
from jobs.cli.text_table import text_table
from pipeline.build.dataset import build_dataset
from pipeline.build.sources import InputPlan, plan_sources
from pipeline.build.split import parse_time
from pipeline.config import TimeSplit

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def check_build(config: Config) -> None:
    """Check the keys of a build that depend on each other.

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
    check_time(schema)
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


def check_time(schema: FeatureSchema) -> None:
    """Check that the format of the schema's timestamp, if it has one, can be read.

    Raises:
        ConfigError: names the key and the letter.
    """
    if schema.timestamp is not None:
        try:
            check_time_format(schema.timestamp.format)
        except TimePatternError as error:
            raise ConfigError(f"config key 'features.timestamp.format': {error}") from error


def run_build(spark: "SparkSession", config: Config, plan: InputPlan | None = None) -> dict[str, Any]:
    """Build and commit one dataset, and write a summary beside its manifest.

    Args:
        spark: a session; the build pins the settings that its result depends on.
        config: the whole config.
        plan: input files, if already planned.

    Returns:
        The summary that is also written to ``build.json``.

    Raises:
        LogError, DatasetError: one sentence about what is wrong with the input or the output.
    """
    started = time.perf_counter()
    output = place(config.pipeline.output)
    plan = plan or plan_sources(config.pipeline, config.features)
    manifest, warnings = build_dataset(spark, config.features, config.pipeline, config.to_dict(), plan)
    summary = _summarise(manifest, warnings, output, time.perf_counter() - started)
    if isinstance(output, ObjectPath):
        with temporary_folder() as folder:
            write_json(folder / BUILD_NAME, summary)
            output.upload(folder, [BUILD_NAME])
    else:
        write_json(output / BUILD_NAME, summary)
    return summary


def _summarise(manifest: DatasetManifest, warnings: list[str], output: Place, seconds: float) -> dict[str, Any]:
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
        **({"sampled": asdict(manifest.sampled)} if manifest.sampled else {}),
        **({"lists": asdict(manifest.lists)} if manifest.lists else {}),
        "warnings": warnings,
        "seconds": round(seconds, 3),
        "rows_per_second": round(manifest.num_input_rows / seconds, 1),
    }


def describe_build(summary: dict[str, Any]) -> str:
    """Describe a build for a person.

    Args:
        summary: as ``run_build`` returns it.
    """
    lines = [f"warning: {warning}" for warning in summary["warnings"]]
    lines.append(f"{summary['rows']:,} rows read{_describe_lists(summary.get('lists'))}")
    splits = [
        (
            f"  {name}",
            f"{split['rows']:,} rows",
            f"{split['files']} files",
            f"{split['row_groups']} row groups",
            f"{split['bytes'] / 1e6:.1f} MB",
            f"label rate {split['label_rate']:.4f}",
        )
        for name, split in summary["splits"].items()
    ]
    lines.append(text_table(splits, align="<>"))
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in summary["reasons"].items())
    lines.append(f"  rejected {summary['rejected']:,}" + (f" ({reasons})" if reasons else ""))
    lines.append(f"  duplicates {summary['duplicates']:,}")
    if sampled := summary.get("sampled"):
        lines.append(f"  negatives of train left out {sampled['num_left_out']:,} ({sampled['negatives']:g} are kept)")
    lines.append(f"{summary['dataset']}: {summary['seconds']:.1f} s, {summary['rows_per_second']:,.0f} rows/s")
    return "\n".join(lines)


def _describe_lists(lists: dict[str, int] | None) -> str:
    if lists is None:
        return ""
    told = [f"{lists['num_lists']:,} lists of candidates"]
    for name, words in (("num_empty", "empty"), ("num_rejected", "rejected"), ("num_unseen", "clicks outside")):
        told += [f"{lists[name]:,} {words}"] if lists[name] else []
    return f", in {', '.join(told)}"
