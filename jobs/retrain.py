"""Retrain once: preprocess new data, check it, train a candidate, compare it with the champion, promote or refuse it.

Every step is idempotent and leaves a file when it is done: a killed retraining goes on with the next step when it is
started again, and a finished one does nothing. ``features/disk/retrain_folder.py`` lists the files. A failed step is
retried; when the retries are used up, ``last.json`` and the exit code say so, and the champion stays. So they do when
a signal ends it: 130 is Ctrl-C, 143 SIGTERM.
"""

import logging

from jobs.cli.config_arguments import config_parser, parse_config_arguments
from jobs.cli.conventions import absolute, run_program
from jobs.cli.errors import ConfigError
from jobs.cli.interruption import interruptible
from jobs.cli.logging import add_log_options, set_up_logging

_log = logging.getLogger("jobs.retrain")


def main() -> int:
    """Retrain once and print the outcome."""
    parser = config_parser(
        "jobs.retrain",
        "Train on what is new and promote the model if it is no worse.",
        "python -m jobs.retrain --config mine.toml --as-of 2014-10-28",
    )
    parser.add_argument("--as-of", metavar="DATE", help="as if it were this day; without it, all there is")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add_log_options(parser)
    arguments, config = parse_config_arguments(parser)
    set_up_logging("jobs.retrain", arguments)
    if config.retrain is None:
        raise ConfigError("config key 'retrain' is missing: see python -m jobs.retrain --help and README.md")

    from jobs.retraining.raw_partitions import date_key
    from jobs.retraining.retrain_folder import RetrainFolder
    from jobs.retraining.retraining import describe_todo, retrain_once

    place = RetrainFolder(absolute(config.retrain.root), config, config.retrain)
    as_of = None if arguments.as_of is None else date_key(arguments.as_of)
    if arguments.dry_run:
        print(describe_todo(place, as_of))
        return 0
    with interruptible(), place.alone() as note:
        if note is not None:
            _log.warning(note)
        print(retrain_once(place, as_of))
    return 0


if __name__ == "__main__":
    run_program(main)
