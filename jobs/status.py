"""Report the state of retraining in the terminal and as one page; reads only."""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path

from features.disk.atomic import write_text
from features.disk.retrain_folder import RetrainFiles
from jobs.cli.config_arguments import add_config_arguments, parse_config_arguments
from jobs.cli.conventions import local, plain_parser, run_program
from jobs.cli.errors import ConfigError
from jobs.retraining.retraining_status import RetrainingStatus, read_status
from jobs.retraining.status_text import describe_status


def main() -> int:
    """Print the state of retraining and write its page."""
    parser = _parser()
    arguments, _ = parser.parse_known_args()
    if sum(given is not None for given in (arguments.config, arguments.resolved, arguments.root)) != 1:
        parser.error("give either --config FILE or --root DIR")
    status = _read(parser).with_service(arguments.service)
    print(json.dumps(status.to_json()) if arguments.json else describe_status(status), flush=True)
    if status.is_empty:
        raise ValueError(f"there is nothing to show of {status.root}: python -m jobs.retrain begins it")
    if arguments.output or not arguments.json:
        said = write_page(status, Path(arguments.output) if arguments.output else None)
        print(said, file=sys.stderr if arguments.json else sys.stdout)
    return 0


def _parser() -> ArgumentParser:
    parser = plain_parser(
        "jobs.status",
        "Say how retraining stands: the champion, what became of every day, drift, what is next.",
        "python -m jobs.status --config mine.toml",
    )
    add_config_arguments(parser, "what jobs.retrain is started with")
    parser.add_argument("--root", metavar="DIR", help="in place of --config: retrain.root")
    parser.add_argument("--name", default="ctr", help="with --root: of the model (default: ctr)")
    parser.add_argument("--registry", metavar="URL", help="with --root: an MLflow server's http:// address")
    parser.add_argument("--service", metavar="URL", help="of a running jobs.serve: tells of its unknown values too")
    parser.add_argument("--json", action="store_true", help="print one JSON object; a page only with --output")
    parser.add_argument("--output", metavar="FILE", help="of the page (default: status.html in the root)")
    return parser


def _read(parser: ArgumentParser) -> RetrainingStatus:
    if parser.parse_known_args()[0].root is not None:
        arguments = parser.parse_args()  # nothing is there that section.key=value could change
        return read_status(local(arguments.root).absolute(), arguments.name, arguments.registry)
    _, config = parse_config_arguments(parser)
    if config.retrain is None:
        raise ConfigError("config key 'retrain' is missing: see python -m jobs.retrain --help and README.md")
    rules = config.retrain
    return read_status(local(rules.root).absolute(), rules.model, rules.registry, config)


def write_page(status: RetrainingStatus, output: Path | None) -> str:
    """Write the page atomically and return a sentence with its path; without ``output`` into the root, if possible.

    Raises:
        OSError: ``output`` is given and cannot be written.
    """
    from jobs.pages.status_page import render_status

    path = output or RetrainFiles(status.root).page
    try:
        write_text(path, render_status(status))
    except OSError as error:
        if output is not None:
            raise
        return f"no page: {error}; --output FILE writes it elsewhere"
    return f"page: {path}"


if __name__ == "__main__":
    run_program(main)
