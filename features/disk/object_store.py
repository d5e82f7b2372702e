"""An object store (``s3://``): its files, and atomic writes to it.

A store has no rename, so what is written to it counts by one object, put there last by a copy inside the store, which
happens or does not. Everything that this object names is there before, checked by size.
"""

import hashlib
import io
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

from features.disk.atomic import replacing
from features.disk.relative_path import check_relative

if TYPE_CHECKING:
    from pyarrow import fs

TRANSFER_PATIENCE_SECONDS = 25.0
"""Seconds of retries after a transfer's first failure; with the time-outs below, a call ends after about a minute."""
NUM_TRIES = 3
"""Least number of tries of a transfer, however long each takes."""
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 5.0
"""Time-outs of connecting and of an answer; the library ends a silent connection after two to three of the latter."""
NUM_TRANSFERS = 8
"""Number of concurrent transfers."""
READ_BYTES = 2**20
"""Bytes that an open file asks for at least."""
CHUNK_BYTES = 10 * 2**20
"""Bytes of a file in memory at a time: the size of pyarrow's upload parts, so that pyarrow buffers nothing more."""
VERSION = re.compile(r"version-[0-9a-f]{32}")
"""Pattern of the folder that a dataset or an artifact keeps its files in."""

T = TypeVar("T")
R = TypeVar("R")


class StorageError(ValueError):
    """A place cannot be read or written; the message names it and says what to do."""


class NotInStore(StorageError):
    """A store that answers has no such file."""


