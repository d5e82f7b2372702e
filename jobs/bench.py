"""Measure the speed of preprocessing, scoring, reading and training against peers and against the machine's own limits.

The measurements are programs in ``tests/benchmarks`` of a checkout, which must be the working directory; every figure
is a ratio inside one run.
"""

import subprocess
import sys

from jobs.cli.conventions import plain_parser, run_program

BENCH_PARTS = ("preprocess", "cliffs", "score", "read", "train")
SUITE = "tests.benchmarks.suite"
"""Program that runs the parts; it takes the same options."""


def main() -> int:
    """Run the suite in a process of its own; return its exit code."""
    parser = plain_parser("jobs.bench", "Measure speed, as ratios.", "python -m jobs.bench --only read train")
    parser.add_argument("--full", action="store_true", help="all rows and repeats: about an hour on 2 cores")
    parser.add_argument("--only", nargs="+", choices=BENCH_PARTS, metavar="PART", help="parts to run")
    parser.add_argument("--output", default="runs/bench", metavar="DIR")
    arguments = parser.parse_args()
    options = ["--full"] if arguments.full else []
    options += ["--only", *arguments.only] if arguments.only else []
    command = [sys.executable, "-m", SUITE, *options, "--output", arguments.output]
    return subprocess.run(command, check=False).returncode  # noqa: S603


if __name__ == "__main__":
    run_program(main)
