"""Raw partitions: which dates of a log there are, which files have their rows, and which of them came too late.

Nothing of a file is read here but its name; ``jobs.retraining.date_index`` knows more where names do not tell.
"""

import glob
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jobs.cli.retrain_config import DATE

LATE = "+"
"""Between a date and a number: rows that came when the date's partition was built already, as one of their own."""
_DATE_PATTERN = r"[0-9](?:[0-9-]*[0-9])?"


@dataclass(frozen=True)
class RawPartition:
    """One date's part of a raw log."""

    files: Mapping[str, int | None]
    """Absolute path -> rows of this date in it; None: all that there are."""
    times: tuple[int, int] | None = None
    """Unix seconds from the first to before the second, where the files have rows of other dates too."""

    @property
    def num_rows(self) -> int | None:
        counts = [rows for rows in self.files.values() if rows is not None]
        return sum(counts) if len(counts) == len(self.files) else None

    def without(self, files: Iterable[str]) -> "RawPartition":
        gone = set(files)
        return RawPartition({file: rows for file, rows in self.files.items() if file not in gone}, self.times)


def date_key(text: str) -> str:
    """A date without its dashes: 2014-10-28 and 20141028 are one."""
    return text.replace("-", "")


def date_of(name: str) -> str:
    """The date of a partition, which may be one of late rows."""
    return name.partition(LATE)[0]


def dashed(name: str) -> str:
    """Write a partition's name with dashes: 20141028 is 2014-10-28, 2014102805+1 is 2014-10-28 05+1."""
    date = date_of(name)
    if not date.isdigit() or len(date) not in (6, 8, 10):
        return name
    day = "-".join(part for part in (date[:4], date[4:6], date[6:8]) if part)
    return f"{day} {date[8:]}".rstrip() + name.removeprefix(date)


def is_late(name: str) -> bool:
    return LATE in name


def find_partitions(pattern: str) -> dict[str, RawPartition]:
    """Partitions by the dates in their paths, oldest first.

    Raises:
        ValueError: the dates are of different lengths, so that they do not sort as time does.
    """
    before, after = pattern.split(DATE)
    # The rest of the pattern is a glob; what stands for {date} in a path that it matches is looked up in the path.
    matcher = re.compile(f"{_translate(before)}(?P<date>{_DATE_PATTERN}){_translate(after)}")
    found: dict[str, dict[str, int | None]] = {}
    for path in sorted(glob.glob(f"{before}*{after}", recursive=True)):
        match = matcher.fullmatch(path)
        if match is not None:
            found.setdefault(date_key(match["date"]), {})[str(Path(path).absolute())] = None
    if len({len(date) for date in found}) > 1:
        raise ValueError(f"{pattern} finds dates of different lengths: {', '.join(sorted(found)[:5])}")
    return {date: RawPartition(found[date]) for date in sorted(found)}


def _translate(part: str) -> str:
    """A part of a glob as a regular expression; a star matches within a folder's name."""
    tokens = re.split(r"(\*\*/|\*|\?)", part)
    return "".join({"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(token, re.escape(token)) for token in tokens)


def find_late(there: Mapping[str, RawPartition], built: Mapping[str, Iterable[str]]) -> dict[str, RawPartition]:
    """Rows that came too late for their date's partition.

    Args:
        there: date -> its part of the log as it is now.
        built: partition, also of late rows -> the files that it was built from.

    Returns:
        The name of a partition of their own -> the files that no partition of their date was built from.
    """
    late = {}
    for date, partition in there.items():
        names = [name for name in built if date_of(name) == date]
        rest = partition.without(file for name in names for file in built[name])
        if names and rest.files:
            late[f"{date}{LATE}{len(names)}"] = rest
    return late