@dataclass(frozen=True)
class ObjectPath:
    """A file or folder in an object store; where ``pathlib.Path`` has a method of the same name, it means the same."""

    bucket: str
    key: str
    """Key of the file or folder in the bucket, without slashes at its ends; empty: the whole bucket."""

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def __truediv__(self, name: str) -> "ObjectPath":
        return ObjectPath(self.bucket, f"{self.key}/{check_relative(name)}".removeprefix("/"))

    @property
    def name(self) -> str:
        """Return the last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def _path(self) -> str:
        return f"{self.bucket}/{self.key}".removesuffix("/")

    def sizes(self) -> dict[str, int]:
        """List the files below this folder: relative path -> bytes; empty where there is no such folder.

        Raises:
            StorageError: there is no such bucket, or it may not be listed.
        """

        from pyarrow import fs

        def list_() -> list[fs.FileInfo]:
            try:
                # To allow what is not there would allow a bucket that is not there.
                return _store().get_file_info(fs.FileSelector(self._path, recursive=True))
            except FileNotFoundError:
                return []

        return {info.path[len(self._path) + 1 :]: info.size for info in self._insist(list_) if info.is_file}

    def is_file(self) -> bool:
        """Tell whether there is a file with this key.

        Raises:
            StorageError: there is no such bucket, or it cannot be read.
        """
        if self._insist(lambda: _store().get_file_info(self._path).is_file):
            return True
        self.sizes()  # a bucket that is not there looks like a file that is not, until it is listed
        return False

    def state(self) -> tuple[int, int]:
        """Ask for the size of this file in bytes and the time of its last change in Unix nanoseconds.

        Raises:
            NotInStore: it is not there.
            StorageError: it cannot be read.
        """
        info = self._insist(lambda: _store().get_file_info(self._path))
        if not info.is_file:
            raise NotInStore(f"{self} is not there")
        return info.size, info.mtime_ns

    def open(self) -> BinaryIO:
        """Open this file for reading; it is seekable, and a read that fails is repeated as every transfer is.

        Raises:
            StorageError: it is not there; while it is read: it cannot be reached, or was changed.
        """
        return cast(BinaryIO, io.BufferedReader(_ReadFile(self), READ_BYTES))

    def read_bytes(self) -> bytes:
        """Read the whole file.

        Raises:
            StorageError: it is not there or cannot be read.
        """

        def read() -> bytes:
            with _store().open_input_stream(self._path, compression=None) as stream:
                return stream.read()

        return self._insist(read)

    def download(self, to: Path, num_bytes: int, sha256: str | None = None) -> None:
        """Fetch this file, whole.

        Args:
            to: file to write; it has its name only when it is complete.
            num_bytes: size it must have.
            sha256: of its content, where it is known.

        Raises:
            StorageError: it cannot be had, or is another one.
        """

        def fetch() -> None:
            digest = hashlib.sha256()
            with _store().open_input_stream(self._path, compression=None) as stream, part.open("wb") as file:
                while chunk := stream.read(CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
            if part.stat().st_size != num_bytes or sha256 not in (None, digest.hexdigest()):
                raise OSError(f"it has {part.stat().st_size} bytes of {num_bytes}, or other ones than were written")

        with replacing(to) as part:
            self._insist(fetch)

    def upload(self, folder: Path, names: Iterable[str] | None = None) -> None:
        """Put files of a local folder here, several at a time.

        Args:
            names: paths in the folder; None: every file below it.

        Raises:
            StorageError: one of them did not arrive; others may have.
        """
        if names is None:
            names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        files = {name: folder / name for name in names}
        _all(lambda item: (self / item[0])._put(item[1]), files.items())
        found = self.sizes()
        for name, path in files.items():
            if found.get(name) != path.stat().st_size:
                raise StorageError(f"{self / name} was uploaded but has {found.get(name)} bytes there: try again")

    def _put(self, file: Path) -> None:
        def put() -> None:
            # Background writes: a stream that writes in the foreground takes a failed part for none, and makes a
            # shorter object of the rest when it is closed. Its memory has no bound but what is flushed.
            stream = _store().open_output_stream(self._path, compression=None)
            with file.open("rb") as source:
                while chunk := source.read(CHUNK_BYTES):
                    stream.write(chunk)
                    stream.flush()
            stream.close()

        self._insist(put)

    def copy_to(self, other: "ObjectPath") -> None:
        """Make ``other`` a copy of this file, in one step."""
        self._insist(lambda: _store().copy_file(self._path, other._path))

    def delete(self) -> None:
        """Remove this file or this folder with everything in it, if it is there."""

        from pyarrow import fs

        def remove() -> None:
            info = _store().get_file_info(self._path)
            if info.type == fs.FileType.File:
                _store().delete_file(self._path)
            elif info.type == fs.FileType.Directory:
                _store().delete_dir(self._path)

        self._insist(remove)

    def _insist(self, act: Callable[[], T]) -> T:
        """Call ``act`` with retries and return its result.

        Raises:
            StorageError: a retry cannot help, or the last one in time failed too.
            OSError: something on this machine's own disk is wrong.
        """
        failures, pause = [], 0.25
        while True:
            try:
                return act()
            except OSError as error:
                if isinstance(error, FileNotFoundError) and error.filename is None:
                    raise NotInStore(f"{self} is not there") from error
                if error.errno is not None:
                    raise
                cure = _cure(str(error))
                failures.append(time.monotonic())
                is_enough = (
                    len(failures) >= NUM_TRIES and failures[-1] - failures[0] + pause > TRANSFER_PATIENCE_SECONDS
                )
                if cure or is_enough:
                    why = cure or f"cannot be reached: {_reason(str(error))}; {_server()}, try again when it answers"
                    raise StorageError(f"{self}: {why}") from error
            time.sleep(pause)
            pause *= 2


class _ReadFile(io.RawIOBase):
    """Bytes of a file in a store, each read a request of its own."""

    def __init__(self, place: ObjectPath) -> None:
        self._place, self._position = place, 0
        self._state = place.state()
        self._file: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._state[0]}[whence]
        if start + offset < 0:
            raise ValueError(f"{self._place}: a position of {start + offset} bytes is before its start")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        num_bytes = min(len(buffer), max(0, self._state[0] - self._position))
        if num_bytes:
            try:
                found = self._place._insist(lambda: self._read(num_bytes))
            finally:
                # pyarrow hands out memory that it never wrote where a file has become shorter, and says nothing.
                if self._place.state() != self._state:
                    raise StorageError(f"{self._place} was changed while it was read: try again when it is complete")
            buffer[:num_bytes] = found
            self._position += num_bytes
        return num_bytes

    def readall(self) -> bytes:
        # Python's own asks for 8 KiB at a time.
        return b"".join(iter(lambda: self.read(CHUNK_BYTES) or b"", b""))

    def _read(self, num_bytes: int) -> bytes:
        try:
            self._file = self._file or _store().open_input_file(self._place._path)
            return self._file.read_at(num_bytes, self._position)
        except OSError:
            self._file = None
            raise


def new_version_name() -> str:
    """Make a name for a version's folder that no other job writes to."""
    return f"version-{uuid.uuid4().hex}"


