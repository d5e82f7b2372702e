"""Runs on real gloo ranks: two equal one, interrupted equals undisturbed, and a checkpoint fits another world size."""

import json
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.ranks import on_two_ranks
from training.config import (
    AutoIntEncoder,
    BCEObjective,
    BilinearFusion,
    CheckpointConfig,
    CINEncoder,
    ConcatFusion,
    CrossNetEncoder,
    DenseOptimizer,
    FGCNNEncoder,
    FMEncoder,
    FusedOptimizer,
    GatedCrossNetEncoder,
    GateSelection,
    LinearEncoder,
    MLPEncoder,
    ModelConfig,
    MoEFusion,
    MoESelection,
    NoEncoder,
    QNNEncoder,
    ReaderConfig,
    ScheduleConfig,
    ShardingConfig,
    SharedSelection,
    SingleFusion,
    StreamGatesSelection,
    SumFusion,
    TrainingConfig,
)
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.fit.loop import Event, Progress, Training, make_step, train
from training.fit.run import Run, build_model, train_rank
from training.fit.scoring import score
from training.judge.metrics import evaluate
from training.model.ctr_model import CTRModel
from training.sharding import checkpoint
from training.sharding.checkpoint_reader import CheckpointError
from training.sharding.parallelize import parallelize

STEPS_PER_EPOCH = 6


class Interrupted(Exception):
    """Stands for a crash."""


EASY, HARD = MLPEncoder((8,), dropout=0.0), MLPEncoder((16, 8), dropout=0.0)
MODEL = ModelConfig(embedding_dim=8, embedding_init_std=0.05, easy=EASY, hard=HARD)


def make_config(dataset: Path, **changes: Any) -> TrainingConfig:
    config = TrainingConfig(
        dataset=str(dataset),
        model=MODEL,
        optimizer=FusedOptimizer(embedding_learning_rate=0.05),
        reader=ReaderConfig(num_streams=4, shuffle_row_groups=2),
        checkpoint=CheckpointConfig(every_steps=4, keep=3),
        global_batch_size=32,
        evaluation_batch_size=16,
        max_epochs=2,
    )
    return replace(config, **changes)


LOWERED = {"schedule": ScheduleConfig(factor=0.5, min_delta=10.0, patience=9)}
"""All evaluations but the first lower the learning rates."""
LANES: dict[str, dict[str, Any]] = {
    "auto": {},
    "row_wise": {"sharding": ShardingConfig("row_wise")},
    "table_wise": {"sharding": ShardingConfig("table_wise")},
    "column_wise": {
        # Row-wise Adagrad keeps one number a row of a shard, so only a column-blind rule is blind to column shards.
        "sharding": ShardingConfig("column_wise"),
        "optimizer": FusedOptimizer("sgd", embedding_learning_rate=0.05),
    },
    "replicated": {"sharding": ShardingConfig("data_parallel")},
    "mixed": {"sharding": ShardingConfig("table_wise", {"user": "row_wise", "age": "data_parallel"})},
    "lowered": {
        "sharding": ShardingConfig("table_wise", {"user": "row_wise", "age": "data_parallel"}),
        "max_epochs": 4,
        **LOWERED,
    },
    "dense": {"optimizer": DenseOptimizer(learning_rate=0.01, embedding_l2=0.01)},
    "averaged": {"sharding": ShardingConfig("row_wise", {"age": "data_parallel"}), "ema_decay": 0.9},
    "averaged dense": {"optimizer": DenseOptimizer(learning_rate=0.01), "ema_decay": 0.9},
    "unused heads": {  # a concat fusion without twin focus reads neither branch's logit
        "model": replace(
            MODEL,
            objective=BCEObjective(),
            fusion=ConcatFusion(),
            selection=GateSelection(dropout=0.0, batch_norm=False),
        )
    },
}
PLANNED = {
    "row_wise": "row_wise",
    "table_wise": "table_wise",
    "column_wise": "column_wise",
    "replicated": "data_parallel",
    "dense": "data_parallel",
}
"""Lane -> how every one of its tables must be sharded."""
INTERRUPTED = {"row_wise": 4, "lowered": 16, "dense": 4, "averaged": 4, "unused heads": 4}
"""Lane -> step of the checkpoint from which it goes on at another world size."""


def fit_all(folder: Path, dataset: Path, interrupt_after: dict[str, int]) -> None:
    """Fit every lane; those in ``interrupt_after`` up to a checkpoint after so many steps."""
    for lane, changes in LANES.items():
        fit_until(Run(folder / lane), make_config(dataset, **changes), interrupt_after.get(lane))


