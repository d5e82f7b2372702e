"""The one hash: golden vectors, and the xxhash package as the oracle of what NumPy computes."""

import random

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from features.hashing import (
    MISSING_ID,
    hash_array,
    hash_slices,
    hash_text,
    hash_to_id,
    hashed_ids,
    mixed,
    salt_seed,
)

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


@pytest.mark.parametrize("repeats", [1, 2000])
def test_golden_in_batches(repeats):
    hashes = hash_array(pa.array(list(GOLDEN) * repeats), 42)
    assert hashes.view(np.int64).tolist() == list(GOLDEN.values()) * repeats


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


def oracle(texts, seeds):
    return [xxhash.xxh64_intdigest((t or "").encode(), seed) for t, seed in zip(texts, seeds, strict=True)]


LENGTHS = {
    "one": lambda rng: 8,
    "one long": lambda rng: 100,
    "few": lambda rng: rng.choice([0, 8, 12]),
    "short": lambda rng: rng.randrange(40),
    "any": lambda rng: rng.choice([rng.randrange(5), rng.randrange(70), rng.randrange(5000)]),
}


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("rows", [0, 1, 3, 127, 300, 3000, 40_000])
def test_batches_are_hashed_as_xxhash_does(rows, lengths):
    rng = random.Random(f"{rows} {lengths}")
    if lengths == "any":
        rows = min(rows, 3000)
    texts = [
        None if rng.random() < 0.1 else "".join(rng.choices("abé日", k=LENGTHS[lengths](rng))) for _ in range(rows)
    ]
    seeds = [rng.getrandbits(64) for _ in range(rows)]
    array = pa.array(texts, pa.string())
    assert hash_array(array, np.array(seeds, np.uint64)).tolist() == oracle(texts, seeds)
    for form in (array.cast(pa.large_string()), array.cast(pa.binary())):
        assert hash_array(form, 2**64 - 1).tolist() == oracle(texts, [2**64 - 1] * rows)
    part = array[rows // 3 :]
    assert hash_array(part, 5).tolist() == oracle(texts[rows // 3 :], [5] * len(part))


def test_slices_may_overlap_and_leave_gaps():
    rng = np.random.default_rng(3)
    data = rng.integers(0, 256, 5000, dtype=np.uint8)
    starts = rng.integers(0, 4900, 4000)
    lengths = rng.integers(0, 100, 4000)
    expected = [
        xxhash.xxh64_intdigest(data[at : at + size].tobytes(), 9)
        for at, size in zip(starts.tolist(), lengths.tolist(), strict=True)
    ]
    assert hash_slices(data, starts, lengths, 9).tolist() == expected


def test_ids_of_hashes():
    texts = [str(i) for i in range(1000)]
    hashes = hash_array(pa.array(texts), salt_seed("ä!"))
    for num_buckets in (2, 8, 1000, 2**31 - 1):
        expected = [hash_to_id([text], num_buckets, "ä!") for text in texts]
        found = hashed_ids(hashes, num_buckets)
        assert found.tolist() == expected and found.dtype == np.int32
    buckets = np.arange(2, 1002)
    expected = [hash_to_id([t], int(b), "ä!") for t, b in zip(texts, buckets, strict=True)]
    assert hashed_ids(hashes, buckets).tolist() == expected


def test_crosses_chain():
    first, second = pa.array(["1", "", "x"] * 200), pa.array(["2", "y", None] * 200)
    chained = hash_array(second, hash_array(first, salt_seed("s")))
    expected = [hash_to_id(["1", "2"], 99, "s"), hash_to_id(["", "y"], 99, "s"), hash_to_id(["x", ""], 99, "s")]
    assert hashed_ids(chained, 99).tolist() == expected * 200


def test_numbers_are_mixed_as_eight_bytes():
    numbers = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    expected = [xxhash.xxh64_intdigest(int(n).to_bytes(8, "little"), 7) for n in numbers]
    assert mixed(numbers, 7).tolist() == expected
    assert mixed(numbers, np.full(4, 7, np.uint64)).tolist() == expected