def publish(version: Path, place: ObjectPath, commit: str) -> None:
    """Put a folder of files into ``place`` and make it the one that counts, in one step; others stay until ``clean``.

    Args:
        version: local folder whose name matches ``VERSION``; it holds a file called ``commit``.
        commit: the file that says what counts; it is copied from the version to ``place`` itself.

    Raises:
        StorageError: it did not get there; what counted before still does.
    """
    before = _read_if_there(place / commit)
    target = place / version.name
    target.upload(version)
    if _read_if_there(place / commit) != before:
        raise StorageError(f"another job has written to {place} in the meantime: start again when no other one runs")
    (target / commit).copy_to(place / commit)


def clean(place: ObjectPath, version: str) -> None:
    """Remove all versions but one: older ones, and what killed jobs left."""
    for name in {name.partition("/")[0] for name in place.sizes()}:
        if VERSION.fullmatch(name) and name != version:
            (place / name).delete()


def download_all(place: ObjectPath, names: Iterable[str], to: Path) -> None:
    """Fetch files of a folder, several at a time, into a local folder.

    Raises:
        StorageError: one is not there, or did not arrive whole.
    """
    sizes = place.sizes()

    def fetch(name: str) -> None:
        path = to / check_relative(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if name not in sizes:
            raise StorageError(f"{place / name} is not there")
        (place / name).download(path, sizes[name])

    _all(fetch, list(names))


def _read_if_there(place: ObjectPath) -> bytes | None:
    return place.read_bytes() if place.is_file() else None


def _all(act: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Call ``act`` on each item, several at a time; after the first error no further call begins."""
    with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
        try:
            return list(pool.map(act, items))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# ----------------------------------------------------------------------------------------------------------- the store


def _store() -> "fs.FileSystem":
    """Connect to the store that the environment names."""
    return _connect(*_endpoint(), os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"))


def _endpoint() -> tuple[str, str] | tuple[None, None]:
    """Read scheme and host:port from AWS_ENDPOINT_URL; None: Amazon's own.

    Raises:
        StorageError: it is no such URL.
    """
    text = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not text:
        return None, None
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or "@" in parts.netloc:
        raise StorageError("AWS_ENDPOINT_URL must be like https://host or http://host:9000, without a path or a name")
    return parts.scheme, parts.netloc


@lru_cache
def _connect(scheme: str | None, host: str | None, region: str | None) -> "fs.FileSystem":
    from pyarrow import fs  # here, as whoever only has files on disk needs none of it

    if host:  # Amazon's client ends each upload with a checksum, which stores of others may not know.
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    options: dict[str, Any] = {"scheme": scheme or "https", "endpoint_override": host}
    if region or host:
        options["region"] = region or "us-east-1"
    return fs.S3FileSystem(
        connect_timeout=CONNECT_SECONDS,
        request_timeout=ANSWER_SECONDS,
        # Repeated here and not there: it would not send the body of a request from its start again, and wait.
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
        **options,
    )


def _server() -> str:
    host = _endpoint()[1]
    return f"AWS_ENDPOINT_URL is {host}" if host else "AWS_ENDPOINT_URL is not set, so it was looked for at Amazon"


_CURES = {
    "NO_SUCH_BUCKET": "there is no such bucket: make it, or correct the URL",
    "ACCESS_DENIED": "access is denied: these credentials need to list, read, write and delete there",
    **dict.fromkeys(
        ("INVALID_ACCESS_KEY_ID", "INVALID_CLIENT_TOKEN_ID", "SIGNATURE_DOES_NOT_MATCH", "UNRECOGNIZED_CLIENT"),
        "the store does not know these credentials: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    ),
}


def _cure(error: str) -> str | None:
    """Say what to do about an error that no retry can mend; None for other errors."""
    code = re.search(r"AWS Error (\w+)", error)
    if code and code[1] in _CURES:
        return _CURES[code[1]]
    if re.search(r"HTTP status 3\d\d", error):
        return "the bucket is in another region: set AWS_REGION"
    if re.search(r"HTTP status 4(?!08|29)\d\d", error):
        return f"the store refuses ({_reason(error)})"
    return None


def _reason(error: str) -> str:
    """Cut the store's own message out of the library's."""
    return (error.partition("AWS Error ")[2].removeprefix("UNKNOWN ") or error)[:200].strip(" .")