def fit_until(run: Run, config: TrainingConfig, step: int | None = None) -> None:
    def crash(event: Event) -> None:
        if event["event"] == "checkpoint" and event["step"] == step:
            raise Interrupted

    try:
        train_rank(run, config, crash)
    except Interrupted:
        assert step is not None


def final_model(run: Run, config: TrainingConfig) -> CTRModel:
    """The newest checkpoint, unsharded."""
    model = build_model(Dataset.open(config.dataset), config, torch.device("cpu"))
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None
    checkpoint.restore_model(newest, model)
    return model


def assert_same_weights(ours: Run, theirs: Run, config: TrainingConfig, tolerance: float) -> None:
    """Biases are left out: before a batch norm they have no gradient but rounding, which Adam scales to full steps."""
    one, other = (final_model(run, config).state_dict() for run in (ours, theirs))
    for name in one:
        if name.endswith("weight"):
            difference = float((one[name] - other[name]).abs().max())
            assert difference <= tolerance, f"{name} differs by {difference}"


def test_two_ranks_equal_one_and_a_run_goes_on_at_another_world_size(make_dataset, tmp_path: Path, one_rank) -> None:
    dataset = make_dataset(number_rows=True).path
    on_two_ranks(tmp_path, fit_all, tmp_path / "two", dataset, INTERRUPTED)
    for lane, changes in LANES.items():
        config = make_config(dataset, **changes)
        alone, together = Run(tmp_path / "one" / lane), Run(tmp_path / "two" / lane)
        train_rank(alone, config)
        if lane in INTERRUPTED:
            newest = checkpoint.newest(together.checkpoints)
            assert newest is not None and newest.step == INTERRUPTED[lane]
            train_rank(together, config)  # begun on two ranks, interrupted inside an epoch, goes on here
        assert losses(together) == pytest.approx(losses(alone), rel=1e-6, abs=1e-6), lane
        assert_same_weights(together, alone, config, 1e-5)
        assert together.read("metrics.json")["train"]["rows"] == config.max_epochs * 192
        plan = together.read("plan.json")
        if lane in PLANNED:
            assert {row["sharding"] for row in plan} == {PLANNED[lane]}
        if lane == "mixed":
            kinds = {row["feature"]: row["sharding"] for row in plan}
            assert (kinds["user"], kinds["age"], kinds["device"]) == ("row_wise", "data_parallel", "table_wise")

    # And back: begun on one rank, goes on on two.
    config = make_config(dataset, **LANES["lowered"])
    back, alone = Run(tmp_path / "back"), Run(tmp_path / "one" / "lowered")
    fit_until(back, config, INTERRUPTED["lowered"])
    on_two_ranks(tmp_path, fit_until, back, config)
    assert losses(back) == pytest.approx(losses(alone), abs=1e-6)
    assert learning_rates(back) == learning_rates(alone) == [1e-3, 1e-3, 5e-4, 2.5e-4]
    assert_same_weights(back, alone, config, 1e-5)


BLOCKS = {
    kind: replace(MODEL, hard=hard)
    for kind, hard in {
        "cross_net": CrossNetEncoder(2),
        "gated_cross_net": GatedCrossNetEncoder(2),
        "qnn": QNNEncoder(2, dropout=0.0),
        "cin": CINEncoder((4, 3), first_order=True),
        "autoint": AutoIntEncoder(2, attention_dim=8, scale=True, layer_norm=True),
        "fgcnn": FGCNNEncoder((2, 2), kernel_height=3, hidden_units=(8,)),
        "fm": FMEncoder(),
        "linear": LinearEncoder(),
    }.items()
}
BLOCKS["finalmlp"] = replace(
    MODEL,
    selection=StreamGatesSelection(easy_context=("user",), hidden_units=(8,)),
    fusion=BilinearFusion(num_heads=4),
    objective=BCEObjective(),
)
BLOCKS["moe"] = replace(MODEL, selection=MoESelection(dropout=0.0), fusion=MoEFusion())
BLOCKS["gate"] = replace(MODEL, selection=GateSelection(dropout=0.0), fusion=SumFusion())
BLOCKS["shared"] = replace(MODEL, selection=SharedSelection(), fusion=ConcatFusion())
BLOCKS["one stream"] = replace(
    MODEL, selection=SharedSelection(), easy=NoEncoder(), fusion=SingleFusion(), objective=BCEObjective()
)


