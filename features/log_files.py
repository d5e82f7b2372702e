"""LogFile: one file of a raw log; and the walker that finds them by paths, folders and globs, on disk and at ``s3://``.

A build, a retraining and scoring list their logs here, so that they read the same files. A file is known by its real
path: however it is spelled or linked, it is read once, and never in two splits.
"""

import errno
import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol
from urllib.parse import unquote

from features.archives import archive_in, named_archive
from features.disk.object_store import ObjectPath, StorageError
from features.disk.place import locate
from features.log_format import LogError

_HIDDEN = ("_", ".")
"""First characters of names that are read only where the user gives them: what other programs leave beside a log."""
MISSING_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""Value in a path that stands for a missing one, in Hive and Spark."""
STORE = "s3://"
_MAX_NAMED = 5
_NUM_THREADS = 8
_HIDDEN_REASON = "names that begin with '_' or '.' are read only where they are given"


class NoMatchError(LogError):
    """A pattern of raw logs matches no file; the message says how far it leads."""


@dataclass(frozen=True)
class LogFile:
    """One file of a raw log.

    Attributes:
        path: path as the user gave it, for messages and files of scores; a byte that is no text is written ``\\xff``.
        real: absolute path without links, or ``s3://`` URL: what is opened. It may hold bytes that are no text
            (``surrogateescape``).
        absolute: absolute path without dots, its links kept, or ``s3://`` URL, written as ``path`` is: the name in
            manifests, by which ``find_files`` and ``state_of`` find it again.
        partition: columns of the path, by name: ``country=us/`` is ``us`` in column ``country``; None: missing.
    """

    path: str
    real: str
    absolute: str
    partition: Mapping[str, str | None] = field(default_factory=dict, hash=False)


class LeftOut(NamedTuple):
    """A file or folder that a pattern leads to and that is not read."""

    path: str
    reason: str


@dataclass(frozen=True)
class FoundLogs:
    """Files that patterns stand for.

    Attributes:
        files: each file once, sorted by path.
        left_out: files and folders that are not read, though a pattern leads to them.
        repeated: paths to files and folders that are read already, under another path or for another pattern.
    """

    files: tuple[LogFile, ...]
    left_out: tuple[LeftOut, ...] = ()
    repeated: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """Say what was left out and what was named twice, a sentence each; empty where there is nothing to say."""
        notes = []
        for reason in dict.fromkeys(left.reason for left in self.left_out):
            paths = [left.path for left in self.left_out if left.reason == reason]
            notes.append(f"left out {_listed(paths)}: {reason}")
        if self.repeated:
            notes.append(f"read once though given twice or linked: {_listed(self.repeated)}")
        return notes


# --------------------------------------------------------------------------------------------------------------- find


def find_files(patterns: str | Sequence[str], look_inside: bool = True) -> FoundLogs:
    """Find the files that paths, folders and globs stand for.

    Folders are walked, those that a glob matches too, and links are followed; names that begin with ``_`` or ``.`` are
    left out unless a pattern gives them. A path that is there is itself, whatever its characters mean in a glob.

    Args:
        patterns: paths, ``file://`` or ``s3://`` URLs, each with ``*``, ``?``, ``[...]`` or ``**`` for any folders.
        look_inside: whether files on disk are opened, so that an unreadable one or an archive ends here. Those of a
            store are looked into when they are read (``open_log``). False: everything is listed, also links that lead
            nowhere, so that one bad file does not hide the others; who reads a file finds out.

    Raises:
        NoMatchError: a pattern matches nothing.
        LogError: a link leads nowhere, or a file cannot be read as a log; the message names it.
        StorageError: a store cannot be read, or a URL is none.
    """
    searches = []
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        searches.append(_Search(pattern, look_inside))
        searches[-1].run()
    # Links last: where a file can be had without, its folders are its columns (latest/ -> day=3/).
    found = sorted((entry for search in searches for entry in search.files.values()), key=lambda entry: entry.linked)
    read: dict[str, _Entry] = {}
    repeated = [path for search in searches for path in search.repeated]
    for entry in found:
        if read.setdefault(entry.real, entry) is not entry:
            repeated.append(entry.path)
    if look_inside:
        _refuse_kinds(read.values())
    files = sorted((_log_file(entry) for entry in read.values()), key=lambda file: file.path)
    if look_inside:
        _refuse(files)
    walked = {*read, *(real for search in searches for real in search.walked)}
    left_out = {left: None for search in searches for left, real in search.left_out.items() if real not in walked}
    return FoundLogs(tuple(files), tuple(sorted(left_out)), tuple(sorted(map(_text, set(repeated)))))


def find_splits(patterns: Mapping[str, str | Sequence[str]], look_inside: bool = True) -> dict[str, FoundLogs]:
    """Find the files of each split.

    Args:
        patterns: split -> what ``find_files`` takes.
        look_inside: as for ``find_files``.

    Raises:
        LogError: as ``find_files``, or one file is in two splits, also by links and other spellings.
        StorageError: as ``find_files``.
    """
    found = {split: find_files(given, look_inside) for split, given in patterns.items()}
    refuse_shared(found)
    return found


def refuse_shared(found: Mapping[str, FoundLogs]) -> None:
    """Refuse a file that is in two splits.

    Raises:
        LogError: names the file and both splits.
    """
    owners: dict[object, tuple[str, str]] = {}
    for split, logs in found.items() if len(found) > 1 else ():
        for file in logs.files:
            owner, path = owners.setdefault(_inode(file.real), (split, file.path))
            if owner != split:
                other = "" if path == file.path else f", there as {show(path)}"
                raise LogError(
                    f"{show(file.path)} is given for both {owner!r}{other} and {split!r}: "
                    "a row may be in one split only; take it out of one of them"
                )


def listed_file(path: str, partition: Mapping[str, str | None]) -> LogFile:
    """Make the ``LogFile`` of a path on disk that a table's own list names, with the columns that the list gives it."""
    return LogFile(_text(path), os.path.realpath(path), _text(os.path.abspath(path)), partition)  # noqa: PTH100


