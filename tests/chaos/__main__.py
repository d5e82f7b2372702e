"""Break jobs in every way known, count what they lose. Exits with 1 if rows were lost or doubled or a case fails."""

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.chaos.suite import CASES, GROUPS, is_amiss, run


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        epilog="example:\n  python -m tests.chaos --seeds 5 --only worker-killed disk-full-in-checkpoint",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="times each case is run (default 2)")
    parser.add_argument(
        "--group", choices=GROUPS, default="jobs", help="jobs: builds and trainings (default); retrain: retraining"
    )
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument(
        "--at-once", type=int, default=2, metavar="N", help="seeds that run beside each other (default 2)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/chaos/chaos.json"), metavar="FILE", help="default %(default)s"
    )
    arguments = parser.parse_args()
    if min(arguments.seeds, arguments.at_once) < 1:
        parser.error("--seeds and --at-once must be 1 or more")
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # what starts in the background inherits that it is ignored
    names = [name for name in CASES if name in (arguments.only or GROUPS[arguments.group])]
    started = time.perf_counter()
    rows = run(names, arguments.seeds, arguments.output, arguments.at_once)
    _print_table(rows)
    print(f"{time.perf_counter() - started:.0f} s in all; {arguments.output}")
    return int(any(is_amiss(row) for row in rows))


def _print_table(rows: list[dict[str, Any]]) -> None:
    words = {True: "equal", False: "DIFFER", None: "-"}
    print(f"{'case':<32}{'times':>6}{'rows lost':>11}{'rows doubled':>14}{'weights':>9}{'failed':>8}{'time':>8}")
    for row in rows:
        print(
            f"{row['case']:<32}{row['times']:>6}{row['rows_lost']:>11,}{row['rows_doubled']:>14,}"
            f"{words[row['weights_equal']]:>9}{len(row['failures']):>8}{row['seconds']:>6.0f} s"
        )
        for line in (*row["failures"], *([f"not run: {row['skipped']}"] if "skipped" in row else [])):
            print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