def make_block_config(dataset: Path, block: str) -> TrainingConfig:
    """Small steps: without batch norm the dataset's row numbers make large losses, and rounding grows with them."""
    optimizer = FusedOptimizer("sgd", embedding_learning_rate=1e-3, learning_rate=1e-5)
    return make_config(dataset, model=BLOCKS[block], optimizer=optimizer, max_epochs=1)


def fit_blocks(folder: Path, dataset: Path) -> None:
    for block in BLOCKS:
        train_rank(Run(folder / block), make_block_config(dataset, block))


def test_every_block_trains_on_two_ranks_as_on_one(make_dataset, tmp_path: Path, one_rank) -> None:
    dataset = make_dataset().path
    on_two_ranks(tmp_path, fit_blocks, tmp_path / "two", dataset)
    fit_blocks(tmp_path / "one", dataset)
    for block in BLOCKS:
        alone, together = (Run(tmp_path / name / block).read("metrics.json") for name in ("one", "two"))
        assert together["train"]["loss"] == pytest.approx(alone["train"]["loss"], rel=1e-5), block
        assert together["valid"]["logloss"] == pytest.approx(alone["valid"]["logloss"], rel=1e-5), block


def losses(run: Run) -> list[float]:
    return [evaluation["train_loss"] for evaluation in evaluations(run)]


def learning_rates(run: Run) -> list[float]:
    return [evaluation["learning_rate"] for evaluation in evaluations(run)]


def evaluations(run: Run) -> list[Event]:
    events = [json.loads(line) for line in run.history.read_text().splitlines()]
    return [event for event in events if event["event"] == "evaluation"]


