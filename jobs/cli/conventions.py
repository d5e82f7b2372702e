"""What every program does the same way: read its config, write its JSON, say what went wrong in one sentence, exit."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from features.disk.object_store import ObjectPath, Place, locate
from jobs.cli.config import Config, ConfigError, load_config

EXIT_DATA = 1
"""Data, a run or an artifact cannot be used."""
EXIT_USAGE = 2
"""The command line or the config is wrong."""


def config_parser(module: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser with ``--config``; read it with ``parse_config_arguments``."""
    parser = plain_parser(module, description, example)
    parser.usage = "%(prog)s --config FILE [options] [section.key=value ...]"
    parser.add_argument(
        "--config", action="append", required=True, metavar="FILE", help="TOML file; may be repeated, later ones win"
    )
    return parser


def parse_config_arguments(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Config]:
    """Read the command line; what is no option is an override, wherever it stands.

    Raises:
        ConfigError: the config is wrong.
    """
    arguments, overrides = parser.parse_known_args()
    strange = [word for word in overrides if word.startswith("-") or "=" not in word]
    if strange:
        parser.error(f"unrecognised arguments: {' '.join(strange)}")
    return arguments, load_config(arguments.config, overrides)


def plain_parser(module: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser whose ``--help`` ends with an example."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run_program(main: Callable[[], int]) -> None:
    """Exit with what ``main`` returns; turn an expected error into one sentence and a code.

    A ``ConfigError`` is a usage error; any other ``ValueError`` or ``OSError`` is about data. Anything else is a defect
    of ours and keeps its traceback.
    """
    try:
        code = main()
    except ConfigError as error:
        code = _complain(error, EXIT_USAGE)
    except (ValueError, OSError) as error:
        code = _complain(error, EXIT_DATA)
    except KeyboardInterrupt:
        code = _complain("interrupted", 130)
    sys.stdout.flush()
    sys.exit(code)


def _complain(error: object, code: int) -> int:
    if os.environ.get("TWINFOCUS_TRACEBACK"):
        raise
    print(f"error: {error}", file=sys.stderr)
    return code


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step: a reader finds the old one or the new one, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def place(path: str) -> Place:
    """Absolute form of a path from the command line or a config; it may be in an object store.

    Raises:
        StorageError: a URL that nothing can be opened by.
        ValueError: as ``absolute``.
    """
    found = locate(path)
    return found if isinstance(found, ObjectPath) else absolute(str(found))


def local(path: str) -> Path:
    """A path on disk from the command line.

    Raises:
        ValueError: it is in an object store.
    """
    found = locate(path)
    if isinstance(found, ObjectPath):
        raise ValueError(
            f"{found} must be on disk here: datasets, checkpoints (training.checkpoint.folder) and artifacts may be in "
            "an object store, a run's own folder and other files may not"
        )
    return found


def absolute(path: str) -> Path:
    """Absolute form of a path on disk from the command line.

    Raises:
        ValueError: it is in an object store, or it is relative inside a submitted Ray job, where it would mean Ray's
            own copy of the project.
    """
    path = str(local(path))
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not Path(path).is_absolute():
        raise ValueError(
            f"{path!r} is relative: inside a submitted Ray job it would point into Ray's copy of the project and be "
            "deleted with it; give an absolute path"
        )
    return Path(path).absolute()
