"""Run the whole pipeline on generated logs: generate, spark-submit, train, evaluate, export, score, report.

Each step is the command that a user would call, in a process of its own. The model is compared with the generator's
own probability (the oracle), with a linear model and with a constant.
"""

import time
from pathlib import Path

from jobs.cli.conventions import plain_parser, run_program

CONFIG = "jobs/configs/demo.toml"


def main() -> int:
    """Run the demo and print how the model compares."""
    parser = plain_parser("jobs.demo", "Run the whole road on generated logs.", "python -m jobs.demo --rows 1000000")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--run", default="runs/demo", metavar="DIR", help="everything is written below it")
    parser.add_argument("--config", default=CONFIG, metavar="FILE")
    arguments = parser.parse_args()
    started = time.perf_counter()

    from features.disk.run_folder import ARTIFACT_FOLDER, REPORT_NAME
    from jobs.demos.pipeline_demo import Demo, describe_demo

    demo = Demo(Path(arguments.run), arguments.config, arguments.rows)
    print(describe_demo(demo.run()))
    seconds = time.perf_counter() - started
    print(f"{seconds:.0f} s in all; open {demo.folder / REPORT_NAME}, model in {demo.folder / ARTIFACT_FOLDER}")
    return 0


if __name__ == "__main__":
    run_program(main)
