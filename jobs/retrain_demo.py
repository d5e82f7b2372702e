"""Simulate days of retraining: a log that drifts, broken, late and unreadable data, and a candidate that is worse.

Every day its files are delivered and ``jobs.retrain`` is started, as a scheduler would start it. After the first
promotion ``jobs.serve`` serves the champion and a client sends it requests all the time. The outcome of each day is
known in advance; any other outcome is printed and fails the demo.
"""

import time
from pathlib import Path

from jobs.cli.conventions import plain_parser, run_program


def main() -> int:
    """Simulate the days and print every deviation; return 1 if there is one."""
    parser = plain_parser("jobs.retrain_demo", "Play nine days of retraining.", "python -m jobs.retrain_demo")
    parser.add_argument("--run", default="runs/retrain-demo", metavar="DIR", help="everything is written below it")
    parser.add_argument("--rows", type=int, default=40_000, metavar="N", help="a day (default: %(default)s)")
    arguments = parser.parse_args()
    started = time.perf_counter()

    from jobs.demos.retrain_week import RetrainDemo

    demo = RetrainDemo(Path(arguments.run), arguments.rows)
    wrong = demo.run()
    for line in wrong:
        print(f"WRONG: {line}")
    word = "failed" if wrong else "everything went as it should"
    print(f"{word}; {time.perf_counter() - started:.0f} s in all; open {demo.folder / 'status.html'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    run_program(main)
