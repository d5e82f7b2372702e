"""Plan the sharding for a cluster without that cluster: bytes and load of every rank.

The plan is the one that a training on such ranks would make. A plan that does not fit is refused with the nearest
changes that fit, found by planning again.
"""

import math
import time

from jobs.cli.argument_types import num_bytes, positive
from jobs.cli.config_arguments import config_parser, parse_config_arguments
from jobs.cli.conventions import absolute, run_program


def main() -> int:
    """Plan, write plan.json and plan.html, and print the plan."""
    parser = config_parser(
        "jobs.plan",
        "Plan how tables are sharded over a cluster, without the cluster: bytes and load of every rank.",
        "python -m jobs.plan --config jobs/configs/plans/criteo_1tb.toml --world-size 64 --device-memory 80GiB",
    )
    parser.add_argument("--world-size", required=True, type=positive, metavar="N", help="ranks, one a GPU")
    parser.add_argument("--device-memory", required=True, type=num_bytes, metavar="SIZE", help="of a rank: 80GiB, 40GB")
    parser.add_argument(
        "--host-memory",
        type=num_bytes,
        metavar="SIZE",
        help="of a rank, for tables that training.sharding.device_memory leaves to its host; default: 128GiB",
    )
    parser.add_argument("--local-world-size", type=positive, metavar="N", help="ranks of a host; default: 8 or fewer")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--output", default="runs/plan", metavar="DIR", help="of plan.json and plan.html")
    arguments, config = parse_config_arguments(parser)
    size = arguments.world_size
    ranks_per_host = arguments.local_world_size or math.gcd(size, 8)
    if size % ranks_per_host:
        parser.error(f"--world-size {size} is not a multiple of --local-world-size {ranks_per_host}")
    output = absolute(arguments.output)
    started = time.perf_counter()

    from jobs.forecasts.sharding_plan import as_trained, describe_plan, plan_cluster, summarise_plan
    from jobs.pages.plan_page import render_plan, sentence
    from training.sharding.table_planner import Cluster

    cluster = Cluster(arguments.device, size, ranks_per_host, arguments.device_memory, arguments.host_memory)
    config = as_trained(config)
    plan = plan_cluster(config, cluster, output)
    result, page = summarise_plan(plan, config), output / "plan.html"
    page.write_text(render_plan(result, plan.shards), encoding="utf-8")
    print(describe_plan(result), sentence(result), sep="\n")
    print(f"planned in {time.perf_counter() - started:.0f} s: {output}/plan.json, {page}")
    return 0


if __name__ == "__main__":
    run_program(main)
