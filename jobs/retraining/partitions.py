"""Steps of a retraining that make partitions: find the dates of raw files, build, check."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from features.disk.window import SOURCE_SPLIT
from features.profile.profile import DataProfile, measure, total
from jobs.cli.data_checks_config import DataChecksConfig, RowLimits
from jobs.cli.errors import ConfigError
from jobs.retraining.data_checks import CheckResult, Checks, Delivery, check_data, order_partitions
from jobs.retraining.raw_partitions import RawPartition, is_late
from jobs.retraining.retrain_folder import RetrainFolder
from jobs.retraining.shapes import shapes
from pipeline.config import FilesSplit, PipelineConfig

_log = logging.getLogger(__name__)


def find_dates(place: RetrainFolder, files: Sequence[str]) -> None:
    """Scan raw files for the dates of their rows.

    Raises:
        ConfigError: the features name no time, or a format that cannot be read.
        LogError, DatasetError: one sentence about what is wrong with a file or the disk.
    """
    from jobs.launch.dataset_build import check_time
    from pipeline.build.dates import count_dates
    from pipeline.build.sources import plan_sources
    from pipeline.session import start_spark, stop_spark

    span, schema = place.rules.partition_by, place.config.features
    if schema.timestamp is None:
        raise ConfigError(f"config key 'retrain.partition_by': {span!r} needs features.timestamp")
    check_time(schema)
    assert span != "path"
    pipeline = _pipeline(place, RawPartition(dict.fromkeys(files)))
    plan = plan_sources(pipeline, schema)
    spark = start_spark(pipeline.spark)
    try:
        found = place.dates.add(files, lambda undated: count_dates(spark, schema, pipeline, plan, span, undated))
    finally:
        stop_spark(spark)
    for file in found:
        dated = sum(file.dates.values()) - file.dates.get("", 0)
        dates, undated = len(set(file.dates) - {""}), file.dates.get("", 0)
        _log.info(f"{file.path}: {dated:,} rows of {dates} dates, {undated:,} undated", extra={"file": file.path})


def build_partitions(place: RetrainFolder, raw: Mapping[str, RawPartition]) -> None:
    """Build partitions; the vocabularies of each extend those of the one built before it.

    Raises:
        LogError, DatasetError, LearntError: one sentence about what is wrong with a file or the disk.
    """
    from jobs.launch.dataset_build import check_build, describe_build, run_build
    from pipeline.session import start_spark, stop_spark

    left = {name: partition for name, partition in raw.items() if name not in place.built()}
    base, spark = place.last_built(), None
    try:
        for name, partition in left.items():
            pipeline = dataclasses.replace(
                _pipeline(place, partition),
                output=str(place.partition(name)),
                base=None if base is None else str(place.partition(base)),
            )
            config = dataclasses.replace(place.config, pipeline=pipeline)
            check_build(config)
            spark = spark or start_spark(pipeline.spark)
            _log.info("partition %s\n%s", name, describe_build(run_build(spark, config)), extra={"partition": name})
            base = name
    finally:
        if spark is not None:
            stop_spark(spark)


def _pipeline(place: RetrainFolder, partition: RawPartition) -> PipelineConfig:
    """Point the config's pipeline at the files of one partition.

    Raises:
        ConfigError: the log is a Delta table.
    """
    pipeline = place.config.pipeline
    if pipeline.input.format.kind == "delta":
        raise ConfigError(
            "config key 'pipeline.input.format.kind': a retraining takes files by their dates, and not all files of a "
            "Delta table are current: write each day's rows to Parquet files, or build with jobs.build_dataset"
        )
    files = dataclasses.replace(pipeline.input, train=tuple(partition.files), valid=(), test=(), times=partition.times)
    return dataclasses.replace(pipeline, input=files, split=FilesSplit())


def check_partition(place: RetrainFolder, name: str) -> None:
    """Check a partition against those before it, and write the results.

    Raises:
        DatasetError, DriftError: it is damaged, or cannot be compared with the earlier ones.
    """
    found, kept = _twin(place, name), {}
    if found is None:
        found, kept = _compare(place, name)
    _log.info("checks of %s:\n%s", name, found.table(), extra={"partition": name, "verdict": found.level})
    place.write(place.checks_file(name), {**found.to_json(), **kept})


def _compare(place: RetrainFolder, name: str) -> tuple[Checks, dict[str, Any]]:
    """Check a partition against earlier ones; return the checks, and histograms of the features that moved most."""
    manifest, stopped = place.manifest(name), place.stopped()
    measured = [other for other in place.built() if place.profile(other).exists() and other != name]
    before = [other for other in measured if other < name and other not in stopped]
    profiles = [
        DataProfile.load(place.profile(other)).upgraded(place.manifest(other))
        for other in before[-place.rules.window :]
    ]
    reference = total(profiles) if profiles else None
    # All are counted over the same bins, also a day that came late and has none before it.
    bins = DataProfile.load(place.profile(measured[0])).bins if measured else None
    profile = measure(place.partition(name), manifest, SOURCE_SPLIT, bins)
    place.profile(name).parent.mkdir(parents=True, exist_ok=True)
    profile.save(place.profile(name))
    found = check_data(manifest, profile, reference, _limits(place.rules.checks, name))
    return found, {} if reference is None else {"shapes": shapes(found, profile, reference)}


def _limits(limits: DataChecksConfig, name: str) -> DataChecksConfig:
    """Drop the limits on rows for late partitions, which hold only a part of a day."""
    return dataclasses.replace(limits, rows=RowLimits(None, None)) if is_late(name) else limits


def _twin(place: RetrainFolder, name: str) -> Checks | None:
    """Check for a duplicate: a partition with another one's files is stopped; None: it is none."""
    deliveries = [Delivery.of(other, place.manifest(other)) for other in place.built()]
    twin = order_partitions(deliveries, [d for d in deliveries if d.name != name]).duplicates.get(name)
    if twin is None:
        return None
    return Checks((CheckResult("duplicate", None, 1.0, None, "rows of its own", "stop", f"it has the rows of {twin}"),))
