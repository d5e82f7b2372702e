"""Spark session that hands out tasks; what they do to rows is Python's."""

import atexit
import contextlib
import logging
import os
import re
import sys
import tempfile
import threading
import traceback
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JError, Py4JJavaError
from pyspark import SparkConf
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from features.log_format import LogError
from pipeline.config import SparkConfig
from pipeline.java import JAVA_OPTIONS
from pipeline.processes import end_tree

# Py4J logs a traceback when Java's process dies under a command; ``explain`` tells of it in one sentence.
logging.getLogger("py4j.clientserver").setLevel(logging.CRITICAL)
_COMMAND_FAILED = ("KeyboardInterrupt while sending command.", "Exception while sending command.")
# It logs so under the root's name, with a traceback, though it hands the error on.
logging.getLogger().addFilter(lambda record: record.msg not in _COMMAND_FAILED)

SPARK_ERRORS = (Py4JError, PySparkException, ConnectionError)
"""Errors of a failed Spark action in Python, and of any action after Spark's process has ended."""

LOCAL_MASTER = "local[*,4]"
"""Master of a local session: all cores, four tries as on a cluster; local[*] fails with the first dead worker."""
_DRIVER_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m"
"""Java only hands out tasks: its optimising compiler would cost more than it saves."""
_READ_ERROR = re.compile(r"(?:reading|read) file:? (?:file:)?/*(/\S+?)[.]?(?:\s|$)")
_CAUSE = re.compile(r"Caused by: (.+)")
_PYTHON_ERROR = re.compile(r"PythonException: (Traceback.*?)\n\s*\tat ", re.DOTALL)
"""A Python error on an executor: its traceback, whose last line is the error itself, before Java's own."""
_NO_MODULE = re.compile(r"ModuleNotFoundError: (No module named '(?:pipeline|features|training|jobs)\b.*)")
_FULL = re.compile(r"No space left on device|Disk quota exceeded")


def start_spark(config: SparkConfig, verbose: bool = False) -> SparkSession:
    """Start a session, or join the one spark-submit has made ready.

    Args:
        config: master and driver memory count only where spark-submit has not decided already.
        verbose: keep Spark's own warnings; otherwise only this program speaks.
    """
    builder = SparkSession.builder.appName("twinfocus-build-dataset")
    under_spark_submit = "PYSPARK_GATEWAY_PORT" in os.environ
    if config.master or not under_spark_submit:
        builder = builder.master(config.master or LOCAL_MASTER)
    if not under_spark_submit:
        builder = builder.config("spark.driver.memory", config.driver_memory).config("spark.ui.enabled", "false")
        options = [_DRIVER_OPTIONS, JAVA_OPTIONS]
        options += [] if verbose else [f"-Dlog4j2.configurationFile=file:{_quiet_log()}"]
        builder = builder.config("spark.driver.extraJavaOptions", " ".join(options))
        # A machine whose host name does not resolve can still run a local session.
        builder = builder.config("spark.driver.host", "127.0.0.1") if _is_local(config.master) else builder
    executor_options = SparkConf().get("spark.executor.extraJavaOptions", "")
    builder = builder.config("spark.executor.extraJavaOptions", f"{executor_options} {JAVA_OPTIONS}".strip())
    builder = builder.config("spark.ui.showConsoleProgress", str(sys.stderr.isatty()).lower())
    spark = _create(builder)
    spark.sparkContext.setLogLevel("WARN" if verbose else "OFF")
    return spark


def _create(builder: Any) -> SparkSession:
    """Create the session in a thread of its own.

    In the main thread Spark would put a handler of SIGINT in place of the program's, one that asks Java to cancel its
    jobs, also in the midst of another question, or when Java is gone.
    """
    created = Future[SparkSession]()

    def create() -> None:
        try:
            created.set_result(builder.getOrCreate())
        except BaseException as error:
            created.set_exception(error)

    threading.Thread(target=create, name="spark-start", daemon=True).start()
    return created.result()


def stop_spark(spark: SparkSession, *, at_once: bool = False) -> None:
    """End a session, also one whose process is gone: then there is nothing to stop.

    Args:
        spark: the session.
        at_once: kill Java and the workers on this machine first, whatever they are doing.
    """
    java: Any = getattr(spark.sparkContext._gateway, "proc", None)
    if at_once and java is not None:
        server: Any = spark.sparkContext._accumulatorServer
        server.handle_error = lambda *_: None  # it would print that Java has hung up
        end_tree(java.pid)
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
    if found := _NO_MODULE.search(text):
        return f"{found[1]} on an executor: give spark-submit --py-files with what `make package` builds"
    if found := _PYTHON_ERROR.search(text):
        return found[1].rstrip().rsplit("\n", 1)[-1][:500]
    causes = _CAUSE.findall(text)
    line = causes[-1] if causes else next((line for line in text.splitlines() if line.strip()), "unknown error")
    return re.sub(r"^(?:[a-z]+\.)+(\w+): ", r"\1: ", line.strip())[:500]
