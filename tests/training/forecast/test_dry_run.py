"""Dry runs against real ranks and their real bytes, against TorchRec's own estimate, and what does not fit."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torchrec.optim
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator

from features.schema import DenseFeature, FeatureSchema, HashEncoding, SparseFeature
from tests.ranks import on_two_ranks
from training.config import (
    GIB,
    DenseOptimizer,
    FusedOptimizer,
    MLPEncoder,
    ModelConfig,
    ReaderConfig,
    ShardingConfig,
    TrainingConfig,
)
from training.forecast.dry_run import Change, DryRunPlan, PlanError, _smallest, find_changes, plan_tables
from training.model.ctr_model import CTRModel
from training.sharding.parallelize import parallelize
from training.sharding.table_planner import CACHED, MEMORY_PARTS, Cluster, Sharder, batch_size_per_rank, held_bytes

MIB = 1 << 20
ROWS = {"user": 50_001, "item": 7_000, "shop": 300, "hour": 25}
SCHEMA = FeatureSchema(
    label="click",
    sparse=tuple(SparseFeature(name, HashEncoding(num_buckets=rows)) for name, rows in ROWS.items()),
    dense=(DenseFeature("price"),),
)
CONFIG = TrainingConfig(
    dataset="none",
    model=ModelConfig(embedding_dim=16, easy=MLPEncoder((8,)), hard=MLPEncoder((16, 8))),
    reader=ReaderConfig(num_streams=4),
    global_batch_size=64,
)


def build(config: TrainingConfig) -> CTRModel:
    return CTRModel(SCHEMA, ROWS, config.model, pad_tables=config.pads_tables, device="meta")


def plan_of(config: TrainingConfig, cluster: Cluster) -> DryRunPlan:
    return plan_tables(build(config), config, cluster)


def fused(optimizer: Any, default: Any = "auto", **features: Any) -> TrainingConfig:
    return replace(CONFIG, optimizer=FusedOptimizer(optimizer), sharding=ShardingConfig(default, features))


CASES = {
    "auto": fused("rowwise_adagrad"),
    "rows": fused("rowwise_adagrad", "row_wise"),
    "columns": fused("rowwise_adagrad", "column_wise"),
    "mixed": fused("adagrad", "table_wise", user="row_wise", item="column_wise", hour="data_parallel"),
    "averaged": replace(fused("sgd", "row_wise", shop="data_parallel"), ema_decay=0.9),
    "dense": replace(CONFIG, optimizer=DenseOptimizer()),
}


def bytes_of(value: Any) -> int:
    """Bytes on this rank, without the step counters that optimizers keep."""
    if isinstance(value, ShardedTensor):
        return sum(shard.tensor.numel() * shard.tensor.element_size() for shard in value.local_shards())
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) and value.dim() else 0


def train_for_real(folder: Path) -> None:
    """What this rank of two holds after ``parallelize``, counted tensor by tensor."""
    held = {}
    for name, config in CASES.items():
        parallel = parallelize(build(config), config, torch.device("cpu"))
        parallel.init_optimizer_state()
        weights = {n: v for n, v in parallel.model.state_dict().items() if "embedding_bags" in n}
        state = [
            bytes_of(value)
            for _, optimizer in parallel.optimizer.optimizers
            for key, values in optimizer.state_dict()["state"].items()
            if "embedding_bags" in key
            for value in values.values()
        ]
        average = [] if parallel.average is None else parallel.average.values.items()
        held[name] = {
            "plan": parallel.plan,
            "weights": sum(map(bytes_of, weights.values())),
            "state": sum(state),
            "averages": sum(bytes_of(value) for n, value in average if "embedding_bags" in n),
        }
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(held))


def test_a_dry_run_is_what_two_ranks_do(tmp_path: Path):
    on_two_ranks(tmp_path, train_for_real, tmp_path)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for name, config in CASES.items():
            plan = plan_of(config, Cluster("cpu", 2, 2))
            real, dry = found[name], plan.ranks[rank]
            keys = real["plan"][0].keys()
            assert [{key: table[key] for key in keys} for table in plan.tables] == real["plan"], name
            assert (dry["weights"], dry["state"]) == (real["weights"], real["state"]), name
            replicated = sum(t["bytes"] for t in plan.tables if t["sharding"] == "data_parallel")
            assert dry["gradients"] == replicated + real["averages"], name
    assert {"column_wise"} == {table["sharding"] for table in plan_of(CASES["columns"], Cluster("cpu", 2, 2)).tables}


@pytest.mark.parametrize(
    ("optimizer", "kind", "size", "weights", "state", "gradients"),
    [
        (FusedOptimizer("rowwise_adagrad"), "row_wise", (10, 8), 320, 40, 0),  # 10 x 8 floats; a float a row
        (FusedOptimizer("rowwise_adagrad"), "column_wise", (10, 4), 160, 40, 0),  # half the columns, all the rows
        (FusedOptimizer("adagrad"), "table_wise", (10, 8), 320, 320, 0),
        (FusedOptimizer("adam"), "table_wise", (10, 8), 320, 640, 0),
        (FusedOptimizer("sgd"), "table_wise", (10, 8), 320, 0, 0),
        (DenseOptimizer(), "data_parallel", (10, 8), 320, 640, 320),
        (FusedOptimizer("rowwise_adagrad"), "row_wise", (0, 0), 0, 0, 0),
    ],
)
def test_bytes_by_hand(optimizer, kind, size, weights, state, gradients):
    expected = {"weights": weights, "state": state, "gradients": gradients, "cache": 0, "host": 0}
    assert held_bytes(replace(CONFIG, optimizer=optimizer), kind, size) == expected


def cached(config: TrainingConfig, device_memory: float = 1.0, share: float = 0.2) -> TrainingConfig:
    sharding = replace(config.sharding, device_memory=device_memory, cache_load_factor=share)
    return replace(config, sharding=sharding)


def test_bytes_of_a_cached_table_by_hand():
    """100 x 8 floats and a float a row on the host; a quarter of the rows, 4 bytes a row and 16 a cached row here."""
    config = cached(fused("rowwise_adagrad"), share=0.25)
    expected = {"weights": 0, "state": 0, "gradients": 0, "cache": 800 + 400 + 400, "host": 3_200 + 400}
    assert held_bytes(config, "row_wise", (100, 8), CACHED) == expected
    assert held_bytes(config, "row_wise", (100, 8))["weights"] == 3_200


def test_what_does_not_fit_a_gpu_lies_in_host_memory():
    """Half the memory that the tables take: the planner moves some, and the ones left are on the GPU as before."""
    config, cluster = fused("adam"), Cluster("cuda", 2, 2, GIB, GIB)
    roomy = plan_of(config, cluster)
    assert {table["kernel"] for table in roomy.tables} == {"fused"} and not any(t["host"] for t in roomy.tables)
    tight = max(rank["bytes"] for rank in roomy.ranks) / 2 / 0.85
    with pytest.raises(PlanError):
        plan_of(config, replace(cluster, memory=int(tight)))
    plan = plan_of(cached(config, tight / GIB), cluster)
    moved = [table for table in plan.tables if table["kernel"] == CACHED]
    kept = [table for table in plan.tables if table["kernel"] == "fused"]
    assert {table["table"] for table in moved} >= {"user__hard"} and kept
    for table in plan.tables:
        on_host = 3 * table["bytes"] if table in moved else 0  # Adam has two numbers a weight
        assert table["host"] == on_host and table["weights"] + table["host"] // 3 == table["bytes"]
    for rank in plan.ranks:
        assert rank["bytes"] <= tight - plan.reserve.margin
        assert rank["bytes"] == plan.reserve.fixed + sum(rank[part] for part in MEMORY_PARTS)
        assert rank["host"] <= GIB
    assert sum(rank["host"] for rank in plan.ranks) == sum(table["host"] for table in moved) > 0
    # Everything on the GPU where it fits, whatever is allowed.
    assert {table["kernel"] for table in plan_of(cached(config), cluster).tables} == {"fused"}
    # Lookups are what they are without a cache, but for rounding.
    alike = {t["table"]: t for t in roomy.tables}
    for table in moved:
        if table["sharding"] == alike[table["table"]]["sharding"]:
            assert table["lookups"] == pytest.approx(alike[table["table"]]["lookups"], abs=4 * table["num_shards"])


def test_host_memory_is_limited_too():
    config, cluster = cached(fused("sgd", "row_wise"), 2 / 1024), Cluster("cuda", 2, 2, GIB, 256 << 10)
    error = refused(config, cluster)
    assert "a rank has 256.0 KiB of host memory" in str(error)


def test_tables_in_host_memory_are_for_the_fused_lane_on_cuda():
    for config, device in ((fused("sgd"), "cpu"), (CASES["dense"], "cuda")):
        with pytest.raises(ValueError, match=r"training\.sharding\.device_memory: tables in host memory"):
            plan_of(cached(config), Cluster(device, 2, 2, GIB))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "adam", "sgd"])
@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_as_torchrec_estimates_tables_with_optimizers(optimizer: Any, kind: Any):
    config, cluster = fused(optimizer, kind), Cluster("cuda", 4, 4, GIB)
    ours = plan_of(config, cluster)
    model = build(config)
    classes = {
        "rowwise_adagrad": torchrec.optim.RowWiseAdagrad,
        "adagrad": torchrec.optim.Adagrad,
        "adam": torchrec.optim.Adam,
        "sgd": torchrec.optim.SGD,
    }
    for parameter in model.embedding.bags.parameters():
        parameter._optimizer_classes = [classes[optimizer]]  # pyright: ignore
    options: Any = EmbeddingEnumerator(cluster.topology(), batch_size_per_rank(config, 4)).enumerate(model, [Sharder()])
    options = [o for o in options if (o.sharding_type, o.compute_kernel) == (kind, "fused")]
    theirs = {o.name: sum(s.storage.hbm for s in o.shards) for o in options}
    tables = {table["table"]: sum(table[part] for part in MEMORY_PARTS) for table in ours.tables}
    rounding = 4 * len(options[0].shards) * max(t["width"] for t in ours.tables)
    assert tables == pytest.approx(theirs, abs=rounding if optimizer == "rowwise_adagrad" else 0)


@pytest.mark.parametrize("case", CASES)
def test_every_number_of_a_table_is_somewhere_once(case: str):
    config = CASES[case]
    cluster = Cluster("cuda", 8, 4, GIB)
    plan = plan_of(config, cluster)
    for table, entry in zip(build(config).tables, plan.tables, strict=True):
        copies = 8 if entry["sharding"] == "data_parallel" else 1
        assert entry["weights"] == copies * 4 * table.num_embeddings * table.padded_width
    for part in MEMORY_PARTS:
        assert sum(rank[part] for rank in plan.ranks) == sum(table[part] for table in plan.tables)
    for rank in plan.ranks:
        on_rank = [size for (_, place), size in plan.shards.items() if place == rank["rank"]]
        assert rank["bytes"] == plan.reserve.fixed + sum(on_rank) <= GIB - plan.reserve.margin
        assert rank["ms"] == pytest.approx(rank["compute_ms"] + rank["exchange_ms"])
    assert sum(rank["num_shards"] for rank in plan.ranks) == sum(table["num_shards"] for table in plan.tables)


def test_what_is_kept_free_of_tables():
    plan = plan_of(CONFIG, Cluster("cuda", 4, 4, GIB))
    model = build(CONFIG)
    dense = sum(p.numel() for p in model.parameters() if p.device.type != "meta")
    ids = 8 * 20 * 16 * len(model.tables)  # bytes an id, copies, rows a rank, one id a table
    assert plan.reserve.fixed == 6 * 4 * dense + ids
    assert plan.reserve.margin == pytest.approx(0.15 * GIB, abs=1)
    assert sum((plan.reserve.fixed, plan.reserve.margin, plan.reserve.left)) == GIB
    on_cpu = plan_of(replace(CONFIG, optimizer=FusedOptimizer("sgd")), Cluster("cpu", 4, 4, GIB))
    assert on_cpu.reserve.margin == 0


def needed(config: TrainingConfig) -> int:
    """Bytes of weights and state, naively."""
    tables = build(config).tables
    return sum(4 * t.num_embeddings * (t.padded_width + 1) for t in tables)


def refused(config: TrainingConfig, cluster: Cluster) -> PlanError:
    with pytest.raises(PlanError) as caught:
        plan_of(config, cluster)
    return caught.value


def changes_of(config: TrainingConfig, cluster: Cluster) -> dict[str, Change]:
    """Option or key of each change found -> the change; the tables must fit with it."""
    changes = find_changes(build, config, cluster, refused(config, cluster))
    assert [c.factor for c in changes] == sorted(c.factor for c in changes)
    for change in changes:
        limit = change.plan.cluster.memory
        assert limit and max(rank["bytes"] for rank in change.plan.ranks) <= limit - change.plan.reserve.margin
    return {change.words.split()[0].split("=")[0]: change for change in changes}


def test_too_little_memory_in_all():
    config, cluster = fused("rowwise_adagrad", "row_wise"), Cluster("cuda", 2, 1, 2 * MIB)
    error = refused(config, cluster)
    roomy = plan_of(config, replace(cluster, memory=GIB))
    vectors = sum(rank["lookups"] for rank in roomy.ranks)
    have = 2 * (int(2 * MIB * 0.85) - roomy.reserve.fixed)
    assert error.missing == needed(config) + vectors - have
    assert "8 tables do not fit on 2 x 2.0 MiB" in str(error) and "the largest: user__hard 3.3 MiB" in str(error)
    changes = changes_of(config, cluster)
    assert set(changes) == {"--world-size", "--device-memory", "training.sharding.device_memory"}
    in_host_memory = changes.pop("training.sharding.device_memory")
    assert in_host_memory.words == "training.sharding.device_memory=1.0" and any(
        t["host"] for t in in_host_memory.plan.tables
    )
    for change in changes.values():
        fits = change.plan.cluster
        if fits.world_size > 2:
            less = replace(fits, world_size=fits.world_size - 1)
            assert change.words == f"--world-size {fits.world_size} --local-world-size 1"
        else:
            assert fits.memory is not None
            less = replace(fits, memory=fits.memory - MIB)
            assert change.words == f"--device-memory {fits.memory // MIB}MiB"
        refused(config, less)


def test_a_table_that_no_rank_can_hold():
    config, cluster = fused("sgd", "table_wise", hour="data_parallel"), Cluster("cuda", 8, 8, 3 * MIB)
    error = refused(config, cluster)
    roomy = plan_of(config, replace(cluster, memory=GIB))
    [size] = [size for (name, _), size in roomy.shards.items() if name == "user__hard"]
    assert error.tables == ["user__hard"]
    assert error.missing == size - (int(3 * MIB * 0.85) - roomy.reserve.fixed)
    assert size == pytest.approx(50_001 * 16 * 4, rel=0.01)  # and a batch's vectors
    assert "table user__hard needs 3.1 MiB on a rank even table_wise" in str(error)
    changes = changes_of(config, cluster)
    nearest = next(iter(changes.values()))
    assert nearest.words == "training.sharding.features.user=row_wise" and nearest.factor == 1
    assert "--world-size" not in changes  # more ranks do not make a table smaller
    assert {t["sharding"] for t in nearest.plan.tables if t["feature"] == "user"} == {"row_wise"}
    assert {t["sharding"] for t in nearest.plan.tables if t["feature"] == "hour"} == {"data_parallel"}


def test_tight_memory_is_filled_with_the_cheapest_shardings():
    """Row-wise everywhere fits too, but exchanges far more: each rank sends a part of every vector."""
    cluster = Cluster("cuda", 16, 8, 640 << 10)
    config = replace(fused("rowwise_adagrad"), global_batch_size=256)
    ours = plan_of(config, cluster)
    by_rows = plan_of(replace(config, sharding=ShardingConfig("row_wise")), cluster)
    assert len({table["sharding"] for table in ours.tables}) > 1
    assert max(r["ms"] for r in ours.ranks) < 0.7 * max(r["ms"] for r in by_rows.ranks)


def test_replicated_tables_that_would_fit_sharded():
    config, cluster = replace(CONFIG, optimizer=DenseOptimizer()), Cluster("cuda", 8, 8, 8 * MIB)
    assert refused(config, cluster).missing > 0
    changes = changes_of(config, cluster)
    assert next(iter(changes)) == "training.optimizer.kind"
    assert "--world-size" not in changes


def test_a_batch_that_is_too_large():
    config = replace(fused("sgd", "row_wise"), global_batch_size=1 << 18)
    cluster = Cluster("cuda", 2, 2, 64 * MIB)
    refused(config, cluster)
    change = changes_of(config, cluster)["training.global_batch_size"]
    batch = int(change.words.split("=")[1])
    refused(replace(config, global_batch_size=2 * batch), cluster)


def test_a_dense_net_that_leaves_no_memory():
    config = replace(CONFIG, model=replace(CONFIG.model, hard=MLPEncoder((2_000, 2_000))))
    error = refused(config, Cluster("cuda", 2, 2, 32 * MIB))
    assert "the dense net and the inputs of a batch alone need" in str(error) and error.tables == []
    assert error.missing == plan_of(config, Cluster("cuda", 2, 2, GIB)).reserve.fixed - int(32 * MIB * 0.85)


def test_what_cannot_be_planned_at_all():
    with pytest.raises(ValueError, match="adam exists on CUDA only"):
        plan_of(fused("adam"), Cluster("cpu", 2, 2))
    with pytest.raises(ValueError, match="unknown features: nobody"):
        plan_of(fused("sgd", nobody="row_wise"), Cluster("cuda", 2, 2, GIB))


@pytest.mark.parametrize("last", [0, 1, 2, 7, 20])
def test_smallest_is_smallest(last: int):
    for first in range(1, last + 3):
        tried = []

        def attempt(number: int, first: int = first, tried: list[int] = tried) -> Any:
            tried.append(number)
            return f"change {number}" if number >= first else None

        assert _smallest(attempt, last) == (f"change {first}" if first <= last else None)
        assert len(tried) == len(set(tried)) <= 2 * math.log2(last + 1) + 1


def test_the_largest_tables_there_can_be():
    config, rows = fused("rowwise_adagrad"), dict.fromkeys(ROWS, 2**31 - 1)
    model = CTRModel(SCHEMA, rows, config.model, pad_tables=True, device="meta")
    plan = plan_tables(model, config, Cluster("cuda", 64, 8, 80 * GIB))
    assert sum(rank["weights"] for rank in plan.ranks) == 4 * 4 * (2**31 - 1) * 24
    assert max(rank["bytes"] for rank in plan.ranks) <= 80 * GIB - plan.reserve.margin
