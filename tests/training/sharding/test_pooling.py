"""Means and sums of several ids: in every lane and sharding those of a naive look-up, and so are their gradients."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from features.rows import Columns
from features.schema import FeatureSchema, HashEncoding, SparseFeature
from tests.ranks import on_two_ranks
from tests.stand_ins.tiny_dataset import tiny_columns, tiny_schema, write_tiny_dataset
from tests.training.fit.test_run import assert_same_weights, final_model, losses, make_config
from training.config import DenseOptimizer, FusedOptimizer, ShardingConfig, ShardingKind, TrainingConfig
from training.data.batch import to_batch
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.fit.run import Run, train_rank
from training.fit.scoring import score
from training.judge.metrics import evaluate
from training.model.ctr_model import CTRModel
from training.model.embedding import table_of
from training.sharding.parallelize import parallelize
from training.sharding.tables import embedding_of, trained_parameters

MIXED: dict[str, ShardingKind] = {
    "mean_by_rows": "row_wise",
    "sum_by_rows": "row_wise",
    "mean_by_columns": "column_wise",
    "mean_whole": "table_wise",
    "mean_replicated": "data_parallel",
    "sum_replicated": "data_parallel",
    "genres": "data_parallel",
}
"""Multi-valued feature, named by its pooling -> sharding of its table; ``genres`` averages rows of ``user``'s table."""
SGD = FusedOptimizer("sgd", embedding_learning_rate=0.5)
LANES: dict[str, dict[str, Any]] = {
    "mixed": {"sharding": ShardingConfig("row_wise", MIXED), "optimizer": SGD},
    "mean by rows alone": {
        "sharding": ShardingConfig("table_wise", {"mean_by_rows": "row_wise"}),
        "optimizer": SGD,
    },
    "row_wise": {"sharding": ShardingConfig("row_wise"), "optimizer": SGD},
    "replicated": {"sharding": ShardingConfig("data_parallel"), "optimizer": SGD},
    "dense": {"optimizer": DenseOptimizer(learning_rate=0.01)},
}
CPU = torch.device("cpu")
NUM_ROWS = 38


def make_schema(*, dense: bool) -> FeatureSchema:
    tiny = tiny_schema()
    user, genres, *others = tiny.sparse
    genres = dataclasses.replace(genres, encoding=user.encoding, table="user")
    bags = [
        SparseFeature(
            name,
            HashEncoding(num_buckets=20),
            separator="|",
            max_length=3,
            pooling="mean" if name.startswith("mean") else "sum",
        )
        for name in MIXED
        if name != "genres"
    ]
    return dataclasses.replace(tiny, sparse=(user, genres, *bags, *others), dense=tiny.dense if dense else ())


def naive_streams(model: CTRModel, weights: dict[str, Tensor], columns: Columns) -> dict[str, Tensor]:
    """Make (B, F, D) vectors of both streams, row by row, feature by feature and id by id."""
    streams = {}
    for stream in ("easy", "hard"):
        tables = {name: t for t in model.tables if t.stream == stream for name in t.features}
        rows = []
        for row in range(NUM_ROWS):
            fields = []
            for name in model.embedding.features[stream]:
                bag = columns[name][row : row + 1].reshape(-1)
                ids = bag[: columns[f"{name}__length"][row]] if f"{name}__length" in columns else bag
                total = weights[tables[name].name].new_zeros(tables[name].width)
                for i in ids.tolist():
                    total = total + weights[tables[name].name][i]
                is_mean = name == "genres" or name.startswith("mean")
                fields.append(total / max(len(ids), 1) if is_mean else total)
            rows.append(torch.stack(fields))
        streams[stream] = torch.stack(rows)
    return streams


