"""Builds of 40 columns: against Spark without a transformation, against Polars, and against an earlier commit.

    python -m tests.benchmarks.preprocess --rows 5000000 --repeats 3 --before 280fce5
    python -m tests.benchmarks.preprocess --rows 500000 --before 280fce5 --vocabularies

The floor is Spark reading the same files as text columns and writing them as Parquet. All use all cores, take turns,
and are timed from the first read to the last written byte, without the start of Java or Python. CPU seconds and memory
are those of all processes, from their start on.
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
from typing import Any, NamedTuple

from tqdm import tqdm

from features.disk.atomic import write_json
from tests.benchmarks.criteo_like import COLUMNS, write_logs
from tests.benchmarks.measured import run_measured
from tests.benchmarks.peers import environment

CONFIG = "jobs/configs/bench.toml"
BEFORE = "280fce5"
"""The last commit whose builds were Spark SQL."""
_VOCABULARIES = 'features.sparse=[{names=["C{1..26}"],encoding={kind="vocabulary",min_count=2}}]'


class Cost(NamedTuple):
    """What one build cost."""

    seconds: float
    cpu: float
    peak_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"))
    parser.add_argument("--before", metavar="COMMIT", help="build by this commit of this repository too")
    parser.add_argument("--vocabularies", action="store_true", help="26 vocabularies instead of hashes, no peers")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of ours, before, floor, polars")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--floor", nargs=2, metavar=("LOGS", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.floor:
        print(json.dumps({"seconds": read_and_write(*arguments.floor)}))
        return
    result = measure(arguments)
    print(json.dumps(result, indent=1))
    if arguments.output:
        write_json(arguments.output, result)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    folder, num_rows = arguments.folder.absolute(), arguments.rows
    logs = folder / f"logs-{num_rows}"
    write_logs(logs, num_rows)
    scratch = folder / f"preprocess-{num_rows}"
    overrides = [_VOCABULARIES] if arguments.vocabularies else []
    contenders: dict[str, Callable[[], Cost]] = {"ours": lambda: build(logs, scratch / "ours", overrides)}
    if arguments.before:
        tree = checkout(folder, arguments.before)
        contenders["before"] = lambda: build(logs, scratch / "before", overrides, tree)
    if not arguments.vocabularies:
        contenders["floor"] = lambda: floor(logs, scratch / "floor")
        contenders["polars"] = lambda: polars(logs, scratch / "polars.parquet")
    contenders = {name: run for name, run in contenders.items() if name in (arguments.only or contenders)}
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    for repeat in tqdm(range(arguments.repeats), disable=None, desc="repeats"):
        for name in list(contenders) if repeat % 2 else list(reversed(contenders)):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            costs[name].append(contenders[name]())
    shutil.rmtree(scratch)
    seconds = {name: statistics.median(cost.seconds for cost in found) for name, found in costs.items()}
    cpu = {name: statistics.median(cost.cpu for cost in found) for name, found in costs.items()}
    peak = {name: max(cost.peak_bytes for cost in found) for name, found in costs.items()}
    result = {
        "rows": num_rows,
        "columns": len(COLUMNS),
        "bytes": sum(path.stat().st_size for path in logs.glob("*.tsv")),
        "costs": {name: [cost._asdict() for cost in found] for name, found in costs.items()},
        "rows_per_second": {name: num_rows / value for name, value in seconds.items()},
        "cpu_seconds": cpu,
        "peak_bytes": peak,
    }
    for name in set(contenders) - {"ours"}:
        result[f"vs_{name}"] = seconds[name] / seconds["ours"]
    if "before" in contenders:
        result["cpu_vs_before"] = cpu["ours"] / cpu["before"]
        result["memory_vs_before"] = peak["ours"] / peak["before"]
    return result


def checkout(folder: Path, commit: str) -> Path:
    """Check an earlier commit out, beside the logs."""
    tree = folder / f"commit-{commit}"
    if not tree.is_dir():
        subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(Path.cwd()), str(tree)], check=True)
        subprocess.run(["git", "-C", str(tree), "checkout", "--quiet", commit], check=True)
    return tree


def build(logs: Path, output: Path, overrides: list[str], tree: Path | None = None) -> Cost:
    """Build a dataset; the seconds are without the start of the session."""
    command = [sys.executable, "-m", "jobs.build_dataset", "--config", CONFIG]
    command += [f"pipeline.input.train={logs}", f"pipeline.output={output}", *overrides]
    measured = run_measured(command, tree)
    return Cost(json.loads((output / "build.json").read_text())["seconds"], measured.cpu, measured.peak_bytes)


def polars(logs: Path, output: Path) -> Cost:
    """Do the same by Polars."""
    found = environment.run("polars_preprocess.py", logs, output)
    return Cost(found["seconds"], found["cpu"], found["peak_bytes"])


def floor(logs: Path, output: Path) -> Cost:
    """Read and write alone, by Spark."""
    measured = run_measured([sys.executable, "-m", "tests.benchmarks.preprocess", "--floor", str(logs), str(output)])
    return Cost(json.loads(measured.output.splitlines()[-1])["seconds"], measured.cpu, measured.peak_bytes)


def read_and_write(logs: str, output: str) -> float:
    """Seconds of Spark reading the text columns and writing them as Parquet, with Java's options as Spark sets them."""
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.master("local[*]").config("spark.driver.memory", "8g").getOrCreate()
    started = time.perf_counter()
    schema = ", ".join(f"{name} string" for name in COLUMNS)
    rows = spark.read.csv(logs, sep="\t", schema=schema, quote="")
    rows.write.option("compression", "snappy").parquet(output)
    seconds = time.perf_counter() - started
    spark.stop()
    return seconds


if __name__ == "__main__":
    main()
