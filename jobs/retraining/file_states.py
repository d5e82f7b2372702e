"""FileState: size and time of raw files, to tell which ones have changed since something was made of them."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from features.disk.dataset import InputFile
from features.disk.object_store import NotInStore
from features.log_files import is_readable, state_of
from features.log_format import LogError

_NUM_THREADS = 16
States = Mapping[str, InputFile | None]
"""Path -> state of the file; None: it is not there, or may not be read."""


def read_state(path: str) -> InputFile | None:
    """Read the state of a file; None: it is not there, or may not be read.

    Raises:
        StorageError: a store cannot be read.
    """
    try:
        num_bytes, modified = state_of(path)
    except (LogError, NotInStore):  # raw files are deleted when they are old, in a store too
        return None
    return InputFile(path, num_bytes, modified) if is_readable(path) else None


def read_states(paths: Iterable[str]) -> dict[str, InputFile | None]:
    """Read the state of each file."""
    paths = list(paths)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:  # of a store or a network's disk, each is a question and an answer
        return dict(zip(paths, pool.map(read_state, paths), strict=True))


def to_values(states: States) -> dict[str, Any]:
    """Return states as JSON values: path -> [bytes, time of change], or null."""
    return {path: state and [state.num_bytes, state.modified] for path, state in states.items()}


def describe_changes(before: Sequence[InputFile], now: States) -> dict[str, str]:
    """Say what became of files since something was made of them.

    Args:
        before: states that they had.
        now: their states now.

    Returns:
        Path -> words such as "has 1,500 bytes, 500 when it was built"; unchanged files are left out.
    """
    found = {}
    for file in before:
        state = now.get(file.path)
        if state is None:
            found[file.path] = "is gone"
        elif state.num_bytes != file.num_bytes:
            found[file.path] = f"has {state.num_bytes:,} bytes, {file.num_bytes:,} when it was built"
        elif state.modified != file.modified:
            found[file.path] = "was written again since it was built"
    return found


def describe_files(changes: Mapping[str, str]) -> str:
    """Describe changed files in some words: the first, and how many more there are."""
    path, words = next(iter(changes.items()))
    return f"{path} {words}" + (f", and {len(changes) - 1} more files have changed" if len(changes) > 1 else "")
