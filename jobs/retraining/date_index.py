"""DateIndex: rows per date of each raw file, for logs without dates in their paths; each file is scanned once.

No row is copied: a partition is built from all files that have rows of its date, filtered by the rows' times.

    dates/000000.json        counts of one pass over new files, written atomically
    dates/000000.undated/    rejected.jsonl: that pass's rows without a readable time
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from features.disk.atomic import write_json
from features.log_files import is_there, state_of
from jobs.retraining.file_states import read_state
from jobs.retraining.raw_partitions import RawPartition
from pipeline.config import UNDATED


@dataclass(frozen=True)
class FileDates:
    """Rows per date of one raw file, with its state when it was scanned."""

    path: str
    num_bytes: int
    modified: int
    """Time of the last change, Unix nanoseconds."""
    dates: Mapping[str, int]
    """Rows per date; the empty date stands for rows without a readable time. Of a file that cannot be read, those
    that it had when it could."""
    error: str | None = None
    """Reason why the file cannot be read; None: it was scanned."""

    @property
    def is_current(self) -> bool:
        """Whether the file has the size and time that it was scanned with."""
        state = read_state(self.path)
        return (state.num_bytes, state.modified) == (self.num_bytes, self.modified) if state else self.modified < 0


class DateIndex:
    """Index of a log's files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> dict[str, FileDates]:
        """Read the latest counts of each file: path -> counts."""
        records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.folder.glob("*.json"))]
        return {entry["path"]: FileDates(**entry) for record in records for entry in record["files"]}

    def unknown(self, files: Sequence[str]) -> tuple[str, ...]:
        """Select the files that were not scanned yet, or have changed since."""
        known = self.files()
        return tuple(file for file in files if file not in known or not known[file].is_current)

    def add(self, files: Sequence[str], count: Callable[[Path], Mapping[str, Mapping[str, int]]]) -> list[FileDates]:
        """Scan files and write their counts.

        Args:
            files: absolute paths.
            count: function from a folder for rows without a date to file -> date -> rows.
        """
        name = self._next_name()
        undated = self.folder / f"{name}.undated"
        shutil.rmtree(undated, ignore_errors=True)  # of a pass that was killed
        # Their state is taken first: a file that grows meanwhile is looked through again.
        states = {file: state_of(file) for file in files}
        dates = count(undated)
        found = [FileDates(file, *states[file], dict(dates.get(file, {}))) for file in files]
        write_json(self.folder / f"{name}.json", {"files": [asdict(file) for file in found]})
        return found

    def put_aside(self, file: str, error: str) -> None:
        """Write down that a file cannot be read, so that it is not scanned again until it changes.

        Args:
            file: absolute path.
            error: reason.
        """
        state, before = read_state(file), self.files().get(file)
        num_bytes, modified = (0, -1) if state is None else (state.num_bytes, state.modified)
        record = FileDates(file, num_bytes, modified, {} if before is None else before.dates, error)
        write_json(self.folder / f"{self._next_name()}.json", {"files": [asdict(record)]})

    def _next_name(self) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        return f"{len(list(self.folder.glob('*.json'))):06d}"

    def partitions(self) -> dict[str, RawPartition]:
        """Map each date, oldest first, to the existing files that have rows of it."""
        rows: dict[str, dict[str, int | None]] = {}
        for file in self.files().values():
            for date, num_rows in file.dates.items():
                if date != UNDATED and is_there(file.path):
                    rows.setdefault(date, {})[file.path] = num_rows
        return {date: RawPartition(rows[date], times_of(date)) for date in sorted(rows)}

    def unreadable(self) -> dict[str, str]:
        """Say of each file that is there and cannot be read why."""
        return {file.path: file.error for file in self.files().values() if file.error and os.path.lexists(file.path)}

    def num_undated(self) -> int:
        """Count the rows without a readable time, which belong to no partition."""
        return sum(file.dates.get(UNDATED, 0) for file in self.files().values())


def times_of(date: str) -> tuple[int, int]:
    """Return start and end (excluded), Unix seconds, of a UTC month, day or hour: 201410, 20141028 or 2014102807."""
    year, month, day, hour = int(date[:4]), int(date[4:6]), int(date[6:8] or 1), int(date[8:10] or 0)
    start = datetime(year, month, day, hour, tzinfo=UTC)
    if len(date) == 6:
        end = (start + timedelta(days=31)).replace(day=1)
    else:
        end = start + (timedelta(days=1) if len(date) == 8 else timedelta(hours=1))
    return int(start.timestamp()), int(end.timestamp())
