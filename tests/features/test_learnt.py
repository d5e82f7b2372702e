"""What was learnt: ids of plain and of extended vocabularies, the files and their damage, which state extends which."""

import random

import pytest

from features.learnt import Learnt, LearntError
from features.schema import FeatureSchema, SparseFeature, VocabularyEncoding
from tests.oracles.row_encoder import RowEncoder

SCHEMA = FeatureSchema(
    "click",
    sparse=(SparseFeature("user", VocabularyEncoding()), SparseFeature("tags", VocabularyEncoding(), separator="|")),
)
USER, TAGS = SCHEMA.sparse
PLAIN = Learnt({"user": ["a", "é"], "tags": []}, {"q": [1.0, 2.5]}, {"f": (2.0, 4.0)})
EXTENDED = Learnt(
    {"user": ["a", "é", "A", "b"], "tags": ["x"]}, PLAIN.boundaries, PLAIN.moments, {"user": 3, "tags": 1}
)
STATES = {"plain": PLAIN, "extended": EXTENDED}


def test_plain_ids():
    assert PLAIN.ids_of("user") == {"a": 1, "é": 2} and PLAIN.oov_id("user") == 3
    assert PLAIN.ids_of("tags") == {} and PLAIN.oov_id("tags") == 1


def test_extended_ids():
    assert EXTENDED.ids_of("user") == {"a": 1, "é": 2, "A": 4, "b": 5} and EXTENDED.oov_id("user") == 3
    assert EXTENDED.ids_of("tags") == {"x": 2} and EXTENDED.oov_id("tags") == 1
    assert [EXTENDED.num_embeddings(f) for f in SCHEMA.sparse] == [6, 3]
    encoder = RowEncoder(SCHEMA, EXTENDED)
    users = [encoder.ids(USER, {"user": user}) for user in ("a", "é", "A", "b", "z", None)]
    assert users == [(1,), (2,), (4,), (5,), (3,), (3,)]
    assert encoder.ids(TAGS, {"tags": "x||z|x"}) == (2, 1, 2)


def test_ids_of_days_in_a_row_are_those_of_a_naive_count():
    rng = random.Random(3)
    for _ in range(200):
        tokens, ids, oov, used = [], {}, None, 0
        for _ in range(rng.randrange(1, 5)):
            new = [f"t{len(tokens) + i}" for i in range(rng.randrange(4))]
            tokens += new
            for token in new:
                ids[token] = used = used + 1
            if oov is None:
                oov = used = used + 1
        learnt = Learnt({"user": tokens, "tags": []}, out_of_vocabulary={"user": oov})
        learnt.check(SCHEMA)
        assert learnt.ids_of("user") == ids and learnt.oov_id("user") == oov
        assert sorted([0, oov, *ids.values()]) == list(range(learnt.num_embeddings(USER)))


@pytest.mark.parametrize("name", STATES)
def test_round_trip(tmp_path, name):
    learnt = STATES[name]
    names = learnt.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert ("out_of_vocabulary.json" in names) == (name == "extended")
    loaded = Learnt.load(tmp_path, SCHEMA)
    assert loaded == learnt and loaded.fingerprint == learnt.fingerprint


def test_saving_over_an_extended_state_leaves_none_of_it(tmp_path):
    EXTENDED.save(tmp_path)
    PLAIN.save(tmp_path)
    assert Learnt.load(tmp_path, SCHEMA) == PLAIN


def test_fingerprints():
    # Of the datasets, runs and artifacts there were before vocabularies could be extended.
    assert PLAIN.fingerprint == "5d02eeedb6cdbaeb91527adbddae881c87f6398e4e5c86d4ebd23ae8f41a54f5"
    moved = Learnt(EXTENDED.vocabularies, PLAIN.boundaries, PLAIN.moments, {"user": 2, "tags": 1})
    unmoved = Learnt(EXTENDED.vocabularies, PLAIN.boundaries, PLAIN.moments)
    assert len({PLAIN.fingerprint, EXTENDED.fingerprint, moved.fingerprint, unmoved.fingerprint}) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing or damaged"),
        ("[]", "missing or damaged"),
        ('{"user": "3"}', "missing or damaged"),
        ('{"user": true}', "missing or damaged"),
        ('{"user": 3.0}', "missing or damaged"),
        ('{"user": null}', "missing or damaged"),
        ('{"user": 0}', "'user' has the out-of-vocabulary id 0, which is not one of 1 to 5: build"),
        ('{"user": 6}', "'user' has the out-of-vocabulary id 6, which is not one of 1 to 5: build"),
        ('{"city": 1}', "'city' has an out-of-vocabulary id but no vocabulary: build"),
        ('{"\\ud800": 1}', "has an out-of-vocabulary id but no vocabulary: build"),
    ],
)
def test_damaged_out_of_vocabulary_ids(tmp_path, text, message):
    EXTENDED.save(tmp_path)
    (tmp_path / "out_of_vocabulary.json").write_text(text)
    with pytest.raises(LearntError, match=message):
        Learnt.load(tmp_path, SCHEMA)


def test_a_state_extends_itself_and_earlier_ones():
    third = Learnt(
        {"user": [*EXTENDED.vocabularies["user"], "0"], "tags": ["x"]},
        PLAIN.boundaries,
        PLAIN.moments,
        EXTENDED.out_of_vocabulary,
    )
    states = [PLAIN, EXTENDED, third]
    for i, later in enumerate(states):
        for j, earlier in enumerate(states):
            assert later.extends(earlier) == (i >= j), (i, j)


def test_a_state_extends_no_other_one():
    def change(vocabularies=EXTENDED.vocabularies, boundaries=PLAIN.boundaries, moments=PLAIN.moments, moved=None):
        return Learnt(vocabularies, boundaries, moments, EXTENDED.out_of_vocabulary if moved is None else moved)

    assert change().extends(PLAIN)
    others = [
        change(boundaries={"q": [1.0, 2.0]}),
        change(moments={"f": (2.0, 4.5)}),
        change({"user": ["é", "a", "A", "b"], "tags": ["x"]}),
        change({"user": ["a"], "tags": ["x"]}, moved={"tags": 1}),
        change({"user": ["a", "é", "A", "b"]}, moved={"user": 3}),
        change(moved={"user": 3}),  # as if learnt anew: the id of the only tag was out-of-vocabulary before
        change(moved={"user": 2, "tags": 1}),
    ]
    for number, other in enumerate(others):
        assert not other.extends(PLAIN), number
