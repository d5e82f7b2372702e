"""Polars doing what ``jobs/configs/bench.toml`` asks of Spark: hash the categories, log1p of the counts, to Parquet.

Less than the pipeline does: no malformed line is kept aside, nothing is counted or shuffled, and the hash is Polars'
own. Started by ``tests.benchmarks.preprocess`` with the peers' folder on the path; prints one JSON line.
"""

import json
import resource
import sys
import time
from pathlib import Path

import polars as pl

NUM_BUCKETS = 1_000_000


def main(logs: Path, output: Path) -> None:
    started = time.perf_counter()
    counts, categories = [f"I{i}" for i in range(1, 14)], [f"C{i}" for i in range(1, 27)]
    names = ["label", *counts, *categories]
    rows = pl.scan_csv(
        sorted(logs.glob("*.tsv")),
        separator="\t",
        has_header=False,
        new_columns=names,
        infer_schema=False,
        quote_char=None,
    )
    ids = [
        pl.when(pl.col(name).is_null()).then(0).otherwise(1 + pl.col(name).hash(seed=i) % (NUM_BUCKETS - 1))
        for i, name in enumerate(categories)
    ]
    encoded = rows.select(
        *(column.cast(pl.Int32).alias(name) for name, column in zip(categories, ids, strict=True)),
        *(pl.col(name).cast(pl.Float64).fill_null(0).log1p().cast(pl.Float32) for name in counts),
        pl.col("label").cast(pl.Float32),
    )
    encoded.sink_parquet(output, compression="snappy", row_group_size=65_536)
    seconds = time.perf_counter() - started
    found = pl.scan_parquet(output).select(pl.len()).collect().item()
    used = resource.getrusage(resource.RUSAGE_SELF)
    costs = {"seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}
    print(json.dumps({"rows": found, **costs, "polars": pl.__version__, "threads": pl.thread_pool_size()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
