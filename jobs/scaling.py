"""Predict rows/s of a training on clusters that are not here, part by part, for shardings that one may choose between.

Seconds follow from products, bytes and messages (training/forecast/cost_model.py) and from a sheet that says what a
rank can do.
"""

import argparse
import contextlib
import dataclasses
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from jobs.cli.config import Config
from jobs.cli.conventions import absolute, config_parser, parse_config_arguments, run_program, write_json
from jobs.plan import num_bytes, num_embeddings, positive
from training.config import ShardingConfig

if TYPE_CHECKING:
    from training.forecast.cost_model import Machine, Net, Prediction, Shard, Traffic

SHARDINGS = ("auto", "row_wise", "whole tables", "2d", "2d, half")
"""auto, row_wise: as the planner lays them out. whole tables: each on one rank, as if it fitted. 2d: replicated, cut by
columns, or by rows over one host; half: the same with vectors and their gradients sent in half precision."""


def main() -> int:
    parser = config_parser(
        "jobs.scaling",
        "Predict rows/s on clusters that are not here, and what limits them.",
        "python -m jobs.scaling --config jobs/configs/plans/criteo_1tb.toml --machine jobs/configs/machines/h100.toml",
    )
    parser.add_argument("--machine", required=True, metavar="FILE", help="TOML: what one GPU and its links can do")
    parser.add_argument("--world-sizes", nargs="+", type=positive, default=[8, 64, 512], metavar="N")
    parser.add_argument("--local-world-size", type=positive, default=8, metavar="N", help="ranks of a host; default: 8")
    parser.add_argument("--batch-per-rank", type=positive, default=8_192, metavar="ROWS", help="beside the global one")
    parser.add_argument("--device-memory", type=num_bytes, metavar="SIZE", help="in place of the sheet's")
    parser.add_argument("--shardings", nargs="+", choices=SHARDINGS, default=SHARDINGS, metavar="KIND")
    parser.add_argument("--missing", type=share, default=0.1, metavar="SHARE", help="of ids, all row 0; default: 0.1")
    parser.add_argument("--output", default="runs/scaling.json", metavar="FILE")
    arguments, config = parse_config_arguments(parser)
    if any(size % arguments.local_world_size for size in arguments.world_sizes):
        parser.error("--world-sizes must be multiples of --local-world-size")
    machine = load_machine(Path(arguments.machine))
    if arguments.device_memory:
        machine = dataclasses.replace(machine, memory=arguments.device_memory)
    started = time.perf_counter()
    rows = compare(config, machine, arguments)
    output = absolute(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, {"machine": dataclasses.asdict(machine), "missing": arguments.missing, "predictions": rows})
    print_table(rows)
    print(f"predicted, not measured, in {time.perf_counter() - started:.0f} s: {output}")
    return 0


def share(text: str) -> float:
    """Read a number from 0 to 1."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")


def load_machine(path: Path) -> "Machine":
    """Read a sheet.

    Raises:
        ValueError: names the file and the key.
    """
    from training.forecast.cost_model import Machine

    try:
        return TypeAdapter(Machine).validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"--machine {path} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def compare(config: Config, machine: "Machine", arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each world size, batch and sharding; those that do not fit say so."""
    from training.forecast.cost_model import Net, Traffic, predict
    from training.forecast.dry_run import PlanError
    from training.model.ctr_model import CTRModel
    from training.sharding.parallelize import needs_padded_tables

    model = CTRModel(
        config.features,
        num_embeddings(config),
        config.training.model,
        pad_tables=needs_padded_tables(config.training),
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
        found.append({**case, **describe(predict(shards, net, machine, traffic), machine, shards)})
    return found


def lay_out(
    model: Any, net: "Net", config: Config, machine: "Machine", traffic: "Traffic", sharding: str
) -> "list[Shard]":
    """The shards of one of ``SHARDINGS``.

    Raises:
        PlanError: they do not fit.
    """
    from training.forecast.what_if_layouts import dealt_shards, planned_shards, whole_tables
    from training.sharding.table_planner import Cluster

    if sharding == "whole tables":
        return whole_tables(model, traffic)
    if sharding not in ("auto", "row_wise"):
        return dealt_shards(model, net, machine, traffic)
    kinds = ShardingConfig("row_wise") if sharding == "row_wise" else config.training.sharding
    training = dataclasses.replace(config.training, sharding=kinds, global_batch_size=traffic.batch_size)
    cluster = Cluster("cuda", traffic.world_size, traffic.ranks_per_host, int(machine.memory))
    return planned_shards(model, training, cluster)


def describe(step: "Prediction", machine: "Machine", shards: "list[Shard]") -> dict[str, Any]:
    """A prediction as the JSON file has it."""
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


def print_table(rows: list[dict[str, Any]]) -> None:
    """As Markdown; rows/s in thousands."""
    first = next((row["shares"] for row in rows if "shares" in row), {})
    header = ["ranks", "batch", "sharding", "k rows/s", "overlapped", "ms", *first, "largest / mean", "GiB"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
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
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    run_program(main)
