"""Features that share a table and tables of a width of their own: against a naive oracle, on two ranks, exported."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

import tests.stand_ins.tiny_dataset as tiny_dataset
from features.schema import FeatureSchema, HashEncoding, SparseFeature
from tests.oracles.row_encoder import RowEncoder
from tests.ranks import on_two_ranks
from tests.training.fit.test_run import assert_same_weights, final_model, losses, make_config
from tests.training.fit.test_warm_start import finish
from training.config import DenseOptimizer, FusedOptimizer, ShardingConfig, TablePrecision
from training.data.batch import to_batch
from training.data.opened_dataset import Dataset
from training.fit.regularization import EmbeddingL2
from training.fit.run import Run, build_model, train_rank
from training.model.embedding import FieldEmbedding, ModelError
from training.sharding import checkpoint
from training.ship.export import export
from training.ship.predict import Predictor
from training.ship.quantization import quantize

LANES: dict[str, dict[str, Any]] = {
    "row_wise": {"sharding": ShardingConfig("row_wise")},
    "by feature": {"sharding": ShardingConfig("table_wise", {"genres": "row_wise"})},
    "replicated": {"sharding": ShardingConfig("data_parallel")},
    "dense": {"optimizer": DenseOptimizer(learning_rate=0.01, embedding_l2=0.01)},
}


def shared_schema() -> FeatureSchema:
    """``genres`` reads the table of ``user``; ``device`` is narrower than the model, ``age`` wider."""
    schema = tiny_dataset.tiny_schema()
    user, genres, device, age = schema.sparse
    genres = dataclasses.replace(genres, encoding=user.encoding, table="user")
    device, age = (dataclasses.replace(f, embedding_dim=d) for f, d in ((device, 3), (age, 12)))
    return dataclasses.replace(schema, sparse=(user, genres, device, age))


@pytest.fixture
def dataset(tmp_path: Path) -> tiny_dataset.TinyDataset:
    return tiny_dataset.write_tiny_dataset(tmp_path / "dataset", number_rows=True, schema=shared_schema())


def test_look_ups_are_the_naive_ones(dataset: tiny_dataset.TinyDataset) -> None:
    schema, columns = dataset.schema, dataset.columns["valid"]
    embedding = FieldEmbedding(schema, dataset.num_embeddings, {"hard": 8, "first_order_hard": 1}, init_std=1.0)
    assert [(t.name, t.features, t.width) for t in embedding.tables] == [
        ("user__hard", ("user", "genres"), 8),
        ("device__hard", ("device",), 3),
        ("age__hard", ("age",), 12),
        ("user__first_order_hard", ("user", "genres"), 1),
        ("device__first_order_hard", ("device",), 1),
        ("age__first_order_hard", ("age",), 1),
    ]
    assert {name: tuple(p.shape) for name, p in embedding.projections.items()} == {
        "device__hard": (3, 8),
        "age__hard": (12, 8),
    }
    batch = to_batch(columns, schema, 48)
    found = embedding(batch.sparse_features, batch.dense_features, batch.num_rows)[0]["hard"]
    weights = {name: part.weight for name, part in embedding.bags.embedding_bags.items()}
    for row in range(batch.num_rows):
        bag = columns["genres"][row, : columns["genres__length"][row]]
        expected = [
            weights["user__hard"][columns["user"][row]],
            weights["user__hard"][bag.tolist()].sum(0) / max(len(bag), 1),
            weights["device__hard"][columns["device"][row]] @ embedding.projections["device__hard"],
            weights["age__hard"][columns["age"][row]] @ embedding.projections["age__hard"],
        ]
        torch.testing.assert_close(found[row, :4], torch.stack(expected))


def test_projected_vectors_are_as_large_as_others() -> None:
    schema = FeatureSchema("y", tuple(SparseFeature(f"s{d}", HashEncoding(5000), embedding_dim=d) for d in (4, 16, 64)))
    embedding = FieldEmbedding(
        schema, {f.name: 5000 for f in schema.sparse}, {"hard": 16}, embedding_dim=16, init_std=0.1
    )
    ids = np.arange(1, 5000, dtype=np.int32)
    batch = to_batch({name: ids for name in schema.sparse_names}, schema)
    deviations = embedding(batch.sparse_features, batch.dense_features, batch.num_rows)[0]["hard"].std(dim=(0, 2))
    assert deviations.tolist() == pytest.approx([0.1] * 3, rel=0.35)


def test_a_shared_hash_gives_a_value_one_id(dataset: tiny_dataset.TinyDataset) -> None:
    encoder = RowEncoder(dataset.schema, dataset.learnt)
    found = encoder.encode([{"user": "x", "genres": "x|z", "device": "", "age": 1, "row": 0, "price": 0}])
    assert found["user"][0] == found["genres"][0, 0] != found["genres"][0, 1]


def fit_lanes(folder: Path, dataset: Path) -> None:
    for lane, changes in LANES.items():
        train_rank(Run(folder / lane), make_config(dataset, max_epochs=1, **changes))


def test_two_ranks_train_as_one(dataset: tiny_dataset.TinyDataset, tmp_path: Path, one_rank: None) -> None:
    on_two_ranks(tmp_path, fit_lanes, tmp_path / "two", dataset.path)
    fit_lanes(tmp_path / "one", dataset.path)
    for lane, changes in LANES.items():
        config = make_config(dataset.path, max_epochs=1, **changes)
        alone, together = (Run(tmp_path / ranks / lane) for ranks in ("one", "two"))
        assert losses(together) == pytest.approx(losses(alone), rel=1e-6, abs=1e-6), lane
        assert_same_weights(together, alone, config, 1e-5)
        plan = {(entry["table"], entry["feature"]): entry["sharding"] for entry in together.read("plan.json")}
        if lane == "by feature":
            assert plan["user__hard", "user, genres"] == "row_wise" and plan["age__hard", "age"] == "table_wise"
        model = build_model(Dataset.open(dataset.path), config, torch.device("cpu"))
        found = checkpoint.best(together.checkpoints)
        checkpoint.restore_model(found, model)
        batch = to_batch(dataset.columns["valid"], dataset.schema)
        with torch.no_grad():
            expected = model.eval()(batch).fused
            assert float((quantize(model, "float16").eval()(batch).fused - expected).abs().max()) < 1e-2


def test_an_artifact_scores_as_the_trained_model(
    dataset: tiny_dataset.TinyDataset, tmp_path: Path, one_rank: None
) -> None:
    names = ("user", "genres", "device", "age", "row", "price")
    values = [
        ("u", "a|b", "mobile", "33", "0.1", "2.5"),
        ("v", "", "tablet", "", "0.2", ""),
        ("", "c|a|u|d", "watch", "60", "", "7"),
        ("a", "a", "", "18", "0.4", "-1"),
    ]
    rows: list[dict[str, str | None]] = [
        dict(zip(names, (value or None for value in row), strict=True)) for row in values
    ]
    log = tmp_path / "made.csv"
    log.write_text("\n".join(",".join(row) for row in (names, *values)) + "\n")
    run = finish(tmp_path / "run", make_config(dataset.path, **LANES["by feature"]))
    trained = final_model(run, run.config()).eval()
    assert trained.embedding.projections and any(len(table.features) > 1 for table in trained.tables)
    batch = to_batch(RowEncoder(dataset.schema, dataset.learnt).encode(rows), dataset.schema)
    for tables in get_args(TablePrecision):
        export(run, tmp_path / tables, str(log), tables)
        scores = Predictor.load(tmp_path / tables).predict(rows)
        with torch.no_grad():
            expected = torch.sigmoid(quantize(trained, tables)(batch).fused.double()).numpy()
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-7)
        assert len(set(scores)) == len(rows)


def test_a_shared_table_is_counted_once(dataset: tiny_dataset.TinyDataset) -> None:
    config = make_config(dataset.path)
    model = build_model(Dataset.open(dataset.path), config, torch.device("meta"))
    rows = {table.name: table.num_embeddings * table.width for table in model.tables if table.stream == "hard"}
    assert rows == {"user__hard": 50 * 8, "device__hard": 4 * 3, "age__hard": 5 * 12}
    tables = sum(table.num_embeddings * table.width for table in model.tables)
    others = sum(p.numel() for n, p in model.named_parameters() if "embedding_bags" not in n)
    assert model.num_parameters == tables + others


def test_what_cannot_be_had(dataset: tiny_dataset.TinyDataset) -> None:
    config = make_config(dataset.path, optimizer=FusedOptimizer(embedding_l2=0.1))
    model = build_model(Dataset.open(dataset.path), config, torch.device("cpu"))
    with pytest.raises(ModelError, match=r"embedding_l2: .*leave out features' embedding_dim"):
        EmbeddingL2(model.embedding, [], 0.1)
    with pytest.raises(ModelError, match="share the table 'user', but it would have"):
        FieldEmbedding(dataset.schema, dataset.num_embeddings | {"genres": 7}, {"hard": 8}, init_std=1.0)
