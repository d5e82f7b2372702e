"""What is said of a build that failed below Python; tests/chaos makes disks full and kills processes for it."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from py4j.protocol import Py4JError, Py4JNetworkError

from pipeline.session import explain
from pipeline.tasks import _interruption

SHUFFLE = "java.io.IOException: No space left on device\n\tat org.apache.spark.storage.TimeTrackingOutputStream.write"
PARQUET = "org.apache.hadoop.fs.FSError: java.io.IOException: No space left on device\n\tat org.apache.hadoop.fs.Raw"

WORKER = (
    "Lost task 1.3: org.apache.spark.api.python.PythonException: Traceback (most recent call last):\n"
    '  File "worker.py", line 500, in loads\n    return loads(obj)\n           ^^^^^^^^^^\n'
    "{}\n\n\tat org.apache.spark.api.python.PythonRunner\nCaused by: java.io.IOException: another\n"
)


class JavaError(Exception):
    """Stands for Py4J's, whose text is asked of Java."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            JavaError(f"Caused by: {SHUFFLE}"),
            "no space is left for Spark's scratch files in /scratch: .*SPARK_LOCAL_DIRS",
        ),
        (
            JavaError(f"Caused by: {PARQUET}"),
            r"no space is left for /data: make room .* choose another pipeline\.output",
        ),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "no space is left for /data: make room"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "no space is left for /data: make room"),
        (ConnectionRefusedError(), "Spark's process died, .* memory"),
        (Py4JNetworkError("Answer from Java side is empty"), "Spark's process died, most"),
        (Py4JError("An error occurred while calling o1.stop"), "Spark's process died, most"),
        (Py4JError("An error occurred while calling o1.x. Trace:\nno such method"), "Spark failed: An error occurred"),
        (JavaError(WORKER.format("KeyError: 'a'")), "Spark failed: KeyError: 'a'$"),
        (
            JavaError(WORKER.format("KeyError: 'a'\n\nDuring handling, another:\n\nTraceback:\n  line\nOSError: b")),
            "Spark failed: OSError: b$",
        ),
        (
            JavaError(WORKER.format("ModuleNotFoundError: No module named 'pipeline'")),
            "Spark failed: No module named 'pipeline' on an executor: .*--py-files.*make package",
        ),
    ],
)
def test_which_disk_is_full_and_who_died(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    monkeypatch.setenv("SPARK_LOCAL_DIRS", "/scratch")
    assert re.match(said, explain(error, Path("/data")))


def test_spark_takes_no_signal_over_while_it_starts() -> None:
    """A signal that is ignored (``nohup``) stays ignored, at any moment."""
    code = (
        "import os, signal, threading, time\n"
        "from pipeline.config import SparkConfig\n"
        "from pipeline.session import start_spark, stop_spark\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "done = threading.Event()\n"
        "def send():\n"
        "    while not done.wait(0.01):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=send).start()\n"
        "try:\n"
        "    spark = start_spark(SparkConfig(master='local[1]', driver_memory='1g'))\n"
        "    print(spark.sparkContext.parallelize(range(9), 2).sum())\n"
        "finally:\n"
        "    done.set()\n"
        "stop_spark(spark)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "36\n"), done.stderr


def test_a_signal_that_spark_hides_in_tidying_up_is_found() -> None:
    with pytest.raises(Py4JError) as hidden:
        try:
            raise KeyboardInterrupt
        finally:
            raise Py4JError("Answer from Java side is empty")
    assert isinstance(_interruption(hidden.value), KeyboardInterrupt)
    assert _interruption(Py4JError("Java is gone")) is None
