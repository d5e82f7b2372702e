"""Kinds of features: their columns, and that nobody but their own table tells them apart."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.kinds import batch_columns, ids_of, present_ids, present_numbers, row_columns
from features.learnt import Learnt, LearntError
from features.schema import (
    DenseFeature,
    FeatureSchema,
    HashEncoding,
    QuantilesEncoding,
    SparseFeature,
    Timestamp,
    VocabularyEncoding,
)

ROOT = Path(__file__).parents[2]
BRANCHES_LEFT = 0
"""Branches on a feature's kind outside the kinds' own table and its twin for Spark; the number may only fall."""
OWN = {"features/kinds.py", "features/schema.py", "features/values.py", "features/encode_rows.py"}
OWN |= {"features/odd_values.py"}
"""Where a kind is declared, read from raw values, and read by Spark."""
KINDS = {"SparseFeature", "DenseFeature", "SequencePart", "SingleValued", "Bag", "EventIds", "Dense"}


def branches(source: str) -> list[int]:
    """Lines that look at what tells kinds apart: ``is_multi_valued``, a feature's separator, a class or a kind."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(attr="is_multi_valued"):
                found.append(node.lineno)
            case ast.Attribute(value=ast.Name(id="feature" | "f"), attr="separator"):
                found.append(node.lineno)
            case ast.Call(func=ast.Name(id="isinstance"), args=[_, classes]):
                names = {name.id for name in ast.walk(classes) if isinstance(name, ast.Name)}
                found += [node.lineno] * bool(names & KINDS)
            case ast.Compare(
                left=ast.Attribute(attr="kind"),
                comparators=[ast.Name(id="SINGLE_KIND" | "BAG_KIND" | "SEQUENCE_KIND" | "DENSE_KIND")],
            ):
                found.append(node.lineno)
            case _:
                pass
    return found


@pytest.mark.parametrize(
    "source",
    [
        "x = f.is_multi_valued",
        "if feature.separator: pass",
        "isinstance(feature, DenseFeature | int)",
        "isinstance(feature, (int, SparseFeature))",
        "if feature.kind is BAG_KIND: pass",
    ],
)
def test_a_branch_is_found(source: str) -> None:
    assert branches(source) == [1]


def test_no_branch_on_a_kind_outside_the_kinds_own_table() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for folder in ("features", "pipeline", "training", "jobs")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in OWN
        for line in branches(path.read_text(encoding="utf-8"))
    ]
    assert len(found) == BRANCHES_LEFT, found


BAG = SparseFeature("genres", HashEncoding(20), separator="|", max_length=3)
ONE = SparseFeature("user", HashEncoding(50))
NUMBER = DenseFeature("price")
SCHEMA = FeatureSchema("click", (ONE, BAG), (NUMBER,), group_id="user", timestamp=Timestamp("time"))


def test_columns_of_a_schema() -> None:
    found = {c.name: (c.dtype, c.shape, c.bound, c.path) for c in SCHEMA.columns}
    assert found == {
        "user": (np.int32, (), "table", "user"),
        "genres": (np.int32, (3,), "table", "genres.list.element"),
        "genres__length": (np.int32, (), 4, "genres__length"),
        "price": (np.float32, (), None, "price"),
    }
    assert list(row_columns(SCHEMA)) == ["label", "group_id", "timestamp"]
    assert list(batch_columns(SCHEMA)) == ["label", "user", "genres", "genres__length", "price", "group_id"]


def test_columns_and_ids_are_each_others_way_back() -> None:
    for feature, ids, lengths in (
        (BAG, np.array([4, 9, 2], np.int32), np.array([2, 0, 1], np.int32)),
        (ONE, np.array([7, 0, 3], np.int32), np.ones(3, np.int32)),
    ):
        columns = feature.kind.to_columns(ids, lengths, feature)
        assert {name: c.shape[1:] for name, c in columns.items()} == {
            c.name: c.shape for c in feature.kind.columns(feature)
        }
        for found, expected in zip(ids_of(columns, feature), (ids, lengths), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_what_missing_means() -> None:
    bag = BAG.kind.to_columns(np.array([4, 0, 2], np.int32), np.array([2, 0, 1], np.int32), BAG)
    for (values, num_missing), expected in (
        (present_ids(bag, BAG), ([4, 2], 2)),  # an id 0 and a row without ids
        (present_ids({"user": np.array([0, 5, 0])}, ONE), ([5], 2)),
        (present_numbers({"price": np.array([0.0, np.nan])}, NUMBER), ([0.0], 1)),
    ):
        assert (values.tolist(), num_missing) == expected


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"encoding": HashEncoding(51)}, "'user' and 'item' share the table 'user', but not their encoding: give both"),
        ({"encoding": HashEncoding(50, salt="s")}, "but not their encoding"),
        ({"embedding_dim": 4}, "but not their embedding_dim"),
        ({"table": "a.b"}, "must be letters, digits and underscores"),
    ],
)
def test_features_that_cannot_share_a_table(other: dict, message: str) -> None:
    changes = {"encoding": HashEncoding(50), "table": "user", **other}
    with pytest.raises(ValueError, match=message):
        FeatureSchema("click", (ONE, SparseFeature("item", **changes)))


def test_quantiles_and_poolings_are_not_shared() -> None:
    with pytest.raises(ValueError, match="quantiles are learnt for each feature alone: use a boundaries encoding"):
        FeatureSchema("click", tuple(SparseFeature(n, QuantilesEncoding(5), table="t") for n in "ab"))
    bags = tuple(replace(BAG, name=p, pooling=p, table="t") for p in ("mean", "sum"))
    with pytest.raises(ValueError, match=r"\(mean\) and 'sum' \(sum\) share the table 't', but not their pooling"):
        FeatureSchema("click", bags)
    with pytest.raises(LearntError, match="'a' and 'b' share the table 't' but not their learnt vocabulary"):
        two = FeatureSchema("click", tuple(SparseFeature(n, VocabularyEncoding(), table="t") for n in "ab"))
        Learnt({"a": ["x"], "b": ["y"]}).check(two)
