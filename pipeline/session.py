"""Spark session with pinned settings: no cluster changes the values and the order of rows."""

import atexit
import contextlib
import logging
import os
import re
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

from py4j.protocol import Py4JError, Py4JJavaError
from pyspark import SparkConf
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from features.rawlog import LogError
from pipeline.config import SparkConfig
from pipeline.java import JAVA_OPTIONS

# Py4J logs a traceback when Java's process dies under a command; ``explain`` tells of it in one sentence.
logging.getLogger("py4j.clientserver").setLevel(logging.CRITICAL)

SPARK_ERRORS = (Py4JError, PySparkException, ConnectionError)
"""Errors of a failed Spark action in Python, and of any action after Spark's process has ended."""

MIN_PARTITIONS = 16
"""Least number of tasks of a splittable input: a constant, because row ids follow from it."""

_SMALL_JOB = 64 << 20
_BYTES_PER_SHUFFLE_PARTITION = 4 << 20

warnings.filterwarnings("ignore", message=r"\w+ attempted Arrow optimization")  # and then a stack trace of Java's
_READ_ERROR = re.compile(r"(?:reading|read) file:? (?:file:)?/*(/\S+?)[.]?(?:\s|$)")
_CAUSE = re.compile(r"Caused by: (.+)")
_FULL = re.compile(r"No space left on device|Disk quota exceeded")


def start_spark(config: SparkConfig, verbose: bool = False, num_bytes: int = 0) -> SparkSession:
    """Start a session, or join the one spark-submit has made ready.

    Args:
        config: master and driver memory count only where spark-submit has not decided already.
        verbose: keep Spark's own warnings; otherwise only this program speaks.
        num_bytes: size of the input; a small job does not wait for Java's optimising compiler.
    """
    builder = SparkSession.builder.appName("twinfocus-build-dataset")
    under_spark_submit = "PYSPARK_GATEWAY_PORT" in os.environ
    if config.master or not under_spark_submit:
        builder = builder.master(config.master or "local[*]")
    if not under_spark_submit:
        builder = builder.config("spark.driver.memory", config.driver_memory).config("spark.ui.enabled", "false")
        options = ["-XX:TieredStopAtLevel=1"] if num_bytes < _SMALL_JOB else []
        options.append(JAVA_OPTIONS)
        options += [] if verbose else [f"-Dlog4j2.configurationFile=file:{_quiet_log()}"]
        builder = builder.config("spark.driver.extraJavaOptions", " ".join(options))
        # A machine whose host name does not resolve can still run a local session.
        builder = builder.config("spark.driver.host", "127.0.0.1") if _is_local(config.master) else builder
    executor_options = SparkConf().get("spark.executor.extraJavaOptions", "")
    builder = builder.config("spark.executor.extraJavaOptions", f"{executor_options} {JAVA_OPTIONS}".strip())
    builder = builder.config("spark.ui.showConsoleProgress", str(sys.stderr.isatty()).lower())
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("WARN" if verbose else "OFF")
    configure(spark, config)
    return spark


def stop_spark(spark: SparkSession) -> None:
    """End a session, also one whose process is gone: then there is nothing to stop."""
    with contextlib.suppress(Py4JError, ConnectionError):
        spark.stop()


def _quiet_log() -> str:
    """A Log4j configuration that says nothing, for the lines Spark logs before its level can be set."""
    handle, path = tempfile.mkstemp(prefix="twinfocus-", suffix=".properties", text=True)
    with os.fdopen(handle, "w") as file:
        file.write("appender.none.type = Null\nappender.none.name = none\n")  # without one, Spark puts its own back
        file.write("rootLogger.level = off\nrootLogger.appenderRef.none.ref = none\n")
    atexit.register(Path(path).unlink, missing_ok=True)
    return path


def _is_local(master: str | None) -> bool:
    return master is None or master.startswith("local")


