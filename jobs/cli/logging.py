"""Logging of programs on stderr, with ``--log-level`` and ``--log-json``.

A program's result on stdout, text or JSON, is not logging and stays there.
"""

import argparse
import json
import logging
import os
import sys
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

LOG_LEVELS = ("debug", "info", "warning", "error")
SECRETS = (
    "TWINFOCUS_TOKEN",
    "TWINFOCUS_WEBHOOK",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
"""Environment variables whose values are replaced by ``HIDDEN`` in every line, error messages included."""
HIDDEN = "***"

_OURS = "jobs"
_OWN_ATTRIBUTES = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--log-level`` and ``--log-json`` to a parser."""
    parser.add_argument("--log-level", choices=LOG_LEVELS, default="info", help="of the log on stderr (default: info)")
    parser.add_argument("--log-json", action="store_true", help="log JSON lines: time, level, logger, message, fields")


def set_up_logging(program: str, arguments: argparse.Namespace, timed: bool = True) -> None:
    """Log to stderr: the project's records, and warnings and errors of other libraries.

    Args:
        program: name that begins a line's message.
        arguments: command line with the options of ``add_log_options``.
        timed: whether a line begins with time, level and program; not where a person waits for the program.
    """
    handler = _ToStderr()
    lines = Lines(program) if timed else Words()
    handler.setFormatter(JsonLines() if arguments.log_json else lines)
    handler.addFilter(_is_wanted)
    root = logging.getLogger()
    for other in [other for other in root.handlers if isinstance(other, _ToStderr)]:
        root.removeHandler(other)
    root.addHandler(handler)
    logging.getLogger(_OURS).setLevel(arguments.log_level.upper())
    if arguments.log_json:
        logging.captureWarnings(True)
        sys.excepthook = _log_defect


def is_json() -> bool:
    """Tell whether logging writes JSON lines."""
    return any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers)


class Lines(logging.Formatter):
    """Lines for a person: time in UTC, level, program, message."""

    def __init__(self, program: str) -> None:
        """Remember the program's name."""
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line; a table or a traceback in it takes more."""
        text = f"{_time(record)} {record.levelname} {self._program}: {record.getMessage()}"
        if record.exc_info:
            text += f"\n{self.formatException(record.exc_info)}"
        return _hide_secrets(text)


class Words(logging.Formatter):
    """Lines for a person who waits for the program: the message, after ``warning:`` or ``error:`` where it is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line; a traceback takes more."""
        text = super().format(record)
        return _hide_secrets(f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text)


class JsonLines(logging.Formatter):
    """JSON lines for a program: time in UTC, level, logger, message, and the fields given as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        fields = {name: value for name, value in vars(record).items() if name not in _OWN_ATTRIBUTES}
        return json.dumps({name: _shown(value) for name, value in {**fields, **line}.items()}, ensure_ascii=False)


class _ToStderr(logging.Handler):
    """Handler that writes to the current ``sys.stderr``, which tests replace."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # as every handler does: a line that cannot be written must not end the program
            self.handleError(record)


def _is_wanted(record: logging.LogRecord) -> bool:
    """Tell whether to show a record: other libraries' from warnings on, whatever level they set for themselves."""
    return record.name.partition(".")[0] == _OURS or record.levelno >= logging.WARNING


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _shown(value: Any) -> Any:
    """Turn a field into what JSON holds, with no secret in it."""
    if isinstance(value, str):
        return _hide_secrets(value)
    if isinstance(value, dict):
        return {_hide_secrets(str(name)): _shown(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | float) else _hide_secrets(str(value))


def _hide_secrets(text: str) -> str:
    for name in SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, HIDDEN)
    return text


def _log_defect(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    logging.getLogger(_OURS).critical("a defect of this program", exc_info=(kind, error, traceback))
