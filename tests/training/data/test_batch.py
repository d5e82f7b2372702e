"""to_batch against a loop over rows, and its refusals."""

import numpy as np
import pytest
import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

from features.rows import Columns, RowError
from features.schema import FeatureSchema, HashEncoding, SparseFeature
from tests.oracles.row_encoder import RowEncoder
from training.data.batch import Batch, to_batch


def naive_bags(columns: Columns, schema: FeatureSchema, row: int) -> dict[str, list[int]]:
    """Ids of one row, feature by feature."""
    bags = {}
    for f in schema.sparse:
        ids = columns[f.name][row]
        bags[f.name] = ids[: f.kind.lengths(columns, f)[row]].tolist() if f.separator else [int(ids)]
    return bags


def bags_of(batch: Batch, row: int) -> dict[str, list[int]]:
    return {key: jagged.to_dense()[row].tolist() for key, jagged in batch.sparse_features.to_dict().items()}


@pytest.mark.parametrize("batch_size", [None, 16, 23])
def test_rows_come_first_and_padding_is_empty(make_dataset, batch_size):
    dataset = make_dataset(train=((16,),))
    columns, schema = dataset.columns["train"], dataset.schema
    batch = to_batch(columns, schema, batch_size)
    size = batch_size or 16
    assert (batch.num_rows, batch.batch_size, batch.sparse_features.stride()) == (16, size, size)
    assert tuple(batch.sparse_features.keys()) == schema.sparse_names
    assert batch.sparse_features.values().dtype == torch.int64
    assert [bags_of(batch, i) for i in range(16)] == [naive_bags(columns, schema, i) for i in range(16)]
    assert {len(ids) for i in range(16, size) for ids in bags_of(batch, i).values()} <= {0}
    expected = np.stack([columns[n] for n in schema.dense_names], axis=1)
    np.testing.assert_array_equal(batch.dense_features[:16], expected)
    for tensor, name in ((batch.labels, "label"), (batch.weights, "weight"), (batch.group_ids, "group_id")):
        np.testing.assert_array_equal(tensor[:16], columns[name])
        assert not tensor[16:].any()
    assert not batch.dense_features[16:].any()
    assert batch.dense_features.dtype == batch.labels.dtype == batch.weights.dtype == torch.float32


def test_raw_rows_make_the_same_batch_as_columns(make_dataset):
    """RowEncoder's columns have no label, weight or group."""
    dataset = make_dataset()
    raw = [
        {"user": "u1", "genres": "a|b|a|z", "device": "tablet", "age": 30, "row": 4, "price": 1.5},
        {"user": None, "genres": "", "device": "?", "age": None, "row": 5, "price": None},
    ]
    encoder = RowEncoder(dataset.schema, dataset.learnt)
    batch = to_batch(encoder.encode(raw), dataset.schema, 3)
    for i, row in enumerate(raw):
        assert bags_of(batch, i) == {f.name: list(encoder.ids(f, row)) for f in dataset.schema.sparse}
    assert batch.dense_features.tolist() == [[4, 1.5], [5, 0], [0, 0]]
    assert batch.labels.tolist() == [0, 0, 0]
    assert batch.weights.tolist() == [1, 1, 0]
    assert batch.group_ids is None


def test_pooled_embeddings_equal_a_loop(make_dataset):
    """The KJT means to TorchRec what it should, padding and cached sums included."""
    dataset = make_dataset(train=((8,),))
    columns, schema = dataset.columns["train"], dataset.schema
    tables = [
        EmbeddingBagConfig(name=f"t_{n}", num_embeddings=dataset.num_embeddings[n], embedding_dim=4, feature_names=[n])
        for n in schema.sparse_names
    ]
    collection = EmbeddingBagCollection(tables=tables)
    pooled = collection(to_batch(columns, schema, 10).sparse_features).to_dict()
    for name in schema.sparse_names:
        weight = collection.embedding_bags[f"t_{name}"].weight
        expected = torch.zeros(10, 4)
        for row in range(8):
            for i in naive_bags(columns, schema, row)[name]:
                expected[row] += weight[i]
        torch.testing.assert_close(pooled[name], expected)


def test_to_keeps_everything(make_dataset):
    dataset = make_dataset(train=((4,),))
    batch = to_batch(dataset.columns["train"], dataset.schema, 6)
    moved = batch.to(torch.device("cpu"))
    assert moved.num_rows == 4
    torch.testing.assert_close(moved.sparse_features.lengths(), batch.sparse_features.lengths())
    torch.testing.assert_close(moved.group_ids, batch.group_ids)
    meta = batch.to(torch.device("meta"))
    tensors = (meta.dense_features, meta.labels, meta.weights, meta.group_ids, meta.sparse_features.values())
    assert all(tensor.is_meta for tensor in tensors)


def test_batch_does_not_share_memory_with_its_columns(make_dataset):
    """The reader reuses the columns' memory for the next batch."""
    dataset = make_dataset(train=((4,),))
    columns = {name: column.copy() for name, column in dataset.columns["train"].items()}
    batch = to_batch(columns, dataset.schema)
    for column in columns.values():
        column[:] = 0
    again = to_batch(dataset.columns["train"], dataset.schema)
    for one, other in (
        (batch.sparse_features.values(), again.sparse_features.values()),
        (batch.sparse_features.lengths(), again.sparse_features.lengths()),
        (batch.dense_features, again.dense_features),
        (batch.labels, again.labels),
        (batch.weights, again.weights),
        (batch.group_ids, again.group_ids),
    ):
        torch.testing.assert_close(one, other)


def test_no_rows_and_no_dense_features():
    schema = FeatureSchema(label="y", sparse=(SparseFeature("a", HashEncoding(5)),))
    batch = to_batch({"a": np.zeros(0, np.int32)}, schema, 2)
    assert batch.num_rows == 0
    assert batch.dense_features.shape == (2, 0)
    assert batch.weights.tolist() == [0, 0]
    assert batch.sparse_features.lengths().tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("device"), "'device' is missing"),
        (lambda c: c.pop("genres__length"), "'genres__length' is missing"),
        (lambda c: c.pop("price"), "'price' is missing"),
        (lambda c: c.update(price=c["price"][:-1]), "'price' has 15 rows"),
        (lambda c: c.update(genres=c["user"]), "'genres' must hold one list"),
        (lambda c: c["genres__length"].__setitem__(3, 4), "between 0 and 3"),
        (lambda c: c["genres__length"].__setitem__(3, -1), "between 0 and 3"),
    ],
)
def test_bad_columns_are_refused(make_dataset, change, message):
    dataset = make_dataset(train=((16,),))
    columns = dict(dataset.columns["train"])
    change(columns)
    with pytest.raises(RowError, match=message):
        to_batch(columns, dataset.schema)


def test_too_many_rows_are_refused(make_dataset):
    dataset = make_dataset(train=((16,),))
    with pytest.raises(RowError, match="16 rows do not fit in a batch of 15"):
        to_batch(dataset.columns["train"], dataset.schema, 15)
