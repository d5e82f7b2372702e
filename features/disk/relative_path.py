"""Relative paths that come from a file: none may lead out of the folder that it is looked for in."""

import os
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator


def check_relative(path: str) -> str:
    """Return the same path, if it can only lead to a file below the folder that it is looked for in.

    Raises:
        ValueError: it climbs out, or no file can have such a name.
    """
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise ValueError(f"{path!r:.80} leads out of its folder")
    if len(path) > 1_000 or max(len(part.encode()) for part in parts) > 255:
        raise ValueError(f"{path!r:.80} is longer than any file's name")
    return path


RelativePath = Annotated[str, AfterValidator(check_relative)]
"""Path relative to its format's folder, with forward slashes; a path that climbs out of it is refused."""


def is_inside(folder: Path | str, path: Path) -> bool:
    """Tell whether ``path``, whatever links are on its way, ends in ``folder``."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
