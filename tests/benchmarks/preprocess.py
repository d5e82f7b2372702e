"""Rows/s of ``jobs.build_dataset`` on 40 columns, against Spark without a transformation and against Polars.

    python -m tests.benchmarks.preprocess --rows 5000000 --repeats 3 --output runs/bench/preprocess.json

The floor is Spark reading the same files as text columns and writing them as Parquet. All three use all cores,
take turns, and are timed from the first read to the last written byte, without the start of Java or Python.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from features.disk.atomic import write_json
from tests.benchmarks.criteo_like import COLUMNS, write_logs
from tests.benchmarks.peers import environment

CONFIG = "jobs/configs/bench.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--floor", nargs=2, metavar=("LOGS", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.floor:
        print(json.dumps({"seconds": read_and_write(*arguments.floor)}))
        return
    result = measure(arguments.folder, arguments.rows, arguments.repeats)
    print(json.dumps(result, indent=1))
    if arguments.output:
        write_json(arguments.output, result)


def measure(folder: Path, num_rows: int, repeats: int) -> dict[str, Any]:
    logs = folder / f"logs-{num_rows}"
    write_logs(logs, num_rows)
    scratch = folder / f"preprocess-{num_rows}"
    contenders: dict[str, Callable[[], float]] = {
        "ours": lambda: build(logs, scratch / "ours"),
        "floor": lambda: floor(logs, scratch / "floor"),
        "polars": lambda: environment.run("polars_preprocess.py", logs, scratch / "polars.parquet")["seconds"],
    }
    environment.prepare()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in tqdm(range(repeats), disable=None, desc="repeats"):
        for name in list(contenders) if repeat % 2 else list(reversed(contenders)):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            seconds[name].append(contenders[name]())
    shutil.rmtree(scratch)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "rows": num_rows,
        "columns": len(COLUMNS),
        "bytes": sum(path.stat().st_size for path in logs.glob("*.tsv")),
        "seconds": seconds,
        "rows_per_second": {name: num_rows / value for name, value in medians.items()},
        "vs_floor": medians["floor"] / medians["ours"],
        "vs_polars": medians["polars"] / medians["ours"],
    }


def build(logs: Path, output: Path) -> float:
    """Seconds of a build, without the start of the session."""
    command = [sys.executable, "-m", "jobs.build_dataset", "--config", CONFIG]
    command += [f"pipeline.input.train={logs}", f"pipeline.output={output}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((output / "build.json").read_text())["seconds"]


def floor(logs: Path, output: Path) -> float:
    command = [sys.executable, "-m", "tests.benchmarks.preprocess", "--floor", str(logs), str(output)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])["seconds"]


def read_and_write(logs: str, output: str) -> float:
    """Seconds of Spark reading the text columns and writing them as Parquet, in the session that builds use."""
    from pipeline.config import SparkConfig
    from pipeline.session import start_spark

    spark = start_spark(SparkConfig(), num_bytes=1 << 40)
    started = time.perf_counter()
    schema = ", ".join(f"{name} string" for name in COLUMNS)
    rows = spark.read.csv(logs, sep="\t", schema=schema, quote="")
    rows.write.option("compression", "snappy").parquet(output)
    seconds = time.perf_counter() - started
    spark.stop()
    return seconds


if __name__ == "__main__":
    main()