@pytest.mark.parametrize("lane", ["auto", "dense", "averaged", "averaged dense"])
def test_interrupted_equals_undisturbed_bit_for_bit(make_dataset, tmp_path: Path, one_rank, lane: str) -> None:
    dataset = make_dataset().path
    config = make_config(dataset, **LANES[lane])
    dropout = replace(config.model, easy=MLPEncoder((8,), dropout=0.3), hard=CrossNetEncoder(2))
    config = replace(config, model=dropout, precision="bfloat16" if lane == "averaged dense" else "float32")
    config = replace(config, max_epochs=3, **LOWERED)
    undisturbed, interrupted = Run(tmp_path / "undisturbed"), Run(tmp_path / "interrupted")
    train_rank(undisturbed, config)
    for step in (4, STEPS_PER_EPOCH, 8, 16):
        fit_until(interrupted, config, step)
    train_rank(interrupted, config)
    ours, theirs = (final_model(run, config).state_dict() for run in (interrupted, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert interrupted.read("metrics.json")["train"]["rows"] == undisturbed.read("metrics.json")["train"]["rows"]
    assert losses(interrupted) == losses(undisturbed)


def test_what_is_evaluated_is_what_is_shipped(make_dataset, tmp_path: Path, one_rank) -> None:
    """Replicated weights are the averaged ones; those of sharded tables are the last."""
    dataset = make_dataset().path
    config = make_config(dataset, ema_decay=0.9, max_epochs=1)
    run = Run(tmp_path / "run")
    metrics = train_rank(run, config)
    model, opened = final_model(run, config).eval(), Dataset.open(dataset)
    scores = score(model, Reader(opened, "valid", config), torch.device("cpu"))
    assert evaluate(scores)["logloss"] == pytest.approx(metrics["valid"]["logloss"], abs=1e-6)
    raw = build_model(opened, config, torch.device("cpu"))
    state = {"model": raw.state_dict()}
    dcp.load(state, checkpoint_id=checkpoint.newest(run.checkpoints).path, no_dist=True)  # pyright: ignore
    raw.load_state_dict(state["model"])
    assert not torch.equal(raw.fusion.hard_head.weight, model.fusion.hard_head.weight)
    tables = (m.embedding.bags.embedding_bags["user__hard"].weight for m in (raw, model))  # sharded: not averaged
    assert torch.equal(*tables)


def make_training(dataset: Path, config: TrainingConfig) -> Training:
    opened, device = Dataset.open(dataset), torch.device("cpu")
    parallel = parallelize(build_model(opened, config, torch.device("meta")), config, device)
    return Training(parallel, config, Reader(opened, "train", config), None, device, dataset / "none")


@pytest.mark.parametrize("lane", ["averaged", "averaged dense"])
def test_the_average_is_of_the_weights_after_each_step(
    make_dataset, one_rank, monkeypatch: pytest.MonkeyPatch, lane: str
) -> None:
    tiny = make_dataset()
    config = make_config(tiny.path, **LANES[lane], max_epochs=1)
    training = make_training(tiny.path, config)
    model, average = training.parallel.model, training.parallel.average
    assert average is not None
    expected = {n: v.detach().clone() for n, v in model.named_parameters() if n in average.values}
    is_dense = lane == "averaged dense"
    assert any("user__hard" in name for name in expected) == is_dense  # sharded tables are not averaged
    update, steps = average.update, []

    def follow(step: int) -> None:
        steps.append(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in model.named_parameters():
            if name in expected:
                expected[name] = decay * expected[name] + (1 - decay) * value.detach()
        update(step)

    monkeypatch.setattr(average, "update", follow)
    list(train(training, Progress(), make_step(training)))
    assert steps == list(range(1, STEPS_PER_EPOCH + 1))
    shipped = build_model(Dataset.open(tiny.path), config, torch.device("cpu"))
    newest = checkpoint.newest(training.checkpoints)
    assert newest is not None
    checkpoint.restore_model(newest, shipped)
    for name, weight in expected.items():
        torch.testing.assert_close(shipped.state_dict()[name], weight)


@pytest.mark.parametrize("block", ["mlp", *BLOCKS])
def test_bfloat16_is_for_the_encoders_alone(make_dataset, one_rank, block: str) -> None:
    tiny = make_dataset()
    losses, types = {}, {}
    for precision in ("float32", "bfloat16"):
        config = make_config(tiny.path, model=BLOCKS.get(block, MODEL), precision=precision)
        training = make_training(tiny.path, config)
        model: Any = training.parallel.model.module
        model = getattr(model, "module", model)
        seen: list[torch.dtype] = []
        model.hard_encoder.register_forward_hook(lambda m, i, o, s=seen: s.append(o.dtype))
        model.fusion.register_forward_hook(lambda m, i, o, s=seen: s.extend((i[-1].dtype, o.fused.dtype)))
        losses[precision] = float(make_step(training)(next(iter(training.train_reader.batches(0))), 0)[0])
        types[precision] = seen
    assert types["float32"] == [torch.float32] * 3
    assert types["bfloat16"][1:] == [torch.float32] * 2
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
    if block not in ("linear", "fm"):  # these have no matrix product
        assert losses["bfloat16"] != losses["float32"]
    if block == "mlp":
        assert types["bfloat16"][0] == torch.bfloat16


def test_l2_moves_rows_that_were_not_looked_up(make_dataset, one_rank) -> None:
    tiny = make_dataset()
    config = make_config(tiny.path, optimizer=DenseOptimizer(embedding_l2=0.5), clip_gradient_norm=None)
    training = make_training(tiny.path, config)
    tables = {n: p for n, p in training.parallel.model.named_parameters() if "user__hard" in n}
    (table,) = tables.values()
    before = table.detach().clone()
    batch = next(iter(training.train_reader.batches(0)))
    make_step(training)(batch, 0)
    assert table.grad is not None
    seen = set(batch.sparse_features["user"].values().tolist())
    unseen = [row for row in range(50) if row not in seen]
    assert unseen
    torch.testing.assert_close(table.grad[unseen], 0.5 * before[unseen], rtol=0, atol=0)
    assert not torch.equal(table.grad[list(seen)], 0.5 * before[list(seen)])


def test_clipping_scales_all_gradients_to_one_norm(make_dataset, one_rank) -> None:
    tiny = make_dataset()
    config = make_config(tiny.path, optimizer=DenseOptimizer(embedding_l2=0.5), clip_gradient_norm=1e-3)
    training = make_training(tiny.path, config)
    make_step(training)(next(iter(training.train_reader.batches(0))), 0)
    gradients = [p.grad for p in training.parallel.model.parameters() if p.grad is not None]
    norm = torch.stack([g.detach().norm() for g in gradients]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_training_learns(make_dataset, tmp_path: Path, one_rank) -> None:
    dataset = make_dataset(train=((600,),) * 4, valid=((600,),)).path
    model = ModelConfig(embedding_dim=8, embedding_init_std=0.05, easy=FMEncoder(), hard=MLPEncoder((16,), dropout=0.0))
    metrics = train_rank(Run(tmp_path / "run"), make_config(dataset, model=model, max_epochs=6, global_batch_size=128))
    assert metrics["valid"]["auc"] > 0.75
    assert metrics["valid"]["rows"] == 600


def test_refusals_name_the_key(make_dataset, one_rank) -> None:
    dataset = make_dataset().path
    opened = Dataset.open(dataset)

    def build(**changes: Any) -> None:
        config = make_config(dataset, **changes)
        parallelize(build_model(opened, config, torch.device("meta")), config, torch.device("cpu"))

    with pytest.raises(ValueError, match="embedding_optimizer = adam exists on CUDA only"):
        build(optimizer=FusedOptimizer("adam"))
    with pytest.raises(ValueError, match="dense lane replicates"):
        build(optimizer=DenseOptimizer(), sharding=ShardingConfig("row_wise"))
    with pytest.raises(ValueError, match="unknown features: nobody"):
        build(sharding=ShardingConfig("auto", {"nobody": "row_wise"}))


def test_damaged_checkpoints(make_dataset, tmp_path: Path, one_rank) -> None:
    dataset = make_dataset().path
    config = make_config(dataset, max_epochs=1)
    run = Run(tmp_path / "run")
    train_rank(run, config)
    kept = sorted(p.name for p in run.checkpoints.iterdir())
    assert kept == ["step=000000004", "step=000000006"]
    shard = next((run.checkpoints / kept[-1]).glob("*.distcp"))
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"step=000000006 is damaged .*distcp is missing or cut.*delete"):
        train_rank(run, config)
    shard.write_bytes(content)
    (run.checkpoints / kept[-1] / "checkpoint.json").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint\.json cannot be read"):
        checkpoint.newest(run.checkpoints)

    # A folder without its final name is no checkpoint at all, and is swept away by the next one.
    (run.checkpoints / kept[-1]).rename(run.checkpoints / ".step=000000006.tmp")
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None and newest.step == 4
    train_rank(run, config)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == kept


def test_checkpoint_of_a_newer_format_is_refused(make_dataset, tmp_path: Path, one_rank) -> None:
    dataset = make_dataset().path
    config, run = make_config(dataset, max_epochs=1), Run(tmp_path / "run")
    train_rank(run, config)
    meta = run.checkpoints / "step=000000006" / "checkpoint.json"
    written = json.loads(meta.read_text())
    assert written.pop("version") == 1
    meta.write_text(json.dumps(written))  # as it was before there were versions
    assert checkpoint.newest(run.checkpoints).step == 6  # pyright: ignore[reportOptionalMemberAccess]
    meta.write_text(json.dumps({"version": 2}))
    with pytest.raises(
        CheckpointError,
        match=r"step=000000006 was made by a newer version .*checkpoint version 2.*delete the folder",
    ):
        train_rank(run, config)


def test_full_disk_leaves_the_checkpoints_before(make_dataset, tmp_path: Path, one_rank) -> None:
    dataset = make_dataset().path
    config, run, undisturbed = make_config(dataset, max_epochs=1), Run(tmp_path / "run"), Run(tmp_path / "undisturbed")
    fit_until(run, config, 4)
    before = {p.name: p.read_bytes() for p in run.checkpoints.glob("step=*/*")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_192, limits[1]))  # less than the weights take
    try:
        with pytest.raises(CheckpointError, match=r"step=000000006 was not saved \(.*\): make room"):
            train_rank(run, config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in run.checkpoints.iterdir()] == ["step=000000004"]
    assert {p.name: p.read_bytes() for p in run.checkpoints.glob("step=*/*")} == before
    train_rank(run, config)
    train_rank(undisturbed, config)
    ours, theirs = (final_model(of, config).state_dict() for of in (run, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_checkpoint_of_another_model_does_not_load(make_dataset, tmp_path: Path, one_rank) -> None:
    dataset = make_dataset().path
    config = make_config(dataset, max_epochs=1)
    run = Run(tmp_path / "run")
    train_rank(run, config)
    other = replace(config, model=replace(config.model, hard=MLPEncoder((32, 8))))
    with pytest.raises(CheckpointError, match="does not load into this model"):
        final_model(run, other)


def test_best_checkpoint_outlives_newer_ones(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (6, 7, 8, 9):
        (folder / f"step={step:09d}").mkdir(parents=True)
    checkpoint.prune(folder, keep=2, best_step=6)
    assert sorted(p.name for p in folder.iterdir()) == ["step=000000006", "step=000000008", "step=000000009"]
