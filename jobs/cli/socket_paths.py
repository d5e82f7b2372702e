"""Temporary folders that Ray can work in: the system limits the length of a socket's path."""

import sys
from pathlib import Path

LONGEST_SOCKET = 107 if sys.platform == "linux" else 103
"""Bytes of the longest path of a Unix socket."""
_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path that Ray makes below its temporary folder."""
LONGEST_FOLDER = LONGEST_SOCKET - len(_SOCKET)
"""Bytes of the longest temporary folder that Ray can work in."""


def fits_ray(folder: Path) -> bool:
    """Tell whether Ray can work in a temporary folder: its sockets take short paths, and it takes ASCII alone."""
    return str(folder).isascii() and len(str(folder)) <= LONGEST_FOLDER
