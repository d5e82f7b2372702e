"""Search hyper-parameters: random samples of training keys, bad trials stopped early by ASHA, one budget a model.

Trials are compared on validation alone. A finished trial is one JSON file: a killed search goes on with the trials that
are left. The best trial of a model is a TOML file to lay over its configs.
"""

import dataclasses
import time
from pathlib import Path

from jobs.cli.config import check_many_runs, read_checked
from jobs.cli.conventions import plain_parser, run_program


def main() -> int:
    """Run the search, write the best configs and the tables, and print a summary."""
    parser = plain_parser(
        "jobs.tune",
        "Search hyper-parameters on validation, with the same budget for each model.",
        "python -m jobs.tune --config jobs/configs/tune/frappe.toml",
    )
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--output", metavar="DIR", help="instead of the config's")
    arguments = parser.parse_args()

    from jobs.compare.search import Search

    search = read_checked(arguments.config, Search)
    if arguments.output:
        search = dataclasses.replace(search, output=arguments.output)
    trials = search.trials()  # a wrong key is told before hours are spent
    check_many_runs(trial.config for of_model in trials.values() for trial in of_model)
    started, output = time.perf_counter(), Path(search.output)

    from jobs.compare.best_configs import conclude, describe_search, write_search
    from jobs.compare.trials import run_search

    results = run_search(search, trials)
    models = [conclude(arguments.config, *of_model) for of_model in zip(trials.values(), results, strict=True)]
    rows = [row for of_model in results for row in of_model]
    write_search(output, search, models, rows)
    print(describe_search(output, search, models, rows))
    print(f"{time.perf_counter() - started:.0f} s in all; trials: {output / 'trials.csv'}")
    return 0


if __name__ == "__main__":
    run_program(main)
