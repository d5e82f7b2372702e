"""ShardCache: a dataset's Parquet files, fetched from an object store to this machine before they are needed.

Petastorm opens a file several times and reads it in pieces, which a store answers slowly; a whole file is one request.
"""

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from features.disk.dataset import DataFile, inside
from features.disk.object_store import ObjectPath
from features.disk.place import temporary_folder


def local_files(dataset: "Path | ShardCache", files: Sequence[DataFile]) -> Generator[Path, None, None]:
    """Give a local path of each of a dataset's files; each is good until the next one is asked for.

    Raises:
        DatasetError: a link leads out of the dataset's folder.
        StorageError: a file cannot be fetched, or is not the one that the manifest names.
    """
    if isinstance(dataset, ShardCache):
        yield from dataset.fetch(files)
    else:
        for file in files:
            yield inside(dataset, file.path)


class ShardCache:
    """Local copies of a dataset's files, in a folder of this process that is deleted with the cache.

    Beyond ``num_bytes`` the least recently used files are deleted; files in use and the next one of each stream stay,
    however large they are.
    """

    def __init__(self, dataset: ObjectPath, num_bytes: int) -> None:
        self.dataset, self.num_bytes = dataset, num_bytes
        stack = contextlib.ExitStack()
        self._folder = stack.enter_context(temporary_folder())
        self._close = weakref.finalize(self, stack.close)
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        """Entries by path, least recently used first."""

    def close(self) -> None:
        """Delete every copy."""
        self._close()

    def fetch(self, files: Sequence[DataFile]) -> Generator[Path, None, None]:
        """Give local paths like ``local_files``; while one file is read, the next is fetched."""
        claimed: deque[tuple[_Entry, Future[Path]]] = deque()
        try:
            with ThreadPoolExecutor(1, "fetch") as ahead:
                for number in range(len(files)):
                    for file in files[number + len(claimed) : number + 2]:
                        entry = self._claim(file)
                        claimed.append((entry, ahead.submit(self._get, entry)))
                    yield claimed[0][1].result()
                    self._release(claimed.popleft()[0])
        finally:
            for entry, _ in claimed:
                self._release(entry)

    def _claim(self, file: DataFile) -> "_Entry":
        with self._lock:
            entry = self._entries.pop(file.path, None) or _Entry(file, self._folder / file.path)
            self._entries[file.path] = entry
            entry.num_users += 1
            self._make_room()
        return entry

    def _get(self, entry: "_Entry") -> Path:
        with entry.lock:
            if not entry.path.exists():
                entry.path.parent.mkdir(parents=True, exist_ok=True)
                (self.dataset / entry.file.path).download(entry.path, entry.file.num_bytes, entry.file.sha256)
        return entry.path

    def _release(self, entry: "_Entry") -> None:
        with self._lock:
            entry.num_users -= 1
            self._make_room()

    def _make_room(self) -> None:
        excess = sum(entry.file.num_bytes for entry in self._entries.values()) - self.num_bytes
        for name, entry in list(self._entries.items()):
            if excess <= 0:
                return
            if not entry.num_users:
                entry.path.unlink(missing_ok=True)
                del self._entries[name]
                excess -= entry.file.num_bytes


@dataclass
class _Entry:
    """One file of the cache; ``lock`` is held while it is fetched."""

    file: DataFile
    path: Path
    num_users: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
