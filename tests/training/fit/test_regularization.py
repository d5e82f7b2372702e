"""L2 of looked-up rows: the numbers of specs/din.md, naive oracles, real steps on sharded tables, two gloo ranks."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from features.ragged import Ragged
from features.schema import DenseFeature, FeatureSchema, HashEncoding, SequenceFeature, SparseFeature, Timestamp
from tests.ranks import on_two_ranks
from training.config import FMEncoder, FusedOptimizer, MLPEncoder, ModelConfig, ReaderConfig, ShardingConfig
from training.config import TrainingConfig as Config
from training.data.batch import Batch, to_batch
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.fit.loop import Training, make_step
from training.fit.regularization import EmbeddingL2
from training.fit.run import Run, build_model, train_rank
from training.model.embedding import FieldEmbedding
from training.sharding import checkpoint
from training.sharding.parallelize import parallelize

MODEL = ModelConfig(
    embedding_dim=8, embedding_init_std=0.5, easy=FMEncoder(), hard=MLPEncoder((8,), dropout=0.0, batch_norm=False)
)
"""With tables of width 4, 8 and 1 (padded to 4)."""
BATCH_SIZE = 16


def make_schema(pooling: Any = "mean") -> FeatureSchema:
    return FeatureSchema(
        label="click",
        sparse=(
            SparseFeature("user", HashEncoding(num_buckets=6)),
            SparseFeature("tags", HashEncoding(num_buckets=5), separator="|", max_length=3, pooling=pooling),
        ),
        dense=(DenseFeature("price"),),
    )


def make_batch(schema: FeatureSchema, users: list[int], tags: list[list[int]] | None = None, size: int = 0) -> Batch:
    tags = tags or [[] for _ in users]
    columns = {
        "user": np.array(users, np.int32),
        "tags": np.array([[*bag, *[0] * (3 - len(bag))] for bag in tags], np.int32).reshape(len(users), 3),
        "tags__length": np.array([len(bag) for bag in tags], np.int32),
        "price": np.full(len(users), 0.5, np.float32),
    }
    return to_batch(columns, schema, size or None)


def make_embedding(
    schema: FeatureSchema, widths: Mapping[Any, int], features: Mapping[Any, Any] = {}
) -> FieldEmbedding:
    sizes = {"user": 6, "tags": 5}
    return FieldEmbedding(schema, sizes, widths, features=features, init_std=1.0, seed=3, pad_tables=True)


def take_loss(embedding: FieldEmbedding, seen: list[Batch], batch: Batch, strength: float) -> float:
    """The term for one batch, after others; its gradients are left in the tables."""
    l2 = EmbeddingL2(embedding, seen, strength)
    for looked_up in (*seen, batch):
        embedding(looked_up.sparse_features, looked_up.dense_features, looked_up.num_rows)
        loss = l2.loss(looked_up)
    loss.backward()
    return float(loss.detach())


def test_keys_that_are_looked_up_in_no_table_change_nothing(one_rank) -> None:
    """Gaps that no encoder reads, and dwell times, are in the batch all the same."""
    losses = []
    for gaps, weighted in (((), False), ((60,), False), ((60, 900), True)):
        clicks = SequenceFeature("clicks", ("user",), 5, gaps=gaps, newest="first", dwell_weights=weighted)
        schema = replace(make_schema(), sequence=(clicks,), timestamp=Timestamp("t"))
        lengths = np.array([2, 0, 3])
        columns = {
            "user": np.array([1, 2, 3], np.int32),
            "tags": np.zeros((3, 3), np.int32),
            "tags__length": np.zeros(3, np.int32),
            "price": np.ones(3, np.float32),
            "clicks__user": Ragged.of(np.array([4, 1, 1, 5, 2], np.int32), lengths),
            "clicks__gap": Ragged.of(np.array([1, 2, 2, 1, 2], np.int32), lengths),
            "clicks__dwell": Ragged.of(np.array([0, 255, 200, 7, 1], np.int32), lengths),
        }
        batch = to_batch(columns, schema, 4)
        embedding = FieldEmbedding(schema, {"user": 6, "tags": 5}, {"easy": 4, "hard": 8}, init_std=1.0, seed=3)
        losses.append(take_loss(embedding, [batch], batch, strength=0.7))
    assert losses[0] == losses[1] == losses[2] > 0


@pytest.mark.parametrize("occurrences", [1, 3])
def test_constants_of_the_spec(one_rank, occurrences: int) -> None:
    schema = make_schema()
    embedding = make_embedding(schema, {"hard": 2})
    table = embedding.get_parameter("bags.embedding_bags.user__hard.weight")
    with torch.no_grad():
        table.fill_(7)
        table[2] = torch.tensor([1.0, 2.0, 0.0, 0.0])
    seen = [make_batch(schema, [2, 4, 2]), make_batch(schema, [2, 2, 5])]  # n_2 = 4
    loss = take_loss(embedding, seen, make_batch(schema, [2] * occurrences, size=5), 0.01)
    assert loss == pytest.approx(0.00625)
    assert table.grad is not None
    torch.testing.assert_close(table.grad[2], torch.tensor([0.0025, 0.005, 0, 0]))
    assert not table.grad[[0, 1, 3, 4, 5]].any()


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_oracle_over_streams_bags_and_repeated_ids(one_rank, pooling: str) -> None:
    schema = make_schema(pooling)
    widths = {"easy": 3, "hard": 4, "first_order_hard": 1, "context_easy": 4}
    embedding = make_embedding(schema, widths, {"context_easy": ("user",)})
    users, tags = [1, 4, 4, 1, 4, 5], [[1], [2, 3], [], [3, 3, 4], [4], [1, 2, 3]]
    others = make_batch(schema, [1, 2, 5], [[1, 4], [4], [2, 4]])
    batch = make_batch(schema, users, tags, size=8)
    loss = take_loss(embedding, [batch, others, others], batch, 0.6)

    in_batch = {"user": Counter(users), "tags": Counter(i for bag in tags for i in bag)}
    in_split = {"user": in_batch["user"] + Counter([1, 2, 5] * 2)}
    in_split["tags"] = in_batch["tags"] + Counter([1, 4, 4, 2, 4] * 2)
    expected = 0.0
    for declared in embedding.tables:
        table = embedding.get_parameter(f"bags.embedding_bags.{declared.name}.weight").detach()
        if declared.feature == "user":
            expected += sum(float(table[i] @ table[i]) / in_split["user"][i] for i in set(users))
            continue
        for bag in filter(None, tags):
            mean = table[bag].mean(dim=0)
            share = sum(1 / (in_split["tags"][i] * in_batch["tags"][i]) for i in bag)
            expected += float(mean @ mean) * share
    assert loss == pytest.approx(0.3 * expected, rel=1e-6)
    for vectors in embedding.dense_vectors.values():
        assert vectors.grad is None or not vectors.grad.any()


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_bags_of_one_id_or_of_equal_rows_are_exact(one_rank, pooling: str) -> None:
    schema = make_schema(pooling)
    embedding = make_embedding(schema, {"hard": 4})
    table = embedding.get_parameter("bags.embedding_bags.tags__hard.weight")
    with torch.no_grad():
        table[3] = table[2]
    batch = make_batch(schema, [0, 0, 0], [[2, 3], [1], [1]])
    loss = take_loss(embedding, [batch, batch], batch, 1.0)
    assert loss == pytest.approx(float((table[1] @ table[1]) / 4 + 2 * (table[2] @ table[2]) / 2) / 2)


def make_config(dataset: Path, optimizer: FusedOptimizer, sharding: ShardingConfig, **changes: Any) -> Config:
    return Config(
        dataset=str(dataset),
        model=MODEL,
        optimizer=optimizer,
        sharding=sharding,
        reader=ReaderConfig(num_streams=4, shuffle_row_groups=2),
        global_batch_size=BATCH_SIZE,
        evaluation_batch_size=BATCH_SIZE,
        max_epochs=1,
        clip_gradient_norm=None,
        **changes,
    )


def step_once(dataset: Path, config: Config) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Batch, float]:
    """Tables before and after one step, the batch, and the loss that is logged."""
    opened, device = Dataset.open(dataset), torch.device("cpu")
    parallel = parallelize(build_model(opened, config, torch.device("meta")), config, device)
    training = Training(parallel, config, Reader(opened, "train", config), None, device, dataset / "none")
    step = make_step(training)
    before = {name: table.clone() for name, table in whole_tables(training).items()}
    batch = next(iter(training.train_reader.batches(0)))
    loss, _ = step(batch, 0)
    return before, whole_tables(training), batch, float(loss)


def whole_tables(training: Training) -> dict[str, torch.Tensor]:
    tables = {}
    for name, value in training.parallel.model.state_dict().items():
        if "embedding_bags" in name:
            (table,) = [shard.tensor for shard in value.local_shards()] if hasattr(value, "local_shards") else [value]
            tables[name.split(".")[-2]] = table.detach()
    return tables


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "data_parallel"])
def test_one_step_decays_the_rows_of_the_batch_and_no_other(make_dataset, one_rank, sharding: Any) -> None:
    tiny = make_dataset()
    results = {}
    for strength in (0.0, 0.5):
        optimizer = FusedOptimizer("sgd", embedding_learning_rate=1.0, embedding_l2=strength)
        results[strength] = step_once(tiny.path, make_config(tiny.path, optimizer, ShardingConfig(sharding)))
    before, plain, batch, plain_loss = results[0.0]
    _, decayed, _, loss = results[0.5]
    assert loss == plain_loss  # the term is not in the loss that is logged
    for feature in ("user", "device", "age"):
        counts = Counter(tiny.columns["train"][feature].tolist())
        present = sorted(set(batch.sparse_features[feature].values().tolist()))
        n = torch.tensor([counts[i] for i in present])[:, None]
        for stream, width in (("easy", 4), ("hard", 8), ("first_order_easy", 1)):
            name = f"{feature}__{stream}"
            absent = sorted(set(range(len(before[name]))) - set(present))
            expected = plain[name].clone()
            expected[present] -= 0.5 * before[name][present] / n
            torch.testing.assert_close(decayed[name], expected, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(decayed[name][absent], before[name][absent], rtol=0, atol=0)
            assert not torch.equal(decayed[name][present], plain[name][present])
            assert not decayed[name][:, width:].any()
        assert feature != "user" or absent


LANES = {
    "row_wise": (FusedOptimizer("rowwise_adagrad", 0.05, embedding_l2=0.5), ShardingConfig("row_wise")),
    "table_wise": (FusedOptimizer("adagrad", 0.05, embedding_l2=0.5), ShardingConfig("table_wise")),
    "mixed": (FusedOptimizer("sgd", 0.05, embedding_l2=0.5), ShardingConfig("row_wise", {"user": "data_parallel"})),
}


def fit_lanes(folder: Path, dataset: Path) -> None:
    for lane, (optimizer, sharding) in LANES.items():
        train_rank(Run(folder / lane), make_config(dataset, optimizer, sharding))


def test_two_ranks_decay_as_one(make_dataset, tmp_path: Path, one_rank) -> None:
    """Bags differ and the last batches are ragged, so ranks hold different numbers of ids."""
    dataset = make_dataset(train=((30, 31), (61,))).path
    on_two_ranks(tmp_path, fit_lanes, tmp_path / "two", dataset)
    fit_lanes(tmp_path / "one", dataset)
    for lane, (optimizer, sharding) in LANES.items():
        config = make_config(dataset, optimizer, sharding)
        alone, together = (final_run(tmp_path / name / lane, config) for name in ("one", "two"))
        assert together[0] == pytest.approx(alone[0], rel=1e-6), lane
        for name, table in alone[1].items():
            torch.testing.assert_close(together[1][name], table, rtol=1e-6, atol=1e-6)


def final_run(folder: Path, config: Config) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Training losses, and the tables at the end."""
    run = Run(folder)
    events = [json.loads(line) for line in run.history.read_text().splitlines()]
    model, newest = build_model(Dataset.open(config.dataset), config, torch.device("cpu")), run.checkpoints
    last = checkpoint.newest(newest)
    assert last is not None
    checkpoint.restore_model(last, model)
    tables = {name: value for name, value in model.state_dict().items() if "embedding_bags" in name}
    return [e["train_loss"] for e in events if e["event"] == "evaluation"], tables
