"""Look-ups against numpy, and tables whose start does not depend on how they are cut."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from features.schema import FeatureSchema
from training.data.batch import Batch
from training.model.embedding import FieldEmbedding, ModelError, StreamName, stable_seed

Rows = dict[str, int]
WIDTHS: dict[StreamName, int] = {"hard": 6, "easy": 3, "first_order_easy": 1}


def weight(embedding: FieldEmbedding, table: str) -> Tensor:
    return embedding.bags.embedding_bags[table].weight  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("pad_tables", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_streams_are_what_numpy_looks_up(
    pooling: str, pad_tables: bool, make_schema: Callable[..., FeatureSchema], make_batch: Callable[..., Batch]
) -> None:
    schema = make_schema("user genres item", bags="genres", dense="age price", pooling=pooling)
    rows: Rows = {"user": 11, "genres": 7, "item": 5}
    batch = make_batch(schema, rows, num_rows=9, batch_size=12)
    embedding = FieldEmbedding(schema, rows, WIDTHS, init_std=1.0, pad_tables=pad_tables)
    streams, _ = embedding(batch.sparse_features, batch.dense_features, batch.num_rows)
    assert {s: tuple(x.shape) for s, x in streams.items()} == {
        "easy": (9, 5, 3),
        "hard": (9, 5, 6),
        "shared": (9, 5, 0),
        "first_order_easy": (9, 5, 1),
        "first_order_hard": (9, 5, 0),
        "context_easy": (9, 5, 0),
        "context_hard": (9, 5, 0),
    }
    bags = {name: jagged.to_dense() for name, jagged in batch.sparse_features.to_dict().items()}
    for stream, width in WIDTHS.items():
        for i in range(9):
            fields = [
                _pool(weight(embedding, f"{name}__{stream}")[bags[name][i], :width], name == "genres", pooling)
                for name in schema.sparse_names
            ]
            dense = batch.dense_features[i, :, None] * embedding.dense_vectors[stream]
            torch.testing.assert_close(streams[stream][i], torch.cat([torch.stack(fields), dense]))


def _pool(vectors: Tensor, is_multi_valued: bool, pooling: str) -> Tensor:
    """np.mean of no vectors is a NaN; here an empty bag is zero."""
    if is_multi_valued and pooling == "mean" and len(vectors):
        return torch.from_numpy(np.mean(vectors.detach().numpy(), axis=0))
    return torch.from_numpy(np.sum(vectors.detach().numpy(), axis=0))


def test_tables_are_declared_once_each(make_schema: Callable[..., FeatureSchema]) -> None:
    schema = make_schema("user genres", bags="genres", pooling="mean")
    embedding = FieldEmbedding(schema, {"user": 11, "genres": 7}, WIDTHS, init_std=0.1, pad_tables=True)
    assert embedding.mean_pooled == {"genres"}
    assert [(t.name, t.feature, t.stream, t.num_embeddings, t.width, t.padded_width) for t in embedding.tables] == [
        ("user__easy", "user", "easy", 11, 3, 4),
        ("genres__easy", "genres", "easy", 7, 3, 4),
        ("user__hard", "user", "hard", 11, 6, 8),
        ("genres__hard", "genres", "hard", 7, 6, 8),
        ("user__first_order_easy", "user", "first_order_easy", 11, 1, 4),
        ("genres__first_order_easy", "genres", "first_order_easy", 7, 1, 4),
    ]
    assert {n: tuple(p.shape) for n, p in embedding.named_parameters()} == {
        f"bags.embedding_bags.{t.name}.weight": (t.num_embeddings, t.padded_width) for t in embedding.tables
    }


def test_tables_share_no_storage(make_schema: Callable[..., FeatureSchema]) -> None:
    embedding = FieldEmbedding(make_schema(), {"user": 11, "item": 7}, WIDTHS, init_std=0.1)
    storages = [p.untyped_storage().data_ptr() for p in embedding.parameters()]
    assert len(set(storages)) == len(storages) == 6


def test_a_features_number_of_rows_is_needed(make_schema: Callable[..., FeatureSchema]) -> None:
    with pytest.raises(ModelError, match="no rows for: item"):
        FieldEmbedding(make_schema(), {"user": 3}, WIDTHS, init_std=0.1)


def test_start_of_a_table(make_schema: Callable[..., FeatureSchema]) -> None:
    schema, rows = make_schema(), {"user": 70_000, "item": 50}
    plain = FieldEmbedding(schema, rows, WIDTHS, init_std=1e-4, seed=3)
    for table in plain.tables:
        values = weight(plain, table.name)
        assert (values[0] == 0).all() and (values[1:] != 0).all()
    user = weight(plain, "user__hard")[1:]
    assert user.mean().abs().item() < 1e-6 and user.std().item() == pytest.approx(1e-4, rel=0.01)
    again = FieldEmbedding(schema, rows, WIDTHS, init_std=1e-4, seed=3)
    padded = FieldEmbedding(schema, rows, WIDTHS, init_std=1e-4, seed=3, pad_tables=True)
    other = FieldEmbedding(schema, rows, WIDTHS, init_std=1e-4, seed=4)
    for table in padded.tables:
        start = weight(plain, table.name)
        assert torch.equal(weight(again, table.name), start)
        assert torch.equal(weight(padded, table.name)[:, : table.width], start)
        assert (weight(padded, table.name)[:, table.width :] == 0).all()
        assert not torch.equal(weight(other, table.name), start)
    assert not torch.equal(weight(plain, "item__hard")[:, :3], weight(plain, "item__easy"))


def test_shards_with_their_place_make_up_the_table(make_schema: Callable[..., FeatureSchema]) -> None:
    rows = {"user": 150_000, "item": 5}
    embedding = FieldEmbedding(make_schema(), rows, {"hard": 6}, init_std=1.0, pad_tables=True)
    table, whole = embedding.tables[0], weight(embedding, "user__hard")
    for first, last in ((0, 10), (10, 65_536), (65_000, 140_000), (140_000, 150_000), (150_000, 150_000)):
        shard = torch.full((last - first, 8), torch.nan)
        table.initialize(shard, row_offset=first)
        assert torch.equal(shard, whole[first:last])
    for first, last in ((0, 4), (4, 8), (7, 8)):
        shard = torch.full((150_000, last - first), torch.nan)
        table.initialize(shard, column_offset=first)
        assert torch.equal(shard, whole[:, first:last])


def test_making_tables_leaves_no_memory_on_the_meta_device(make_schema: Callable[..., FeatureSchema]) -> None:
    schema, rows = make_schema(dense="age"), {"user": 10**9, "item": 10**9}
    embedding = FieldEmbedding(schema, rows, WIDTHS, init_std=1e-4, device=torch.device("meta"))
    assert all(weight(embedding, table.name).is_meta for table in embedding.tables)
    assert not any(vectors.is_meta for vectors in embedding.dense_vectors.values())


def test_stable_seed_is_the_same_in_every_process() -> None:
    assert stable_seed(0, "a", "b") == 6351099487293288694
    assert stable_seed(0, "a", "b") != stable_seed(0, "ab") != stable_seed(1, "ab")
