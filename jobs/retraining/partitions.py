"""Steps of a retraining that make partitions: find the dates of raw files, build, check."""

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.disk.dataset import MANIFEST_NAME, DatasetManifest, InputFile
from features.disk.window import SOURCE_SPLIT, join
from features.log_format import LogError
from features.profile.profile import DataProfile, measure, total
from features.schema import FeatureSchema
from jobs.cli.config import Config
from jobs.cli.data_checks_config import DataChecksConfig, RowLimits
from jobs.cli.errors import ConfigError
from jobs.retraining.data_checks import CheckResult, Checks, Delivery, check_data, order_partitions
from jobs.retraining.date_index import times_of
from jobs.retraining.file_states import describe_files
from jobs.retraining.raw_partitions import RawPartition, is_late
from jobs.retraining.retrain_folder import BUILD, UNREADABLE, RetrainFolder
from jobs.retraining.retry import Steps
from jobs.retraining.shapes import shapes
from pipeline.config import FilesSplit, PipelineConfig, SparkConfig

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_log = logging.getLogger(__name__)


def find_dates(place: RetrainFolder, files: Sequence[str]) -> None:
    """Scan raw files for the dates of their rows; one that cannot be read is put aside, and the others are scanned.

    Raises:
        ConfigError: the features name no time, or a format that cannot be read.
        DatasetError: one sentence about what is wrong with the disk or with Spark.
    """
    from jobs.launch.dataset_build import check_time

    span, schema = place.rules.partition_by, place.config.features
    if schema.timestamp is None:
        raise ConfigError(f"config key 'retrain.partition_by': {span!r} needs features.timestamp")
    check_time(schema)
    assert span != "path"
    with LazySpark(place.config.pipeline.spark) as spark:
        _scan(place, files, spark)


def _scan(place: RetrainFolder, files: Sequence[str], spark: "LazySpark") -> None:
    """Scan files; where one cannot be read, scan each half alone, until it is found."""
    from pipeline.build.dates import count_dates
    from pipeline.build.sources import plan_sources

    schema, span = place.config.features, place.rules.partition_by
    pipeline = _pipeline(place, RawPartition(dict.fromkeys(files)))
    assert span != "path"
    try:
        plan = plan_sources(pipeline, schema)
        found = place.dates.add(
            files, lambda undated: count_dates(spark.session, schema, pipeline, plan, span, undated)
        )
    except LogError as error:
        if len(files) == 1:
            place.dates.put_aside(files[0], str(error))
            _log.warning("put aside until it changes: %s", error, extra={"file": files[0]})
            return
        middle = len(files) // 2
        for half in (files[:middle], files[middle:]):
            _scan(place, half, spark)
        return
    for file in found:
        dated = sum(file.dates.values()) - file.dates.get("", 0)
        dates, undated = len(set(file.dates) - {""}), file.dates.get("", 0)
        _log.info(f"{file.path}: {dated:,} rows of {dates} dates, {undated:,} undated", extra={"file": file.path})


class LazySpark:
    """Spark session that is started when it is first needed, and again after it has ended."""

    def __init__(self, config: SparkConfig) -> None:
        self._config = config
        self._session: SparkSession | None = None

    @property
    def session(self) -> "SparkSession":
        """The session."""
        from pipeline.session import start_spark

        self._session = self._session or start_spark(self._config)
        return self._session

    def end(self, *, at_once: bool = False) -> None:
        """End the session, if there is one; ``at_once``: without waiting for what it is doing."""
        from pipeline.session import stop_spark

        if self._session is not None:
            stop_spark(self._session, at_once=at_once)
        self._session = None

    def __enter__(self) -> "LazySpark":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end(at_once=kind is not None and not issubclass(kind, Exception))


def build_partitions(place: RetrainFolder, raw: Mapping[str, RawPartition], steps: Steps) -> None:
    """Build partitions; the vocabularies of each extend those of the one built before it.

    One that cannot be read is stopped with its reason, and the others are built: what is wrong with one date is no
    reason to learn nothing of the next.

    Args:
        place: folder of the retraining.
        raw: name -> raw files, in the order of the builds.
        steps: runs each build with retries.

    Raises:
        ConfigError: the config cannot be right.
        DatasetError, LearntError: one sentence about what is wrong with the disk, with Spark or with the base.
    """
    with LazySpark(place.config.pipeline.spark) as spark:
        for name, partition in raw.items():
            steps.day = name
            steps.do("build", partial(_build, place, name, partition, spark))


def _build(place: RetrainFolder, name: str, raw: RawPartition, spark: LazySpark) -> None:
    from jobs.launch.dataset_build import check_build, describe_build, run_build
    from pipeline.build.sources import plan_sources

    base = place.last_built()
    pipeline = dataclasses.replace(
        _pipeline(place, raw),
        output=str(place.next_partition(name)),
        base=None if base is None else str(base),
    )
    config = dataclasses.replace(place.config, pipeline=pipeline)
    check_build(config)
    seen = place.seen(raw)  # before it is read: what changes meanwhile is looked at again
    try:
        plan = plan_sources(pipeline, config.features)
        summary = run_build(spark.session, config, plan)
    except LogError as error:
        shutil.rmtree(pipeline.output, ignore_errors=True)
        _stop(place, name, {"reason": str(error), "seen": seen})
        return
    except Exception:
        spark.end()  # it may be what failed
        raise
    _log.info("partition %s\n%s", name, describe_build(summary), extra={"partition": name})


