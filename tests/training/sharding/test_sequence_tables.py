"""Tables that sequences look up: against naive look-ups, in every lane on one and two ranks, exported."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from torch import nn
from torchrec import KeyedJaggedTensor
from torchrec.distributed.batched_embedding_kernel import BaseBatchedEmbedding

from features.schema import FeatureSchema, HashEncoding, SequenceFeature, SparseFeature, Timestamp
from tests.ranks import on_two_ranks
from tests.stand_ins.tiny_dataset import TinyDataset, tiny_schema, write_tiny_dataset
from tests.training.fit.test_run import LANES as SHARED_LANES
from tests.training.fit.test_run import assert_same_weights, final_model, losses, make_config
from tests.training.fit.test_warm_start import finish
from training.config import (
    ASTAHistory,
    DenseOptimizer,
    DINHistory,
    FusedOptimizer,
    ShardingConfig,
    TablePrecision,
    TrainingConfig,
)
from training.data.batch import to_batch
from training.fit.run import Run, train_rank
from training.model.embedding import FieldEmbedding
from training.sharding import parallelize
from training.sharding.pooled_kernels import SingleIds
from training.sharding.tables import kernels_of
from training.ship.export import export
from training.ship.predict import Predictor
from training.ship.quantization import quantize

ROWS = {"item": 20, "cate": 6, "user": 9, "tags": 20, "clicks__gap": 4}
LENGTHS = {"item": [1, 1, 1, 0], "cate": [1, 1, 1, 0], "user": [1, 1, 1, 0], "tags": [2, 0, 3, 0]}
EVENTS = {"clicks": [3, 0, 5, 0], "buys": [0, 2, 1, 0]}


def make_schema(**own: Any) -> FeatureSchema:
    """Two sequences of which one has two parts and gaps; ``tags`` reads the table of ``item`` too."""
    return FeatureSchema(
        "click",
        (
            SparseFeature("user", HashEncoding(7)),
            SparseFeature("item", HashEncoding(18), **own),
            SparseFeature("tags", HashEncoding(18), separator=" ", table="item", **own),
            SparseFeature("cate", HashEncoding(4)),
        ),
        sequence=(
            SequenceFeature("clicks", ("item", "cate"), 6, gaps=(60, 3600), newest="first"),
            SequenceFeature("buys", ("item",), 4, newest="last"),
        ),
        timestamp={"column": "time"},  # pyright: ignore[reportArgumentType]
    )


def make_ids(schema: FeatureSchema) -> KeyedJaggedTensor:
    """Ids of three rows and one of padding."""
    rng = np.random.default_rng(0)
    lengths = [LENGTHS.get(f.name) or EVENTS[f.name.partition("__")[0]] for f in schema.id_features]
    sizes = {**ROWS, **{part.name: ROWS[part.part or part.name] for part in schema.parts}}
    values = [rng.integers(0, sizes[f.name], sum(n)) for f, n in zip(schema.id_features, lengths, strict=True)]
    return KeyedJaggedTensor(
        [f.name for f in schema.id_features],
        torch.from_numpy(np.concatenate(values)),
        lengths=torch.tensor(lengths).flatten(),
    )


@pytest.mark.parametrize("own", [{}, {"embedding_dim": 3}])
def test_look_ups_are_the_naive_ones(own: dict[str, Any]) -> None:
    schema = make_schema(**own)
    ids, widths = make_ids(schema), {"hard": 6, "first_order_hard": 1}
    embedding = FieldEmbedding(schema, ROWS, widths, init_std=1.0, gaps=("clicks",), pad_tables=True)
    streams, histories = embedding(ids, torch.zeros(4, 0), 3)
    state = embedding.state_dict()
    tables = {table.shared_name: table for table in embedding.tables if table.stream == "hard"}

    def look_up(table: str, of: list[int]) -> torch.Tensor:
        vectors = state[tables[table].tensor_name()][of, : tables[table].width]
        return vectors @ embedding.projections[f"{table}__hard"] if own and table == "item" else vectors

    jagged = {name: [row.tolist() for row in of.to_dense()][:3] for name, of in ids.to_dict().items()}
    for row in range(3):
        bag = look_up("item", jagged["tags"][row]).sum(0) / max(1, len(jagged["tags"][row]))
        fields = [look_up(name, jagged[name][row])[0] for name in ("user", "item", "cate")]
        expected = torch.stack([*fields[:2], bag, fields[2]])
        torch.testing.assert_close(streams["hard"][row], expected)
    assert streams["first_order_hard"].shape == (3, 4, 1)
    assert list(histories) == ["hard"] and list(histories["hard"]) == ["clicks", "buys"]
    for name, parts in (("clicks", ("item", "cate")), ("buys", ("item",))):
        found = histories["hard"][name]
        assert found.lengths_B.tolist() == EVENTS[name][:3]
        keys = [(f"{name}__{part}", part) for part in parts] + [("clicks__gap", "clicks__gap")] * (name == "clicks")
        events = [look_up(table, [i for row in jagged[key] for i in row]) for key, table in keys]
        torch.testing.assert_close(found.events_NE, torch.cat(events, dim=1))
        fields = [schema.sparse_names.index(part) for part in parts]
        torch.testing.assert_close(found.target_BK, streams["hard"][:, fields].flatten(1))


LANES: dict[str, dict[str, Any]] = {
    **{
        name: SHARED_LANES[name]
        for name in ("auto", "row_wise", "table_wise", "column_wise", "replicated", "averaged dense")
    },
    "dense": {"optimizer": DenseOptimizer(learning_rate=0.01, embedding_l2=0.01), "clip_gradient_norm": 1.0},
    "mixed": {"sharding": ShardingConfig("table_wise", {"device": "row_wise", "genres": "data_parallel"})},
    "regularised": {
        "sharding": ShardingConfig("row_wise"),
        "optimizer": FusedOptimizer("sgd", embedding_learning_rate=0.05, embedding_l2=0.1),
    },
    "pipelined": {"sharding": ShardingConfig("row_wise"), "pipelined": True},
    "plain": {"sharding": ShardingConfig("row_wise"), "pipelined": False},
}


def sequence_schema() -> FeatureSchema:
    """The tiny schema with two sequences: of its users and devices, with gaps and weights, and of devices alone."""
    return replace(
        tiny_schema(),
        sequence=(
            SequenceFeature("visits", ("user", "device"), 5, gaps=(60, 3600), newest="first", dwell_weights=True),
            SequenceFeature("devices", ("device",), 3, newest="last"),
        ),
        timestamp=Timestamp("time"),
    )


def make_sequence_config(dataset: Path, **changes: Any) -> TrainingConfig:
    config = make_config(dataset, **changes)
    sequences = {"visits": DINHistory((8,)), "devices": ASTAHistory()}
    return replace(config, model=replace(config.model, sequences=sequences))


def fit_lanes(folder: Path, dataset: Path) -> None:
    for lane, changes in LANES.items():
        train_rank(Run(folder / lane), make_sequence_config(dataset, **changes))


@pytest.fixture
def dataset(tmp_path: Path) -> TinyDataset:
    return write_tiny_dataset(tmp_path / "dataset", number_rows=True, schema=sequence_schema())


def test_two_ranks_equal_one_in_every_lane(dataset: TinyDataset, tmp_path: Path, one_rank) -> None:
    on_two_ranks(tmp_path, fit_lanes, tmp_path / "two", dataset.path)
    fit_lanes(tmp_path / "one", dataset.path)
    for lane, changes in LANES.items():
        config = make_sequence_config(dataset.path, **changes)
        alone, together = Run(tmp_path / "one" / lane), Run(tmp_path / "two" / lane)
        assert losses(together) == pytest.approx(losses(alone), rel=1e-6, abs=1e-6), lane
        assert_same_weights(together, alone, config, 1e-5)
        plan = {row["table"]: row["sharding"] for row in together.read("plan.json")}
        assert {"visits__gap__hard", "device__hard", "genres__hard"} <= plan.keys()
    states = [
        [
            final_model(Run(tmp_path / ranks / lane), make_sequence_config(dataset.path)).state_dict()
            for lane in ("pipelined", "plain")
        ]
        for ranks in ("one", "two")
    ]
    for piped, plain in states:
        assert all(torch.equal(piped[name], plain[name]) for name in plain)


@pytest.mark.parametrize("lane", ["row_wise", "pipelined", "replicated", "dense"])
def test_a_schema_whose_every_feature_is_a_part(lane: str, tmp_path: Path, one_rank) -> None:
    """TorchRec's collection of bags fails where it has no table."""
    schema = sequence_schema()
    schema = replace(schema, sparse=tuple(f for f in schema.sparse if f.name in ("user", "device")))
    dataset = write_tiny_dataset(tmp_path / "dataset", schema=schema)
    run, config = Run(tmp_path / "run"), make_sequence_config(dataset.path, **LANES[lane])
    metrics = train_rank(run, config)
    assert metrics["valid"]["logloss"] is not None
    model = final_model(run, config).eval()
    assert all(table.sequences for table in model.tables)
    batch = to_batch(dataset.columns["valid"], schema)
    with torch.no_grad():
        difference = quantize(model, "float16")(batch).fused - model(batch).fused
    assert 0 < float(difference.abs().max()) < 1e-2


