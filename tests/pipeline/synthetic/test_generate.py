"""The generated world: its probabilities against a row-by-row oracle, its labels against its probabilities."""

import copy
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import xxhash

from features.log_format import LogFormat
from pipeline.synthetic.generate import COLUMNS, LogSpec, file_name, generate_chunks, write_chunk
from pipeline.synthetic.world import (
    AGE_LIMITS,
    FIRST_TIMESTAMP,
    MOOD_SECONDS,
    MOOD_STRENGTH,
    NUM_ADS,
    NUM_USERS,
    SECONDS_PER_DAY,
    RawColumns,
    World,
    sigmoid,
)
from pipeline.synthetic.world_drift import ARROWS, EFFECTS, let_a_day_pass
from tests.oracles.row_reader import read_rows


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=5, click_rate=0.18)


@pytest.fixture(scope="module")
def logs() -> dict[tuple[int, int], RawColumns]:
    spec = LogSpec(rows=40_001, days=3, seed=5, rows_per_file=10_000)
    return {(day, number): columns for day, number, columns in generate_chunks(spec)}


def joined(logs: dict[tuple[int, int], RawColumns], name: str) -> np.ndarray:
    return np.concatenate([columns[name] for columns in logs.values()])


def naive_logit(world: World, row: dict[str, int]) -> float:
    """One row's log-odds, term by term, without arrays."""
    profile, place_category, category = row["profile"], row["place_category"], row["category"]
    taste = [float(x) for x in world.place_taste[place_category]]
    interests = [i for i in world.profile_interests[profile] if i >= 0]
    has_gender, has_age = world.profile_is_known[profile]
    for axis in range(2):
        for interest in interests:
            taste[axis] += world.interest_taste[interest][axis] / len(interests)
        if has_age:
            taste[axis] += world.age_taste[sum(row["age"] >= limit for limit in AGE_LIMITS)][axis]
        if has_gender:
            taste[axis] += world.gender_taste[row["gender"]][axis]
    for axis, mood in enumerate(naive_mood(world, row["user"], row["timestamp"])):
        taste[axis] += mood
    appeal = world.category_appeal[category]
    logit = world.bias + taste[0] * appeal[0] + taste[1] * appeal[1]
    logit += world.device_creative[row["device"]][row["creative"]]
    logit += world.daypart_place[row["hour"] // 6][place_category]
    logit += world.category_effect[category] + world.place_category_effect[place_category]
    logit += world.device_effect[row["device"]] + world.slot_effect[row["slot"]]
    logit += world.country_effect[row["country"]] + world.advertiser_effect[row["advertiser"]]
    logit += world.campaign_effect[row["campaign"]] + world.profile_effect[profile]
    logit += world.ad_effect[row["ad"]] + world.place_effect[row["place"]]
    logit += -0.20 * row["position"] - 0.20 * math.log(1 + row["impressions"])
    logit += 0.15 * math.log(1 + world.profile_past_clicks[profile]) + (0.1 if row["weekday"] >= 5 else 0.0)
    return logit + 0.20 * math.sin(2 * math.pi * (row["hour"] - 14) / 24)


def naive_mood(world: World, user: int, timestamp: int) -> tuple[float, float]:
    """A user's mood at a time, by one hash for when it began and one for what it is."""
    phase = xxhash.xxh64_intdigest(user.to_bytes(8, "little"), seed=world.mood_seed) / 2**64
    number = (user << 20) + math.floor(timestamp / MOOD_SECONDS + phase)
    angle = 2 * math.pi * xxhash.xxh64_intdigest(number.to_bytes(8, "little"), seed=world.mood_seed + 1) / 2**64
    return MOOD_STRENGTH * math.cos(angle), MOOD_STRENGTH * math.sin(angle)


def test_moods_last_for_days_and_nothing_foretells_them(world: World):
    """What a history is for: no id of the user tells the mood, his latest clicks do."""
    users, times = np.meshgrid(np.arange(2_000), FIRST_TIMESTAMP + np.arange(0, 10 * SECONDS_PER_DAY, 3600))
    moods = world.moods({"user": users.ravel(), "timestamp": times.ravel()}).reshape(*users.shape, 2)
    np.testing.assert_allclose(np.linalg.norm(moods, axis=2), MOOD_STRENGTH)
    changes = (moods[1:] != moods[:-1]).any(axis=2)
    expected = len(changes) * 3600 / MOOD_SECONDS
    assert abs(changes.sum(axis=0) - expected).max() <= 1  # at the same distance for everybody
    assert changes.mean(axis=1).max() < 0.05  # but never for many at once
    for earlier in (moods[0], moods[0, ::-1]):  # neither the mood before, nor that of another user
        later = moods[MOOD_SECONDS // 3600]
        assert abs((earlier * later).sum(axis=1).mean()) < 4 * MOOD_STRENGTH**2 / math.sqrt(2 * len(later))
    assert np.abs(moods.mean(axis=1)).max() < 4 * MOOD_STRENGTH / math.sqrt(2 * 2_000)


def test_latest_clicks_tell_the_mood(logs):
    """Users click more on what lies in the direction of their last clicks, beyond what the row tells."""
    clicks, probability, seconds = (joined(logs, name) for name in ("click", "click_probability", "timestamp"))
    user, category = joined(logs, "user_id").tolist(), joined(logs, "category").tolist()
    latest: dict[str, str] = {}
    same = np.zeros(len(clicks), np.bool_)
    for row in np.argsort(seconds, kind="stable").tolist():
        same[row] = latest.get(user[row]) == category[row]
        if clicks[row]:
            latest[user[row]] = category[row]
    assert probability[same].mean() > 1.15 * probability[~same].mean()


def test_probability_is_the_sum_of_its_terms(world: World):
    drawn = world.draw(np.random.default_rng(0), FIRST_TIMESTAMP + np.arange(0, 7 * SECONDS_PER_DAY, 1201))
    expected = [naive_logit(world, {k: int(v[i]) for k, v in drawn.items()}) for i in range(len(drawn["user"]))]
    np.testing.assert_allclose(world.logits(drawn), expected, rtol=0, atol=1e-9)
    columns = world.to_columns(drawn, np.random.default_rng(0))
    np.testing.assert_allclose(columns["click_probability"], 1 / (1 + np.exp(-np.array(expected))), atol=5.1e-7)


def test_labels_are_drawn_with_the_probability(logs):
    clicks, probability = joined(logs, "click"), joined(logs, "click_probability")
    assert abs(probability.mean() - 0.24) < 0.01
    for bin_rows in np.array_split(np.argsort(probability, kind="stable"), 20):
        p = probability[bin_rows]
        standard_error = np.sqrt((p * (1 - p)).sum()) / len(p)
        assert abs(clicks[bin_rows].mean() - p.mean()) < 4 * standard_error


def test_every_row_once_and_in_order_of_time(logs):
    assert sum(len(columns["click"]) for columns in logs.values()) == 40_001
    assert np.all(np.diff(joined(logs, "timestamp")) >= 0)
    assert sorted(logs) == list(logs)
    assert {day for day, _ in logs} == {0, 1, 2}
    for (day, _), columns in logs.items():
        assert set((columns["timestamp"] - FIRST_TIMESTAMP) // SECONDS_PER_DAY) == {day}
        np.testing.assert_array_equal(columns["hour"], columns["timestamp"] % SECONDS_PER_DAY // 3600)
    by_hour = np.bincount(joined(logs, "hour").astype(int), minlength=24)
    assert by_hour[4] * 3 < by_hour[16]


def test_missing_values(logs):
    for name, low, high in (("gender", 0.07, 0.13), ("age", 0.15, 0.25), ("interests", 0.01, 0.06)):
        assert low < np.mean([v is None for v in joined(logs, name)]) < high, name
    sites, apps = joined(logs, "site_id"), joined(logs, "app_id")
    assert all((site is None) != (app is None) for site, app in zip(sites, apps, strict=True))


def test_a_million_rows_hold_more_than_100_000_users(world: World):
    users = world.draw(np.random.default_rng(1), np.full(1_000_000, FIRST_TIMESTAMP))["user"]
    counts = np.sort(np.unique(users, return_counts=True)[1])[::-1]
    assert len(counts) > 100_000
    assert counts[:1_000].sum() > 10 * counts[10_000:11_000].sum()  # a heavy head and a long tail


def test_one_side_of_a_pair_tells_nothing(world: World):
    """What makes a linear model fail: every pairwise effect averages to zero along both of its sides."""
    for arrows in (world.category_appeal, world.interest_taste, world.place_taste, world.age_taste):
        np.testing.assert_allclose(arrows.mean(axis=0), 0, atol=1e-12)
    for table in (world.device_creative, world.daypart_place):
        np.testing.assert_allclose(table.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(table.mean(axis=1), 0, atol=1e-12)


def drifted(world: World, days: int, drift: float = 0.1) -> World:
    later = copy.deepcopy(world)
    for day in range(days):
        let_a_day_pass(later, drift, np.random.default_rng(day))
    return later


def test_a_world_that_drifts_leaves_its_first_day_as_it_was(logs):
    spec = LogSpec(rows=40_001, days=3, seed=5, rows_per_file=10_000, drift=0.1)
    drifting = {(day, number): columns for day, number, columns in generate_chunks(spec)}
    assert drifting.keys() == logs.keys()
    for (day, number), columns in drifting.items():
        still = logs[day, number]
        assert all(np.array_equal(columns[name], still[name]) for name in COLUMNS) == (day == 0)
        np.testing.assert_array_equal(columns["timestamp"], still["timestamp"])


def test_what_was_learnt_of_a_drifting_world_is_worth_less_every_day(world: World):
    """Nats a row that yesterday's probabilities lose on later rows: what retraining is for."""
    rows = world.draw(np.random.default_rng(0), FIRST_TIMESTAMP + np.arange(20_000))
    old, lost = sigmoid(world.logits(rows)), []
    for days in (0, 1, 3, 10):
        new = sigmoid(drifted(world, days).logits(rows))
        lost.append(float((new * np.log(new / old) + (1 - new) * np.log((1 - new) / (1 - old))).mean()))
        assert abs(new.mean() - old.mean()) < 0.05
    assert lost[0] == 0 and lost[1] > 0.0005
    assert all(later > 1.5 * sooner for sooner, later in itertools.pairwise(lost[1:]))


def test_a_drifting_world_keeps_its_proportions(world: World):
    later = drifted(world, 20)
    for name in ARROWS:
        lengths = [np.linalg.norm(getattr(w, name), axis=1) for w in (world, later)]
        np.testing.assert_allclose(*lengths, rtol=0, atol=1e-12)
    for name in EFFECTS:
        before, after = getattr(world, name), getattr(later, name)
        np.testing.assert_allclose((after.mean(), after.std()), (before.mean(), before.std()), atol=1e-9)
    moved = np.corrcoef(world.profile_effect, drifted(world, 1).profile_effect)[0, 1]
    assert moved == pytest.approx(math.sqrt(1 - 0.1**2), abs=1e-3)


def test_users_and_ads_are_replaced_day_by_day(world: World):
    seen = [
        drifted(world, days).draw(np.random.default_rng(0), np.full(50_000, FIRST_TIMESTAMP)) for days in (0, 1, 11)
    ]
    for name, places in (("user", NUM_USERS), ("ad", NUM_ADS)):
        before, after, much_later = (row[name] for row in seen)
        assert np.isin(after, np.arange(places)).mean() == pytest.approx(0.9, abs=0.05)
        assert np.array_equal(after[after < places], before[after < places])
        assert (much_later >= places).all()
        assert len(np.unique(much_later)) == len(np.unique(before))


def test_same_seed_same_bytes(tmp_path: Path):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / folder).mkdir()
        for day, number, columns in generate_chunks(LogSpec(rows=600, days=2, seed=seed, rows_per_file=200)):
            write_chunk(tmp_path / folder / file_name(day, number), columns)
    names = [path.name for path in sorted((tmp_path / "a").iterdir())]
    assert names == [file_name(day, number) for day in (0, 1) for number in (0, 1)]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


def test_a_file_reads_back_as_it_was_made(logs, tmp_path: Path):
    columns = logs[1, 0]
    write_chunk(tmp_path / "log.csv.gz", columns)
    rows = list(read_rows(str(tmp_path / "log.csv.gz"), LogFormat()))
    assert len(rows) == len(columns["click"])
    for name in COLUMNS:
        for row, value in zip(rows, columns[name], strict=True):
            text = row[name]
            same = text == value if value is None or isinstance(value, str) else float(text) == value
            assert same, (name, text, value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": 0}, "rows must be 1 or more"),
        ({"rows": 5, "days": 6}, "5 rows cannot cover 6 days"),
        ({"rows": 5, "days": 5, "click_rate": 1.0}, "click_rate must be between 0 and 1"),
        ({"rows": 5, "days": 5, "drift": 1.5}, "drift must be from 0 to 1"),
    ],
)
def test_impossible_wishes_are_refused(values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        LogSpec(**values)
