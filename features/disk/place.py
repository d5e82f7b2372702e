"""Places: where files are, a folder on disk or in an object store (``s3://``), and temporary folders."""

import contextlib
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from features.disk.lock import LockedError, lock
from features.disk.object_store import ObjectPath, StorageError

_LOCK = ".lock"

Place: TypeAlias = Path | ObjectPath
"""A file or folder on disk or in an object store."""


def locate(place: str | Place) -> Place:
    """Read a place from a path, ``file://`` or ``s3://``.

    Raises:
        StorageError: the scheme is unknown, or the URL names no folder.
    """
    if not isinstance(place, str):
        return place
    scheme, separator, rest = place.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][\w+.-]*", scheme):
        return Path(place)
    parts = urlsplit(place)
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.strip("/"):
            raise StorageError(f"{place!r:.200} names no folder: write file:///absolute/path")
        return Path(unquote(parts.path))
    if scheme != "s3":
        raise StorageError(f"{scheme}:// is not known: give a path, file:///absolute/path or s3://bucket/folder")
    if set(rest) & set("@?#") or ":" in parts.netloc:
        raise StorageError(
            "an s3:// URL is s3://bucket/folder and no more: keys, region and endpoint come from the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE; AWS_REGION; AWS_ENDPOINT_URL)"
        )
    key = "/".join(part for part in parts.path.split("/") if part)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", parts.netloc) or not key or ".." in key.split("/"):
        raise StorageError(f"{place!r:.200} names no folder in a bucket: write s3://bucket/folder")
    return ObjectPath(parts.netloc, key)


def scratch() -> Path:
    """Return this user's folder among the machine's temporary files (TMPDIR).

    Raises:
        StorageError: somebody else made it.
    """
    return private_folder(Path(tempfile.gettempdir()))


def private_folder(parent: Path) -> Path:
    """Return this user's folder in a folder that others may write to; make it if it is missing.

    Raises:
        StorageError: somebody else made it.
        OSError: it cannot be made.
    """
    folder = parent / f"twinfocus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise StorageError(f"{folder} can be written by others: set TMPDIR to a folder of your own")
    return folder


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder of this process alone while the body runs; those of processes that were killed are removed."""
    parent = scratch() / "temporary"
    parent.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        with lock(parent / _LOCK, "", patience=math.inf):
            for left in parent.glob(f"*/{_LOCK}"):
                with contextlib.suppress(LockedError), lock(left, ""):
                    shutil.rmtree(left.parent, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(dir=parent))
            stack.enter_context(lock(folder / _LOCK, ""))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
