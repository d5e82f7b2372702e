"""What filters of noise and dwell weights do to a model with a built history, everything else the same.

    python -m tests.benchmarks.denoising --log retailrocket
    python -m tests.benchmarks.denoising --log ebnerd

retailrocket: the views of ``jobs/configs/sequences/retailrocket.toml``'s rows. Its log has no dwell times; here one is
the time until the user's next event of any kind in ``events.csv.gz``, not known where that is none or later than half
an hour. ebnerd: read times as they were measured; the users' earlier reads (``history.parquet``) are built first, and
the pages go on with them. Rows see an event 30 seconds later in all variants. Each run in this process, one thread.
"""

import argparse
import csv
import gzip
import json
import tempfile
import tomllib
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from features.disk.atomic import write_json
from features.disk.dataset import DatasetManifest
from jobs.cli.config import parse_config
from jobs.launch.dataset_build import run_build
from pipeline.build import dataset
from tests.benchmarks.build_histories import run_here
from tests.benchmarks.train_here import evaluate_here

CONFIGS = Path("jobs/configs/sequences")
BURST = {"events": 4, "seconds": 15}
ALL, LONG = {"column": "dwell", "min_seconds": 0}, {"column": "dwell", "min_seconds": 10}
NOTHING = "no history"
VARIANTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "history": (False, {"lag": "30s"}),
    "dwell of 10 s": (False, {"lag": "30s", "dwell": LONG}),
    "no bursts": (False, {"lag": "15s", "burst": BURST}),
    "both": (False, {"lag": "15s", "dwell": LONG, "burst": BURST}),
    "weights": (True, {"lag": "30s", "dwell": ALL}),
    "weights, dwell of 10 s": (True, {"lag": "30s", "dwell": LONG}),
}
"""Name -> whether events are weighted, and the rule of the history; a burst is known 15 s later than its events."""
MOST_SECONDS = 1_800


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", choices=("retailrocket", "ebnerd"), required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--encoders", nargs="+", default=["din", "mean"])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make = retailrocket if arguments.log == "retailrocket" else ebnerd
        trees = dict(make(arguments.data / arguments.log, Path(folder)))
        dataset.run_tasks = run_here
        shown = {name: [build(tree) for tree in of] for name, of in trees.items()}
        found: dict[str, Any] = {}
        runs = [(name, kind, seed) for seed in arguments.seeds for name in trees for kind in arguments.encoders]
        for name, kind, seed in tqdm(runs, disable=None):
            if name == NOTHING and kind != arguments.encoders[0]:
                continue
            tree = trees[name][-1]
            encoder = {"kind": "din", "softmax": True} if kind == "din" else {"kind": kind}
            model = {"sequences": {s["name"]: encoder for s in tree["features"].get("sequence", [])}}
            training = {**tree["training"], "model": model, "seed": seed, "calibration": {"kind": "none"}}
            metrics = evaluate_here(parse_config({**tree, "training": training}))["valid"]
            key = name if name == NOTHING else f"{name}, {kind}"
            found.setdefault(key, []).append({n: metrics[n] for n in ("auc", "gauc", "logloss")})
            print(key, seed, found[key][-1], flush=True)
    result = {"log": arguments.log, "histories": shown, "valid": found}
    print(json.dumps(result, indent=1))
    if arguments.output:
        write_json(arguments.output, result)


def build(tree: dict[str, Any]) -> dict[str, Any]:
    """Build a dataset; what its manifest says of histories."""
    run_build(cast(Any, None), parse_config(tree))
    manifest = DatasetManifest.load(tree["pipeline"]["output"])
    return {} if manifest.histories is None else {n: vars(s) for n, s in manifest.histories.sequences.items()}


def variants(tree: dict[str, Any], of: str, where: str, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Config trees by name, with a history or none."""
    for name in (NOTHING, *VARIANTS):
        features = {**tree["features"], "sequence": []}
        if name != NOTHING:
            is_weighted, rule = VARIANTS[name]
            history = {"of": of, "where": where, **rule}
            sequence = {"name": "reads", "parts": ["item"], "max_length": 50, "history": history}
            features["sequence"] = [{**sequence, "dwell_weights": is_weighted}]
        output = str(folder / name.replace(" ", "-"))
        pipeline, training = {**tree["pipeline"], "output": output}, {**tree["training"], "dataset": output}
        yield name, {"features": features, "pipeline": pipeline, "training": training}


def read_config(name: str) -> dict[str, Any]:
    return tomllib.loads((CONFIGS / f"{name}.toml").read_text())


def retailrocket(data: Path, folder: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    with gzip.open(data / "events.csv.gz", "rt") as events:
        times: dict[str, list[int]] = {}
        for event in csv.DictReader(events):
            times.setdefault(event["user"], []).append(int(event["time"]))
    for of_user in times.values():
        of_user.sort()
    tree = read_config("retailrocket")
    tree["features"]["timestamp"] = {"column": "time"}
    for split in ("train", "valid"):
        with gzip.open(data / f"impressions_{split}.csv.gz", "rt") as rows, (folder / f"{split}.csv").open("w") as out:
            reader = csv.DictReader(rows)
            writer = csv.DictWriter(out, [*(reader.fieldnames or ()), "dwell"])
            writer.writeheader()
            for row in reader:
                writer.writerow({**row, "dwell": time_to_next(times[row["user"]], int(row["time"]))})
        tree["pipeline"]["input"][split] = str(folder / f"{split}.csv")
    for name, of in variants(tree, "user", "y >= 0", folder):
        yield name, [of]


def time_to_next(times: list[int], time: int) -> int | None:
    """Seconds until the next event of a user; None where that is none, or late."""
    place = bisect_right(times, time)
    is_known = place < len(times) and times[place] - time <= MOST_SECONDS
    return times[place] - time if is_known else None


def ebnerd(data: Path, folder: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    columns: dict[str, list[Any]] = {name: [] for name in ("user_id", "item", "impression_time", "dwell")}
    for user in pq.read_table(data / "history.parquet").to_pylist():
        columns["item"] += user["article_id_fixed"]
        columns["impression_time"] += user["impression_time_fixed"]
        columns["dwell"] += user["read_time_fixed"]
        columns["user_id"] += [user["user_id"]] * len(user["article_id_fixed"])
    same = [1] * len(columns["item"])
    pq.write_table(pa.table({**columns, "clicked": same, "impression_id": same}), folder / "earlier.parquet")
    pages = pq.read_table(data / "behaviors.parquet")
    pq.write_table(pages.append_column("dwell", pages["next_read_time"]), folder / "pages.parquet")
    tree = read_config("ebnerd")
    tree["pipeline"]["input"]["train"] = str(folder / "pages.parquet")
    for name, of in variants(tree, "user_id", "label", folder):
        earlier = {"output": of["pipeline"]["output"] + "-earlier"}
        earlier["input"] = {"train": str(folder / "earlier.parquet"), "format": {"kind": "parquet"}}
        of["pipeline"]["base"] = earlier["output"]
        yield name, [{**of, "pipeline": earlier}, of]


if __name__ == "__main__":
    main()
