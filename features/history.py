"""Behaviour histories that a build makes from the log itself: which events of its user a row may see.

The rule, for every row: the last N events of the row's user whose time plus the delay is at or before the row's time,
newest first; of equal times, the later row of the log is newer. The delay is at least a second, so a row sees neither
itself nor what happens beside it. ``UserHistory`` says it for one user, as an online store does; the functions below
say it for arrays of many users and rows, as a build does.

Shapes: E events, n rows, V places of events in all rows together.
"""

import re
from bisect import insort
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from features.hashing import SPARK_SEED, hash_array

if TYPE_CHECKING:
    import pyarrow as pa

Integers = NDArray[np.int64]

_STRICT = ConfigDict(extra="forbid")  # features.schema imports this module
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LABELLED = "label"
"""Rule of a history whose events are the rows with label 1."""


def duration_seconds(text: str) -> int:
    """Read a duration like ``"45s"``, ``"30m"``, ``"2h"`` or ``"1d"``.

    Raises:
        ValueError: the text is none.
    """
    match = re.fullmatch(r"\s*(\d{1,9})\s*([smhd])\s*", text, re.ASCII)
    if match is None:
        raise ValueError(f'a duration must be like "45s", "30m", "2h" or "1d", got {text!r:.80}')
    return int(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True, config=_STRICT)
class DwellFilter:
    """Events whose user stayed too short a time are left out of histories; one without a dwell time stays."""

    column: str
    """Raw column of the dwell time in seconds."""
    min_seconds: Annotated[int, Field(ge=0)] = 10
    """Shortest dwell time of an event that stays."""


@dataclass(frozen=True, config=_STRICT)
class BurstFilter:
    """Events in abnormal bursts are left out of histories: all events of a window that holds too many of one user."""

    events: Annotated[int, Field(ge=1)] = 4
    """Number of events that make a window a burst."""
    seconds: Annotated[int, Field(ge=0)] = 15
    """Length of a window; both of its ends belong to it."""