def test_an_artifact_scores_as_the_trained_model(dataset: TinyDataset, tmp_path: Path, one_rank: None) -> None:
    names = ("user", "genres", "device", "age", "row", "price", "time")
    names += ("visits__user", "visits__device", "visits__time", "devices__device", "visits__dwell")
    values = [
        (
            "u",
            "a|b",
            "mobile",
            "33",
            "0.1",
            "2.5",
            "10000",
            "v w u",
            "mobile tablet none",
            "9990 9000 1",
            "mobile",
            "1 60 3e2",
        ),
        ("v", "", "tablet", "", "0.2", "", "10000", "", "", "", "", ""),
        ("", "c|a|u|d", "watch", "60", "", "7", "20000", "w", "watch", "19999", "watch tablet mobile tablet", "7"),
        (
            "a",
            "a",
            "",
            "18",
            "0.4",
            "-1",
            "30000",
            "a b c d e f g",
            "a b c d e f g",
            "7 6 5 4 3 2 1",
            "",
            "9 8 7 6 5 4 3000",
        ),
    ]
    rows: list[dict[str, str | None]] = [
        dict(zip(names, (value or None for value in row), strict=True)) for row in values
    ]
    log = tmp_path / "made.csv"
    log.write_text("\n".join(",".join(row) for row in (names, *values)) + "\n")
    run = finish(tmp_path / "run", make_sequence_config(dataset.path))
    scores = {}
    for tables in get_args(TablePrecision):
        export(run, tmp_path / tables, str(log), tables)
        predictor = Predictor.load(tmp_path / tables)
        scores[tables] = predictor.predict(rows)
        np.testing.assert_array_equal(predictor.predict(rows), Predictor.load(tmp_path / tables).predict(rows))
        assert len(set(scores[tables])) == len(rows)
    for tables in get_args(TablePrecision):
        assert (
            np.abs(scores[tables] - scores["float32"]).max() < {"float32": 1e-9, "float16": 1e-3, "int8": 1e-2}[tables]
        )
    weighted = Predictor.load(tmp_path / "float32").predict(
        [{**row, "visits__dwell": row["visits__time"]} for row in rows]
    )
    assert (weighted != scores["float32"]).tolist() == [True, False, False, True]
    none = dict.fromkeys(("visits__user", "visits__device", "visits__time", "visits__dwell"))
    without = [{**row, **none} for row in rows]
    changed = Predictor.load(tmp_path / "float32").predict(without)
    assert (changed != scores["float32"]).tolist() == [True, False, True, True]


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd"])
def test_kernels_with_single_ids_in_bags_change_no_result(
    tmp_path: Path, dataset: TinyDataset, one_rank: None, monkeypatch: pytest.MonkeyPatch, optimizer: Any
) -> None:
    """Un-pooled kernels of FBGEMM, which are slow on a CPU, give the same vectors and update rows alike."""
    config = make_sequence_config(dataset.path, optimizer=FusedOptimizer(optimizer, embedding_learning_rate=0.05))
    changed: list[nn.Module] = []
    pool = parallelize.pool_single_ids
    monkeypatch.setattr(parallelize, "pool_single_ids", changed.append)
    train_rank(Run(tmp_path / "un-pooled"), config)
    monkeypatch.setattr(parallelize, "pool_single_ids", lambda model: (changed.append(model), pool(model)))
    train_rank(Run(tmp_path / "pooled"), config)
    kernels = [
        [k.emb_module.pooling_mode for k in kernels_of(model) if isinstance(k, BaseBatchedEmbedding)]
        for model in changed
    ]
    assert {*kernels[0]} == {PoolingMode.NONE} and {*kernels[1]} == {PoolingMode.SUM} and kernels[1]
    # But for rounding: row-wise Adagrad's mean of a gradient's squares is summed in another order.
    np.testing.assert_allclose(losses(Run(tmp_path / "pooled")), losses(Run(tmp_path / "un-pooled")), rtol=1e-6)
    expected, found = (final_model(Run(tmp_path / name), config).state_dict() for name in ("un-pooled", "pooled"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_single_ids_are_shared_out_over_a_tables_features() -> None:
    single_ids = SingleIds([0, 0, 1, 2], [2, 2, 2])
    lengths = torch.tensor([1, 2, 3, 0, 0, 5, 0, 0])
    ids = KeyedJaggedTensor(["a", "b", "c", "d"], torch.arange(11), lengths=lengths)
    (in_bags,) = single_ids.put_into_bags(nn.Identity(), (ids,))
    assert in_bags.stride() == 5 and in_bags.values().equal(ids.values())
    assert in_bags.lengths().view(4, 5).tolist() == [[1] * 5, [1, 0, 0, 0, 0], [1] * 5, [0] * 5]
    vectors = torch.arange(22.0).view(11, 2)
    bags = torch.stack([vectors[:5], torch.cat([vectors[5:6], torch.zeros(4, 2)]), vectors[6:], torch.zeros(5, 2)], 1)
    assert single_ids.take_out(nn.Identity(), (), bags.flatten(1)).equal(vectors)


def test_no_ids_at_all_are_a_kernels_input_too() -> None:
    single_ids = SingleIds([0, 0], [4])
    ids = KeyedJaggedTensor(["a", "b"], torch.arange(0), lengths=torch.zeros(6, dtype=torch.long))
    (in_bags,) = single_ids.put_into_bags(nn.Identity(), (ids,))
    assert in_bags.stride() == 1
    assert single_ids.take_out(nn.Identity(), (), torch.zeros(1, 8)).shape == (0, 4)
