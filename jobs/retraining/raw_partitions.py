"""RawPartition: dates of a log, the raw files of each, and late files.

Only the names of files are read here; ``jobs.retraining.date_index`` reads dates from their rows.
"""

import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from features.log_files import FoundLogs, find_files, is_there
from jobs.cli.retrain_config import DATE, RetrainConfig
from jobs.retraining.file_states import read_state

LATE = "+"
"""Separator of a date and a number in the name of a late partition: rows that came after their date's was built."""
_DATE_PATTERN = r"[0-9](?:[0-9-]*[0-9])?"


@dataclass(frozen=True)
class RawPartition:
    """Raw files of one date."""

    files: Mapping[str, int | None]
    """Files of the date: absolute path -> rows of this date in it; None: all of its rows."""
    times: tuple[int, int] | None = None
    """Time range in Unix seconds, the end excluded; None: the files have rows of this date alone."""
    folders: frozenset[str] = field(default=frozenset(), compare=False)
    """Folders of the date, where its name is that of a folder."""

    @property
    def num_rows(self) -> int | None:
        """Rows of the date; None: not known."""
        counts = [rows for rows in self.files.values() if rows is not None]
        return sum(counts) if len(counts) == len(self.files) else None

    def without(self, files: Iterable[str]) -> "RawPartition":
        """Return the partition without some files, however their paths are spelled."""
        gone = set(map(os.path.realpath, files))
        rest = {file: rows for file, rows in self.files.items() if os.path.realpath(file) not in gone}
        return replace(self, files=rest)

    def unready(self, rules: RetrainConfig) -> str | None:
        """Say why the date is not complete yet; None: it is.

        Raises:
            ValueError: ``retrain.ready`` is set, and a date's name is that of a file.
            StorageError: a store cannot be read.
        """
        if rules.ready is not None:
            if not self.folders:
                raise ValueError(
                    f"retrain.ready = {rules.ready!r} is looked for in a date's folder, and {next(iter(self.files))} "
                    "is in none: use retrain.min_age_seconds"
                )
            without = [folder for folder in sorted(self.folders) if not is_there(f"{folder}/{rules.ready}")]
            if without:
                return f"{without[0]} has no {rules.ready} yet"
        young = [file for file in self.files if is_young(file, rules)]
        return f"{young[0]} changed less than {rules.min_age_seconds:g} s ago" if young else None


def is_young(file: str, rules: RetrainConfig) -> bool:
    """Tell whether a file changed less than ``retrain.min_age_seconds`` ago."""
    if not rules.min_age_seconds:
        return False
    state = read_state(file)
    return state is not None and time.time() - state.modified / 1e9 < rules.min_age_seconds


def date_key(text: str) -> str:
    """Remove the dashes of a date: 2014-10-28 and 20141028 are the same."""
    return text.replace("-", "")


def date_of(name: str) -> str:
    """Return the date of a partition, also of a late one."""
    return name.partition(LATE)[0]


def dashed(name: str) -> str:
    """Write a partition's name with dashes: 20141028 is 2014-10-28, 2014102805+1 is 2014-10-28 05+1."""
    date = date_of(name)
    if not date.isdigit() or len(date) not in (6, 8, 10):
        return name
    day = "-".join(part for part in (date[:4], date[4:6], date[6:8]) if part)
    return f"{day} {date[8:]}".rstrip() + name.removeprefix(date)


def is_late(name: str) -> bool:
    """Tell whether a name is that of a late partition."""
    return LATE in name


def list_log(pattern: str) -> FoundLogs:
    """Find the raw files of a log.

    Args:
        pattern: path, folder or glob, which may have {date} in it.

    Raises:
        LogError, StorageError: as ``find_files``.
    """
    return find_files(pattern.replace(DATE, "[0-9]*"), look_inside=False)  # what is built of them looks inside


def find_partitions(pattern: str) -> dict[str, RawPartition]:
    """Find partitions by the dates in their paths, oldest first.

    Raises:
        ValueError: the dates are of different lengths, so that they do not sort as time does.
        LogError, StorageError: as ``find_files``.
    """
    before, after = pattern.split(DATE)
    # What stands for {date} is looked up in the path, of a file that the pattern matches or in a folder that it does.
    expression = f"{_translate(before)}(?P<date>{_DATE_PATTERN}){_translate(after.rstrip('/'))}(?:/.*)?"
    matcher = re.compile(expression, re.DOTALL)
    found: dict[str, dict[str, int | None]] = {}
    folders: dict[str, set[str]] = {}
    for file in list_log(pattern).files:
        match = matcher.fullmatch(file.path)
        if match is not None:
            date = date_key(match["date"])
            found.setdefault(date, {})[file.absolute] = None
            if depth := file.path.count("/", match.end("date")):
                folders.setdefault(date, set()).add(file.absolute.rsplit("/", depth)[0])
    if len({len(date) for date in found}) > 1:
        raise ValueError(f"{pattern} finds dates of different lengths: {', '.join(sorted(found)[:5])}")
    return {date: RawPartition(found[date], folders=frozenset(folders.get(date, ()))) for date in sorted(found)}


def _translate(part: str) -> str:
    """Translate a part of a glob into a regular expression; a star does not match a slash."""
    tokens = re.split(r"(\*\*/|\*|\?)", part)
    return "".join({"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(token, re.escape(token)) for token in tokens)


def find_late(there: Mapping[str, RawPartition], built: Mapping[str, Iterable[str]]) -> dict[str, RawPartition]:
    """Find the files that came after their date's partition was built.

    Args:
        there: date -> its current raw files.
        built: partition, late ones included -> the files that it was built from.

    Returns:
        Name of a late partition -> the files that no partition of its date was built from.
    """
    late = {}
    for date, partition in there.items():
        names = [name for name in built if date_of(name) == date]
        rest = partition.without(file for name in names for file in built[name])
        if names and rest.files:
            late[f"{date}{LATE}{len(names)}"] = rest
    return late
