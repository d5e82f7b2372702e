"""Dwell times: ids and weights keep the numbers of the specification, and what a history's rule knows of them."""

import math

import numpy as np
import pytest

from features.dwell import DWELL_BOUNDARIES, NUM_DWELL_IDS, cut_off_of, dwell_ids, dwell_seconds, weights_by_id
from features.history import DwellFilter, History, UserEvent, UserHistory
from features.schema import FeatureSchema, HashEncoding, SequenceFeature, SparseFeature

ITEM = SparseFeature("item", HashEncoding(9))


def weights_of(seconds: list[float], cut_off: int | None = None) -> np.ndarray:
    return np.array(weights_by_id(cut_off))[dwell_ids(np.array(seconds, np.float64))]


def test_weights_are_the_specs_to_two_percent() -> None:
    weights = weights_of([35, 200, 600, 300])
    assert weights / weights.sum() == pytest.approx([0.1707, 0.2526, 0.3048, 0.2719], rel=0.02)
    for seconds in (2, 3, 5, 10, 59, 1800, 90_000):
        assert weights_of([seconds])[0] == pytest.approx(math.log1p(seconds), rel=0.025)


def test_ids_are_buckets_of_which_the_first_is_no_dwell_time() -> None:
    seconds = [math.nan, 0, DWELL_BOUNDARIES[0], DWELL_BOUNDARIES[-1], 1e9]
    assert dwell_ids(np.array(seconds)).tolist() == [0, 1, 2, NUM_DWELL_IDS - 1, NUM_DWELL_IDS - 1]
    weights = weights_by_id()
    assert len(weights) == NUM_DWELL_IDS and weights[1] > 0 and np.all(np.diff(weights) > 0)
    middles = np.array([dwell_seconds(id_) for id_ in range(1, NUM_DWELL_IDS)])
    assert dwell_ids(middles).tolist() == list(range(1, NUM_DWELL_IDS))


def test_longer_dwell_times_than_the_cut_off_weigh_the_same() -> None:
    ids = dwell_ids(np.array([5.0] * 50 + [60.0] * 45 + [7000.0] * 5 + [math.nan] * 900))
    cut_off = cut_off_of(np.bincount(ids).tolist())
    assert cut_off == dwell_ids(np.array([60.0]))[0]
    five, sixty, long = weights_of([5, 60, 7000], cut_off)
    assert five < sixty == long
    assert cut_off_of((7,)) is None and cut_off_of(()) is None


def test_a_dwell_time_that_is_not_over_is_not_known() -> None:
    history = History("user", lag="10s", dwell=DwellFilter("dwell", 0))
    store = UserHistory(history)
    store.add(UserEvent(0, 0, "long", 100.0))
    store.add(UserEvent(0, 1, "short", 5.5))
    store.add(UserEvent(0, 2, "none"))
    known = {time: {e.value: e.dwell for e in store.at(time, 9)} for time in (9, 15, 16, 109, 110)}
    assert known[9] == {}
    assert known[15] == {"none": None, "short": None, "long": None}
    assert known[16] == known[109] == {"none": None, "short": 5.5, "long": None}
    assert known[110] == {"none": None, "short": 5.5, "long": 100.0}
    ages, dwell = np.array([15, 16, 109, 110, 999]), np.array([5.5, 5.5, 100, 100, math.nan])
    assert history.knows_dwell(ages, dwell).tolist() == [False, True, False, True, False]


def test_a_schema_says_what_weights_need() -> None:
    with pytest.raises(ValueError, match=r"history\.dwell = \{ column = \.\.\. \}"):
        SequenceFeature("clicks", ("item",), 3, history=History("user"), dwell_weights=True)
    with pytest.raises(ValueError, match="columns names dwell, which"):
        SequenceFeature("clicks", ("item",), 3, newest="last", columns={"dwell": "stayed"})
    renamed = SequenceFeature("clicks", ("item",), 3, newest="last", columns={"dwell": "stayed"}, dwell_weights=True)
    assert renamed.keys == ("clicks__item", "clicks__dwell")
    assert renamed.raw_lists == ("clicks__item", "stayed")
    with pytest.raises(ValueError, match="reads two things from one raw column: clicks__dwell"):
        SequenceFeature("clicks", ("item", "dwell"), 3, newest="last", dwell_weights=True)
    with pytest.raises(ValueError, match=r"names used twice.*clicks__dwell"):
        FeatureSchema(
            "y",
            (ITEM, SparseFeature("clicks__dwell", HashEncoding(3))),
            sequence=(SequenceFeature("clicks", ("item",), 3, newest="last", dwell_weights=True),),
        )


def test_fingerprints_are_as_before_without_weights_and_others_with_them() -> None:
    def fingerprint(**more: object) -> str:
        sequence = SequenceFeature("clicks", ("item",), 3, newest="last", **more)  # type: ignore[arg-type]
        return FeatureSchema("y", (ITEM,), sequence=(sequence,)).fingerprint

    plain = fingerprint()
    assert fingerprint(dwell_weights=False) == plain != fingerprint(dwell_weights=True)
    same = fingerprint(dwell_weights=True, columns={"dwell": "clicks__dwell"})
    assert same == fingerprint(dwell_weights=True) != fingerprint(dwell_weights=True, columns={"dwell": "other"})
