"""What every program does the same way: read its config, say what went wrong in one sentence, exit with a code."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

EXIT_DATA = 1
"""Data, a run or an artifact cannot be used."""
EXIT_USAGE = 2
"""The command line or the config is wrong."""


def config_parser(module: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser with ``--config`` and ``section.key=value`` overrides."""
    parser = plain_parser(module, description, example)
    files = "TOML files; later ones win"
    parser.add_argument("--config", nargs="+", required=True, action=_ConfigAction, metavar="FILE", help=files)
    changes = "changes to the config"
    parser.add_argument("overrides", nargs="*", action=_ConfigAction, metavar="section.key=value", help=changes)
    return parser


class _ConfigAction(argparse.Action):
    """Tells files from ``section.key=value``: argparse gives all words after ``--config F`` to ``--config``."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        words = values if isinstance(values, list) else []
        overrides = [word for word in words if option_string is None or ("=" in word and not Path(word).is_file())]
        namespace.overrides = [*(getattr(namespace, "overrides", None) or []), *overrides]
        if option_string is not None:
            namespace.config = [*(getattr(namespace, "config", None) or []), *(w for w in words if w not in overrides)]


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
    from jobs.config import ConfigError

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


def absolute(path: str) -> Path:
    """Absolute form of a path from the command line.

    Raises:
        ValueError: a relative path inside a submitted Ray job, where it would mean Ray's own copy of the project.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not Path(path).is_absolute():
        raise ValueError(
            f"{path!r} is relative: inside a submitted Ray job it would point into Ray's copy of the project and be "
            "deleted with it; give an absolute path"
        )
    return Path(path).absolute()
