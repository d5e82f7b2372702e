"""Scoring: seconds to encode raw rows, against the row-by-row encoder; and jobs.score against an earlier commit.

    python -m tests.benchmarks.score --output runs/bench/score.json
    python -m tests.benchmarks.score --artifact runs/bench/artifact --input runs/bench/logs-500000 --before 280fce5

The row-by-row encoder is tests/oracles/row_encoder.py, by which everything was scored up to that commit. The artifact
must be one that both commits open.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from features.disk.atomic import write_json
from features.encode_rows import FeatureEncoder
from features.learnt import Learnt
from features.schema import DenseFeature, FeatureSchema, HashEncoding, SparseFeature, VocabularyEncoding
from tests.benchmarks.criteo_like import NUM_CATEGORIES, NUM_COUNTS, draw
from tests.benchmarks.measured import run_measured
from tests.benchmarks.preprocess import checkout
from tests.oracles.row_encoder import RowEncoder

BATCHES = (1, 10, 100, 1_000)
"""Rows that are encoded in one call."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--artifact", type=Path)
    parser.add_argument("--input", type=Path)
    parser.add_argument("--before", metavar="COMMIT")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.artifact:
        result = score(arguments)
    else:
        result = {}
        for kind in ("hash", "vocabulary"):
            for rows, ratio in encode(kind, arguments.repeats).items():
                result[f"vs_rows_{kind}_{rows}"] = ratio
    print(json.dumps(result, indent=1))
    if arguments.output:
        write_json(arguments.output, result)


def encode(kind: str, repeats: int) -> dict[int, float]:
    """Seconds of the product's encoder over those of the row-by-row one, by the rows of a call."""
    table = draw(np.random.default_rng(7), 2 * max(BATCHES))
    rows = [{k: v if v is None else str(v) for k, v in row.items()} for row in table.to_pylist()]
    names = [f"C{i}" for i in range(1, NUM_CATEGORIES + 1)]
    encoding = HashEncoding(num_buckets=1_000_000) if kind == "hash" else VocabularyEncoding()
    counts = tuple(DenseFeature(f"I{i}", log1p=True) for i in range(1, NUM_COUNTS + 1))
    schema = FeatureSchema("label", tuple(SparseFeature(name, encoding) for name in names), counts)
    known = {name: tuple(sorted({v for v in table[name].to_pylist() if v})) for name in names}
    learnt = Learnt(known if kind == "vocabulary" else {})
    return {size: _ratio(FeatureEncoder(schema, learnt), schema, learnt, rows, size, repeats) for size in BATCHES}


def _ratio(
    ours: FeatureEncoder, schema: FeatureSchema, learnt: Learnt, rows: list[dict[str, Any]], size: int, repeats: int
) -> float:
    calls = [rows[start : start + size] for start in range(0, max(BATCHES) + 1, size)]  # the last one is a warm-up
    ratios = []
    for _ in range(repeats):
        theirs = RowEncoder(schema, learnt)  # anew: it remembers values, and traffic does not repeat itself
        ratios.append(_seconds(ours.encode, calls) / _seconds(theirs.encode, calls))
    return statistics.median(ratios)


def _seconds(encode_rows: Callable[[Any], Any], calls: list[list[dict[str, Any]]]) -> float:
    encode_rows(calls[-1])
    started = time.perf_counter()
    for call in calls[:-1]:
        encode_rows(call)
    return time.perf_counter() - started


def score(arguments: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds and wall clock of jobs.score, by both commits in turns."""
    trees = {"ours": None, "before": checkout(arguments.folder.absolute(), arguments.before)}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.repeats):
            for name, tree in trees.items():
                command = [sys.executable, "-m", "jobs.score", "--output", f"{folder}/{name}.csv"]
                command += ["--artifact", arguments.artifact.absolute(), "--input", arguments.input.absolute()]
                measured = run_measured(list(map(str, command)), tree)
                found[name].append((measured.seconds, measured.cpu))
        rows = json.loads(Path(folder, "ours.csv.json").read_text())["rows"]
    median = {name: [statistics.median(one) for one in zip(*costs, strict=True)] for name, costs in found.items()}
    return {
        "rows": rows,
        "seconds": {name: one[0] for name, one in median.items()},
        "cpu_seconds": {name: one[1] for name, one in median.items()},
        "vs_before": median["before"][0] / median["ours"][0],
        "cpu_vs_before": median["ours"][1] / median["before"][1],
    }


if __name__ == "__main__":
    main()
