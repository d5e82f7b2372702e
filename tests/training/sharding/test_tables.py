"""One module knows where TorchRec keeps tables, and what it finds is all of them, sharded in any way."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import ShardedTensor

import tests.stand_ins.tiny_dataset as tiny_dataset
from tests.ranks import on_two_ranks
from tests.training.fit.test_run import make_config
from training.config import DenseOptimizer, FusedOptimizer, ShardingConfig
from training.data.opened_dataset import Dataset
from training.fit.run import build_model
from training.model.embedding import table_of
from training.sharding import checkpoint
from training.sharding.parallelize import FUSED, parallelize
from training.sharding.tables import (
    embedding_of,
    kernels_of,
    lookups_of,
    replicated_tensors,
    trained_parameters,
    without_empty_state,
)

ROOT = Path(__file__).parents[3]
OWNERS = {
    r"embedding_bags\b": "training/model/embedding.py",
    r"ShardedTensor\b": "training/sharding/tables.py",
    r"\._lookups\b": "training/sharding/tables.py",
    r"\bShardedEmbeddingBagCollection\b": "training/sharding/tables.py",
    r"\bBaseBatchedEmbeddingBag\b": "training/sharding/tables.py",
    r"\bEmbeddingModuleShardingPlan\b": "training/sharding/tables.py",
    r"\bin_backward_optimizer_filter\b": "training/sharding/tables.py",
    r"\b_apply_optimizer_in_backward\b": "training/sharding/tables.py",
    r"\.fused_optimizer\b": "training/sharding/tables.py",
}
"""What only one module may say of how TorchRec lays tables out -> that module."""
LANES: dict[str, dict[str, Any]] = {
    "row_wise": {"sharding": ShardingConfig("row_wise")},
    "mixed": {"sharding": ShardingConfig("table_wise", {"user": "column_wise", "age": "data_parallel"})},
    "replicated": {"sharding": ShardingConfig("data_parallel")},
    "sgd": {"sharding": ShardingConfig("table_wise"), "optimizer": FusedOptimizer(embedding_optimizer="sgd")},
    "dense": {"optimizer": DenseOptimizer()},
}


@pytest.fixture
def dataset(tmp_path: Path) -> tiny_dataset.TinyDataset:
    return tiny_dataset.write_tiny_dataset(tmp_path / "dataset")


@pytest.mark.parametrize("pattern", OWNERS)
def test_one_module_says_it(pattern: str) -> None:
    files = [path for room in ("features", "pipeline", "training", "jobs") for path in (ROOT / room).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in files if re.search(pattern, path.read_text(encoding="utf-8"))}
    assert found == {OWNERS[pattern]}


def test_the_table_of_a_tensor() -> None:
    weight = "embedding.bags.embedding_bags.user__hard.weight"
    wrappers = ("", "_dmp_wrapped_module.module.", "model.", "average.", "optimizer.state.")
    assert {table_of(wrapper + weight) for wrapper in wrappers} == {"user__hard"}
    assert table_of(f"optimizer.state.{weight}.user__hard.momentum1") == "user__hard"
    for other in ("embedding.projections.user__hard", "hard_encoder.0.weight", "my_embedding_bags.x.weight", ""):
        assert table_of(other) is None


def look(path: Path) -> None:
    """On this rank, see that names, shards, optimizers and modules of tables are all found, in every lane."""
    for lane, changes in LANES.items():
        config = make_config(path, **changes)
        model = build_model(Dataset.open(path), config, torch.device("meta"))
        names = {f"embedding.{table.tensor_name()}": table for table in model.tables}
        assert {name for name in model.state_dict() if table_of(name)} == set(names), lane
        parallel = parallelize(model, config, torch.device("cpu"))
        state, replicated = parallel.model.state_dict(), replicated_tensors(parallel.model)
        assert {name for name in state if table_of(name)} == set(names), lane
        kinds = {entry["table"]: entry["sharding"] for entry in parallel.plan}
        for name, table in names.items():
            assert (name in replicated) == (kinds[table.name] == "data_parallel"), (lane, name)
            _see_that_it_is_whole(state[name], table)
        assert set(state) - set(replicated) <= set(names)

        fused = {table for table, kind in kinds.items() if kind != "data_parallel"}
        trained = {table_of(name) for name in trained_parameters(parallel.model)} - {None}
        assert trained == set(kinds) - fused, lane
        optimizers = dict(parallel.optimizer.optimizers)
        assert (FUSED in optimizers) == bool(fused), lane
        if fused:
            assert {table_of(name) for name in optimizers[FUSED].state_dict()["state"]} <= fused

        assert embedding_of(parallel.model).tables == model.tables
        lookups, kernels = list(lookups_of(parallel.model)), list(kernels_of(parallel.model))
        assert len(lookups) == len(set(kinds.values())), "one a way of sharding"
        held = [kernel for kernel in kernels if any(weight.numel() for weight in kernel.parameters())]
        assert bool(held) == any(_numel(state[name]) for name in names), lane


def _see_that_it_is_whole(value: Any, table: Any) -> None:
    """See that the ranks' shards are the table as it is without sharding."""
    whole = torch.empty(table.num_embeddings, table.padded_width)
    table.initialize(whole)
    if not isinstance(value, ShardedTensor):
        assert torch.equal(value, whole)
        return
    count = torch.zeros(())
    for shard in value.local_shards():
        (row, column), (rows, columns) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
        assert torch.equal(shard.tensor, whole[row : row + rows, column : column + columns])
        count += shard.tensor.numel()
    dist.all_reduce(count)
    assert int(count) == whole.numel()


def test_one_rank_finds_all_tables(dataset: tiny_dataset.TinyDataset, one_rank: None) -> None:
    look(dataset.path)


def test_two_ranks_find_all_tables(dataset: tiny_dataset.TinyDataset, tmp_path: Path) -> None:
    on_two_ranks(tmp_path, look, dataset.path)


def test_parameters_without_optimizer_state_are_left_out(
    dataset: tiny_dataset.TinyDataset, tmp_path: Path, one_rank: None
) -> None:
    """SGD's tables: what is saved has no entry of them, and what is restored is what was saved."""
    parallels = []
    for seed in (1, 2):
        config = make_config(dataset.path, seed=seed, **LANES["sgd"])
        model = build_model(Dataset.open(dataset.path), config, torch.device("meta"))
        parallels.append(parallelize(model, config, torch.device("cpu")))
    saved, restored = parallels
    saved.init_optimizer_state()
    checkpoint.save(tmp_path / "checkpoints", 1, saved, {})
    found = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None
    checkpoint.restore_checkpoint(found, restored)
    assert not without_empty_state({"state": {"x": {}}, "param_groups": {}})["state"]
    before, after = (_local(parallel.model.state_dict()) for parallel in parallels)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def _numel(value: Any) -> int:
    """Numbers that this rank holds."""
    shards = [shard.tensor for shard in value.local_shards()] if isinstance(value, ShardedTensor) else [value]
    return sum(shard.numel() for shard in shards)


def _local(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {
        n: torch.cat([s.tensor.flatten() for s in v.local_shards()]) if isinstance(v, ShardedTensor) else v
        for n, v in state.items()
    }