def show(path: str) -> str:
    """Write a path for a message: on one line, even if its name has a line break in it."""
    return path if path.isprintable() else repr(path)


def _text(path: str) -> str:
    """Write bytes that are no text, which Python keeps in paths as halves of surrogate pairs, as ``\\xff``."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _from_text(path: str) -> str:
    """Find the path that ``_text`` wrote so, where there is one and none is called so itself."""
    if "\\x" not in path or os.path.lexists(path):
        return path
    written = re.sub(rb"\\x([89a-f][0-9a-f])", lambda match: bytes.fromhex(match[1].decode()), os.fsencode(path))
    return os.fsdecode(written) if os.path.lexists(os.fsdecode(written)) else path


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _MAX_NAMED:,} more" if len(paths) > _MAX_NAMED else ""
    return ", ".join(map(show, paths[:_MAX_NAMED])) + more


def _log_file(entry: "_Entry") -> LogFile:
    absolute = entry.path
    if not absolute.startswith(STORE):
        absolute = os.path.abspath(absolute)  # noqa: PTH100
        if ".." in entry.path and os.path.realpath(absolute) != entry.real:
            absolute = entry.real  # the folder above one that is linked is another one
    return LogFile(_text(entry.path), entry.real, _text(absolute), _partition(absolute))


def _partition(path: str) -> dict[str, str | None]:
    """Columns of a path's folders, of two with one name the inner; ``%3D`` and the like are as Hive writes them."""
    columns: dict[str, str | None] = {}
    for part in path.removeprefix(STORE).split("/")[:-1]:
        name, equals, value = part.partition("=")
        if name and equals:
            value = _text(unquote(value))
            columns[_text(unquote(name))] = None if value in ("", MISSING_PARTITION) else value
    return columns


def _inode(real: str) -> object:
    """Identity of a file: its real path, or its inode where it has hard links, as its rows are the same then."""
    if real.startswith(STORE):
        return real
    found = os.stat(real)  # noqa: PTH116
    return (found.st_dev, found.st_ino) if found.st_nlink > 1 else real


def _refuse_kinds(entries: Iterable["_Entry"]) -> None:
    for entry in entries:
        if entry.kind != _FILE:
            raise LogError(f"{show(entry.path)} is {entry.kind}, not a file: copy what it gives into a file")


def _refuse(files: Sequence[LogFile]) -> None:
    """Refuse archives and files that cannot be opened, the first of them by name."""
    for file in files:
        if kind := named_archive(file.path) or named_archive(file.real):
            raise _archive_error(file.path, kind)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:  # on a network's disk, each is a question and an answer
        for _ in pool.map(_look_inside, (file for file in files if not file.real.startswith(STORE))):
            pass


