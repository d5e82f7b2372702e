"""Predict rows/s of a training on clusters that are not at hand, with the time of each part, for several shardings.

Seconds follow from products, bytes and messages (training/forecast/cost_model.py) and from a TOML sheet with the speed
of a GPU and its links.
"""

import dataclasses
import time
from pathlib import Path

from features.disk.atomic import write_json
from jobs.cli.argument_types import num_bytes, positive, share
from jobs.cli.config_arguments import config_parser, parse_config_arguments
from jobs.cli.conventions import absolute, run_program

SHARDINGS = ("auto", "row_wise", "whole tables", "2d", "2d, half")
"""Shard layouts to compare. auto, row_wise: the planner's own. whole tables: each table on one rank, whether it fits or
not. 2d: replicated, cut by columns, or by rows over one host; half: the same with vectors and their gradients sent in
half precision."""


def main() -> int:
    """Predict, write the predictions, and print them as a table."""
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

    from jobs.forecasts.scaling_table import as_markdown, load_machine, predict_scaling
    from jobs.forecasts.sharding_plan import as_trained

    machine = load_machine(Path(arguments.machine))
    if arguments.device_memory:
        machine = dataclasses.replace(machine, memory=arguments.device_memory)
    started = time.perf_counter()
    rows = predict_scaling(as_trained(config), machine, arguments)
    output = absolute(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, {"machine": dataclasses.asdict(machine), "missing": arguments.missing, "predictions": rows})
    print(as_markdown(rows))
    print(f"predicted, not measured, in {time.perf_counter() - started:.0f} s: {output}")
    return 0


if __name__ == "__main__":
    run_program(main)
