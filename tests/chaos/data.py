"""What can happen to a build: Spark killed in the middle of its writing, disks that are full; and to its files, later.

Every row of a log carries a number of its own into the Parquet files, and there the rows are counted.
"""

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet

from features.disk.dataset import DatasetManifest
from tests.chaos.outcome import Outcome, Skipped, Unexpected
from tests.chaos.shards import CASES as SHARD_CASES

ROOT = Path(__file__).parents[2]
NUM_ROWS = {"old": 12_000, "new": 120_000}
CONFIG = """
[features]
label = "click"
carry = ["row"]
[[features.sparse]]
name = "user"
encoding = {{ kind = "vocabulary", min_count = 2 }}
[[features.sparse]]
name = "tags"
separator = "|"
encoding = {{ kind = "hash", num_buckets = 50 }}
[[features.dense]]
name = "price"
standardise = true
[pipeline]
output = "{output}"
input.train = "{log}"
split = {{ kind = "hash", valid = 0.2, test = 0.0 }}
spark.max_partition_bytes = 262_144
[training]
from_data = []
dataset = "{output}"
"""
END_SECONDS = 300.0
MIB = 1 << 20
PAGE = 4_096


class Build:
    """A dataset that stands, and builds of another one in its place.

    Attributes:
        dataset: the folder, which holds the old dataset.
        before: what it holds.
    """

    def __init__(self, folder: Path, seed: int, dataset: Path | None = None) -> None:
        self.folder, self.seed, self.dataset = folder, seed, dataset or folder / "dataset"
        self.references = _references(folder.parents[1] / "builds", seed)
        shutil.copytree(self.references / "old", self.dataset)
        self.before = contents(self.dataset)
        self.config = folder / "config.toml"
        self.config.write_text(CONFIG.format(output=self.dataset, log=self.references / "new.csv"), encoding="utf-8")

    def start(self, *overrides: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "jobs.build_dataset", "--config", str(self.config)]
        command += ["pipeline.spark.master=local[2]", "pipeline.spark.driver_memory=1g", *overrides]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},  # for executors of their own
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_writing(self, process: subprocess.Popen[str]) -> None:
        """Return when a task has written its first encoded rows, and a little later.

        Raises:
            Unexpected: the build ends before.
        """
        while not glob(f"{self.dataset}/version-*/exchange/*.arrow"):
            if process.poll() is not None:
                raise Unexpected(f"the build ended with {process.returncode} before it wrote: {process.communicate()}")
            time.sleep(0.005)
        time.sleep(random.Random(self.seed).uniform(0, 0.2))

    def expect_the_old(self) -> None:
        """The old dataset is what it was, and every row is in it once."""
        expect(contents(self.dataset) == self.before, "the old dataset has changed")
        expect(count_rows(self.dataset, self.references / "old.csv") == (0, 0), "rows of the old dataset are amiss")

    def expect_refusal(self, process: subprocess.Popen[str], *words: str) -> None:
        """It ends with 1 and one sentence, and leaves the old dataset and no files of its own."""
        errors = _wait(process)
        said = [line for line in errors.splitlines() if line.startswith("error: ")]
        expect(process.returncode == 1 and len(said) == 1, f"ended with {process.returncode}: {errors}")
        expect("Traceback" not in errors and "\tat " not in errors, f"a stack trace is no answer: {errors}")
        for word in words:
            expect(word in said[0], f"does not say {word!r}: {said[0]}")
        self.expect_the_old()
        expect(len(list(self.dataset.glob("version-*"))) == 1, "a failed build left files")

    def build(self, *overrides: str) -> Outcome:
        """The next build just works: it writes the bytes of one that nothing happened to, and removes what was left."""
        return self.finish(self.start(*overrides))

    def finish(self, process: subprocess.Popen[str]) -> Outcome:
        errors = _wait(process)
        expect(process.returncode == 0, f"ended with {process.returncode}: {errors}")
        expect(contents(self.dataset) == contents(self.references / "new"), "not the bytes of an undisturbed build")
        expect(len(list(self.dataset.glob("version-*"))) == 1, "leftovers are not removed")
        return Outcome(*count_rows(self.dataset, self.references / "new.csv"), weights_equal=None)


def expect(truth: bool, otherwise: str) -> None:
    if not truth:
        raise Unexpected(otherwise)


def _wait(process: subprocess.Popen[str]) -> str:
    """What a program has said on its standard error when it ends."""
    try:
        return process.communicate(timeout=END_SECONDS)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise Unexpected(f"does not end within {END_SECONDS:.0f} s: {process.communicate()[1]}") from None


@functools.cache
def _references(shared: Path, seed: int) -> Path:
    """Two logs, ``old.csv`` and ``new.csv``, and the datasets that undisturbed builds make of them."""
    from jobs.cli.config import load_config
    from jobs.launch.dataset_build import run_build
    from pipeline.config import SparkConfig
    from pipeline.session import start_spark, stop_spark

    folder = shared / f"seed={seed}"
    shutil.rmtree(folder, ignore_errors=True)  # of a case that did not get this far
    folder.mkdir(parents=True)
    spark = start_spark(SparkConfig(master="local[2]", driver_memory="1g"))
    for name, num_rows in NUM_ROWS.items():
        log, config = folder / f"{name}.csv", folder / f"{name}.toml"
        _write_log(log, num_rows, random.Random(f"{name} {seed}"))
        config.write_text(CONFIG.format(output=folder / name, log=log), encoding="utf-8")
        run_build(spark, load_config([str(config)]))
    stop_spark(spark)
    return folder