@dataclass(frozen=True, config=_STRICT)
class History:
    """Rule of a history that the build makes: whose events, which rows are events, and when a row may see them."""

    of: str
    """Raw column; rows of one value are of one user, a row without a value has no history and is no event."""
    where: str = LABELLED
    """Rule that says which rows are events, as a label's: ``"event == 2"``; ``"label"``: rows with label 1."""
    splits: tuple[Literal["train", "valid", "test"], ...] = ("train", "valid", "test")
    """Splits whose rows are events: ``["train"]`` where rows were drawn into splits at random, so that no training row
    sees what validation is asked for."""
    lag: str = "1s"
    """Time from an event until a row may see it, at least a second: what a label waits for, and how late logs are."""
    dwell: DwellFilter | None = None
    """Filter of events by dwell time (PHG-DIF); None: all stay."""
    burst: BurstFilter | None = None
    """Filter of bursts of events (PHG-DIF); None: all stay. It counts events that the dwell filter leaves out too."""

    def __post_init__(self) -> None:
        if not self.of or not self.where:
            raise ValueError("history.of and history.where need a column and a rule")
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise ValueError(f"history.splits names splits, each once; got {list(self.splits)}")
        try:
            lag = duration_seconds(self.lag)
        except ValueError as error:
            raise ValueError(f"history.lag: {error}") from None
        if lag < 1:
            raise ValueError(f"history.lag is {self.lag!r}: a row would see itself; give at least 1s")
        object.__setattr__(self, "lag", f"{lag}s")  # one way to say it, so that fingerprints agree

    @property
    def delay(self) -> int:
        """Seconds from an event until a row may see it: the lag, and what the filters need to know about the event.

        Whether an event is in a burst is known when the last window that holds it is over; that its dwell time is
        long enough, when that time is.
        """
        lag = duration_seconds(self.lag) + (self.burst.seconds if self.burst else 0)
        return max(lag, self.dwell.min_seconds if self.dwell else 0)

    def knows_dwell(self, ages: Integers, dwell: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which dwell times a row knows, (V,): those that were over the lag ago; the others are yet to come.

        Args:
            ages: (V,) seconds between the event and the row.
            dwell: (V,) dwell times in seconds; NaN is missing, and never known.
        """
        return ages >= dwell + duration_seconds(self.lag)

    @property
    def columns(self) -> tuple[str, ...]:
        """List the raw columns that a build reads for the history, beside that of ``where`` and the timestamp."""
        return (self.of, self.dwell.column) if self.dwell else (self.of,)

    def is_short(self, dwell: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Find the events that the dwell filter leaves out by their dwell times, (E,); NaN is missing."""
        if self.dwell is None:
            return np.zeros(len(dwell), bool)
        return dwell < self.dwell.min_seconds


# ------------------------------------------------------------------------------------------------------------- one user


class UserEvent(NamedTuple):
    """An event of one user, in the order of histories.

    Attributes:
        time: Unix seconds.
        row: number of its row in the log; decides among events of one time.
        value: what histories hold of it.
        dwell: dwell time in seconds; None: not known.
        is_dropped: whether a filter has left it out before.
    """

    time: int
    row: int
    value: Any
    dwell: float | None = None
    is_dropped: bool = False


class UserHistory:
    """Events of one user, as an online store keeps them: added in any order, read at a row's time."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._events: list[UserEvent] = []

    def add(self, event: UserEvent) -> None:
        """Keep an event."""
        insort(self._events, event, key=lambda one: (one.time, one.row))

    def at(self, time: int, length: int) -> list[UserEvent]:
        """Return the last ``length`` events that a row at ``time`` may see, newest first.

        A dwell time that is not over by then, and the lag with it, is not known.
        """
        seen = [event for event in self._kept() if event.time + self._history.delay <= time]
        return [self._as_known(event, time) for event in seen[::-1][:length]]

    def _as_known(self, event: UserEvent, time: int) -> UserEvent:
        if event.dwell is None or event.time + event.dwell + duration_seconds(self._history.lag) <= time:
            return event
        return event._replace(dwell=None)

    def _kept(self) -> Iterator[UserEvent]:
        for event in self._events:
            is_short = (
                self._history.dwell is not None
                and event.dwell is not None
                and event.dwell < self._history.dwell.min_seconds
            )
            if not (event.is_dropped or is_short or self._is_in_burst(event)):
                yield event

    def _is_in_burst(self, event: UserEvent) -> bool:
        burst = self._history.burst
        if burst is None:
            return False
        times = [other.time for other in self._events]
        starts = [time for time in times if time <= event.time <= time + burst.seconds]
        return any(sum(start <= time <= start + burst.seconds for time in times) >= burst.events for start in starts)


# ----------------------------------------------------------------------------------------------------------- many users


def user_hashes(users: "pa.Array") -> NDArray[np.uint64]:
    """Hash the texts that name users, (n,): what histories know them by."""
    return hash_array(users, SPARK_SEED)


def sort_events(users: NDArray[np.uint64], times: Integers, rows: Integers) -> NDArray[np.intp]:
    """Compute the order of events, (E,): by user, then by time, then by row."""
    return np.lexsort((rows, times, users))


def in_bursts(users: NDArray[np.uint64], times: Integers, burst: BurstFilter | None) -> NDArray[np.bool_]:
    """Find the events in bursts.

    Args:
        users: (E,) sorted as ``sort_events`` says.
        times: (E,) Unix seconds.
        burst: what a burst is; None: there is none.
    """
    if burst is None or burst.events > len(users):
        return np.zeros(len(users), bool)
    behind = burst.events - 1
    last = len(users) - behind
    is_full = (users[behind:] == users[:last]) & (times[behind:] - times[:last] <= burst.seconds)
    marks = np.zeros(len(users) + 1, np.int64)
    marks[:last] += is_full
    marks[burst.events :] -= is_full
    return np.cumsum(marks)[:-1] > 0


class Seen(NamedTuple):
    """Events that each row sees: the ``counts`` of them before ``stops``, in sorted events.

    Attributes:
        stops: (n,) place behind the newest.
        counts: (n,) how many.
    """

    stops: Integers
    counts: Integers

    def places(self) -> tuple[Integers, Integers]:
        """List the events of all rows, newest first: their places, (V,) row by row, and offsets, (n + 1,)."""
        offsets = np.concatenate([[0], np.cumsum(self.counts)])
        newest = np.repeat(self.stops - 1 + offsets[:-1], self.counts)
        return newest - np.arange(offsets[-1]), offsets


def seen_events(
    events: tuple[NDArray[np.uint64], Integers], rows: tuple[NDArray[np.uint64], Integers], delay: int, length: int
) -> Seen:
    """Find the events that each row may see; the time is that of sorting, whatever one user's share is.

    Args:
        events: users and times, (E,) each, sorted as ``sort_events`` says, without what filters leave out.
        rows: users and times, (n,) each, in any order.
        delay: seconds from an event until a row may see it, at least 1.
        length: largest number of events of a row.
    """
    (users, times), (row_users, row_times) = events, rows
    if not len(users):
        return Seen(np.zeros(len(row_users), np.int64), np.zeros(len(row_users), np.int64))
    is_first = np.concatenate([[True], users[1:] != users[:-1]])
    codes, distinct = np.cumsum(is_first) - 1, users[is_first]
    starts = np.append(np.flatnonzero(is_first), len(users))
    moments, row_moments, span = _moments(times, row_times - delay, len(distinct))
    # One number a user and moment: a row's is behind those of the events that it sees, and of nothing else.
    row_codes = np.minimum(np.searchsorted(distinct, row_users), len(distinct) - 1)
    stops = np.searchsorted(codes * span + moments, row_codes * span + row_moments)
    counts = np.where(distinct[row_codes] == row_users, stops - starts[row_codes], 0)
    return Seen(stops, np.minimum(counts, length))


def _moments(times: Integers, latest: Integers, num_users: int) -> tuple[Integers, Integers, int]:
    """Number the moments of events, from 0, and for each row those up to its latest one.

    Returns:
        Numbers of the events' times, and of rows the least number that is too late; and a number above all of them.
    """
    first, span = int(times.min()), int(times.max()) - int(times.min()) + 2
    if span * num_users < 2**62:
        return times - first, np.clip(latest, first - 1, first + span - 2) - (first - 1), span
    moments = np.unique(times)  # times so wide apart that a number for each user and second is too large
    return np.searchsorted(moments, times), np.searchsorted(moments, latest, side="right"), len(moments) + 1