def build_compared(place: RetrainFolder, day: str, features: FeatureSchema, base: Path) -> None:
    """Build a day's rows once more, as a champion of other features reads them; unless that is done already.

    They are those of the files that the day was built from, not of what has come since.

    Args:
        place: folder of the retraining.
        day: partition that both models are compared on.
        features: the champion's.
        base: dataset that the champion was trained on.

    Raises:
        LogError, DatasetError, LearntError: one sentence about what is wrong with a file or the disk, or the day's
            files have changed since it was built.
    """
    from jobs.launch.dataset_build import run_build

    config = config_of_compared(place, day, features, base)
    output = Path(config.pipeline.output)
    if not _is_built(output, config, place.manifest(day)):
        _check_unchanged(place, day)
        shutil.rmtree(place.compared(day), ignore_errors=True)
        with LazySpark(config.pipeline.spark) as spark:
            run_build(spark.session, config)
    join({"test": [output]}, place.compared_window(day))  # rows of a training split are read in another order


def config_of_compared(place: RetrainFolder, day: str, features: FeatureSchema, base: Path) -> Config:
    """Make the config of ``build_compared``'s build, of its arguments."""
    files = dict.fromkeys(place.manifest(day).inputs[SOURCE_SPLIT])
    raw = RawPartition(files, None if place.rules.partition_by == "path" else times_of(day))
    output = place.compared(day) / "partition"
    pipeline = dataclasses.replace(_pipeline(place, raw), output=str(output), base=str(base))
    return dataclasses.replace(place.config, features=features, pipeline=pipeline)


def _is_built(dataset: Path, config: Config, day: DatasetManifest) -> bool:
    """Tell whether a dataset was built with a config's features and base, of the files that a day was built of."""
    if not (dataset / MANIFEST_NAME).exists():
        return False
    manifest = DatasetManifest.load(dataset)
    found = (manifest.schema_fingerprint, manifest.config["pipeline"].get("base"), _sources(manifest))
    return found == (config.features.fingerprint, config.pipeline.base, _sources(day))


def _sources(manifest: DatasetManifest) -> tuple[set[str], set[InputFile]]:
    """Return the raw files of a partition, and the states in which they were read."""
    files = set(manifest.inputs[SOURCE_SPLIT])
    return files, {file for file in manifest.input_files if file.path in files}


def _check_unchanged(place: RetrainFolder, day: str) -> None:
    """Check that a built day's raw files are as they were when it was built.

    Raises:
        LogError: they are not.
    """
    words = None
    if files := place.changed_files().get(day):
        words = describe_files(files)
    elif more := place.changed().get(day):
        words = f"its raw files have changed by {more:+,} rows"
    if words is not None:
        raise LogError(
            f"{day} cannot be read as the champion reads it, which has other features: {words} since it was built; "
            'restore the files, or set retrain.changed = "rebuild"'
        )


def _stop(place: RetrainFolder, name: str, record: dict[str, Any]) -> None:
    """Write down that a partition cannot be read; one that is built already stays as it is."""
    path, reason = place.checks_file(name), record["reason"]
    if name in place.built():
        _log.warning("%s has changed and cannot be read now, so it stays as it was built: %s", name, reason)
        if place.is_checked(name):  # else it is checked first, and read once more by the next retraining
            place.write(path, {**place.checks(name), UNREADABLE: record})
        return
    _log.warning("%s is stopped until its files change: %s", name, reason, extra={"partition": name})
    result = CheckResult(UNREADABLE, None, 1.0, None, "rows that can be read", "stop", reason)
    place.write(path, {**Checks((result,)).to_json(), BUILD: None, UNREADABLE: record})


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
    place.write(place.checks_file(name), {**found.to_json(), BUILD: place.num_rebuilds(name), **kept})


def _compare(place: RetrainFolder, name: str) -> tuple[Checks, dict[str, Any]]:
    """Check a partition against earlier ones; return the checks, and histograms of the features that moved most."""
    manifest, stopped = place.manifest(name), place.stopped()
    others = [other for other in place.built() if other != name and place.has_own_features(other)]
    measured = [other for other in others if place.profile(other).exists() and place.is_checked(other)]
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
    """Drop the limits on rows for late partitions, which hold only a part of a day, and may well be of one class."""
    if not is_late(name):
        return limits
    labels = dataclasses.replace(limits.labels, both_classes=False)
    return dataclasses.replace(limits, rows=RowLimits(None, None), labels=labels)


def _twin(place: RetrainFolder, name: str) -> Checks | None:
    """Check for a duplicate: a partition with another one's files is stopped; None: it is none."""
    deliveries = [Delivery.of(other, place.manifest(other)) for other in place.built()]
    twin = order_partitions(deliveries, [d for d in deliveries if d.name != name]).duplicates.get(name)
    if twin is None:
        return None
    return Checks((CheckResult("duplicate", None, 1.0, None, "rows of its own", "stop", f"it has the rows of {twin}"),))
