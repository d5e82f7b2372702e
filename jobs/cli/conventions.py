"""Conventions of all programs: help with an example, paths, JSON files, one-sentence errors, exit codes."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from features.disk.object_store import ObjectPath
from features.disk.place import Place, locate
from jobs.cli.errors import ConfigError
from jobs.cli.interruption import Interrupted
from jobs.cli.logging import is_json

EXIT_DATA = 1
"""Exit code: data, a run or an artifact cannot be used."""
EXIT_USAGE = 2
"""Exit code: the command line or the config is wrong."""


def plain_parser(module: str, description: str, example: str) -> argparse.ArgumentParser:
    """Make a parser whose ``--help`` ends with an example."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run_program(main: Callable[[], int]) -> None:
    """Run ``main`` and exit with its code; print an expected error as one sentence.

    A ``ConfigError`` is a usage error; any other ``ValueError`` or ``OSError`` is about data. Anything else is a defect
    of ours and keeps its traceback.
    """
    try:
        code = main()
    except ConfigError as error:
        code = _complain(error, EXIT_USAGE)
    except (ValueError, OSError) as error:
        code = _complain(error, EXIT_DATA)
    except Interrupted as error:
        code = _complain(error, error.exit_code)
    except KeyboardInterrupt:
        code = _complain("interrupted", 130)
    sys.stdout.flush()
    sys.exit(code)


def _complain(error: object, code: int) -> int:
    if os.environ.get("TWINFOCUS_TRACEBACK"):
        raise
    if is_json():
        logging.getLogger("jobs").error("%s", error, extra={"exit_code": code})
    else:
        print(f"error: {error}", file=sys.stderr)
    return code


def place(path: str) -> Place:
    """Make a path from the command line or a config absolute; it may be in an object store.

    Raises:
        StorageError: the URL has no known scheme or cannot be opened.
        ValueError: as ``absolute``.
    """
    found = locate(path)
    return found if isinstance(found, ObjectPath) else absolute(str(found))


def local(path: str) -> Path:
    """Read a path on disk from the command line.

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
    """Make a path on disk from the command line absolute.

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
