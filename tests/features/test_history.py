"""Histories: the rule for arrays is that of a store, for any users, times and filters; no row sees its future."""

from itertools import pairwise

import numpy as np
import pytest

from features.history import (
    BurstFilter,
    DwellFilter,
    History,
    UserEvent,
    UserHistory,
    duration_seconds,
    in_bursts,
    seen_events,
    sort_events,
)

LENGTH = 5
NO_FILTER = History("user", lag="3s")
SPEC_TIMES, SPEC_DWELL = (0, 40, 45, 47, 49, 300, 900, 905), (35.0, 4, 2, 2, 200, 600, 5, 300)


def world(seed: int) -> dict[str, np.ndarray]:
    """Rows of few users in few seconds, one user with most of them, some dwell times missing."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 120))
    users = np.where(rng.random(n) < 0.6, 7, rng.integers(1, 12, n)).astype(np.uint64)
    dwell = np.where(rng.random(n) < 0.2, np.nan, rng.integers(0, 30, n))
    times = rng.integers(0, int(rng.choice([3, 60, 2_000])), n)
    is_event = rng.random(n) < rng.choice([0.0, 0.3, 0.9])
    return {"users": users, "times": times, "rows": rng.permutation(n), "dwell": dwell, "is_event": is_event}


def histories_of_arrays(log: dict[str, np.ndarray], history: History) -> list[list[int]]:
    """Row numbers of the events that each row sees, by the rule for arrays."""
    own = np.flatnonzero(log["is_event"])
    own = own[sort_events(log["users"][own], log["times"][own], log["rows"][own])]
    users, times = log["users"][own], log["times"][own]
    kept = ~(in_bursts(users, times, history.burst) | history.is_short(log["dwell"][own]))
    seen = seen_events((users[kept], times[kept]), (log["users"], log["times"]), history.delay, LENGTH)
    places, offsets = seen.places()
    rows = log["rows"][own][kept][places]
    return [rows[start:stop].tolist() for start, stop in pairwise(offsets.tolist())]


def histories_of_stores(log: dict[str, np.ndarray], history: History) -> list[list[int]]:
    """Row numbers of the events that each row sees, by a store a user."""
    stores = {user: UserHistory(history) for user in log["users"].tolist()}
    for place in np.flatnonzero(log["is_event"]).tolist():
        dwell = None if np.isnan(log["dwell"][place]) else float(log["dwell"][place])
        row = int(log["rows"][place])
        stores[int(log["users"][place])].add(UserEvent(int(log["times"][place]), row, row, dwell))
    return [
        [event.value for event in stores[user].at(time, LENGTH)]
        for user, time in zip(log["users"].tolist(), log["times"].tolist(), strict=True)
    ]


@pytest.mark.parametrize(
    "history",
    [
        NO_FILTER,
        History("user"),
        History("user", lag="1m", dwell=DwellFilter("dwell")),
        History("user", burst=BurstFilter(events=3, seconds=2)),
        History("user", lag="2s", dwell=DwellFilter("dwell", 15), burst=BurstFilter(events=2, seconds=0)),
    ],
    ids=["lag", "least", "dwell", "burst", "both"],
)
def test_arrays_give_what_a_store_gives(history: History) -> None:
    lengths = set()
    for seed in range(60):
        log = world(seed)
        found = histories_of_arrays(log, history)
        assert found == histories_of_stores(log, history), seed
        lengths |= {len(events) for events in found}
    assert {0, 1, LENGTH} <= lengths


def test_a_row_sees_nothing_within_the_lag_and_the_later_row_is_newer() -> None:
    store = UserHistory(NO_FILTER)
    for row, time in ((4, 10), (1, 10), (2, 8), (3, 11)):
        store.add(UserEvent(time, row, row))
    assert [[event.value for event in store.at(time, 2)] for time in (10, 11, 12, 13, 14)] == [
        [],
        [2],
        [2],
        [4, 1],
        [3, 4],
    ]


@pytest.mark.parametrize("burst", [None, BurstFilter(events=2, seconds=5)], ids=["plain", "burst"])
def test_labels_of_the_future_change_no_history(burst: BurstFilter | None) -> None:
    history = History("user", lag="3s", burst=burst)
    rng = np.random.default_rng(5)
    changed = 0
    for seed in range(40):
        log = world(seed)
        before = histories_of_arrays(log, history)
        now = int(rng.integers(0, 60))
        is_future = log["times"] + 3 > now
        shuffled = log | {"is_event": np.where(is_future, rng.random(len(is_future)) < 0.5, log["is_event"])}
        after = histories_of_arrays(shuffled, history)
        early = [place for place, time in enumerate(log["times"].tolist()) if time <= now]
        assert [before[place] for place in early] == [after[place] for place in early]
        changed += before != after
    assert changed > 10


def test_the_filters_constants_are_the_specs() -> None:
    users, times = np.zeros(8, np.uint64), np.array(SPEC_TIMES)
    short = History("user", dwell=DwellFilter("dwell", 10)).is_short(np.array(SPEC_DWELL))
    assert np.flatnonzero(~short).tolist() == [0, 4, 5, 7]
    burst = in_bursts(users, times, BurstFilter(events=4, seconds=15))
    assert np.flatnonzero(burst).tolist() == [1, 2, 3, 4]
    assert np.flatnonzero(~short & ~burst).tolist() == [0, 5, 7]


def test_edges_of_the_filters() -> None:
    times = np.array(SPEC_TIMES)
    users = np.zeros(8, np.uint64)
    assert in_bursts(users, times, BurstFilter(events=1, seconds=0)).all()
    assert not in_bursts(users, times, BurstFilter(events=9, seconds=10_000)).any()
    assert not History("user", dwell=DwellFilter("dwell", 0)).is_short(np.array(SPEC_DWELL)).any()
    pair = np.array([100, 115])
    assert in_bursts(users[:2], pair, BurstFilter(events=2, seconds=15)).all()
    assert not in_bursts(users[:2], pair, BurstFilter(events=2, seconds=14)).any()
    assert not in_bursts(np.array([1, 2], np.uint64), np.array([5, 5]), BurstFilter(events=2, seconds=15)).any()


def test_a_store_takes_events_in_any_order() -> None:
    history = History("user", dwell=DwellFilter("dwell", 10), burst=BurstFilter())
    rng = np.random.default_rng(0)
    for _ in range(20):
        store = UserHistory(history)
        for place in rng.permutation(8).tolist():
            store.add(UserEvent(SPEC_TIMES[place], place, place, SPEC_DWELL[place]))
        assert [event.value for event in store.at(10_000, 9)] == [7, 5, 0]


def test_times_centuries_apart_are_as_exact_as_others() -> None:
    """A number for each user and second would not fit into 64 bits then."""
    for seed in range(60):
        log = world(seed)
        own = np.flatnonzero(log["is_event"])
        own = own[sort_events(log["users"][own], log["times"][own], log["rows"][own])]
        events, rows = (log["users"][own], log["times"][own]), (log["users"], log["times"])
        near = seen_events(events, rows, 3, LENGTH)
        for unit, start in ((2**50, 0), (2**50, -(2**60)), (1, -7)):
            far = [(users, times * unit + start) for users, times in (events, rows)]
            found = seen_events(far[0], far[1], 3 * unit, LENGTH)
            assert found.stops.tolist() == near.stops.tolist() and found.counts.tolist() == near.counts.tolist()


def test_one_user_with_all_events_is_exact() -> None:
    n = 300_000
    users, times = np.zeros(n, np.uint64), np.arange(n)
    seen = seen_events((users, times), (users, times), 1, 50)
    assert seen.counts.tolist()[:60] == [min(place, 50) for place in range(60)]
    assert seen.stops[-1] == n - 1


@pytest.mark.parametrize(("text", "seconds"), [("45s", 45), ("30m", 1800), (" 2h ", 7200), ("1d", 86400)])
def test_durations(text: str, seconds: int) -> None:
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "1.5h", "-1s", "1w", "٣s", "1s2m"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"history\.lag: a duration must be like"):
        History("user", lag=text)


def test_a_lag_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a row would see itself"):
        History("user", lag="0s")


def test_filters_wait_until_they_know() -> None:
    assert History("user", lag="30m").delay == 1800
    assert History("user", lag="5s", dwell=DwellFilter("dwell", 10)).delay == 10
    assert History("user", lag="5s", dwell=DwellFilter("dwell", 10), burst=BurstFilter()).delay == 20
