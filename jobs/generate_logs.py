"""Generate ad-like raw logs with a known click probability, for the demo, the tests and experiments.

Also prints the AUC and logloss of that probability on these rows, the best that any model can reach.
"""

import argparse
from pathlib import Path

from jobs.cli.conventions import plain_parser, run_program


def main() -> int:
    """Generate the logs and print their summary."""
    arguments = _parse_arguments()

    from jobs.demos.generated_logs import describe_logs, generate
    from pipeline.synthetic.generate import LogSpec

    spec = LogSpec(arguments.rows, arguments.days, arguments.seed, arguments.click_rate, drift=arguments.drift)
    print(describe_logs(generate(Path(arguments.output), spec), arguments.output))
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = plain_parser(
        "jobs.generate_logs",
        "Generate ad-like raw logs with a known click probability (column click_probability).",
        "python -m jobs.generate_logs --output runs/logs --rows 1000000 --days 10 --seed 7",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the logs; made if absent")
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="rows in all (default: %(default)s)")
    parser.add_argument("--days", type=int, default=10, metavar="D", help="from 2024-01-01 on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="same seed, same files (default: %(default)s)")
    parser.add_argument("--click-rate", type=float, default=0.24, metavar="P", help="mean click probability")
    parser.add_argument(
        "--drift", type=float, default=0.0, metavar="D", help="share of users, ads and tastes that is new each day"
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_program(main)