def configure(spark: SparkSession, config: SparkConfig) -> None:
    """Pin the SQL settings that values and row order depend on."""
    settings = {
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.ansi.enabled": "true",
        "spark.sql.caseSensitive": "true",
        "spark.sql.legacy.timeParserPolicy": "CORRECTED",
        "spark.sql.files.maxPartitionBytes": str(config.max_partition_bytes),
        "spark.sql.files.minPartitionNum": str(MIN_PARTITIONS),
        "spark.sql.files.openCostInBytes": str(1 << 20),
        "spark.sql.files.ignoreCorruptFiles": "false",
        "spark.sql.files.ignoreMissingFiles": "false",
        # A parsed line is used for all its columns: Spark must not parse it once for each.
        "spark.sql.optimizer.enableCsvExpressionOptimization": "false",
        "spark.sql.optimizer.enableJsonExpressionOptimization": "false",
        # Rows are kept between passes for minutes: packing their hashes tighter takes longer than it saves.
        "spark.sql.inMemoryColumnarStorage.compressed": "false",
        # Vocabularies travel as literals or broadcast tables: keep them out of the plan's printed form.
        "spark.sql.maxPlanStringLength": "10000",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        # A failed action fails once, in one sentence: not again, slower, after a stack trace.
        "spark.sql.execution.arrow.pyspark.fallback.enabled": "false",
    }
    for key, value in settings.items():
        spark.conf.set(key, value)


def size_shuffles(spark: SparkSession, num_bytes: int) -> None:
    """Fit the number of shuffle partitions to the input: Spark's 200 are most of the time of a small job."""
    partitions = min(max(num_bytes // _BYTES_PER_SHUFFLE_PARTITION, 8), 2_000)
    spark.conf.set("spark.sql.shuffle.partitions", str(partitions))


def explain(error: Exception, output: Path) -> str:
    """Explain a failed build in one sentence: the full disk, the file it was reading, or the first telling cause.

    Raises:
        LogError: the cause is an input file that is truncated or damaged.
    """
    try:
        text = "" if _is_gone(error) else str(error)  # which asks Java
    except SPARK_ERRORS:
        text = ""
    if not text:
        return (
            "Spark's process died, most often because memory ran out: leave it more, or give it more "
            "(pipeline.spark.driver_memory), and see that no log has a line without an end; then build again"
        )
    if _FULL.search(text):
        return _describe_full_disk(error, text, output)
    read = _READ_ERROR.search(text)
    damaged = re.search(r"EOFException|ZipException|Unexpected end of input|not in GZIP|invalid (?:block|stored)", text)
    if read:
        state = "it is truncated or damaged" if damaged else _cause(text)
        raise LogError(f"{read[1]} cannot be read: {state}") from error
    return f"Spark failed: {_cause(text)}"


def _is_gone(error: Exception) -> bool:
    """Whether Python has lost the Java process that it was speaking to; an error of that process has a trace."""
    if isinstance(error, Py4JError):
        return not isinstance(error, Py4JJavaError) and "Trace:" not in str(error)
    return isinstance(error, ConnectionError)


def _describe_full_disk(error: Exception, text: str, output: Path) -> str:
    """Name the full disk of the two that a build writes to; the output goes through Hadoop's file systems."""
    frames = traceback.extract_tb(error.__traceback__)
    in_pyspark = isinstance(error, OSError) and any("/pyspark/" in frame.filename for frame in frames)
    if "org.apache.hadoop.fs." in text or (isinstance(error, OSError) and not in_pyspark):
        return f"no space is left for {output}: make room on its disk, or choose another pipeline.output"
    scratch = os.environ.get("SPARK_LOCAL_DIRS") or SparkConf().get("spark.local.dir", tempfile.gettempdir())
    return (
        f"no space is left for Spark's scratch files in {scratch}: make room on its disk, or name another folder in "
        "the environment variable SPARK_LOCAL_DIRS (on a cluster: spark.local.dir)"
    )


def _cause(text: str) -> str:
    causes = _CAUSE.findall(text)
    line = causes[-1] if causes else next((line for line in text.splitlines() if line.strip()), "unknown error")
    return re.sub(r"^(?:[a-z]+\.)+(\w+): ", r"\1: ", line.strip())[:500]