def _look_inside(file: LogFile) -> None:
    try:
        with open(file.real, "rb") as opened:
            kind = archive_in(opened)
    except OSError as error:
        raise LogError(f"{show(file.path)} cannot be read: {error.strerror or error}") from error
    if kind:
        raise _archive_error(file.path, kind)


def _archive_error(path: str, kind: str) -> LogError:
    return LogError(f"{show(path)} is a {kind} archive: unpack it, and give the files that it holds")


# --------------------------------------------------------------------------------------------------- what a search sees

_FILE, _FOLDER = "a file", "a folder"
_KINDS = {
    stat.S_IFDIR: _FOLDER,
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class _Entry(NamedTuple):
    """File, folder or other thing at a path, links followed."""

    path: str
    """Path by which the pattern leads to it."""
    real: str
    kind: str
    linked: bool = False
    """Whether a name on the way was a link, and was listed, not given."""


class _Tree(Protocol):
    """Folders and files, on disk or in a bucket."""

    def names(self, folder: _Entry) -> list[str]:
        """List a folder, sorted."""
        ...

    def child(self, folder: _Entry, name: str) -> _Entry | None:
        """Look at a name in a folder; None: there is none."""
        ...


class _Disk:
    def __init__(self, refuses: bool) -> None:
        self._refuses = refuses

    def names(self, folder: _Entry) -> list[str]:
        try:
            return sorted(os.listdir(folder.real))  # noqa: PTH208
        except OSError as error:
            raise LogError(f"{show(folder.path) or 'the current folder'} cannot be listed: {error.strerror}") from error

    def child(self, folder: _Entry, name: str) -> _Entry | None:
        path = os.path.join(folder.path, name)  # noqa: PTH118
        real = os.path.join(folder.real, name)  # noqa: PTH118
        try:
            found = os.lstat(real)
            is_link = stat.S_ISLNK(found.st_mode)
            if is_link or name in (".", ".."):
                found, real = os.stat(real), os.path.realpath(real)  # noqa: PTH116
        except ValueError:
            return None  # no name holds a NUL character
        except OSError as error:
            is_link = os.path.islink(real)  # noqa: PTH114
            if is_link and not self._refuses:
                return _Entry(path, real, _FILE, linked=True)
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
                raise LogError(f"{show(path)} cannot be read: {error.strerror}") from error
            if is_link:
                target = show(os.readlink(real))  # noqa: PTH115
                cure = "remove it, or bring back what it stands for"
                raise LogError(f"{show(path)} is a link that leads nowhere, to {target}: {cure}") from error
            return None
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), _FILE)
        return _Entry(path, real, kind, folder.linked or is_link)


class _Bucket:
    """Keys of a bucket below a prefix, as folders."""

    def __init__(self, bucket: str, prefix: str, is_glob: bool) -> None:
        place = ObjectPath(bucket, prefix)
        if prefix and not is_glob and place.is_file():
            keys = [prefix]
        else:
            keys = [f"{prefix}/{key}".removeprefix("/") for key in place.sizes()]
        if not keys:
            raise NoMatchError(f"nothing is below {place}")
        self._kinds: dict[str, dict[str, str]] = {}
        for key in keys:
            *folders, name = key.split("/")
            path = f"{STORE}{bucket}"
            for folder in folders:
                self._kinds.setdefault(path, {})[folder] = _FOLDER
                path = f"{path}/{folder}"
            self._kinds.setdefault(path, {}).setdefault(name, _FILE)

    def names(self, folder: _Entry) -> list[str]:
        return sorted(self._kinds.get(folder.real, ()))

    def child(self, folder: _Entry, name: str) -> _Entry | None:
        path = f"{folder.real}/{name}"
        kind = self._kinds.get(folder.real, {}).get(name)
        return None if kind is None else _Entry(path, path, kind)


def _is_glob(part: str) -> bool:
    return bool(set(part) & set("*?["))