def check_lane(lane: str) -> None:
    """Compare a look-up and its update on this rank's part of some rows with the naive ones of all rows."""
    schema, config = make_schema(dense=False), make_config(Path("unused"), **LANES[lane])
    columns = tiny_columns(schema, NUM_ROWS, np.random.default_rng(1))
    assert {0, 1, 3} <= set(columns["mean_by_rows__length"].tolist())
    sizes = {"user": 50, "genres": 50, "device": 4, "age": 5}
    num_embeddings = {name: sizes.get(name, 20) for name in schema.sparse_names}
    wide = dataclasses.replace(config.model, embedding_init_std=1.0)
    plain, sharded = (CTRModel(schema, num_embeddings, wide, device=device) for device in ("cpu", "meta"))
    weights = {table.name: plain.get_parameter(f"embedding.{table.tensor_name()}") for table in plain.tables}
    expected = naive_streams(plain, weights, columns)
    generator = torch.Generator().manual_seed(2)
    factors = {stream: torch.randn(vectors.shape, generator=generator) for stream, vectors in expected.items()}
    add_up(expected, factors).backward()

    own = slice(dist.get_rank(), None, dist.get_world_size())
    batch = to_batch({name: values[own] for name, values in columns.items()}, schema, NUM_ROWS + 3)
    parallel = parallelize(sharded, config, CPU)
    found, _ = embedding_of(parallel.model)(batch.sparse_features, batch.dense_features, batch.num_rows)
    for stream, vectors in expected.items():
        torch.testing.assert_close(found[stream], vectors[own], rtol=0, atol=1e-5)
    parallel.optimizer.zero_grad()
    # TorchRec divides gradients by the number of ranks.
    (add_up(found, {stream: values[own] for stream, values in factors.items()}) * dist.get_world_size()).backward()
    if isinstance(config.optimizer, DenseOptimizer):
        gradients = {table_of(name): p.grad for name, p in trained_parameters(parallel.model).items()}
        for name, weight in weights.items():
            torch.testing.assert_close(gradients[name], weight.grad, rtol=0, atol=1e-5)
        return
    parallel.optimizer.step()
    for name, value in parallel.model.state_dict().items():
        if (table := table_of(name)) is not None:
            gradient = weights[table].grad
            assert gradient is not None
            check_shards(value, weights[table].detach() - config.optimizer.embedding_learning_rate * gradient)


def add_up(streams: dict[Any, Tensor], factors: dict[str, Tensor]) -> Tensor:
    return torch.stack([(streams[stream] * values).sum() for stream, values in factors.items()]).sum()


def check_shards(found: Tensor | ShardedTensor, expected: Tensor) -> None:
    """Compare this rank's shards of a table, or its copy of it, with the whole table."""
    if not isinstance(found, ShardedTensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        return
    for shard in found.local_shards():
        (row, column), (num_rows, width) = shard.metadata.shard_offsets, shard.tensor.shape
        part = expected[row : row + num_rows, column : column + width]
        torch.testing.assert_close(shard.tensor, part, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lane", LANES)
def test_look_ups_and_updates_are_the_naive_ones(tmp_path: Path, one_rank: None, lane: str) -> None:
    check_lane(lane)
    on_two_ranks(tmp_path, check_lane, lane)


TRAINED = ("mixed", "mean by rows alone", "dense")
"""Lanes of which whole runs are made."""


def make_lane(dataset: Path, lane: str) -> TrainingConfig:
    changes = LANES[lane]
    if lane != "dense":
        changes = changes | {"optimizer": FusedOptimizer(embedding_learning_rate=0.05)}
    if lane == "mixed":  # row-wise Adagrad's state is another one for a table that is cut by columns
        changes["sharding"] = ShardingConfig("row_wise", MIXED | {"mean_by_columns": "table_wise"})
    return make_config(dataset, max_epochs=1, **changes)


def fit_lanes(folder: Path, dataset: Path) -> None:
    for lane in TRAINED:
        train_rank(Run(folder / lane), make_lane(dataset, lane))


def test_what_is_evaluated_is_what_is_shipped(tmp_path: Path, one_rank: None) -> None:
    """Training judges sharded tables, evaluation and export unsharded ones: they are one model, on one rank and two."""
    dataset = write_tiny_dataset(tmp_path / "dataset", number_rows=True, schema=make_schema(dense=True)).path
    fit_lanes(tmp_path / "one", dataset)
    on_two_ranks(tmp_path, fit_lanes, tmp_path / "two", dataset)
    for lane in TRAINED:
        config, (alone, together) = make_lane(dataset, lane), (Run(tmp_path / n / lane) for n in ("one", "two"))
        for run in (alone, together):
            scores = score(final_model(run, config).eval(), Reader(Dataset.open(dataset), "valid", config), CPU)
            trained = run.read("metrics.json")["valid"]
            found = {name: evaluate(scores)[name] for name in ("auc", "logloss")}
            assert found == pytest.approx({name: trained[name] for name in found}, abs=1e-6), lane
        assert losses(together) == pytest.approx(losses(alone), rel=1e-6, abs=1e-6), lane
        assert_same_weights(together, alone, config, 1e-5)
