"""Train a model with Ray Train: workers form a process group, and each runs ``training.fit.run.train_rank``.

Ray restarts the group when a worker dies; the ranks then go on from the run's newest complete checkpoint. Ray's own
checkpoints are not used.
"""

import time

from jobs.cli.config_arguments import config_parser, parse_config_arguments
from jobs.cli.conventions import absolute, run_program
from jobs.cli.logging import add_log_options, set_up_logging
from jobs.launch.follow import describe_training
from jobs.launch.ray_cluster import train_on_ray


def main() -> int:
    """Lock the run folder, train in it, and print a summary."""
    parser = config_parser(
        "jobs.train",
        "Train a model on a built dataset under Ray Train.",
        "python -m jobs.train --config jobs/configs/demo.toml --run runs/demo training.max_epochs=1",
    )
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of the run; made if absent")
    parser.add_argument("--resume", action="store_true", help="go on from the run's newest checkpoint")
    add_log_options(parser)
    arguments, config = parse_config_arguments(parser)
    set_up_logging("jobs.train", arguments, timed=False)
    started = time.perf_counter()

    from jobs.launch.run_guard import lock_run_folder, prepare_run, take_over, with_places

    config = with_places(config)
    run_path = absolute(arguments.run)
    with lock_run_folder(run_path):
        name = take_over(run_path)
        config = prepare_run(run_path, config, resume=arguments.resume)
        train_on_ray(run_path, config, name)
    print(describe_training(run_path, time.perf_counter() - started, config.training.monitor))
    return 0


if __name__ == "__main__":
    run_program(main)