def _plant(pattern: str, refuses: bool) -> tuple[_Tree, _Entry, list[str]]:
    """The tree that a pattern is looked for in, where in it to begin, and the names and globs on the way."""
    if not pattern:
        raise NoMatchError("the empty text is given as a path of raw logs")
    if pattern.startswith(STORE):
        bucket, _, rest = pattern.removeprefix(STORE).partition("/")
        locate(f"{STORE}{bucket}/any")  # says what is wrong with such a URL
        parts = rest.split("/")
        fixed = list(takewhile(lambda part: part and not _is_glob(part), parts))
        tree = _Bucket(bucket, "/".join(fixed), is_glob=any(map(_is_glob, parts)))
        return tree, _Entry(f"{STORE}{bucket}", f"{STORE}{bucket}", _FOLDER), parts
    if "://" in pattern and not os.path.lexists(pattern):
        pattern = str(locate(pattern))
    pattern = _from_text(pattern)
    root = "/" if pattern.startswith("/") else ""
    return _Disk(refuses), _Entry(root, os.path.realpath(root or "."), _FOLDER), pattern.removeprefix("/").split("/")


class _Search:
    """Search for the files of one pattern.

    Attributes:
        files: path -> what is to be read.
        walked: real paths of folders whose files are read.
        left_out: what is not read -> its real path.
        repeated: paths of folders that were walked already under another path.
    """

    def __init__(self, pattern: str, refuses: bool) -> None:
        self.pattern, self.refuses = pattern, refuses
        self.files: dict[str, _Entry] = {}
        self.walked: set[str] = set()
        self.left_out: dict[LeftOut, str] = {}
        self.repeated: list[str] = []

    def run(self) -> None:
        try:
            self._tree, start, parts = _plant(self.pattern, self.refuses)
        except NoMatchError as error:
            raise NoMatchError(f"no input file matches {self.pattern!r}: {error}") from error
        found = [start]
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            before, found = found, list(self._step(found, part, is_last))
            if not found:
                raise self._error(before, part)
        for folder, children in self._walk(entry for entry in found if entry.kind == _FOLDER):
            self.walked.add(folder.real)
            self.files |= {child.path: child for child in children if child.kind != _FOLDER}
        self.files |= {entry.path: entry for entry in found if entry.kind != _FOLDER}
        if not self.files:
            raise self._error(found, "")

    def _step(self, places: Iterable[_Entry], part: str, is_last: bool) -> Iterator[_Entry]:
        """Whatever one part of the pattern leads to from the folders among some places."""
        folders = [place for place in places if place.kind == _FOLDER]
        if part == "**":
            yield from folders if is_last else (folder for folder, _ in self._walk(folders))
        elif not part:
            yield from folders
        else:
            for folder in folders:
                yield from self._children(folder, part, is_last)

    def _children(self, folder: _Entry, part: str, is_last: bool) -> Iterator[_Entry]:
        given = self._tree.child(folder, part)
        if given is not None:
            yield given._replace(linked=folder.linked)
        if not _is_glob(part):
            return
        for name in self._tree.names(folder):
            if name == part or not fnmatchcase(name, part):
                continue
            if given is not None:
                self._leave_out(folder, name, f"{part!r} is also a name, which wins over its meaning as a glob")
            elif name.startswith(_HIDDEN) and name[0] != part[0]:
                self._leave_out(folder, name, _HIDDEN_REASON, only_folders=not is_last)
            elif entry := self._tree.child(folder, name):
                yield entry

    def _walk(self, starts: Iterable[_Entry]) -> Iterator[tuple[_Entry, list[_Entry]]]:
        """Each folder at and below ``starts`` once, with what is in it; those that links lead to come last."""
        waiting = sorted(starts, key=lambda entry: entry.linked)
        direct = [entry for entry in reversed(waiting) if not entry.linked]
        links = deque(entry for entry in waiting if entry.linked)
        seen: dict[str, str] = {}
        while direct or links:
            folder = direct.pop() if direct else links.popleft()
            if folder.real in seen:
                if seen[folder.real] != folder.path:
                    self.repeated.append(folder.path)
                continue
            seen[folder.real] = folder.path
            children = []
            for name in self._tree.names(folder):
                if name.startswith(_HIDDEN):
                    self._leave_out(folder, name, _HIDDEN_REASON)
                elif child := self._tree.child(folder, name):
                    children.append(child)
            yield folder, children
            below = [child for child in children if child.kind == _FOLDER]
            direct += [child for child in reversed(below) if not child.linked]
            links += [child for child in below if child.linked]

    def _leave_out(self, folder: _Entry, name: str, reason: str, only_folders: bool = False) -> None:
        path, real = (os.path.join(place, name) for place in (folder.path, folder.real))  # noqa: PTH118
        if real.startswith(STORE):
            entry = self._tree.child(folder, name)
            is_folder = entry is not None and entry.kind == _FOLDER
        else:  # its links may lead nowhere
            is_folder, real = os.path.isdir(real), os.path.realpath(real)  # noqa: PTH112
        if is_folder or not only_folders:
            self.left_out[LeftOut(_text(path), reason)] = real

    def _error(self, places: Sequence[_Entry], part: str) -> NoMatchError:
        """Say how far the pattern leads."""
        text = f"no input file matches {self.pattern!r}"
        if self.left_out:
            return NoMatchError(f"{text}: {'; '.join(FoundLogs((), tuple(self.left_out)).notes())}")
        places = [place for place in places if place.kind == _FOLDER] or places
        place = places[0]
        name = show(place.path) or f"the current folder {os.getcwd()}"  # noqa: PTH109
        more = f" (and {len(places) - 1:,} more)" if len(places) > 1 else ""
        if place.kind != _FOLDER:
            return NoMatchError(f"{text}: {name} is {place.kind}, no folder{more}")
        if not part:
            return NoMatchError(f"{text}: no file is in {name}{more}")
        says = "matches" if _is_glob(part) else "is called"
        return NoMatchError(f"{text}: {name} is there{more}, but nothing in it {says} {part!r}")


