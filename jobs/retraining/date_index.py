"""DateIndex: which dates the rows of a log are of, where no path says so; every raw file is looked through once.

No row is copied. A partition is built from all files that have rows of its date, by the rows' times.

    dates/000000.json        what one pass over new files found; it is there whole or not at all
    dates/000000.undated/    rejected.jsonl: that pass's rows without a readable time
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from features.disk.atomic import write_json
from jobs.retraining.raw_partitions import RawPartition

UNDATED = ""


@dataclass(frozen=True)
class FileDates:
    """One raw file as it was when it was looked through."""

    path: str
    num_bytes: int
    modified: int
    """Nanoseconds."""
    dates: Mapping[str, int]
    """Date -> rows; the empty text stands for none."""

    @property
    def is_current(self) -> bool:
        return (self.num_bytes, self.modified) == _state(self.path)


class DateIndex:
    """What is known of a log's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> dict[str, FileDates]:
        """Path -> what was found in it last."""
        records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.folder.glob("*.json"))]
        return {entry["path"]: FileDates(**entry) for record in records for entry in record["files"]}

    def unknown(self, files: Sequence[str]) -> tuple[str, ...]:
        """Those of some files that have not been looked through, or have changed since."""
        known = self.files()
        return tuple(file for file in files if file not in known or not known[file].is_current)

    def add(self, files: Sequence[str], count: Callable[[Path], Mapping[str, Mapping[str, int]]]) -> list[FileDates]:
        """Look through files and remember what is in them.

        Args:
            files: absolute paths.
            count: is given a folder for rows without a date; returns file -> date -> rows.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{len(list(self.folder.glob('*.json'))):06d}"
        undated = self.folder / f"{name}.undated"
        shutil.rmtree(undated, ignore_errors=True)  # of a pass that was killed
        # Their state is taken first: a file that grows meanwhile is looked through again.
        states = {file: _state(file) for file in files}
        dates = count(undated)
        found = [FileDates(file, *states[file], dict(dates.get(file, {}))) for file in files]
        write_json(self.folder / f"{name}.json", {"files": [asdict(file) for file in found]})
        return found

    def partitions(self) -> dict[str, RawPartition]:
        """Date -> the files that have rows of it, oldest first; a file that is gone has none."""
        rows: dict[str, dict[str, int | None]] = {}
        for file in self.files().values():
            for date, num_rows in file.dates.items():
                if date != UNDATED and Path(file.path).exists():
                    rows.setdefault(date, {})[file.path] = num_rows
        return {date: RawPartition(rows[date], times_of(date)) for date in sorted(rows)}

    def num_undated(self) -> int:
        """Rows that belong to no partition."""
        return sum(file.dates.get(UNDATED, 0) for file in self.files().values())


def _state(path: str) -> tuple[int, int]:
    """Bytes and time of the last change."""
    found = Path(path).stat()
    return found.st_size, found.st_mtime_ns


def times_of(date: str) -> tuple[int, int]:
    """First second of a month, day or hour such as 201410, 20141028 or 2014102807, and the first after it; UTC."""
    year, month, day, hour = int(date[:4]), int(date[4:6]), int(date[6:8] or 1), int(date[8:10] or 0)
    start = datetime(year, month, day, hour, tzinfo=UTC)
    if len(date) == 6:
        end = (start + timedelta(days=31)).replace(day=1)
    else:
        end = start + (timedelta(days=1) if len(date) == 8 else timedelta(hours=1))
    return int(start.timestamp()), int(end.timestamp())
