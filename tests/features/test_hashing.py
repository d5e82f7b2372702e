"""Golden vectors of the one hash: the same numbers are checked in Spark by tests/pipeline/build/test_twins.py."""

import pytest

from features.hashing import MISSING_ID, hash_text, hash_to_id

GOLDEN = {
    "": -7444071767201028348,
    "a": -8582455328737087284,
    "ünïcödé 日本語": 8039945568871258816,
    "x" * 1000: -8448076897081045321,
    "0123456789abcdef0123456789abcdef": 7380026953736478117,
}


@pytest.mark.parametrize("text", GOLDEN)
def test_golden(text):
    assert hash_text([text]) == GOLDEN[text]


def test_parts_chain_and_borders_count():
    assert hash_text(["a", "bc"]) == hash_text(["bc"], seed=hash_text(["a"]))
    assert hash_text(["a", "bc"]) != hash_text(["ab", "c"])
    assert hash_text(["a", "b"]) != hash_text(["b", "a"])


def test_ids_leave_zero_to_missing_values_and_reach_every_other_row():
    ids = {hash_to_id([str(i)], 8, "salt") for i in range(500)}
    assert ids == set(range(1, 8)) and MISSING_ID == 0
    assert hash_to_id(["x"], 2, "salt") == 1


def test_salts_make_features_collide_differently():
    ids = [[hash_to_id([str(i)], 1000, salt) for i in range(300)] for salt in ("s", "t")]
    assert sum(a == b for a, b in zip(*ids, strict=True)) < 10
