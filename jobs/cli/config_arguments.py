"""Config options of a command line: ``--config FILE`` with overrides, or ``--resolved FILE`` from another program.

A program that starts other programs resolves its config once and passes it as a file, so that an edit of a config file
in between has no effect.
"""

import argparse
from pathlib import Path

from features.disk.atomic import write_json
from jobs.cli.config import Config, load_config, read_resolved
from jobs.cli.conventions import plain_parser


def config_parser(module: str, description: str, example: str) -> argparse.ArgumentParser:
    """Make a parser with ``--config`` and ``--resolved``; ``parse_config_arguments`` reads the command line."""
    parser = plain_parser(module, description, example)
    parser.usage = "%(prog)s --config FILE [options] [section.key=value ...]"
    add_config_arguments(parser.add_mutually_exclusive_group(required=True))
    return parser


def add_config_arguments(
    group: "argparse._ActionsContainer", config_help: str = "TOML file; may be repeated, later ones win"
) -> None:
    """Add ``--config`` and ``--resolved`` to a parser or to a mutually exclusive group."""
    group.add_argument("--config", action="append", metavar="FILE", help=config_help)
    group.add_argument(
        "--resolved", metavar="FILE", help="in place of --config: a resolved config, such as a run's config.json"
    )


def parse_config_arguments(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Config]:
    """Parse the command line; words that are no options are overrides, in any position.

    Raises:
        ConfigError: the config is wrong.
    """
    arguments, overrides = parser.parse_known_args()
    strange = [word for word in overrides if word.startswith("-") or "=" not in word]
    if strange:
        parser.error(f"unrecognised arguments: {' '.join(strange)}")
    if arguments.resolved is None:
        return arguments, load_config(arguments.config, overrides)
    if overrides:
        parser.error(f"--resolved takes no overrides: {' '.join(overrides)}")
    return arguments, read_resolved(arguments.resolved)


def hand_on(config: Config, path: Path) -> list[str]:
    """Write a resolved config for a child program; return that program's arguments."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, config.to_dict())
    return ["--resolved", str(path)]
