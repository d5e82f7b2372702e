"""TokenTable: a dictionary is the oracle."""

import random

import numpy as np
import pyarrow as pa
import pytest

from features import token_table
from features.hashing import hash_text
from features.token_table import TokenTable, hash_tokens

HASHES = np.array([0, *range(2, 51)], np.uint64)


def look_up(table, tokens):
    return table.lookup(hash_tokens(pa.array(tokens, pa.string()))).tolist()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 100, 70_000])
def test_a_dictionary_finds_the_same(size):
    rng = random.Random(size)
    ids = {f"{rng.getrandbits(40):x}": i for i, _ in enumerate(range(size), start=1)}
    table = TokenTable(ids, size + 1)
    tokens = [*rng.sample(list(ids), min(size, 40_000)), "", "é", *(f"{rng.getrandbits(40):x}" for _ in range(40_000))]
    rng.shuffle(tokens)
    assert look_up(table, tokens) == [ids.get(token, size + 1) for token in tokens]


def test_tokens_that_want_one_place(monkeypatch):
    """All hashes begin alike, and one of them is the mark of an empty place."""
    made = {f"t{i}": i for i in range(50)}
    monkeypatch.setattr(token_table, "hash_tokens", lambda tokens: HASHES[: len(tokens)])
    table = TokenTable({**made}, 99)
    assert table.lookup(HASHES).tolist() == list(range(50))
    assert table.lookup(np.array([90, 2**63], np.uint64)).tolist() == [99, 99]


def test_hashes_are_those_of_texts():
    assert hash_tokens(pa.array(["a", None])).view(np.int64).tolist() == [hash_text(["a"]), hash_text([""])]


def test_two_tokens_of_one_hash_are_refused(monkeypatch):
    monkeypatch.setattr(token_table, "hash_tokens", lambda tokens: np.full(len(tokens), 7, np.uint64))
    with pytest.raises(ValueError, match="one hash"):
        TokenTable({"a": 1, "b": 2}, 3)
