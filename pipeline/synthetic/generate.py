"""Generate ad-like raw logs with a known click probability: rows of a small world, in gzipped CSV files.

Because the probability of every row is known, so are the best AUC and logloss any model can reach, and a model's
distance to them is a number instead of an opinion.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.csv

from pipeline.synthetic.world import FIRST_TIMESTAMP, SECONDS_PER_DAY, Ints, RawColumns, World
from pipeline.synthetic.world_drift import let_a_day_pass

COLUMNS = (
    "timestamp", "click", "click_probability", "user_id", "gender", "age", "interests", "country", "city",
    "ad_id", "campaign_id", "advertiser_id", "category", "creative_type", "price", "site_id", "app_id",
    "site_category", "slot_size", "position", "device_model", "device_type", "os", "browser", "connection",
    "hour", "weekday", "impressions_today", "past_clicks", "session_seconds",
)  # fmt: skip
"""Header of the log, in file order."""


@dataclass(frozen=True)
class LogSpec:
    """Specification of a generated log; equal values give equal bytes."""

    rows: int
    days: int = 10
    seed: int = 0
    click_rate: float = 0.24
    rows_per_file: int = 50_000
    drift: float = 0.0
    """Share of the world that changes in a day; see ``pipeline.synthetic.world_drift.let_a_day_pass``."""

    def __post_init__(self) -> None:
        for name in ("rows", "days", "rows_per_file"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.rows < self.days:
            raise ValueError(f"{self.rows} rows cannot cover {self.days} days: give at least one row a day")
        if not 0 < self.click_rate < 1:
            raise ValueError(f"click_rate must be between 0 and 1, got {self.click_rate}")
        if not 0 <= self.drift <= 1:
            raise ValueError(f"drift must be from 0 to 1, got {self.drift}")


def generate_chunks(spec: LogSpec) -> Iterator[tuple[int, int, RawColumns]]:
    """Yield (day from 0, file of the day from 0, columns), in order of time."""
    world = World(spec.seed, spec.click_rate)
    for day in range(spec.days):
        if day and spec.drift:
            let_a_day_pass(world, spec.drift, np.random.default_rng([spec.seed, 4, day]))
        day_rows = spec.rows * (day + 1) // spec.days - spec.rows * day // spec.days
        timestamps = _draw_timestamps(np.random.default_rng([spec.seed, 2, day]), day, day_rows)
        num_files = -(-day_rows // spec.rows_per_file)
        for number, chunk in enumerate(np.array_split(timestamps, num_files)):
            rng = np.random.default_rng([spec.seed, 3, day, number])
            yield day, number, world.to_columns(world.draw(rng, chunk), rng)


def file_name(day: int, number: int) -> str:
    """Name one file of a day; names sort in order of time."""
    return f"day-{day + 1:02d}-part-{number:03d}.csv.gz"


def write_chunk(path: Path, columns: RawColumns) -> None:
    """Write one gzipped CSV file with a header; missing values are empty."""
    table = pyarrow.table({name: pyarrow.array(columns[name]) for name in COLUMNS})
    # No name and no time in the gzip header: the same rows give the same bytes.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as file:
        file.write((",".join(COLUMNS) + "\n").encode())
        options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="none")
        pyarrow.csv.write_csv(table, file, options)


def _draw_timestamps(rng: np.random.Generator, day: int, rows: int) -> Ints:
    """Sorted Unix seconds of one day: quiet nights, busy evenings."""
    by_hour = 1.2 - np.cos(2 * np.pi * (np.arange(24) - 4) / 24)
    hours = rng.choice(24, rows, p=by_hour / by_hour.sum())
    return np.sort(FIRST_TIMESTAMP + day * SECONDS_PER_DAY + hours * 3600 + rng.integers(0, 3600, rows))