# --------------------------------------------------------------------------------------------------------------- open


def open_log(real: str) -> BinaryIO:
    """Open a file by its ``LogFile.real`` for reading; it is seekable.

    Raises:
        LogError: it cannot be opened, or is an archive in a store.
        StorageError: a store cannot be read, also later, while it is read.
    """
    if not real.startswith(STORE):
        try:
            return open(real, "rb")
        except OSError as error:
            raise LogError(f"{show(_text(real))} cannot be read: {error.strerror}") from error
    file = _object(real).open()
    if kind := archive_in(file):
        raise _archive_error(real, kind)
    return file


def state_of(path: str) -> tuple[int, int]:
    """Return the bytes of a file and the time of its last change in Unix nanoseconds.

    Args:
        path: ``LogFile.real`` or ``LogFile.absolute``.

    Raises:
        LogError, NotInStore: it is not there.
        StorageError: its store cannot be read.
    """
    if path.startswith(STORE):
        return _object(path).state()
    try:
        found = os.stat(_from_text(path))  # noqa: PTH116
    except OSError as error:
        raise LogError(f"{show(_text(path))} cannot be read: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns


def size_of(path: str) -> int:
    """Return the bytes of a file, as ``state_of``."""
    return state_of(path)[0]


def is_there(path: str) -> bool:
    """Tell whether there is a file at a ``LogFile.real`` or ``LogFile.absolute``.

    Raises:
        StorageError: a store cannot be read.
    """
    return _object(path).is_file() if path.startswith(STORE) else os.path.isfile(_from_text(path))  # noqa: PTH113


def is_readable(path: str) -> bool:
    """Tell whether this user may read a file, by its ``LogFile.real`` or ``LogFile.absolute``; a store's always."""
    return path.startswith(STORE) or os.access(_from_text(path), os.R_OK)


def local_copy(real: str, folder: Path) -> Path:
    """Return a path on disk of a file: of one in a store, a copy that is made in ``folder``, with its name.

    Raises:
        StorageError: it did not arrive whole, or was changed meanwhile.
    """
    if not real.startswith(STORE):
        return Path(real)
    place = _object(real)
    before = place.state()
    place.download(folder / place.name, before[0])
    if place.state() != before:  # pyarrow may hand out what it never got
        raise StorageError(f"{place} was changed while it was read: try again when it is complete")
    return folder / place.name


def identity_of(file: LogFile) -> dict[str, Any]:
    """Describe a file by the fields of ``features.disk.dataset.InputFile``.

    Raises:
        LogError, StorageError: it is not there.
    """
    num_bytes, modified = state_of(file.real)
    return {"path": file.absolute, "num_bytes": num_bytes, "modified": modified}


def _object(real: str) -> ObjectPath:
    bucket, _, key = real.removeprefix(STORE).partition("/")
    return ObjectPath(bucket, key)
