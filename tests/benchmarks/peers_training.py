"""Rows/s of ``jobs.train`` on DeepFM and DCN-V2, against DeepCTR-Torch and FuxiCTR with networks of the same sizes.

    python -m tests.benchmarks.peers_training --output runs/bench/peers.json

26 tables of 100,000 and of 1,000,000 rows x 16, an MLP of three layers of 400, batches of 4,096; one pass over the
training rows, which is as much as a peer that goes over every table row at each step can be asked for. The peers keep
their rows in memory; ours are read from Parquet. Beside the rates stands the logloss on the same validation rows after
the same training rows. The optimizers are each system's own way: theirs Adam over every row, ours row-wise Adagrad for
the looked-up rows and Adam for the rest.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from features.disk.atomic import write_json
from features.disk.dataset import DatasetManifest
from tests.benchmarks.criteo_like import write_logs
from tests.benchmarks.peers import environment

CONFIG = "jobs/configs/bench.toml"
SCRIPTS = {"deepctr_torch": "train_deepctr.py", "fuxictr": "train_fuxictr.py"}
MODELS = {"deepfm": "jobs/configs/models/deepfm.toml", "dcn_v2": "jobs/configs/models/dcn_v2.toml"}
ROWS = {1_000_000: 30_000, 100_000: 200_000}
"""Rows of each table -> rows of the log, a fifth of which are validation rows."""
BATCH_SIZE = 4_096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"))
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=sorted(MODELS))
    parser.add_argument("--tables", nargs="+", type=int, choices=sorted(ROWS), default=sorted(ROWS))
    parser.add_argument("--bfloat16", action="store_true", help="ours in bfloat16 products too, beside the same peers")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    environment.prepare()
    result = {}
    for num_buckets in arguments.tables:
        dataset = build(arguments.folder, num_buckets)
        for model in tqdm(arguments.models, disable=None, desc=f"tables of {num_buckets:,}"):
            found = compare(arguments.folder, dataset, num_buckets, model)
            if arguments.bfloat16:
                found["ours_bfloat16"] = train(arguments.folder, dataset, num_buckets, model, "bfloat16")
            result[f"{model}_{num_buckets}"] = found
    rates = {name: {who: found[who]["rows_per_second"] for who in ("ours", *SCRIPTS)} for name, found in result.items()}
    ratios = {f"vs_{peer}": {name: rate["ours"] / rate[peer] for name, rate in rates.items()} for peer in SCRIPTS}
    result = {**ratios, "all": result}
    print(json.dumps(result, indent=1))
    if arguments.output:
        write_json(arguments.output, result)


def overlay(folder: Path, num_buckets: int) -> Path:
    """The config file that gives the tables their size."""
    return folder / f"buckets-{num_buckets}.toml"


def build(folder: Path, num_buckets: int) -> Path:
    """A dataset whose tables have ``num_buckets`` rows."""
    rows = ROWS[num_buckets]
    dataset, logs = folder / f"dataset-peers-{num_buckets}", folder / f"logs-{rows}"
    overlay(folder, num_buckets).write_text(
        f'[[features.sparse]]\nnames = ["C{{1..26}}"]\nencoding = {{ kind = "hash", num_buckets = {num_buckets} }}\n'
    )
    if not (dataset / "manifest.json").exists():
        write_logs(logs, rows)
        command = [sys.executable, "-m", "jobs.build_dataset", "--config", CONFIG]
        command += ["--config", str(overlay(folder, num_buckets))]
        command += [f"pipeline.input.train={logs}", f"pipeline.output={dataset}"]
        command += ['pipeline.split={kind="hash", valid=0.2, test=0.0}']
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return dataset


def compare(folder: Path, dataset: Path, num_buckets: int, model: str) -> dict[str, Any]:
    splits = DatasetManifest.load(dataset).splits
    threads = os.cpu_count() or 1
    arguments = (dataset.absolute(), splits["train"].num_rows, splits["valid"].num_rows, BATCH_SIZE, threads)
    found = {peer: environment.run(script, model, *arguments) for peer, script in SCRIPTS.items()}
    return {"ours": train(folder, dataset, num_buckets, model, "float32"), **found, "rows": splits["train"].num_rows}


def train(folder: Path, dataset: Path, num_buckets: int, model: str, precision: str) -> dict[str, Any]:
    """One ``jobs.train``: rows/s, logloss, and the shares of its step by part."""
    run = folder / "peers-run"
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "jobs.train", "--config", CONFIG, "--config", str(overlay(folder, num_buckets))]
    command += ["--config", MODELS[model], "--run", str(run)]
    command += [f"training.dataset={dataset}", f"training.global_batch_size={BATCH_SIZE}"]
    command += [f"training.precision={precision}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    metrics = json.loads((run / "metrics.json").read_text())
    shutil.rmtree(run)
    profile = {name: metrics["train"][name] for name in ("rows_per_second", "seconds_per_step", "shares", "of_limit")}
    return {**profile, "logloss": metrics["valid"]["logloss"]}


if __name__ == "__main__":
    main()
