"""A week of retraining, played: a log that drifts, a day whose data are broken, and a candidate that is worse.

Every day's files arrive, and the very command a scheduler would start is started: ``jobs.retrain``. From the first
promotion on ``jobs.serve`` serves the champion and is asked all the time. What must become of each day is known
beforehand; if anything else does, this says so and fails.
"""

import time
from pathlib import Path

from jobs.cli.conventions import plain_parser, run_program


def main() -> int:
    """Play the week and print what is not as it should be; 1 if anything is."""
    parser = plain_parser("jobs.retrain_demo", "Play a week of retraining.", "python -m jobs.retrain_demo")
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
