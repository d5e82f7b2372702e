"""Train a matrix of models x datasets x seeds, choose on validation, report test once, and rank the models.

Every cell runs the programs that a user would call. A finished cell is one JSON file: a killed leaderboard goes on with
the cells that are left, and a finished one is only read again.
"""

import dataclasses
import time
from pathlib import Path

from jobs.cli.config import check_many_runs, read_checked
from jobs.cli.conventions import plain_parser, run_program
from jobs.compare.matrix import Leaderboard


def main() -> int:
    """Run the matrix, write its tables and its page, and print its rows."""
    parser = plain_parser(
        "jobs.leaderboard",
        "Train a matrix of models, datasets and seeds; compare them on validation and, once, on test.",
        "python -m jobs.leaderboard --config jobs/configs/leaderboards/frappe.toml",
    )
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--output", metavar="DIR", help="instead of the config's")
    arguments = parser.parse_args()
    leaderboard = read_checked(arguments.config, Leaderboard)
    if arguments.output:
        leaderboard = dataclasses.replace(leaderboard, output=arguments.output)
    cells = list(leaderboard.cells())
    configs = {cell.run: cell.config() for cell in cells}  # a wrong key is told before hours are spent
    check_many_runs(configs.values())
    leaderboard.check_libraries()
    started, output = time.perf_counter(), Path(leaderboard.output)

    from jobs.compare.matrix_run import build_missing_dataset, run_all
    from jobs.compare.ranking import describe_leaderboard, summarise, write_leaderboard
    from jobs.launch.connection import check_address

    check_address()  # told before datasets are built
    for dataset in leaderboard.datasets:
        build_missing_dataset(dataset, leaderboard.overrides)
    rows = summarise(leaderboard, cells, run_all(cells, configs, leaderboard.parallel))
    write_leaderboard(output, leaderboard, rows)
    print(describe_leaderboard(rows))
    print(f"{len(cells)} runs, {time.perf_counter() - started:.0f} s; {output}/leaderboard.html, .csv and .json")
    return 0


if __name__ == "__main__":
    run_program(main)