def _write_log(path: Path, num_rows: int, rng: random.Random) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write("row,user,tags,price,click\n")
        for row in range(num_rows):
            tags = "|".join(f"t{rng.randrange(90)}" for _ in range(rng.randrange(4)))
            file.write(f"{path.stem}{row},u{rng.randrange(900)},{tags},{rng.random():.4f},{rng.randrange(2)}\n")


def contents(dataset: Path) -> dict[str, Any]:
    """What a dataset is, whatever its version folder is called; its bytes are read from the disk."""
    manifest = DatasetManifest.load(dataset)
    files = [file.path for split in manifest.splits.values() for file in split.files]
    return {
        "files": {path.split("/", 1)[1]: (dataset / path).read_bytes() for path in files},
        "learnt": manifest.load_learnt(dataset),
        "splits": {name: (split.sparse, split.dense, split.label_rate) for name, split in manifest.splits.items()},
    }


def count_rows(dataset: Path, log: Path) -> tuple[int, int]:
    """Rows of the log that are in no file of the dataset, and in more than one place."""
    expected = {line.split(",", 1)[0] for line in log.read_text(encoding="utf-8").splitlines()[1:]}
    found: Counter[str] = Counter()
    for split in DatasetManifest.load(dataset).splits.values():
        for file in split.files:
            found.update(pyarrow.parquet.ParquetFile(dataset / file.path).read(["row"])["row"].to_pylist())
    expect(set(found) <= expected, "rows from nowhere")
    return len(expected - set(found)), sum(number - 1 for number in found.values())


# ---------------------------------------------------------------------------------------------------------------- kills


def _java(process: subprocess.Popen[str], main_class: str) -> psutil.Process:
    """One of the Java processes of a build, by what it runs."""
    found = [p for p in psutil.Process(process.pid).children(recursive=True) if _runs(p, main_class)]
    expect(bool(found), f"no process runs {main_class}")
    return found[0]


def _runs(process: psutil.Process, main_class: str) -> bool:
    try:
        return any(word.endswith(main_class) for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def kill_program(folder: Path, seed: int) -> Outcome:
    """kill -9 of the whole program, Python and Java."""
    build = Build(folder, seed)
    process = build.start()
    build.wait_for_writing(process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    expect(process.returncode == -signal.SIGKILL, "it ended before it was killed")
    build.expect_the_old()
    expect(len(list(build.dataset.glob("version-*"))) == 2, "it was not killed in the middle of its writing")
    return build.build()


def kill_python(folder: Path, seed: int) -> Outcome:
    """kill -9 of the driver's Python alone; the next build starts while Java may still be writing."""
    build = Build(folder, seed)
    process = build.start()
    build.wait_for_writing(process)
    process.kill()
    process.wait()
    build.expect_the_old()
    return build.build()


def kill_java(folder: Path, seed: int) -> Outcome:
    """kill -9 of the driver's Java, as the system does when memory runs out: Python lives to say so."""
    build = Build(folder, seed)
    process = build.start()
    build.wait_for_writing(process)
    _java(process, "SparkSubmit").kill()
    build.expect_refusal(process, "Spark's process died", "memory")
    return build.build()


def kill_executor(folder: Path, seed: int) -> Outcome:
    """kill -9 of one of two executors, each a process of its own: the build goes on and loses nothing."""
    build = Build(folder, seed)
    process = build.start("pipeline.spark.master=local-cluster[2,1,1024]")
    build.wait_for_writing(process)
    executor = _java(process, "CoarseGrainedExecutorBackend")
    executor.kill()
    expect(process.poll() is None, "the build was over before its executor was killed")
    return build.finish(process)


# ----------------------------------------------------------------------------------------------------------- full disks


@contextmanager
def small_disk(path: Path, num_bytes: int) -> Iterator[Path]:
    """A file system of its own that has so much room.

    Raises:
        Skipped: this user may not mount one.
    """
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", path], capture_output=True)
    if done.returncode:
        raise Skipped("a disk that is really full needs the right to mount one: run as root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def fill_output(folder: Path, seed: int) -> Outcome:
    """The disk of the dataset is full in the middle of its writing."""
    with small_disk(folder / "disk", 64 * MIB) as disk:
        build = Build(folder, seed, disk / "dataset")
        needed = sum(map(len, contents(build.references / "new")["files"].values()))
        room = int(needed * random.Random(seed).uniform(0.05, 0.9))
        size = shutil.disk_usage(disk).used + room
        subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
        build.expect_refusal(build.start(), f"no space is left for {build.dataset}", "make room")
        subprocess.run(["mount", "-o", f"remount,size={64 * MIB}", disk], check=True)
        return build.build()


def fill_scratch(folder: Path, seed: int) -> Outcome:
    """The disk of Spark's scratch files is full."""
    build = Build(folder, seed)
    with small_disk(folder / "scratch", 2 * PAGE) as disk:
        process = build.start(environment={"SPARK_LOCAL_DIRS": str(disk)})
        build.expect_refusal(process, f"scratch files in {disk}", "SPARK_LOCAL_DIRS")
    return build.build()


CASES: dict[str, Callable[[Path, int], Outcome]] = {
    "spark-killed-in-write": kill_program,
    "spark-driver-python-killed": kill_python,
    "spark-driver-java-killed": kill_java,
    "spark-executor-killed": kill_executor,
    "disk-full-in-dataset": fill_output,
    "disk-full-in-spark-scratch": fill_scratch,
    **SHARD_CASES,
}
