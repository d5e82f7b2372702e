"""Choice of splits: by the names of files, by time, or by a hash."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from features.disk.dataset import SPLITS
from features.log_files import LogFile
from jobs.inspection.roles import Roles
from jobs.inspection.toml_text import quoted

_NAMES = {
    "train": re.compile(r"(?i)(^|[^a-z])(train|training|tr)([^a-z]|$)"),
    "valid": re.compile(r"(?i)(^|[^a-z])(valid|validation|val|dev)([^a-z]|$)"),
    "test": re.compile(r"(?i)(^|[^a-z])(test|testing|te|eval)([^a-z]|$)"),
}
_MOST_FILES = 50
_UNITS = (86_400, 3_600, 60, 1)
"""Seconds of a day, an hour, a minute; a border lies at the start of one."""
_VALID_FROM, _TEST_FROM = 0.8, 0.9
_FARTHEST = 0.08
"""Distance of a border's share from the wish from which on a finer unit is tried."""


@dataclass(frozen=True)
class SplitChoice:
    """Splits of the first config.

    Attributes:
        inputs: split -> paths.
        rule: rule as TOML; None: each split has files.
        reason: sentence that says why.
    """

    inputs: dict[str, list[str]]
    rule: str | None
    reason: str


def choose_split(
    given: Sequence[str], files: Sequence[LogFile], roles: Roles, times: NDArray[np.float64] | None, is_spread: bool
) -> SplitChoice:
    """Choose how rows are split.

    Args:
        given: paths as the user gave them.
        files: the log's.
        roles: columns that are no features.
        times: (n,) Unix seconds of the sample's rows; None: the log has no time.
        is_spread: whether the sample has rows from all of the log.
    """
    named = _split_by_names(files)
    inputs = named or {"train": list(given)}
    if {"train", "valid"} <= inputs.keys():
        return SplitChoice(inputs, None, "the files' names say their splits")
    test = "" if "test" in inputs else ", test = 0.1"
    column, reason = "", "there is no time to split by"
    if times is not None:
        borders = _find_borders(times, roles.labels) if is_spread else None
        if borders:
            valid_from, test_from = map(_iso, borders)
            later = "" if "test" in inputs else f", test_from = {quoted(test_from)}"
            rule = f'{{ kind = "time", valid_from = {quoted(valid_from)}{later} }}'
            return SplitChoice(
                inputs, rule, "the newest rows judge, as they will; borders at 80 % and 90 % of the sample"
            )
        reason = 'the sample is of the log\'s beginning alone, so borders in time are yours to set: kind = "time"'
        if is_spread:
            reason = "no borders in time leave rows of both classes to each split"
    if roles.is_page and roles.group:
        column = f", column = {quoted(roles.group)}"
        reason += f"; rows of one {roles.group} stay together"
    return SplitChoice(inputs, f'{{ kind = "hash"{column}, valid = 0.1{test} }}', reason)


def _split_by_names(files: Sequence[LogFile]) -> dict[str, list[str]] | None:
    """Group files by the split in their names; None unless every file has one, and some are to train on."""
    found: dict[str, list[str]] = {}
    for file in files:
        name = file.path.rsplit("/", 1)[-1]
        splits = [split for split in SPLITS if _NAMES[split].search(name)]
        if len(splits) != 1:
            return None
        found.setdefault(splits[0], []).append(file.path)
    return found if "train" in found and len(found) > 1 and len(files) <= _MOST_FILES else None


def _find_borders(times: NDArray[np.float64], labels: NDArray[np.float64]) -> tuple[int, int] | None:
    """Find the starts of units nearest to 80 % and 90 % of the rows, the coarsest units that come near."""
    keep = ~np.isnan(times) & ~np.isnan(labels)
    times, labels = times[keep], labels[keep]
    best, best_distance = None, np.inf
    for unit in _UNITS:
        starts = np.unique(times // unit)[1:] * unit
        if len(starts) < 2:
            continue
        shares = np.searchsorted(np.sort(times), starts) / len(times)
        first = min(int(np.abs(shares - _VALID_FROM).argmin()), len(starts) - 2)
        second = first + 1 + int(np.abs(shares[first + 1 :] - _TEST_FROM).argmin())
        borders = int(starts[first]), int(starts[second])
        distance = max(abs(shares[first] - _VALID_FROM), abs(shares[second] - _TEST_FROM))
        parts = np.split(
            labels[np.argsort(times, kind="stable")], (shares[[first, second]] * len(times)).round().astype(int)
        )
        if all(len(np.unique(part)) == 2 for part in parts) and distance < best_distance / 2:
            best, best_distance = borders, distance
        if best is not None and best_distance <= _FARTHEST:
            break
    return best


def _iso(seconds: int) -> str:
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return text.removesuffix("T00:00:00")
