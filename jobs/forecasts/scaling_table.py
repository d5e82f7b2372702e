"""Predictions of rows/s for clusters, batches and shardings, with the time of each part, from a machine's sheet."""

import argparse
import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from jobs.cli.config import Config
from jobs.forecasts.sharding_plan import num_embeddings
from training.config import ShardingConfig
from training.forecast.cost_model import Machine, Prediction, Shard, Traffic, predict
from training.forecast.dry_run import PlanError
from training.forecast.what_if_layouts import dealt_shards, planned_shards, whole_tables
from training.model.cost import Net
from training.model.ctr_model import CTRModel
from training.sharding.table_planner import Cluster


def load_machine(path: Path) -> Machine:
    """Read a machine's sheet: TOML with the speed of a GPU and its links.

    Raises:
        ValueError: names the file and the key.
    """
    try:
        return TypeAdapter(Machine).validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"--machine {path} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def predict_scaling(config: Config, machine: Machine, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Predict a row for each world size, batch and sharding; one that does not fit has ``fits`` False and a reason."""
    model = CTRModel(
        config.features,
        num_embeddings(config),
        config.training.model,
        pad_tables=config.training.pads_tables,
        device="meta",
    )
    net, found = Net.of(model), []
    cases = [
        (size, batch, sharding)
        for size in arguments.world_sizes
        for batch in dict.fromkeys((config.training.global_batch_size, size * arguments.batch_per_rank))
        for sharding in arguments.shardings
    ]
    for size, batch, sharding in tqdm(cases, disable=None, unit="plan"):
        half = sharding.endswith("half")
        traffic = Traffic(size, arguments.local_world_size, batch, arguments.missing, 2 if half else 4)
        case = {"world_size": size, "batch_size": batch, "sharding": sharding}
        try:
            shards = lay_out(model, net, config, machine, traffic, sharding)
        except PlanError as error:
            found.append({**case, "fits": False, "reason": str(error).splitlines()[0]})
            continue
        found.append({**case, **describe_prediction(predict(shards, net, machine, traffic), machine, shards)})
    return found


def lay_out(model: Any, net: Net, config: Config, machine: Machine, traffic: Traffic, sharding: str) -> list[Shard]:
    """Lay out the shards of one of ``jobs.scaling.SHARDINGS``.

    Raises:
        PlanError: they do not fit.
    """
    if sharding == "whole tables":
        return whole_tables(model, traffic)
    if sharding not in ("auto", "row_wise"):
        return dealt_shards(model, net, machine, traffic)
    kinds = ShardingConfig("row_wise") if sharding == "row_wise" else config.training.sharding
    training = dataclasses.replace(config.training, sharding=kinds, global_batch_size=traffic.batch_size)
    cluster = Cluster("cuda", traffic.world_size, traffic.ranks_per_host, int(machine.memory))
    return planned_shards(model, training, cluster)


def describe_prediction(step: Prediction, machine: Machine, shards: list[Shard]) -> dict[str, Any]:
    """Describe a prediction as the JSON file holds it."""
    total = sum(step.seconds.values())
    kinds = [shard.kind for shard in {shard.table: shard for shard in shards}.values()]
    return {
        "fits": step.memory <= machine.memory,
        "rows_per_second": step.rows_per_second,
        "rows_per_second_overlapped": step.rows_per_second_overlapped,
        "limit": step.limit,
        "ms": 1e3 * total,
        "shares": {part: seconds / total for part, seconds in step.seconds.items()},
        "reading_ms": 1e3 * step.reading,
        "largest_vs_mean": step.imbalance,
        "gib_of_tables": step.memory / (1 << 30),
        "tables": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
    }


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Lay the predictions out as a Markdown table; rows/s in thousands."""
    first = next((row["shares"] for row in rows if "shares" in row), {})
    header = ["ranks", "batch", "sharding", "k rows/s", "overlapped", "ms", *first, "largest / mean", "GiB"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for row in rows:
        cells = [str(row["world_size"]), f"{row['batch_size']:,}", row["sharding"]]
        if "ms" in row:
            numbers = (row["rows_per_second"] / 1e3, row["rows_per_second_overlapped"] / 1e3)
            cells += [*(f"{n:,.0f}" for n in numbers), f"{row['ms']:.1f}"]
            cells += [f"{share:.0%}" for share in row["shares"].values()]
            cells += [f"{row['largest_vs_mean']:.2f}", f"{row['gib_of_tables']:.1f}"]
            cells[-1] += "" if row["fits"] else ", does not fit"
        else:
            cells += [row["reason"]] + [""] * (len(header) - len(cells) - 1)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
